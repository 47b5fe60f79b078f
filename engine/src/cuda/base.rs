//! Owns a base model's weights on the GPU, in bf16, but for the table of embeddings, which may lie in host memory. Each linear lies in a matrix with room at its right and below for the low-rank
//! change of one training:
//!
//! ```text
//!            k   R                y = [x | x·Aᵀ]·[W | s·B]ᵀ
//!       n  [ W | s·B ]           dx = [dy | dy·s·B]·[W ; A]
//!       R  [ A |  –  ]
//! ```
//!
//! so that forward and backward of a changed linear are one product each beside two thin ones, and what serves without the change
//! reads W alone. The weights of a quantised linear lie as codes; it is unpacked into memory that all such linears share, and the
//! change, which lies elsewhere, is copied beside it.

use std::path::Path;

use half::bf16;

use super::gpu::{CudaError, Gpu};
use super::memory::{Format, Matrix, Memory, Pinned, Plan, clear, upload};
use super::ops;
use super::quant::Part;
use crate::config::{Activation, LayerRope, ModelConfig, NormWeight, QkNorm, RopePairs};
use crate::lora::{Fused, Module};
use crate::nn::rope::Ropes;
use crate::quant::{Kind, Quantized};
use crate::stored::{Encoding, Files, Stored};
use crate::weights::{BaseWeights, LoadError};

/// The ranks that a training may have in each fused linear, all its parts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankRoom(pub(super) [usize; 4]);

impl RankRoom {
    /// No training on this copy.
    pub const NONE: Self = Self([0; 4]);

    /// Room for rank `r` of every linear.
    pub fn of_rank(r: usize) -> Self {
        Self([3 * r, r, 2 * r, r].map(|rank| rank.next_multiple_of(RANK_STEP)))
    }
}

/// Ranks of a fused linear are rounded up to this, so that rows begin at whole 16 bytes.
pub(super) const RANK_STEP: usize = 8;

/// A linear with the room around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear {
    /// (n + R, k + R)
    pub extended: Matrix,
    /// Where A lies, (R, k).
    pub a: Matrix,
    /// Where s·B lies, (n, R).
    pub b: Matrix,
    /// Its place in [`Base::codes`], if it is quantised.
    pub codes: Option<usize>,
    pub n: usize,
    pub k: usize,
    /// (n) in the format of what the linear gives; 0: none.
    pub bias: u64,
}

/// Norms of q and k.
#[derive(Debug, Clone, Copy)]
pub(super) struct QkNormWeights {
    pub q: u64,
    pub k: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    /// Weights of norms, (D) in f32; 0: none.
    pub before_attention: u64,
    pub after_attention: u64,
    pub before_mlp: u64,
    pub after_mlp: u64,
    pub qk_norm: Option<QkNormWeights>,
    /// In the order of [`Fused`].
    pub linears: [Linear; 4],
}

/// A rotation: frequencies of its pairs, in f32, and the factor of cosine and sine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    pub frequencies: u64,
    pub factor: f32,
}

/// A frozen model on a GPU.
pub struct Base {
    pub(super) gpu: Gpu,
    pub(super) config: ModelConfig,
    pub(super) layers: Vec<Layer>,
    /// (V, D); where it is not the head too, in host memory: a pass takes a few of its rows.
    pub(super) embed_tokens: Matrix,
    /// (V, D)
    pub(super) head: Matrix,
    /// (D) in f32
    pub(super) norm: u64,
    pub(super) rotations: Vec<Rotation>,
    pub(super) ropes: Ropes,
    pub(super) room: RankRoom,
    /// Of each quantised linear its matrices.
    pub(super) codes: Vec<Vec<Part>>,
    memory: Memory,
    /// What `embed_tokens` lies in.
    _table: Option<Pinned>,
}

impl Drop for Base {
    fn drop(&mut self) {
        // Host memory is not freed in the order of the stream. A failure is told by whoever uses the GPU next.
        let _ = self.gpu.synchronize();
    }
}

