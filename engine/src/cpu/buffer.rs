//! Owns aligned memory for weights and activations; knows nothing of what the numbers mean.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::{Advice, MmapMut};

/// From this size on a buffer asks the kernel for huge pages: fewer TLB misses while weights stream. Bytes.
const HUGE_PAGE_FROM_BYTES: usize = 4 << 20;

const LINE_BYTES: usize = 64;

/// No memory was left for a buffer of `size_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a buffer of {size_bytes} bytes")]
pub struct OutOfMemory {
    pub size_bytes: usize,
}

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

enum Storage {
    Heap(Vec<Line>),
    Mapped(MmapMut),
}

/// A growable block of numbers, aligned to 64 bytes.
/// Invariant: the storage holds at least `len` initialised values.
pub struct Buffer<T = f32> {
    storage: Storage,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Self {
            storage: Storage::Heap(Vec::new()),
            len: 0,
            of: PhantomData,
        }
    }
}

impl<T: Pod> Buffer<T> {
    /// Makes a buffer of `len` zeros.
    /// Errors: `OutOfMemory`.
    pub fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        let size_bytes = len.checked_mul(size_of::<T>()).ok_or(OutOfMemory {
            size_bytes: usize::MAX,
        })?;
        let storage = if size_bytes >= HUGE_PAGE_FROM_BYTES {
            let map = MmapMut::map_anon(size_bytes).map_err(|_| OutOfMemory { size_bytes })?;
            // Advice only: a kernel without huge pages refuses it and the buffer works all the same.
            #[cfg(target_os = "linux")]
            let _ = map.advise(Advice::HugePage);
            Storage::Mapped(map)
        } else {
            let n_lines = size_bytes.div_ceil(LINE_BYTES);
            let mut lines = Vec::new();
            lines
                .try_reserve_exact(n_lines)
                .map_err(|_| OutOfMemory { size_bytes })?;
            lines.resize(n_lines, Line([0; LINE_BYTES]));
            Storage::Heap(lines)
        };
        Ok(Self {
            storage,
            len,
            of: PhantomData,
        })
    }

    /// Makes the buffer hold `len` values; those it already held may be lost or kept.
    /// Memory is only ever grown, so a training loop settles after its largest batch.
    /// Errors: `OutOfMemory`.
    pub fn ensure(&mut self, len: usize) -> Result<(), OutOfMemory> {
        let capacity_bytes = match &self.storage {
            Storage::Heap(lines) => lines.len() * LINE_BYTES,
            Storage::Mapped(map) => map.len(),
        };
        if capacity_bytes / size_of::<T>() >= len {
            self.len = len;
            return Ok(());
        }
        // The old block goes first: at the peak only one of the two exists.
        *self = Self::default();
        *self = Self::zeroed(len)?;
        Ok(())
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let start = match &self.storage {
            Storage::Heap(lines) => lines.as_ptr().cast::<T>(),
            Storage::Mapped(map) => map.as_ptr().cast::<T>(),
        };
        // SAFETY: the storage holds at least `len` initialised values (the invariant), is aligned to 64 bytes or a page,
        // and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let start = match &mut self.storage {
            Storage::Heap(lines) => lines.as_mut_ptr().cast::<T>(),
            Storage::Mapped(map) => map.as_mut_ptr().cast::<T>(),
        };
        // SAFETY: as in `deref`; `&mut self` makes the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_buffers_are_zero_and_aligned() {
        for len in [0, 1, 17, 3 << 20] {
            let buffer = Buffer::<f32>::zeroed(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
            assert!(buffer.iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn ensure_grows_and_keeps_memory_when_it_shrinks() {
        let mut buffer = Buffer::<f32>::zeroed(100).unwrap();
        buffer.ensure(10_000).unwrap();
        assert_eq!(buffer.len(), 10_000);
        let start = buffer.as_ptr();
        buffer.ensure(5).unwrap();
        assert_eq!((buffer.len(), buffer.as_ptr()), (5, start));
    }
}
