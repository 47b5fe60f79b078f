//! Owns a GPU: its context, streams on each of which everything runs in order, the kernels, and plans of products.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::{
    self, CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result, sys,
};
use cudarc::nvrtc::Ptx;

use super::kernels;
use super::matmul::Matmuls;
use super::ops::{self, AttentionShape, HEAD_DIMS};
use super::serve_ops;

/// Why a GPU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error("no NVIDIA driver is installed: libcuda cannot be opened")]
    NoDriver,
    #[error(
        "cuBLASLt cannot be opened: install the CUDA 13 runtime libraries, or `pip install nvidia-cublas` and put its lib \
         folder into LD_LIBRARY_PATH"
    )]
    NoCublasLt,
    #[error("the GPU has no room for {needed} bytes; {free} are free")]
    OutOfMemory { needed: u64, free: u64 },
    #[error("the host has no room for {needed} bytes that the GPU can reach")]
    OutOfHostMemory { needed: u64 },
    #[error("the GPU failed: {what}: {source}")]
    Driver {
        what: &'static str,
        source: DriverError,
    },
    #[error("cuBLASLt failed: {what}: {source}")]
    CublasLt {
        what: String,
        source: cudarc::cublaslt::result::CublasError,
    },
    #[error("{0} cannot be computed on a GPU yet; use the CPU")]
    Unsupported(String),
}

/// Says what failed.
pub(super) trait Context<T> {
    fn context(self, what: &'static str) -> Result<T, CudaError>;
}

impl<T> Context<T> for Result<T, DriverError> {
    fn context(self, what: &'static str) -> Result<T, CudaError> {
        self.map_err(|source| CudaError::Driver { what, source })
    }
}

/// A GPU that is ready, and the stream on which this handle's work runs in order; copies share both.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    card: Arc<Card>,
    stream: Arc<CudaStream>,
    /// Made when the first product asks for them: generation has products of its own.
    matmuls: OnceLock<Matmuls>,
    profile: Mutex<Option<Profile>>,
}

/// What all handles of a GPU share.
struct Card {
    kernels: HashMap<&'static str, CudaFunction>,
    attention: AttentionShapes,
    name: String,
    n_multiprocessors: u32,
    capability: (i32, i32),
}

/// Kernels, by the beginnings of their names, that wait for those before them (`wait_for_kernels_before` in `common.cuh`), or need not: all that a step of
/// generation runs, but what unpacks codes.
static EARLY: [&str; 14] = [
    "decode_attention",
    "draw_token",
    "embed",
    "glu_forward",
    "grouped_lora",
    "kv_append",
    "linear_",
    "norm_add",
    "norm_factors",
    "norm_forward",
    "qk_norm_forward",
    "rope_angles",
    "rope_rotate",
    "skinny_linear",
];

/// Whether a kernel waits by itself for those before it, so that it may begin before they have ended.
fn may_begin_early(name: &str) -> bool {
    EARLY.iter().any(|early| name.starts_with(early))
}

/// Milliseconds and calls of each kind of work.
type Profile = HashMap<String, (f64, usize)>;

/// What the attention kernels take, in the order of [`HEAD_DIMS`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AttentionShapes {
    pub forward: [AttentionShape; 4],
    pub backward_kv: [AttentionShape; 4],
    pub backward_q: [AttentionShape; 4],
}

/// How many blocks of how many threads, and the dynamic shared memory of each in bytes.
#[derive(Clone, Copy)]
pub(super) struct Launch {
    pub grid: (u32, u32, u32),
    pub block: u32,
    pub shared: u32,
    /// Blocks of a cluster, along y; 1: no clusters.
    pub cluster: u32,
    /// Whether it waits until those before it have ended, also where it could begin early: it reads something of theirs before it waits by itself.
    pub waits: bool,
}

impl Launch {
    /// Blocks in a row without dynamic shared memory.
    pub fn blocks(n: usize, block: u32) -> Self {
        Self {
            grid: (n as u32, 1, 1),
            block,
            shared: 0,
            cluster: 1,
            waits: false,
        }
    }

    /// Enough blocks for `n` threads.
    pub fn threads(n: usize, block: u32) -> Self {
        Self::blocks(n.div_ceil(block as usize), block)
    }
}

impl Gpu {
    /// How many GPUs there are; 0 without a driver.
    pub fn count() -> usize {
        if !Self::has_driver() || result::init().is_err() {
            return 0;
        }
        result::device::get_count().map_or(0, |n| n as usize)
    }

    /// Whether there is a driver, with or without a GPU that it sees.
    pub fn has_driver() -> bool {
        // SAFETY: only tries to open the library.
        unsafe { driver::sys::is_culib_present() }
    }