/// What of a base the memory of its passes depends on; it need not lie on the GPU yet.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub gpu: &'a Gpu,
    pub config: &'a ModelConfig,
    pub n_rotations: usize,
}

impl<'a> Shape<'a> {
    pub fn new(gpu: &'a Gpu, config: &'a ModelConfig) -> Self {
        Self {
            gpu,
            config,
            n_rotations: Ropes::new(config).plain().len(),
        }
    }

    /// Whether a linear adds to the stream itself, without a norm between.
    pub fn gives_f32(self, fused: Fused) -> bool {
        let norms = self.config.norms;
        match fused {
            Fused::Qkv | Fused::GateUp => false,
            Fused::O => norms.after_attention.is_none(),
            Fused::Down => norms.after_mlp.is_none(),
        }
    }
}

/// Where everything lies in a model's memory.
struct Places {
    layers: Vec<Layer>,
    embed_tokens: Matrix,
    head: Matrix,
    norm: u64,
    rotations: Vec<Rotation>,
    codes: Vec<Vec<Part>>,
}

/// Why a model cannot be brought to a GPU.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl Base {
    /// Reads a Hugging Face folder onto the GPU; weights that are not bf16 are rounded to it.
    /// Errors: as [`LoadError`] says; `Unsupported` for what the kernels do not know; `OutOfMemory`.
    pub fn load(gpu: &Gpu, dir: &Path, room: RankRoom) -> Result<Self, BaseError> {
        Self::load_as(gpu, dir, BaseWeights::AsStored, room)
    }

    /// As [`Self::load`], with the linears of the blocks in few bits where `weights` says so.
    /// Errors: as [`Self::load`].
    pub fn load_as(
        gpu: &Gpu,
        dir: &Path,
        weights: BaseWeights,
        room: RankRoom,
    ) -> Result<Self, BaseError> {
        let config = ModelConfig::from_dir(dir).map_err(LoadError::from)?;
        let mut base = Self::empty(gpu, config, weights, room)?;
        let mut codes = std::mem::take(&mut base.codes);
        Loader {
            base: &base,
            files: &Files::open(dir)?,
            weights,
        }
        .load(&mut codes)?;
        base.codes = codes;
        gpu.synchronize()?;
        Ok(base)
    }

    /// A model of this shape with random weights, for measurements.
    /// Errors: `Unsupported`, `OutOfMemory`.
    pub fn random(
        gpu: &Gpu,
        config: ModelConfig,
        weights: BaseWeights,
        room: RankRoom,
    ) -> Result<Self, CudaError> {
        let mut base = Self::empty(gpu, config, weights, room)?;
        let mut seed = 0;
        let mut fill = |matrix: Matrix, amplitude: f32| {
            seed += 1;
            ops::fill_uniform(gpu, matrix, amplitude, seed)
        };
        fill(base.embed_tokens, 0.03)?;
        if base.head != base.embed_tokens {
            fill(base.head, 0.03)?;
        }
        for layer in &base.layers {
            for linear in layer.linears.iter().filter(|linear| linear.codes.is_none()) {
                let weight = linear.extended.rows(0, linear.n).columns(0, linear.k);
                fill(weight, (3.0 / linear.k as f32).sqrt())?;
            }
        }
        let ones = vec![1.0f32; base.config.query_size().max(base.config.hidden_size)];
        for at in base.norms() {
            upload(gpu, at.0, &ones[..at.1])?;
        }
        for (i, part) in base.codes.iter_mut().flatten().enumerate() {
            part.fill_random(gpu, (3.0 / part.columns as f32).sqrt(), i as u32)?;
        }
        gpu.synchronize()?;
        Ok(base)
    }

    /// Bytes of the GPU's memory that the weights take.
    pub fn size_bytes(&self) -> u64 {
        self.memory.len() as u64
    }

    /// What [`Self::load_as`] takes of the GPU's memory, and of the host's. Bytes.
    /// Errors: `Unsupported`.
    pub fn bytes_of(
        config: &ModelConfig,
        weights: BaseWeights,
        room: RankRoom,
    ) -> Result<(u64, u64), CudaError> {
        check(config)?;
        let (mut plan, ropes) = (Plan::measure(), Ropes::new(config));
        let table_at = (!config.tie_word_embeddings).then_some(0);
        Places::new(&mut plan, config, &ropes, weights, room, table_at)?;
        let on_host = table_at.map_or(0, |at| table(at, config).size_bytes());
        Ok((plan.used() as u64, on_host as u64))
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(super) fn shape(&self) -> Shape<'_> {
        Shape {
            gpu: &self.gpu,
            config: &self.config,
            n_rotations: self.rotations.len(),
        }
    }

    /// Every norm's weight and its length.
    fn norms(&self) -> Vec<(u64, usize)> {
        let (width, (n_q, n_k)) = (self.config.hidden_size, qk_norm_sizes(&self.config));
        let mut norms = vec![(self.norm, width)];
        for layer in &self.layers {
            let of_stream = [
                layer.before_attention,
                layer.after_attention,
                layer.before_mlp,
                layer.after_mlp,
            ];
            norms.extend(of_stream.map(|at| (at, width)));
            norms.extend(layer.qk_norm.iter().flat_map(|w| [(w.q, n_q), (w.k, n_k)]));
        }
        norms.retain(|(at, _)| *at != 0);
        norms
    }

    fn empty(
        gpu: &Gpu,
        config: ModelConfig,
        weights: BaseWeights,
        room: RankRoom,
    ) -> Result<Self, CudaError> {
        check(&config)?;
        let ropes = Ropes::new(&config);
        let table = match config.tie_word_embeddings {
            true => None,
            false => match Pinned::new(gpu, table(0, &config).size_bytes()) {
                Err(CudaError::OutOfHostMemory { .. }) => None,
                table => Some(table?),
            },
        };
        let table_at = table.as_ref().map(Pinned::at).transpose()?;
        let divide = |plan: &mut Plan| Places::new(plan, &config, &ropes, weights, room, table_at);
        let mut plan = Plan::measure();
        divide(&mut plan)?;
        let memory = Memory::new(gpu, plan.used())?;
        let places = divide(&mut Plan::over(&memory))?;
        clear(gpu, memory.at(), memory.len())?;
        for (rotation, (frequencies, _)) in places.rotations.iter().zip(ropes.plain()) {
            upload(gpu, rotation.frequencies, &frequencies)?;
        }
        let Places {
            layers,
            embed_tokens,
            head,
            norm,
            rotations,
            codes,
        } = places;
        Ok(Self {
            gpu: gpu.clone(),
            config,
            layers,
            embed_tokens,
            head,
            norm,
            rotations,
            ropes,
            room,
            codes,
            memory,
            _table: table,
        })
    }
}

