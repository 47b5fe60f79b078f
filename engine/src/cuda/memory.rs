//! Owns memory on the GPU, and the division of one piece of it among matrices.

use cudarc::driver::{CudaSlice, DevicePtr, DriverError, PinnedHostSlice, result, sys};

use super::gpu::{Context, CudaError, Gpu};

/// Every matrix begins at a multiple of this, and every row of one that `Plan::matrix` lays out. Bytes.
const ALIGNMENT: usize = 128;

/// The number format of a matrix on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Format {
    Bf16,
    F32,
}

impl Format {
    pub fn bytes(self) -> usize {
        match self {
            Format::Bf16 => 2,
            Format::F32 => 4,
        }
    }
}

/// Where a row-major matrix lies, or a part of one. It does not own the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrix {
    pub at: u64,
    pub format: Format,
    pub rows: usize,
    pub columns: usize,
    /// From row to row. Elements.
    pub pitch: usize,
}

impl Matrix {
    /// A bf16 matrix whose rows begin aligned.
    pub fn aligned(at: u64, rows: usize, columns: usize) -> Self {
        let format = Format::Bf16;
        Self {
            at,
            format,
            rows,
            columns,
            pitch: columns.next_multiple_of(ALIGNMENT / format.bytes()),
        }
    }

    /// With what lies between its rows.
    pub fn size_bytes(self) -> usize {
        self.rows * self.pitch * self.format.bytes()
    }

    /// Some of its columns.
    pub fn columns(self, from: usize, to: usize) -> Self {
        assert!(
            from <= to && to <= self.pitch,
            "columns outside of the pitch — a bug above"
        );
        Self {
            at: self.at + (from * self.format.bytes()) as u64,
            columns: to - from,
            ..self
        }
    }

    /// Some of its rows.
    pub fn rows(self, from: usize, to: usize) -> Self {
        assert!(
            from <= to && to <= self.rows,
            "rows outside of a matrix — a bug above"
        );
        Self {
            at: self.at + (from * self.pitch * self.format.bytes()) as u64,
            rows: to - from,
            ..self
        }
    }
}

/// Divides a piece of memory. With no memory it only counts: what a plan says is what it takes.
pub(super) struct Plan {
    base: u64,
    used: usize,
}

impl Plan {
    /// A plan that only counts.
    pub fn measure() -> Self {
        Self { base: 0, used: 0 }
    }

    pub fn over(memory: &Memory) -> Self {
        Self {
            base: memory.at(),
            used: 0,
        }
    }

    /// Bytes given away so far.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Goes on from a place that is given already, for what takes turns with it.
    pub fn go_to(&mut self, used: usize) {
        self.used = used;
    }

    /// Room for `n` bytes.
    pub fn bytes(&mut self, n: usize) -> u64 {
        let at = self.base + self.used as u64;
        self.used += n.next_multiple_of(ALIGNMENT);
        at
    }

    /// Room for `n` numbers of four bytes.
    pub fn words(&mut self, n: usize) -> u64 {
        self.bytes(4 * n)
    }

    /// A matrix whose rows have room for `columns` and begin aligned.
    pub fn matrix(&mut self, format: Format, rows: usize, columns: usize) -> Matrix {
        let pitch = columns.next_multiple_of(ALIGNMENT / format.bytes());
        Matrix {
            at: self.bytes(rows * pitch * format.bytes()),
            format,
            rows,
            columns,
            pitch,
        }
    }

    /// A matrix without room between its rows.
    pub fn dense(&mut self, format: Format, rows: usize, columns: usize) -> Matrix {
        Matrix {
            at: self.bytes(rows * columns * format.bytes()),
            format,
            rows,
            columns,
            pitch: columns,
        }
    }
}

/// One piece of memory, freed when dropped.
pub(super) struct Memory {
    slice: CudaSlice<u8>,
    at: u64,
    /// The GPU that frees it.
    _gpu: Gpu,
}

impl Memory {
    /// Errors: `OutOfMemory`, `Driver`.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, CudaError> {
        let stream = gpu.stream();
        stream.context().bind_to_thread().context("its context")?;
        // SAFETY: whoever reads the memory has written it first.
        let allocate = || unsafe { stream.alloc::<u8>(bytes.max(1)) };
        let is_full = |error: &DriverError| error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let slice = allocate().or_else(|error| {
            // What was freed comes back once what was asked before is done.
            if is_full(&error) && gpu.synchronize().is_ok() {
                return allocate();
            }
            Err(error)
        });
        let slice = slice.map_err(|source| match gpu.memory() {
            Ok((free, _)) if is_full(&source) => CudaError::OutOfMemory {
                needed: bytes as u64,
                free,
            },
            _ => CudaError::Driver {
                what: "allocating memory",
                source,
            },
        })?;
        let at = slice.device_ptr(stream).0;
        Ok(Self {
            slice,
            at,
            _gpu: gpu.clone(),
        })
    }

    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn len(&self) -> usize {
        self.slice.len()
    }
}

/// Host memory that the GPU copies from and to at full speed.
pub(super) struct Pinned {
    bytes: PinnedHostSlice<u8>,
}