    /// Opens the GPU `ordinal`.
    /// Errors: `NoDriver`, `NoCublasLt`, `Driver`.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        if !Self::has_driver() {
            return Err(CudaError::NoDriver);
        }
        // SAFETY: only tries to open the library.
        if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
            return Err(CudaError::NoCublasLt);
        }
        let context = CudaContext::new(ordinal).context("opening it")?;
        // SAFETY: memory is used on one stream in order, or, a base's, after it was waited for; whoever frees that has waited for those who read it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().context("making a stream")?;
        let capability = context.compute_capability().context("reading its kind")?;
        let n =
            context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let mut functions = HashMap::new();
        let mut attention = AttentionShapes::default();
        for module in kernels::modules() {
            let image = match module.image(capability) {
                kernels::Image::Cubin(bytes) => Ptx::from_binary(bytes.to_vec()),
                kernels::Image::Ptx(text) => Ptx::from_src(text),
            };
            let loaded = context.load_module(image).context("loading kernels")?;
            for name in module.kernels() {
                functions.insert(name, loaded.load_function(name).context(name)?);
            }
            for (name, shapes, kernels) in [
                (
                    "attention_forward_shapes",
                    &mut attention.forward,
                    &ops::FORWARD,
                ),
                (
                    "attention_backward_kv_shapes",
                    &mut attention.backward_kv,
                    &ops::BACKWARD_KV,
                ),
                (
                    "attention_backward_q_shapes",
                    &mut attention.backward_q,
                    &ops::BACKWARD_Q,
                ),
            ] {
                if module.has_global(name) {
                    *shapes = read_shapes(&loaded, &stream, name)?;
                    allow_shared_memory(&functions, kernels, shapes)?;
                }
            }
        }
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        for (name, shared) in serve_ops::large() {
            // A card that has not as much cannot run it: this is told when it is started.
            let _ = functions[name].set_attribute(limit, shared as i32);
        }
        let card = Card {
            kernels: functions,
            attention,
            name: context.name().context("reading its name")?,
            n_multiprocessors: n.context("reading its size")? as u32,
            capability,
        };
        let gpu = Self::with(Arc::new(card), stream);
        // A library that cannot be used is told here.
        gpu.matmuls()?;
        Ok(gpu)
    }

    /// The same GPU with a stream of its own, whose kernels begin before those of other streams that wait.
    /// Errors: `Driver`.
    pub fn going_first(&self) -> Result<Self, CudaError> {
        let context = self.0.stream.context();
        context.bind_to_thread().context("its context")?;
        let (_, first) = result::stream::get_priority_range().context("asking for priorities")?;
        let stream = context.new_stream_with_priority(first);
        let stream = stream.context("making a stream")?;
        Ok(Self::with(Arc::clone(&self.0.card), stream))
    }

    fn with(card: Arc<Card>, stream: Arc<CudaStream>) -> Self {
        Self(Arc::new(Inner {
            card,
            matmuls: OnceLock::new(),
            profile: Mutex::default(),
            stream,
        }))
    }

    /// The name that the driver gives it.
    pub fn name(&self) -> &str {
        &self.0.card.name
    }

    /// Bytes that are free, and bytes that there are.
    /// Errors: `Driver`.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = self
            .0
            .stream
            .context()
            .mem_get_info()
            .context("its memory")?;
        Ok((free as u64, total as u64))
    }

    /// Compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.0.card.capability
    }

    pub(super) fn n_multiprocessors(&self) -> u32 {
        self.0.card.n_multiprocessors
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.0.stream
    }

    pub(super) fn attention(&self) -> &AttentionShapes {
        &self.0.card.attention
    }

    /// Rows that a tile of the attention's forward, of its backward to keys and values, and of that to queries has.
    pub(super) fn tile_rows(&self, head_dim: usize) -> [usize; 3] {
        let variant = HEAD_DIMS.iter().position(|&dim| dim == head_dim);
        let variant = variant.expect("`base` lets no other heads pass — a bug there");
        let shapes = self.attention();
        [shapes.forward, shapes.backward_kv, shapes.backward_q].map(|of| of[variant].tile)
    }

    /// Errors: `CublasLt`, `Driver`.
    pub(super) fn matmuls(&self) -> Result<&Matmuls, CudaError> {
        if let Some(made) = self.0.matmuls.get() {
            return Ok(made);
        }
        let made = Matmuls::new(&self.0.stream)?;
        Ok(self.0.matmuls.get_or_init(|| made))
    }

    /// From here on everything is waited for and timed by its name.
    pub fn begin_profile(&self) {
        *self.profile() = Some(Profile::new());
    }

    /// Milliseconds and calls by name since `begin_profile`.
    pub fn end_profile(&self) -> Vec<(String, f64, usize)> {
        let profile = self.profile().take().unwrap_or_default();
        profile
            .into_iter()
            .map(|(name, (ms, n))| (name, ms, n))
            .collect()
    }

    /// Whether kernels are timed one by one.
    pub(super) fn is_profiled(&self) -> bool {
        self.profile().is_some()
    }

    fn profile(&self) -> std::sync::MutexGuard<'_, Option<Profile>> {
        self.0
            .profile
            .lock()
            .expect("no holder panics — a bug here")
    }

    /// Runs what starts work on the GPU; where a profile is taken, it is timed by two events around it.
    pub(super) fn timed(
        &self,
        name: impl FnOnce() -> String,
        start: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if !self.is_profiled() {
            return start();
        }
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = || self.0.stream.record_event(flags).context("timing");
        let before = event()?;
        start()?;
        let after = event()?;
        after.synchronize().context("timing")?;
        let ms = before.elapsed_ms(&after).context("timing")?;
        if let Some(profile) = &mut *self.profile() {
            let entry = profile.entry(name()).or_default();
            (entry.0, entry.1) = (entry.0 + f64::from(ms), entry.1 + 1);
        }
        Ok(())
    }

    /// Waits until everything that was asked is done.
    /// Errors: `Driver`, also for what failed before.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.0.stream.synchronize().context("what it was computing")
    }

    /// Starts a kernel.
    /// Safety: `args` point at values of the kernel's parameters, in order, and those at memory that is as large as the kernel
    /// takes it to be.
    pub(super) unsafe fn launch(
        &self,
        name: &'static str,
        launch: Launch,
        args: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let (x, y, z) = launch.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let mut attributes = [
            sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue {
                    programmaticStreamSerializationAllowed: i32::from(
                        !launch.waits && may_begin_early(name),
                    ),
                },
            },
            sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                        x: 1,
                        y: launch.cluster,
                        z: 1,
                    },
                },
            },
        ];
        // Only Hopper's machine code knows these.
        let n_attributes = match (self.capability() == (9, 0), launch.cluster) {
            (false, _) => 0,
            (true, 1) => 1,
            (true, _) => 2,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.0.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: n_attributes,
        };
        let function = self.0.card.kernels[name].cu_function();
        let start = || {
            // SAFETY: of the caller; the function and the stream live as long as `self`.
            let started = unsafe {
                sys::cuLaunchKernelEx(&config, function, args.as_mut_ptr(), std::ptr::null_mut())
            };
            started.result().context(name)
        };
        self.timed(|| name.to_owned(), start)
    }
}