/// (V, D), beginning there.
fn table(at: u64, config: &ModelConfig) -> Matrix {
    Matrix::aligned(at, config.vocab_size, config.hidden_size)
}

/// Errors: `Unsupported`.
fn check(config: &ModelConfig) -> Result<(), CudaError> {
    let no = |what: &str| Err(CudaError::Unsupported(what.to_owned()));
    if config.experts.is_some() {
        return no("a mixture of experts");
    }
    if config.long_rope.is_some() {
        return no("longrope");
    }
    if !ops::HEAD_DIMS.contains(&config.head_dim) {
        return no(&format!(
            "attention with heads of {} channels",
            config.head_dim
        ));
    }
    if config.hidden_size > ops::MOST_WIDTH {
        return no(&format!("a stream of {} numbers", config.hidden_size));
    }
    let sizes = [
        config.hidden_size,
        config.query_size(),
        config.key_value_size(),
        config.intermediate_size,
    ];
    match sizes.iter().find(|size| !size.is_multiple_of(8)) {
        Some(size) => no(&format!(
            "a model with a width of {size}, no multiple of 8,"
        )),
        None => Ok(()),
    }
}

/// Channels of a norm of q, and of k.
fn qk_norm_sizes(config: &ModelConfig) -> (usize, usize) {
    match config.qk_norm {
        QkNorm::None => (0, 0),
        QkNorm::PerHead => (config.head_dim, config.head_dim),
        QkNorm::Projection => (config.query_size(), config.key_value_size()),
    }
}

