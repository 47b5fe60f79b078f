//! Owns steps that were recorded: the hundreds of kernels of a step are started as one, which matters where each takes a few microseconds. A recording
//! holds addresses and sizes as they were, so only a step of the very same form may use it. It does not know what a step is.

use std::collections::HashMap;
use std::hash::Hash;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::gpu::{Context, CudaError, Gpu};

/// Forms that are known at a time: batches of a busy server and the lengths they pass through. A recording takes about a megabyte.
const MOST: usize = 64;

/// Recorded steps by their form.
pub(super) struct Graphs<K> {
    of: HashMap<K, Known>,
    clock: u64,
}

/// Recording takes as long as several steps: it is done for what comes for the third time.
const RECORD_AT: u32 = 3;

/// A form that was met.
struct Known {
    how: How,
    used: u64,
}

enum How {
    Met(u32),
    Recorded(Recording),
    /// It could not be recorded, on a card that is full perhaps, and is started kernel by kernel.
    Never,
}

struct Recording(CudaGraph);

// SAFETY: it is launched by who has `&mut Graphs`, one thread at a time; the driver asks for no more.
unsafe impl Send for Recording {}

impl<K> Default for Graphs<K> {
    fn default() -> Self {
        Self {
            of: HashMap::new(),
            clock: 0,
        }
    }
}

impl<K: Hash + Eq + Clone> Graphs<K> {
    /// Forgets all: something lies elsewhere now.
    pub fn clear(&mut self) {
        self.of.clear();
    }

    /// Starts the kernels that `start` starts for this form, as one where it comes often. No other thread may use the stream of `gpu`
    /// meanwhile: what it started would be recorded, too.
    /// Errors: those of `start`.
    pub fn run(
        &mut self,
        gpu: &Gpu,
        form: &K,
        start: impl Fn() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        self.clock += 1;
        if !self.of.contains_key(form) {
            self.make_room();
        }
        let known = self.of.entry(form.clone()).or_insert(Known {
            how: How::Met(0),
            used: 0,
        });
        known.used = self.clock;
        if let How::Met(times) = &mut known.how {
            *times += 1;
            if *times < RECORD_AT {
                return start();
            }
            known.how = record(gpu, &start).map_or(How::Never, How::Recorded);
        }
        if let How::Recorded(Recording(graph)) = &known.how {
            if graph.launch().is_ok() {
                return Ok(());
            }
            known.how = How::Never;
        }
        start()
    }

    /// Forgets the form that was used longest ago, where there are too many.
    fn make_room(&mut self) {
        if self.of.len() < MOST {
            return;
        }
        let oldest = self.of.iter().min_by_key(|(_, known)| known.used);
        if let Some(form) = oldest.map(|(form, _)| form.clone()) {
            self.of.remove(&form);
        }
    }
}

/// What `start` starts, which is not run by this.
fn record(
    gpu: &Gpu,
    start: impl FnOnce() -> Result<(), CudaError>,
) -> Result<Recording, CudaError> {
    const WHAT: &str = "recording a step";
    let stream = gpu.stream();
    // Other threads go on with what they do, a training that asks for memory too.
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).context(WHAT)?;
    let started = start();
    let graph = stream
        .end_capture(CUgraphInstantiate_flags(0))
        .context(WHAT);
    started?;
    let graph = graph?.expect("a stream that was recorded has a graph — a bug here");
    Ok(Recording(graph))
}