/// Rows of {C, tile, threads, bytes of shared memory} that a module says of its kernels.
fn read_shapes(
    module: &Arc<CudaModule>,
    stream: &Arc<CudaStream>,
    name: &'static str,
) -> Result<[AttentionShape; 4], CudaError> {
    let global = module.get_global(name, stream).context(name)?;
    let bytes = stream.clone_dtoh(&global).context(name)?;
    let numbers: Vec<i32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| i32::from_ne_bytes(*word))
        .collect();
    let mut shapes = [AttentionShape::default(); 4];
    for ((shape, row), head_dim) in shapes
        .iter_mut()
        .zip(numbers.chunks_exact(4))
        .zip(HEAD_DIMS)
    {
        assert_eq!(
            row[0], head_dim as i32,
            "{name} of other kernels — a bug in the build"
        );
        *shape = AttentionShape {
            tile: row[1] as usize,
            threads: row[2] as u32,
            shared: row[3] as u32,
        };
    }
    Ok(shapes)
}

/// More than 48 KiB have to be asked for. A card that has not as much cannot run that variant: this is told when it is started.
fn allow_shared_memory(
    functions: &HashMap<&'static str, CudaFunction>,
    names: &[&'static str; 4],
    shapes: &[AttentionShape; 4],
) -> Result<(), CudaError> {
    let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    for (name, shape) in names.iter().zip(shapes) {
        let _ = functions[name].set_attribute(limit, shape.shared as i32);
    }
    Ok(())
}

/// Starts a kernel: `launch!(gpu, "name", how; arguments)`. The arguments have exactly the types of its parameters: `i32`,
/// `f32`, and `u64` for pointers.
macro_rules! launch {
    ($gpu:expr, $name:expr, $how:expr; $($arg:expr),* $(,)?) => {
        // SAFETY: each call stands in `ops`, beside the parameters it was written for.
        unsafe {
            $gpu.launch($name, $how, &mut [$(std::ptr::from_ref(&$arg).cast_mut().cast()),*])
        }
    };
}
pub(super) use launch;
