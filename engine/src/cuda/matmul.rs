//! Owns products of matrices through cuBLASLt: how each shape is computed is chosen once and kept.
//!
//! Matrices are row-major; to cuBLASLt, which counts along columns, they are transposed, so it is asked for Dᵀ = op(B)ᵀ·op(A)ᵀ.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::cublasLtMatmulPreferenceAttributes_t as Pref;
use cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t as Desc};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::gpu::{Context, CudaError, Gpu};
use super::memory::{Format, Matrix};

/// What a product may use beside its result. Bytes.
const WORKSPACE: usize = 64 << 20;

/// How a factor is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Read {
    AsIs,
    Transposed,
}

/// D = op(A)·op(B) + C, plus `bias` in every row.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub a: (Matrix, Read),
    pub b: (Matrix, Read),
    /// Of D's shape, format and pitch; it may be D itself.
    pub c: Option<Matrix>,
    pub d: Matrix,
    /// As many numbers as D has columns, in D's format; 0: none.
    pub bias: u64,
}

/// What decides how a product is computed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    shape: [usize; 3],
    pitches: [usize; 3],
    alignments: [u32; 3],
    reads: [Read; 2],
    formats: [Format; 3],
    adds: bool,
    has_bias: bool,
}

impl Key {
    /// The shape that decides for all near it: the number of rows of a pass changes from step to step, and the library takes longer
    /// to choose than a small product takes. Rows are those of the result, or of both factors where they are summed over.
    fn near(&self) -> Self {
        let mut near = self.clone();
        let rows = match self.reads[0] {
            Read::AsIs => &mut near.shape[0],
            Read::Transposed => &mut near.shape[2],
        };
        *rows = rows.next_multiple_of((rows.next_power_of_two() / 8).max(1));
        near
    }
}

/// How a product is computed.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    algo: sys::cublasLtMatmulAlgo_t,
}

pub(super) struct Matmuls {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    plans: Mutex<Plans>,
}

#[derive(Default)]
struct Plans {
    of: HashMap<Key, Plan>,
    /// What was chosen for shapes that decide for those near them.
    chosen: HashMap<Key, sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: handle and descriptors may be used from any thread, one at a time; the lock on `plans` sees to that.
unsafe impl Send for Matmuls {}
unsafe impl Sync for Matmuls {}

fn failed(what: impl std::fmt::Debug) -> impl FnOnce(CublasError) -> CudaError {
    move |source| CudaError::CublasLt {
        what: format!("{what:?}"),
        source,
    }
}

impl Matmuls {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        // SAFETY: nothing reads the workspace that did not write it.
        let workspace =
            unsafe { stream.alloc::<u8>(WORKSPACE) }.context("allocating a workspace")?;
        Ok(Self {
            handle: result::create_handle().map_err(failed("opening it"))?,
            workspace,
            stream: Arc::clone(stream),
            plans: Mutex::default(),
        })
    }
}