impl Pinned {
    /// Room for `len` bytes. Errors: `OutOfHostMemory`, `Driver`.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self, CudaError> {
        let context = gpu.stream().context();
        context.bind_to_thread().context("its context")?;
        // SAFETY: whoever reads the memory has written it first.
        let bytes = unsafe { context.alloc_pinned_with_flags(len.max(1), 0) };
        match bytes {
            Ok(bytes) => Ok(Self { bytes }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(CudaError::OutOfHostMemory { needed: len as u64 })
            }
            Err(source) => Err(CudaError::Driver {
                what: "allocating memory that it copies to",
                source,
            }),
        }
    }

    /// Where it lies, for the host and for the GPU.
    /// Errors: `Driver`.
    pub fn at(&self) -> Result<u64, CudaError> {
        Ok(self.bytes.as_ptr().context("reading from it")? as u64)
    }

    /// The one in `place`, with room for `len` numbers: grown where it is too small.
    /// Errors: `Driver`.
    pub fn with_room<'a, T>(
        place: &'a mut Option<Self>,
        gpu: &Gpu,
        len: usize,
    ) -> Result<&'a mut Self, CudaError> {
        let needed = len * size_of::<T>();
        if place
            .as_ref()
            .is_none_or(|pinned| pinned.bytes.len() < needed)
        {
            *place = None;
            *place = Some(Self::new(gpu, needed.next_power_of_two())?);
        }
        Ok(place.as_mut().expect("made above where it was not there"))
    }

    /// The first `len` numbers.
    /// Errors: `Driver`.
    pub fn numbers<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &mut self,
        len: usize,
    ) -> Result<&mut [T], CudaError> {
        let bytes = self.bytes.as_mut_slice().context("copying from it")?;
        Ok(bytemuck::cast_slice_mut(&mut bytes[..len * size_of::<T>()]))
    }
}

/// Numbers that [`download_large`] has on their way at a time.
const PIECE: usize = 4 << 20;

/// What [`download_large`] copies through.
/// Errors: `Driver`.
pub(super) fn staging(gpu: &Gpu) -> Result<Pinned, CudaError> {
    Pinned::new(gpu, 2 * PIECE * size_of::<f32>())
}

/// As [`download`], at full speed, through what [`staging`] made.
/// Errors: `Driver`.
pub(super) fn download_large(
    gpu: &Gpu,
    from: u64,
    to: &mut [f32],
    staging: &mut Pinned,
) -> Result<(), CudaError> {
    let halves = staging.numbers::<f32>(2 * PIECE)?.split_at_mut(PIECE);
    let (mut arriving, mut arrived) = halves;
    let stream = gpu.stream();
    let mut pieces = to.chunks_mut(PIECE).enumerate();
    let mut last: Option<&mut [f32]> = None;
    loop {
        let next = pieces.next();
        if let Some((i, piece)) = &next {
            let at = from + (i * PIECE * size_of::<f32>()) as u64;
            let to: &mut [u8] = bytemuck::cast_slice_mut(&mut arriving[..piece.len()]);
            // SAFETY: the caller planned `from` with as many numbers; the stream is waited for before they are read.
            unsafe { result::memcpy_dtoh_async(to, at, stream.cu_stream()) }
                .context("copying from it")?;
        }
        // Meanwhile the piece before goes where it belongs.
        if let Some(piece) = last.take() {
            copy_on_threads(&arrived[..piece.len()], piece);
        }
        let Some((_, piece)) = next else {
            return Ok(());
        };
        gpu.synchronize()?;
        (arriving, arrived) = (arrived, arriving);
        last = Some(piece);
    }
}

/// Pages that nobody touched before come one by one: several threads ask for them.
fn copy_on_threads(from: &[f32], to: &mut [f32]) {
    const OF_ONE: usize = PIECE / 8;
    std::thread::scope(|scope| {
        for (to, from) in to.chunks_mut(OF_ONE).zip(from.chunks(OF_ONE)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
}

/// Copies numbers to the GPU; `from` may change once this returns, or where it is pinned once the stream was waited for.
/// Errors: `Driver`.
pub(super) fn upload<T: bytemuck::NoUninit>(
    gpu: &Gpu,
    to: u64,
    from: &[T],
) -> Result<(), CudaError> {
    let bytes: &[u8] = bytemuck::cast_slice(from);
    if bytes.is_empty() {
        return Ok(());
    }
    let stream = gpu.stream();
    stream.context().bind_to_thread().context("its context")?;
    // SAFETY: the caller planned `to` with room for `from`; pageable memory is read before the call returns, and who gives pinned memory waits.
    unsafe { result::memcpy_htod_async(to, bytes, stream.cu_stream()) }.context("copying to it")
}

/// Copies numbers from the GPU, once what was asked before is done.
/// Errors: `Driver`.
pub(super) fn download<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
    gpu: &Gpu,
    from: u64,
    to: &mut [T],
) -> Result<(), CudaError> {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
    if bytes.is_empty() {
        return Ok(());
    }
    let stream = gpu.stream();
    stream.context().bind_to_thread().context("its context")?;
    // SAFETY: the caller planned `from` with as many numbers; the stream is waited for below.
    unsafe { result::memcpy_dtoh_async(bytes, from, stream.cu_stream()) }
        .context("copying from it")?;
    gpu.synchronize()
}

/// Fills bytes with zeros.
/// Errors: `Driver`.
pub(super) fn clear(gpu: &Gpu, at: u64, bytes: usize) -> Result<(), CudaError> {
    let stream = gpu.stream();
    stream.context().bind_to_thread().context("its context")?;
    // SAFETY: of the caller, who planned the memory.
    unsafe { result::memset_d8_async(at, 0, bytes, stream.cu_stream()) }.context("clearing memory")
}
