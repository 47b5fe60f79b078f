//! Owns the streams of a pass that wait in host memory: the forward sends each out once it is written, the backward has each brought back before it
//! comes to it, both while the GPU computes. On the GPU they take turns in a few places, of which there may be enough for all.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, result};

use super::gpu::{Context, CudaError, Gpu};
use super::memory::{Matrix, Pinned};

/// Places on the GPU: the one that is read, the one that is written, and two on their way.
pub(super) const PLACES: usize = 4;

/// Streams in host memory, and who waits for whom. Stream `i` lies in place `i` mod [`PLACES`].
pub(super) struct Offload {
    computes: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    _host: Pinned,
    /// Where host memory begins.
    at: u64,
    /// What a stream takes in host memory. Bytes.
    size: usize,
    n_streams: usize,
    /// Of each stream: it was written or read for the last time; it left, or came back.
    computed: Vec<CudaEvent>,
    copied: Vec<CudaEvent>,
}

impl Offload {
    /// Room for so many streams of `size` bytes.
    /// Errors: `OutOfHostMemory`, `Driver`.
    pub fn new(gpu: &Gpu, n_streams: usize, size: usize) -> Result<Self, CudaError> {
        const WHAT: &str = "making what copies streams";
        let computes = Arc::clone(gpu.stream());
        let context = computes.context();
        let events = || (0..n_streams).map(|_| context.new_event(None)).collect();
        let (computed, copied): (Result<_, _>, Result<_, _>) = (events(), events());
        let host = Pinned::new(gpu, Self::n_sent(n_streams) * size)?;
        Ok(Self {
            at: host.at()?,
            _host: host,
            copies: context.new_stream().context(WHAT)?,
            computed: computed.context(WHAT)?,
            copied: copied.context(WHAT)?,
            computes,
            size,
            n_streams,
        })
    }

    /// What it takes of host memory. Bytes.
    pub fn host_bytes(n_streams: usize, size: usize) -> u64 {
        (Self::n_sent(n_streams) * size) as u64
    }

    /// Those that leave: the last ones are still in their places when the backward begins.
    fn n_sent(n_streams: usize) -> usize {
        n_streams.saturating_sub(PLACES)
    }

    /// What is computed next may write stream `i`.
    pub fn before_writing(&self, i: usize) -> Result<(), CudaError> {
        match i.checked_sub(PLACES) {
            Some(before) => self.wait_for(before),
            None => Ok(()),
        }
    }

    /// Stream `i`, here `on_gpu`, was written.
    pub fn was_written(&self, i: usize, on_gpu: Matrix) -> Result<(), CudaError> {
        if i >= Self::n_sent(self.n_streams) {
            return Ok(());
        }
        self.after_computing(i)?;
        let bytes = self.checked(on_gpu);
        // SAFETY: of the size that `new` was told; nothing but these copies, which are in order, reads or writes it.
        let to = unsafe { std::slice::from_raw_parts_mut(self.at(i) as *mut u8, bytes) };
        // SAFETY: `on_gpu` is not written before `before_writing` of who has its place next.
        unsafe { result::memcpy_dtoh_async(to, on_gpu.at, self.copies.cu_stream()) }
            .context("sending a stream to host memory")?;
        self.copied[i]
            .record(&self.copies)
            .context("sending a stream")
    }

    /// What is computed next may read stream `i`.
    pub fn before_reading(&self, i: usize) -> Result<(), CudaError> {
        match i < Self::n_sent(self.n_streams) {
            true => self.wait_for(i),
            false => Ok(()),
        }
    }

    /// Stream `i` was read for the last time: the one whose turn is next comes to its place, `on_gpu`.
    pub fn was_read(&self, i: usize, on_gpu: Matrix) -> Result<(), CudaError> {
        let Some(next) = i.checked_sub(PLACES) else {
            return Ok(());
        };
        self.after_computing(i)?;
        // SAFETY: as in `was_written`.
        let from =
            unsafe { std::slice::from_raw_parts(self.at(next) as *const u8, self.checked(on_gpu)) };
        // SAFETY: nothing reads or writes `on_gpu` before `before_reading` of `next`.
        unsafe { result::memcpy_htod_async(on_gpu.at, from, self.copies.cu_stream()) }
            .context("bringing a stream back")?;
        self.copied[next]
            .record(&self.copies)
            .context("bringing a stream back")
    }

    /// What is computed next waits for all that is on its way.
    pub fn settle(&self) -> Result<(), CudaError> {
        self.computes
            .join(&self.copies)
            .context("waiting for streams")
    }

    fn checked(&self, stream: Matrix) -> usize {
        let bytes = stream.size_bytes();
        assert!(
            bytes <= self.size,
            "a stream larger than its room — a bug above"
        );
        bytes
    }

    fn at(&self, i: usize) -> u64 {
        self.at + (i * self.size) as u64
    }

    fn wait_for(&self, i: usize) -> Result<(), CudaError> {
        self.computes
            .wait(&self.copied[i])
            .context("waiting for a stream")
    }

    fn after_computing(&self, i: usize) -> Result<(), CudaError> {
        const WHAT: &str = "ordering the copies of streams";
        self.computed[i].record(&self.computes).context(WHAT)?;
        self.copies.wait(&self.computed[i]).context(WHAT)
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        // Its places on the GPU are freed next. A failure is told by whoever uses the GPU next.
        let _ = self.copies.synchronize();
    }
}