/// (in, out) of each fused linear.
pub(super) fn linear_sizes(config: &ModelConfig) -> [(usize, usize); 4] {
    [Module::Qkv, Module::O, Module::GateUp, Module::Down].map(|module| module.sizes(config))
}

/// The matrices that a fused linear of the files is made of, by their modules.
fn modules(config: &ModelConfig, layer: usize, fused: Fused) -> impl Iterator<Item = Module> {
    Module::of(config, layer).filter(move |module| module.fused() == fused)
}

impl Places {
    /// `embed_at`: where in host memory the table of embeddings lies; `None`: on the GPU, too, or it is the head.
    /// Errors: `Unsupported`.
    fn new(
        plan: &mut Plan,
        config: &ModelConfig,
        ropes: &Ropes,
        weights: BaseWeights,
        room: RankRoom,
        embed_at: Option<u64>,
    ) -> Result<Self, CudaError> {
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let head = plan.matrix(Format::Bf16, vocab, width);
        let embed_tokens = match embed_at {
            Some(at) => table(at, config),
            None if config.tie_word_embeddings => head,
            None => plan.matrix(Format::Bf16, vocab, width),
        };
        let (n_q, n_k) = qk_norm_sizes(config);
        let mut linears = LinearPlaces::new(plan, config, weights, room);
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let mut norm = |is_there: Option<&str>| is_there.map_or(0, |_| plan.words(width));
            let (before_attention, after_attention) = (
                norm(config.norms.before_attention),
                norm(config.norms.after_attention),
            );
            let (before_mlp, after_mlp) =
                (norm(config.norms.before_mlp), norm(config.norms.after_mlp));
            let qk_norm = (n_q > 0).then(|| QkNormWeights {
                q: plan.words(n_q),
                k: plan.words(n_k),
            });
            layers.push(Layer {
                before_attention,
                after_attention,
                before_mlp,
                after_mlp,
                qk_norm,
                linears: linears.of_layer(plan, i)?,
            });
        }
        let codes = linears.codes;
        let rotations = ropes
            .plain()
            .into_iter()
            .map(|(frequencies, factor)| Rotation {
                frequencies: plan.words(frequencies.len()),
                factor,
            });
        let rotations = rotations.collect();
        Ok(Self {
            layers,
            embed_tokens,
            head,
            norm: plan.words(width),
            rotations,
            codes,
        })
    }
}

/// Divides memory among linears.
struct LinearPlaces<'a> {
    config: &'a ModelConfig,
    kind: Option<Kind>,
    room: RankRoom,
    /// What quantised linears are unpacked into, one at a time.
    unpacked: u64,
    codes: Vec<Vec<Part>>,
}

impl<'a> LinearPlaces<'a> {
    fn new(plan: &mut Plan, config: &'a ModelConfig, weights: BaseWeights, room: RankRoom) -> Self {
        let kind = match weights {
            BaseWeights::Quantized(kind) => Some(kind),
            BaseWeights::AsStored | BaseWeights::Bf16 => None,
        };
        let sizes = linear_sizes(config).into_iter().zip(room.0);
        let bytes = sizes.map(|((k, n), r)| Matrix::aligned(0, n + r, k + r).size_bytes());
        Self {
            config,
            kind,
            room,
            unpacked: match kind {
                Some(_) => plan.bytes(bytes.max().unwrap_or(0)),
                None => 0,
            },
            codes: Vec::new(),
        }
    }