impl Drop for Matmuls {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing uses it any more. A failure at the end changes nothing.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The library's version: another one may choose other ways, and so give other bits.
pub(super) fn cublaslt_version() -> usize {
    // SAFETY: takes nothing; the library is there, as a `Gpu` is.
    unsafe { sys::cublasLtGetVersion() }
}

/// The alignment of an address, as far as it is the same from run to run: matrices begin at multiples of 128. Bytes.
fn alignment(at: u64) -> u32 {
    1 << at.trailing_zeros().min(7)
}

fn format(format: Format) -> sys::cudaDataType {
    match format {
        Format::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Format::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

impl Gpu {
    /// Computes a product.
    /// Errors: `CublasLt`.
    pub(super) fn multiply(&self, product: Product) -> Result<(), CudaError> {
        let Product {
            a: (a, read_a),
            b: (b, read_b),
            c,
            d,
            bias,
        } = product;
        let [m, k] = match read_a {
            Read::AsIs => [a.rows, a.columns],
            Read::Transposed => [a.columns, a.rows],
        };
        let [k_of_b, n] = match read_b {
            Read::AsIs => [b.rows, b.columns],
            Read::Transposed => [b.columns, b.rows],
        };
        assert!(
            k == k_of_b && [d.rows, d.columns] == [m, n],
            "matrices that do not fit: {a:?} {read_a:?}, {b:?} {read_b:?}, {d:?} — a bug above"
        );
        if m == 0 || n == 0 {
            return Ok(());
        }
        assert!(
            c.is_none_or(|c| Matrix { at: d.at, ..c } == d),
            "what is added has another form than the result — a bug above"
        );
        let key = Key {
            shape: [m, n, k],
            pitches: [a.pitch, b.pitch, d.pitch],
            alignments: [a, b, d].map(|matrix| alignment(matrix.at)),
            reads: [read_a, read_b],
            formats: [a.format, b.format, d.format],
            adds: c.is_some(),
            has_bias: bias != 0,
        };
        let all = self.matmuls()?;
        let mut plans = all.plans.lock().expect("no holder panics — a bug here");
        if !plans.of.contains_key(&key) {
            let plan = all.plan(&key, &mut plans.chosen).map_err(failed(&key))?;
            plans.of.insert(key.clone(), plan);
        }
        let plan = &plans.of[&key];
        let (alpha, beta) = (1.0f32, if c.is_some() { 1.0f32 } else { 0.0 });
        let c = c.unwrap_or(d);
        let workspace = all.workspace.device_ptr(&all.stream).0;
        let start = || {
            // SAFETY: the matrices lie where the caller says; the plan was made for their shapes and alignments.
            let started = unsafe {
                if bias != 0 {
                    set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)
                        .map_err(failed(&key))?;
                }
                result::matmul(
                    all.handle,
                    plan.desc,
                    std::ptr::from_ref(&alpha).cast(),
                    std::ptr::from_ref(&beta).cast(),
                    b.at as *const c_void,
                    plan.a,
                    a.at as *const c_void,
                    plan.b,
                    c.at as *const c_void,
                    plan.d,
                    d.at as *mut c_void,
                    plan.d,
                    &plan.algo,
                    workspace as *mut c_void,
                    WORKSPACE,
                    all.stream.cu_stream().cast(),
                )
            };
            started.map_err(failed(&key))
        };
        let name = || format!("{m}×{n}×{k} {read_a:?} {read_b:?} {:?}", d.format);
        self.timed(name, start)
    }
}

/// Safety: `desc` lives, and the attribute has `T`'s size.
unsafe fn set<T>(
    desc: sys::cublasLtMatmulDesc_t,
    what: Desc,
    value: &T,
) -> Result<(), CublasError> {
    // SAFETY: of the caller.
    unsafe {
        result::set_matmul_desc_attribute(
            desc,
            what,
            std::ptr::from_ref(value).cast(),
            size_of::<T>(),
        )
    }
}

impl Matmuls {
    /// The first choice of the library's own heuristic, for this shape or for one that decides for it: it depends on the shapes,
    /// the library and the card alone, so the same run gives the same bits.
    fn plan(
        &self,
        key: &Key,
        chosen: &mut HashMap<Key, sys::cublasLtMatmulAlgo_t>,
    ) -> Result<Plan, CublasError> {
        let described = Described::new(key)?;
        let near = key.near();
        let algo = match chosen.get(&near) {
            Some(algo) => *algo,
            None => {
                let algo = self.choose(&Described::new(&near)?, &near)?;
                chosen.insert(near, algo);
                algo
            }
        };
        let algo = match self.can(&described, &algo) {
            true => algo,
            false => self.choose(&described, key)?,
        };
        let Described { desc, a, b, d } = described;
        Ok(Plan {
            desc,
            a,
            b,
            d,
            algo,
        })
    }

    /// Whether a product can be computed like this in the workspace that there is.
    fn can(&self, of: &Described, algo: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let Described { desc, a, b, d } = *of;
        // SAFETY: everything given lives, and there is room for the one result.
        unsafe {
            let checked = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                desc,
                a,
                b,
                d,
                d,
                algo,
                found.as_mut_ptr(),
            );
            checked.result().is_ok() && found.assume_init().workspaceSize <= WORKSPACE
        }
    }

    fn choose(&self, of: &Described, key: &Key) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        let Described { desc, a, b, d } = *of;
        let preference = result::create_matmul_pref()?;
        let prefer = |what, value: &[u8]| {
            // SAFETY: the preference lives, and the value has the size that cuBLASLt documents.
            unsafe {
                result::set_matmul_pref_attribute(
                    preference,
                    what,
                    value.as_ptr().cast(),
                    value.len(),
                )
            }
        };
        prefer(
            Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &(WORKSPACE as u64).to_ne_bytes(),
        )?;
        let [of_a, of_b, of_d] = key.alignments.map(u32::to_ne_bytes);
        prefer(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &of_b)?;
        prefer(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &of_a)?;
        prefer(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &of_d)?;
        prefer(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &of_d)?;
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut n_found = 0;
        // SAFETY: everything given lives; one result is asked for and there is room for one.
        let found = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                a,
                b,
                d,
                d,
                preference,
                1,
                found.as_mut_ptr(),
                &mut n_found,
            )
            .result()?;
            result::destroy_matmul_pref(preference)?;
            found.assume_init()
        };
        if n_found == 0 {
            return Err(CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            ));
        }
        found.state.result()?;
        Ok(found.algo)
    }
}

/// A product as cuBLASLt is told of it. What is described is kept until the process ends.
#[derive(Clone, Copy)]
struct Described {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
}

impl Described {
    fn new(key: &Key) -> Result<Self, CublasError> {
        let [m, n, k] = key.shape;
        let desc = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )?;
        // As cuBLASLt counts, each of ours is stored transposed: op(B)ᵀ is read as it lies where we do not transpose B.
        let op = |read| i32::from(read == Read::Transposed);
        let stored = |read, rows, columns| match read {
            Read::AsIs => (columns, rows),
            Read::Transposed => (rows, columns),
        };
        let (b_rows, b_columns) = stored(key.reads[1], k, n);
        let (a_rows, a_columns) = stored(key.reads[0], m, k);
        let [a_pitch, b_pitch, d_pitch] = key.pitches.map(|pitch| pitch as i64);
        let [of_a, of_b, of_d] = key.formats.map(format);
        let layout = |of, rows: usize, columns: usize, pitch| {
            result::create_matrix_layout(of, rows as u64, columns as u64, pitch)
        };
        // SAFETY: the descriptors live until the end of the process; each attribute has the type that cuBLASLt documents.
        unsafe {
            set(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSA, &op(key.reads[1]))?;
            set(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSB, &op(key.reads[0]))?;
            if key.has_bias {
                let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                set(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
                set(desc, Desc::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &of_d)?;
            }
        }
        let a = layout(of_b, b_rows, b_columns, b_pitch)?;
        let b = layout(of_a, a_rows, a_columns, a_pitch)?;
        let d = layout(of_d, n, m, d_pitch)?;
        Ok(Self { desc, a, b, d })
    }
}
