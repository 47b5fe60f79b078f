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

/// A form that was met.
struct Known {
    /// Recording takes as long as several steps: it is done for what comes again.
    graph: Option<Recording>,
    used: u64,
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

    /// Starts the kernels that `start` starts for this form: from the second time on as one.
    /// Errors: those of `start`; `Driver`.
    pub fn run(
        &mut self,
        gpu: &Gpu,
        form: &K,
        start: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        self.clock += 1;
        let Some(known) = self.of.get_mut(form) else {
            self.make_room();
            let (graph, used) = (None, self.clock);
            self.of.insert(form.clone(), Known { graph, used });
            return start();
        };
        known.used = self.clock;
        let Recording(graph) = match &mut known.graph {
            Some(recording) => recording,
            none => none.insert(record(gpu, start)?),
        };
        graph.launch().context("starting a recorded step")
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