    /// Errors: `Unsupported`.
    fn of_layer(&mut self, plan: &mut Plan, layer: usize) -> Result<[Linear; 4], CudaError> {
        let sizes = linear_sizes(self.config);
        let mut linears = Vec::with_capacity(4);
        for fused in Fused::ALL {
            let ((k, n), r) = (sizes[fused as usize], self.room.0[fused as usize]);
            let has_bias = match fused {
                Fused::Qkv => self.config.qkv_bias,
                Fused::O => self.config.o_bias,
                Fused::GateUp | Fused::Down => self.config.mlp_bias,
            };
            let bias = if has_bias { plan.words(n) } else { 0 };
            let Some(kind) = self.kind else {
                let extended = plan.matrix(Format::Bf16, n + r, k + r);
                linears.push(Linear {
                    extended,
                    a: extended.rows(n, n + r).columns(0, k),
                    b: extended.rows(0, n).columns(k, k + r),
                    codes: None,
                    n,
                    k,
                    bias,
                });
                continue;
            };
            let (mut parts, mut first) = (Vec::new(), 0);
            for module in modules(self.config, layer, fused) {
                let rows = module.sizes(self.config).1;
                parts.push(Part::plan(plan, kind, first, rows, k)?);
                first += rows;
            }
            self.codes.push(parts);
            linears.push(Linear {
                extended: Matrix::aligned(self.unpacked, n + r, k + r),
                a: plan.matrix(Format::Bf16, r, k),
                b: plan.matrix(Format::Bf16, n, r),
                codes: Some(self.codes.len() - 1),
                n,
                k,
                bias,
            });
        }
        Ok(linears.try_into().expect("four fused linears"))
    }
}

/// Brings a folder's tensors to their places.
struct Loader<'a> {
    base: &'a Base,
    files: &'a Files,
    weights: BaseWeights,
}

impl Loader<'_> {
    fn load(&self, codes: &mut [Vec<Part>]) -> Result<(), BaseError> {
        let Base {
            config,
            embed_tokens,
            head,
            norm,
            ..
        } = self.base;
        let vocab = config.vocab_size;
        self.matrix(
            &[("model.embed_tokens.weight".to_owned(), vocab)],
            *embed_tokens,
        )?;
        if !config.tie_word_embeddings {
            self.matrix(&[("lm_head.weight".to_owned(), vocab)], *head)?;
        }
        self.norm("model.norm.weight", config.hidden_size, *norm)?;
        for (i, layer) in self.base.layers.iter().enumerate() {
            self.layer(i, layer, codes)?;
        }
        Ok(())
    }

    fn layer(&self, i: usize, layer: &Layer, codes: &mut [Vec<Part>]) -> Result<(), BaseError> {
        let config = &self.base.config;
        let norms = config.norms;
        for (place, at) in [
            (norms.before_attention, layer.before_attention),
            (norms.after_attention, layer.after_attention),
            (norms.before_mlp, layer.before_mlp),
            (norms.after_mlp, layer.after_mlp),
        ] {
            if let Some(place) = place {
                self.norm(
                    &format!("model.layers.{i}.{place}.weight"),
                    config.hidden_size,
                    at,
                )?;
            }
        }
        if let Some(weights) = layer.qk_norm {
            let (n_q, n_k) = qk_norm_sizes(config);
            let name = |of| format!("model.layers.{i}.self_attn.{of}_norm.weight");
            self.norm(&name("q"), n_q, weights.q)?;
            self.norm(&name("k"), n_k, weights.k)?;
        }
        for fused in Fused::ALL {
            let linear = layer.linears[fused as usize];
            let parts: Vec<(String, usize)> = modules(config, i, fused)
                .map(|module| {
                    let path = format!("model.layers.{i}.{}", module.path());
                    (path, module.sizes(config).1)
                })
                .collect();
            let weights: Vec<_> = parts
                .iter()
                .map(|(path, n)| (format!("{path}.weight"), *n))
                .collect();
            match linear.codes {
                Some(at) => self.quantized(&weights, linear.k, &mut codes[at])?,
                None => {
                    let to = linear.extended.rows(0, linear.n).columns(0, linear.k);
                    self.matrix(&weights, to)?;
                }
            }
            if linear.bias != 0 {
                self.bias(&parts, fused, linear)?;
            }
        }
        Ok(())
    }

    /// Matrices below each other.
    fn matrix(&self, parts: &[(String, usize)], to: Matrix) -> Result<(), BaseError> {
        let mut row = vec![0.0; to.columns];
        let mut first = 0;
        for (name, n) in parts {
            let stored = self.find(name, &[*n, to.columns])?;
            let mut rows = vec![bf16::ZERO; n * to.pitch];
            for (i, out) in rows.chunks_exact_mut(to.pitch).enumerate() {
                let out = &mut out[..to.columns];
                if stored.encoding == Encoding::Numbers(safetensors::Dtype::BF16) {
                    let bytes = self.files.row_bytes(stored, i).as_chunks::<2>().0;
                    for (to, from) in out.iter_mut().zip(bytes) {
                        *to = bf16::from_le_bytes(*from);
                    }
                    continue;
                }
                self.files.read(stored, i, &mut row);
                for (to, from) in out.iter_mut().zip(&row) {
                    *to = bf16::from_f32(*from);
                }
            }
            // The last row ends where its numbers do: what lies behind may be another's.
            let len = rows.len() - (to.pitch - to.columns);
            upload(&self.base.gpu, to.rows(first, first + n).at, &rows[..len])?;
            first += n;
        }
        Ok(())
    }

    /// Each matrix is quantised by itself, as on the CPU.
    fn quantized(
        &self,
        parts: &[(String, usize)],
        depth: usize,
        codes: &mut [Part],
    ) -> Result<(), BaseError> {
        let BaseWeights::Quantized(kind) = self.weights else {
            return Ok(());
        };
        for ((name, n), part) in parts.iter().zip(codes) {
            let values = self.files.values(self.find(name, &[*n, depth])?);
            let matrix = Quantized::quantize(kind, *n, depth, &values);
            let named = |source| LoadError::Quantize {
                name: name.clone(),
                source,
            };
            part.fill(&self.base.gpu, &matrix.map_err(named)?)?;
        }
        Ok(())
    }

    /// Linears that add to the stream have an f32 bias, as what they give is f32.
    fn bias(&self, parts: &[(String, usize)], fused: Fused, to: Linear) -> Result<(), BaseError> {
        let mut values = Vec::with_capacity(to.n);
        for (path, n) in parts {
            let name = format!("{path}.bias");
            match self.files.find(&name) {
                Some(_) => values.extend(self.files.values(self.find(&name, &[*n])?)),
                None => values.extend(std::iter::repeat_n(0.0, *n)),
            }
        }
        let gpu = &self.base.gpu;
        if self.base.gives_f32(fused) {
            return Ok(upload(gpu, to.bias, &values)?);
        }
        let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
        Ok(upload(gpu, to.bias, &values)?)
    }

    fn norm(&self, name: &str, n: usize, to: u64) -> Result<(), BaseError> {
        let mut values = self.files.values(self.find(name, &[n])?);
        if self.base.config.norm_weight == NormWeight::PlusOne {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(upload(&self.base.gpu, to, &values)?)
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<&Stored, LoadError> {
        self.files.tensor(name, shape)
    }
}

impl Base {
    /// Whether a linear adds to the stream itself, without a norm between.
    pub(super) fn gives_f32(&self, fused: Fused) -> bool {
        self.shape().gives_f32(fused)
    }

    /// The number by which the kernels know an activation.
    pub(super) fn activation(&self) -> i32 {
        match self.config.hidden_act {
            Activation::Silu => 0,
            Activation::GeluTanh => 1,
        }
    }

    /// Whether channels are turned in neighbouring pairs.
    pub(super) fn is_interleaved(&self) -> bool {
        self.config.rope_pairs == RopePairs::Interleaved
    }

    /// The rotation of a layer.
    pub(super) fn rotation(&self, layer: usize) -> Option<usize> {
        match self.config.layers[layer].rope {
            LayerRope::None => None,
            _ => self.ropes.of_layer(layer),
        }
    }
}
