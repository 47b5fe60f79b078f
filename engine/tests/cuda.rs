//! A training on a GPU, and generation there, compute what they do on the CPU. Without a GPU every test says that it is skipped.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Numbers, adapter, example};
use engine::batch::Example;
use engine::config::{ModelConfig, QkNorm};
use engine::cuda::{Base, Gpu, MemoryPlan, RankRoom, Streams, TrainingShape};
use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::quant::Kind;
use engine::schedule::Schedule;
use engine::train::{TrainConfig, Trainer};
use engine::weights::{BaseModel, BaseWeights};
use engine::{MemoryLevel, Precision};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// A family's `config.json` with sizes that the kernels know.
struct Shape {
    family: &'static str,
    changes: Value,
}

fn shapes() -> Vec<Shape> {
    let shape = |family, changes| Shape { family, changes };
    vec![
        shape("llama3", json!({"head_dim": 64})),
        shape(
            "llama_bias",
            json!({"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}),
        ),
        shape(
            "qwen2",
            json!({"hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 2}),
        ),
        shape("qwen3", json!({"head_dim": 128})),
        shape("mistral", json!({"head_dim": 96})),
        shape("gemma2", json!({"head_dim": 256})),
        shape("gemma3", json!({"head_dim": 64})),
        shape("glm4", json!({"head_dim": 128})),
        shape("olmo2", json!({"hidden_size": 256})),
        shape("smollm3", json!({"head_dim": 64})),
    ]
}

/// One whose linears are large enough for the products that share columns among blocks.
fn wide() -> Shape {
    Shape {
        family: "llama3",
        changes: json!({"head_dim": 64, "hidden_size": 256, "intermediate_size": 16384, "vocab_size": 40960}),
    }
}

/// One with so many layers that streams have to leave.
fn deep() -> Shape {
    Shape {
        family: "llama3",
        changes: json!({"head_dim": 64, "num_hidden_layers": 8}),
    }
}

impl Shape {
    fn config_json(&self) -> String {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let path = fixtures
            .join(format!("tiny_{}", self.family))
            .join("config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let config_map = config.as_object_mut().unwrap();
        config_map.insert("max_position_embeddings".into(), json!(1024));
        for (key, value) in self.changes.as_object().unwrap() {
            config_map.insert(key.clone(), value.clone());
        }
        config.to_string()
    }

    /// Writes a folder with random weights.
    fn write(&self, dir: &Path) {
        let json = self.config_json();
        let tensors: Vec<_> = tensors(&ModelConfig::from_json(&json).unwrap())
            .into_iter()
            .map(|(name, shape)| {
                let seed = name
                    .bytes()
                    .fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
                let mut numbers = Numbers(seed);
                let depth = shape.last().copied().unwrap_or(1) as f32;
                let (offset, spread) = match name.as_str() {
                    name if name.contains("norm") => (1.0, 0.3),
                    name if name.contains("embed") || name.contains("lm_head") => (0.0, 0.5),
                    name if name.ends_with("bias") => (0.0, 0.3),
                    _ => (0.0, 2.0 / depth.sqrt()),
                };
                let n = shape.iter().product();
                // Cut to bf16, so that storage in it loses nothing.
                let cut = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
                let values = (0..n).map(|_| cut(offset + spread * numbers.next()));
                (
                    name,
                    shape,
                    values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
                )
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        std::fs::write(dir.join("config.json"), json).unwrap();
        std::fs::write(
            dir.join("model.safetensors"),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
    }
}

/// (name, shape) of every tensor of a dense model.
fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (width, inner, vocab) = (
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
    );
    let (query, kv) = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    );
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, width]),
        ("model.norm.weight".to_owned(), vec![width]),
    ];
    if !config.tie_word_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![vocab, width]));
    }
    for i in 0..config.num_hidden_layers {
        let mut push =
            |name: String, shape: Vec<usize>| all.push((format!("model.layers.{i}.{name}"), shape));
        let norms = config.norms;
        let norms = [
            norms.before_attention,
            norms.after_attention,
            norms.before_mlp,
            norms.after_mlp,
        ];
        for norm in norms.into_iter().flatten() {
            push(format!("{norm}.weight"), vec![width]);
        }
        let qk = match config.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some((config.head_dim, config.head_dim)),
            QkNorm::Projection => Some((query, kv)),
        };
        if let Some((q, k)) = qk {
            push("self_attn.q_norm.weight".into(), vec![q]);
            push("self_attn.k_norm.weight".into(), vec![k]);
        }
        let gate_up: &[_] = match config.fused_gate_up {
            true => &[("mlp.gate_up_proj", width, 2 * inner)],
            false => &[
                ("mlp.gate_proj", width, inner),
                ("mlp.up_proj", width, inner),
            ],
        };
        let attention = [
            ("self_attn.q_proj", width, query),
            ("self_attn.k_proj", width, kv),
            ("self_attn.v_proj", width, kv),
            ("self_attn.o_proj", query, width),
        ];
        let down = [("mlp.down_proj", inner, width)];
        for (name, n_in, n_out) in attention.iter().chain(gate_up).chain(&down).copied() {
            push(format!("{name}.weight"), vec![n_out, n_in]);
            let has_bias = match name {
                "self_attn.o_proj" => config.o_bias,
                name if name.starts_with("self_attn") => config.qkv_bias,
                _ => config.mlp_bias,
            };
            if has_bias {
                push(format!("{name}.bias"), vec![n_out]);
            }
        }
    }
    all
}

/// The first GPU, if there is one.
fn gpu() -> Option<Gpu> {
    if Gpu::count() == 0 {
        println!("skipped: no NVIDIA GPU on this machine");
        return None;
    }
    Some(Gpu::open(0).unwrap())
}

struct Case {
    gpu: Gpu,
    base: Arc<BaseModel>,
    on_gpu: Arc<Base>,
    adapter: Adapter,
    examples: Vec<Example>,
    pool: Pool,
    /// Of the trainings on the GPU.
    pass_tokens: Option<usize>,
}

impl Case {
    fn new(gpu: &Gpu, shape: &Shape) -> Self {
        Self::with(gpu, shape, BaseWeights::AsStored)
    }

    fn with(gpu: &Gpu, shape: &Shape, weights: BaseWeights) -> Self {
        let (dir, pool) = (tempfile::tempdir().unwrap(), Pool::new(4));
        shape.write(dir.path());
        let base = BaseModel::load_as(dir.path(), weights, &pool).unwrap();
        let on_gpu = Base::load_as(gpu, dir.path(), weights, RankRoom::of_rank(8)).unwrap();
        let vocab = base.config().vocab_size;
        let lengths = [3, 200, 64, 1, 129, 37, 300];
        let examples = lengths.iter().enumerate();
        let examples = examples.map(|(i, &len)| example(vocab, len + 2, i as u64));
        Self {
            gpu: gpu.clone(),
            adapter: adapter(&base, &LoraConfig::all_linear(8, 16.0), 3),
            examples: examples.collect(),
            base: Arc::new(base),
            on_gpu: Arc::new(on_gpu),
            pool,
            pass_tokens: None,
        }
    }

    fn config(precision: Precision, memory: MemoryLevel) -> TrainConfig {
        TrainConfig {
            learning_rate: 1e-3,
            schedule: Schedule::Constant,
            weight_decay: 0.01,
            precision,
            memory,
            ..TrainConfig::default()
        }
    }

    fn on_cpu(&self, precision: Precision) -> Trainer {
        let config = Self::config(precision, MemoryLevel::KeepAll);
        Trainer::new(
            self.base.clone(),
            self.adapter.clone(),
            config,
            self.pool.clone(),
        )
    }

    fn on_gpu(&self, memory: impl Into<MemoryPlan>) -> Trainer {
        let config = TrainConfig {
            pass_tokens: self.pass_tokens,
            ..Self::config(Precision::Bf16, MemoryLevel::default())
        };
        let (base, adapter) = (self.on_gpu.clone(), self.adapter.clone());
        Trainer::on_gpu(&self.gpu, base, adapter, config, memory.into()).unwrap()
    }
}

/// ‖a − b‖/‖b‖
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (difference / size).sqrt()
}

/// bf16 on a GPU may differ from f32 by what bf16 on a CPU does, or little more: sums are taken in another order. NaN never
/// passes.
fn is_near(on_gpu: f64, on_cpu: f64) -> bool {
    on_gpu <= 1.5 * on_cpu + 1e-3
}

#[test]
fn logits_and_gradients_are_as_near_to_f32_as_the_cpus_in_bf16() {
    let Some(gpu) = gpu() else { return };
    let mut bad = Vec::new();
    let quantized = [Kind::Nf4, Kind::Nf4DoubleQuant, Kind::Int8, Kind::Fp8];
    let quantized = quantized.map(BaseWeights::Quantized);
    let cases = shapes()
        .into_iter()
        .map(|shape| (shape, BaseWeights::AsStored));
    let cases = cases.chain(quantized.map(|weights| (shapes().remove(2), weights)));
    for (shape, weights) in cases {
        let case = Case::with(&gpu, &shape, weights);
        let [mut exact, mut twin] = [Precision::Fp32, Precision::Bf16].map(|p| case.on_cpu(p));
        let mut ours = case.on_gpu(MemoryLevel::KeepAll);
        let tokens = &case.examples[1].tokens;
        let [a, b, c] = [&mut ours, &mut twin, &mut exact].map(|t| t.logits(tokens).unwrap());
        let mut worst = vec![("logits".to_owned(), distance(&a, &c), distance(&b, &c))];
        let [a, b, c] =
            [&mut ours, &mut twin, &mut exact].map(|t| t.gradients(&case.examples).unwrap());
        for (((name, a), (_, b)), (_, c)) in a.into_iter().zip(b).zip(c) {
            worst.push((name, distance(&a, &c), distance(&b, &c)));
        }
        worst.sort_by(|a, b| (b.1 / b.2).total_cmp(&(a.1 / a.2)));
        let (name, ours, twin) = &worst[0];
        println!(
            "{:12} {weights:?} worst {name}: {ours:.5} from f32, the CPU's bf16 {twin:.5}",
            shape.family
        );
        if !is_near(*ours, *twin) {
            bad.push(shape.family);
            for (name, ours, twin) in worst.iter().filter(|(_, a, b)| !is_near(*a, *b)).take(12) {
                println!("    {name}: {ours:.5} against {twin:.5}");
            }
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn losses_of_thirty_steps_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&gpu, &shapes()[0]);
    let (mut exact, mut ours) = (
        case.on_cpu(Precision::Fp32),
        case.on_gpu(MemoryLevel::KeepAll),
    );
    for step in 0..30 {
        let batch = &case.examples[step % 3..step % 3 + 4];
        let [a, b] = [&mut ours, &mut exact].map(|t| t.step(batch).unwrap());
        assert_eq!(
            (a.step, a.n_tokens, a.n_label_tokens),
            (b.step, b.n_tokens, b.n_label_tokens)
        );
        assert!((a.loss - b.loss).abs() < 0.02 * b.loss, "{a:?} {b:?}");
        assert!(
            (a.grad_norm - b.grad_norm).abs() < 0.05 * b.grad_norm,
            "{a:?} {b:?}"
        );
    }
    let [a, b] = [&mut ours, &mut exact].map(|t| t.evaluate(&case.examples).unwrap());
    assert!(
        (a.loss_sum - b.loss_sum).abs() < 0.02 * b.loss_sum,
        "{a:?} {b:?}"
    );
}

#[test]
fn twenty_runs_ten_resumed_ones_and_every_memory_level_give_the_same_bytes() {
    let Some(gpu) = gpu() else { return };
    // An adapter of the upper layers leaves streams on their way when a backward ends.
    let upper = LoraConfig {
        layers_to_transform: Some(vec![6, 7]),
        ..LoraConfig::all_linear(8, 16.0)
    };
    for (shape, config) in [
        (&shapes()[0], None),
        (&deep(), None),
        (&deep(), Some(&upper)),
        (&shapes()[3], None),
        (&shapes()[5], None),
    ] {
        let mut case = Case::new(&gpu, shape);
        // A step of several passes; the first steps are small, so that the room grows.
        case.pass_tokens = (shape.family == deep().family).then_some(256);
        if let Some(config) = config {
            case.adapter = adapter(&case.base, config, 3);
        }
        let run = |memory: MemoryPlan, stop: Option<usize>| {
            let mut trainer = case.on_gpu(memory);
            for step in 0..6 {
                if stop == Some(step) {
                    let state = trainer.save_state().unwrap();
                    trainer = case.on_gpu(memory);
                    trainer.load_state(&state).unwrap();
                }
                trainer.step(&case.examples[2 - step % 3..]).unwrap();
                trainer.evaluate(&case.examples[..3]).unwrap();
            }
            trainer.save_state().unwrap()
        };
        let all = MemoryPlan::from(MemoryLevel::KeepAll);
        let first = run(all, None);
        let again = (0..20).map(|_| (all, None));
        let resumed = (0..10).map(|i| (all, Some(1 + i % 5)));
        let dropped = MemoryPlan::from(MemoryLevel::DropGateUp);
        let inputs = MemoryPlan::from(MemoryLevel::LayerInputs);
        let some = MemoryPlan {
            n_gate_up: 1,
            ..dropped
        };
        let on_host = |plan| MemoryPlan {
            streams: Streams::OnHost,
            ..plan
        };
        let plans = [
            (dropped, None),
            (some, None),
            (inputs, Some(2)),
            (on_host(all), None),
            (on_host(some), Some(3)),
            (on_host(inputs), None),
        ];
        for (memory, stop) in again.chain(resumed).chain(plans) {
            assert!(
                run(memory, stop) == first,
                "{} {memory:?} {stop:?}",
                shape.family
            );
        }
    }
}

#[test]
fn what_a_gpu_cannot_do_is_told() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&gpu, &shapes()[0]);
    let error = |adapter: Adapter, config: TrainConfig| {
        let memory = MemoryLevel::KeepAll.into();
        Trainer::on_gpu(&gpu, case.on_gpu.clone(), adapter, config, memory)
            .err()
            .unwrap()
            .to_string()
    };
    let fp32 = Case::config(Precision::Fp32, MemoryLevel::KeepAll);
    assert!(error(case.adapter.clone(), fp32).contains("fp32"));
    let config = LoraConfig::all_linear(16, 32.0);
    let wide = Adapter::init(case.base.config(), &config, 0).unwrap();
    let bf16 = Case::config(Precision::Bf16, MemoryLevel::KeepAll);
    assert!(error(wide, bf16).contains("ranks of 48"));
}

#[test]
fn the_fastest_memory_plan_that_fits_is_chosen() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&gpu, &deep());
    let config = Case::config(Precision::Bf16, MemoryLevel::KeepAll);
    let plan = |longest, asked| {
        let (base, adapter) = (&case.on_gpu, &case.adapter);
        engine::cuda::plan_memory(&gpu, base, adapter, &config, longest, asked, u64::MAX)
            .map(|need| need.memory)
    };
    // To more tokens than any card has room for, by steps that are smaller than what gate and up take of all.
    let longest = (0..560).map(|i| (1024.0 * 1.02f64.powi(i)) as usize);
    let mut seen: Vec<_> = longest.map(|n| plan(n, None).ok()).collect();
    seen.dedup();
    assert_eq!(seen.pop(), Some(None));
    let seen: Vec<MemoryPlan> = seen.into_iter().flatten().collect();
    println!("{seen:#?}");
    assert_eq!(seen[0], MemoryLevel::KeepAll.into());
    assert!(seen.is_sorted_by_key(|plan| plan.level));
    let (inputs, dropped) = (MemoryLevel::LayerInputs, MemoryLevel::DropGateUp);
    let on_host = |level: MemoryLevel| MemoryPlan {
        streams: Streams::OnHost,
        ..level.into()
    };
    assert_eq!(seen[seen.len() - 1], on_host(inputs));
    assert!(seen.contains(&on_host(dropped)));
    let of_some = seen.iter().filter(|plan| plan.level == dropped);
    assert!(of_some.is_sorted_by_key(|plan| std::cmp::Reverse(plan.n_gate_up)));
    // A host without room keeps the streams where they are.
    let (base, adapter) = (&case.on_gpu, &case.adapter);
    let poor = |longest| {
        let planned = engine::cuda::plan_memory(&gpu, base, adapter, &config, longest, None, 0);
        planned.map(|need| need.memory)
    };
    let longest = (0..560).map(|i| (1024.0 * 1.02f64.powi(i)) as usize);
    let seen_there = longest.filter_map(|n| poor(n).ok());
    assert!(
        seen_there
            .into_iter()
            .all(|plan| plan.streams == Streams::OnGpu)
    );
    let asked = plan(1024, Some(MemoryLevel::LayerInputs)).unwrap();
    assert_eq!(asked, MemoryLevel::LayerInputs.into());
    let error = plan(1 << 26, None).unwrap_err().to_string();
    assert!(error.contains("has no room for"), "{error}");
}

#[test]
fn what_a_base_and_a_training_take_is_known_before() {
    let Some(gpu) = gpu() else { return };
    let quantized = [Kind::Nf4, Kind::Nf4DoubleQuant, Kind::Int8, Kind::Fp8];
    let quantized = quantized.map(|kind| (shapes().remove(2), BaseWeights::Quantized(kind)));
    let plain = shapes().into_iter().chain([wide(), deep()]);
    let plain = plain.map(|shape| (shape, BaseWeights::AsStored));
    for (shape, weights) in plain.chain(quantized) {
        let case = Case::with(&gpu, &shape, weights);
        let room = RankRoom::of_rank(8);
        let (on_gpu, _) = Base::bytes_of(case.base.config(), weights, room).unwrap();
        assert_eq!(
            on_gpu,
            case.on_gpu.size_bytes(),
            "{} {weights:?}",
            shape.family
        );
        let adapter = case.adapter.shape();
        for level in [
            MemoryLevel::KeepAll,
            MemoryLevel::DropGateUp,
            MemoryLevel::LayerInputs,
        ] {
            let config = Case::config(Precision::Bf16, level);
            let training = TrainingShape {
                model: case.base.config(),
                adapter: &adapter,
                config: &config,
                longest: 1024,
                level: Some(level),
            };
            let need = training.plan(&gpu, u64::MAX, u64::MAX).unwrap();
            let mut trainer = Trainer::on_gpu(
                &gpu,
                case.on_gpu.clone(),
                case.adapter.clone(),
                config.clone(),
                need.memory,
            )
            .unwrap();
            let vocab = case.base.config().vocab_size;
            let batch: Vec<Example> = (0..2 * need.n_rows / 1024)
                .map(|i| Example {
                    mask: vec![true; 1024],
                    ..example(vocab, 1024, i as u64)
                })
                .collect();
            trainer.step(&batch).unwrap();
            let (taken, told) = (trainer.gpu_bytes(), need.on_gpu());
            // The tables of a step, a few numbers for each of its tokens, are not counted; not every row of a pass had a label.
            let what = format!("{} {weights:?} {level:?}: {taken} of {told}", shape.family);
            assert!(
                taken <= told + (4 << 20) && told <= taken * 21 / 20,
                "{what}"
            );
        }
    }
}

const LIMITS: Limits = Limits {
    max_sequences: 24,
    max_cached_tokens: 8192,
};

fn ask(prompt: Vec<u32>, adapter: Option<Arc<Adapter>>, n: usize) -> GenerateRequest {
    GenerateRequest {
        prompt,
        adapter,
        scope: "a".into(),
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        max_new_tokens: n,
        stop_token_ids: Vec::new(),
        top_logprobs: Some(3),
        grammar: None,
    }
}

/// The outputs of each request, all of them admitted at once.
fn generate(batcher: &mut Batcher, requests: &[GenerateRequest]) -> Vec<Vec<(u32, u32)>> {
    let ids: Vec<_> = requests
        .iter()
        .map(|request| batcher.admit(request.clone()).unwrap())
        .collect();
    let mut outputs = vec![Vec::new(); requests.len()];
    while !batcher.is_idle() {
        for output in batcher.step().unwrap().into_iter().map(Result::unwrap) {
            let at = ids.iter().position(|id| *id == output.id).unwrap();
            outputs[at].push((output.token, output.logprob.to_bits()));
        }
    }
    outputs
}

#[test]
fn rows_of_any_step_on_a_gpu_equal_their_single_runs_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    let nf4 = BaseWeights::Quantized(Kind::Nf4DoubleQuant);
    for (shape, weights) in [
        (&shapes()[0], BaseWeights::AsStored),
        (&shapes()[2], BaseWeights::AsStored),
        (&shapes()[3], BaseWeights::AsStored),
        (&shapes()[5], BaseWeights::AsStored),
        (&wide(), BaseWeights::AsStored),
        (&shapes()[2], nf4),
        (&wide(), nf4),
    ] {
        let case = Case::with(&gpu, shape, weights);
        let vocab = case.base.config().vocab_size;
        let made = [4, 8, 16].into_iter().enumerate().map(|(i, r)| {
            let mut config = LoraConfig::all_linear(r, 16.0);
            // One leaves most linears as they are.
            if i == 1 {
                config.target_modules = engine::lora::TargetModules::List(
                    ["q_proj", "v_proj"].map(str::to_owned).to_vec(),
                );
            }
            Arc::new(adapter(&case.base, &config, i as u64))
        });
        let adapters: Vec<_> = made.collect();
        let requests: Vec<_> = [1, 70, 5, 600, 33, 130, 64, 2, 17]
            .iter()
            .enumerate()
            .map(|(i, &len)| {
                let prompt = example(vocab, len, i as u64).tokens;
                let mut request = ask(prompt, adapters.get(i % 4).cloned(), 12);
                // Two of three draw on the GPU.
                if i % 3 > 0 {
                    request.top_logprobs = None;
                    request.sampling.temperature = (i % 2) as f32;
                    request.sampling.seed = i as u64;
                }
                request
            })
            .collect();
        let mut batcher =
            Batcher::on_gpu(&gpu, case.on_gpu.clone(), case.pool.clone(), LIMITS).unwrap();
        let together = generate(&mut batcher, &requests);
        for (i, request) in requests.iter().enumerate() {
            let mut alone =
                Batcher::on_gpu(&gpu, case.on_gpu.clone(), case.pool.clone(), LIMITS).unwrap();
            let single = generate(&mut alone, std::slice::from_ref(request));
            let what = format!("{} {weights:?} request {i}", shape.family);
            assert!(single[0] == together[i], "{what}");
        }
    }
}

#[test]
fn a_token_drawn_on_a_gpu_is_the_one_that_the_host_draws() {
    let Some(gpu) = gpu() else { return };
    // Gemma 2 caps its logits.
    for shape in [&shapes()[0], &shapes()[5], &wide()] {
        let case = Case::new(&gpu, shape);
        let vocab = case.base.config().vocab_size;
        for temperature in [0.0, 0.7, 1.0, 2.0] {
            let answers = [None, Some(1)].map(|top_logprobs| {
                let prompt = example(vocab, 20, 1).tokens;
                let mut request = ask(prompt, None, 40);
                (request.top_logprobs, request.sampling.temperature) = (top_logprobs, temperature);
                let pool = case.pool.clone();
                let mut batcher = Batcher::on_gpu(&gpu, case.on_gpu.clone(), pool, LIMITS).unwrap();
                generate(&mut batcher, &[request]).remove(0)
            });
            let [drawn, chosen] = &answers;
            for ((a, p), (b, q)) in drawn.iter().zip(chosen) {
                assert_eq!(a, b, "{} at {temperature}", shape.family);
                let [p, q] = [p, q].map(|bits| f32::from_bits(*bits));
                assert!((p - q).abs() < 1e-3, "{p} {q}");
            }
        }
    }
}

#[test]
fn a_training_and_generation_at_once_change_no_bit_of_each_other() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(&gpu, &shapes()[0]);
    let first = gpu.going_first().unwrap();
    let train = || {
        let mut trainer = case.on_gpu(MemoryLevel::KeepAll);
        for step in 0..60 {
            trainer.step(&case.examples[step % 3..]).unwrap();
        }
        trainer.save_state().unwrap()
    };
    let vocab = case.base.config().vocab_size;
    let served = Arc::new(case.adapter.clone());
    let requests: Vec<_> = (0..8)
        .map(|i| {
            let adapter = (i % 2 == 0).then(|| served.clone());
            ask(example(vocab, 40 + i, i as u64).tokens, adapter, 60)
        })
        .collect();
    let answer = || {
        let pool = case.pool.clone();
        let mut batcher = Batcher::on_gpu(&first, case.on_gpu.clone(), pool, LIMITS).unwrap();
        generate(&mut batcher, &requests)
    };
    let (trained, answered) = (train(), answer());
    let (trained_beside, answered_beside) = std::thread::scope(|scope| {
        let training = scope.spawn(train);
        let answering = scope.spawn(|| (0..4).map(|_| answer()).collect::<Vec<_>>());
        (training.join().unwrap(), answering.join().unwrap())
    });
    assert!(trained == trained_beside);
    assert!(answered_beside.iter().all(|answers| *answers == answered));
}

#[test]
fn scores_on_a_gpu_are_the_cpus_within_bf16() {
    let Some(gpu) = gpu() else { return };
    let mut bad = Vec::new();
    let quantized = [Kind::Nf4, Kind::Nf4DoubleQuant, Kind::Int8, Kind::Fp8];
    let quantized = quantized.map(|kind| (shapes().remove(2), BaseWeights::Quantized(kind)));
    let cases = shapes().into_iter().chain([wide()]);
    let cases = cases.map(|shape| (shape, BaseWeights::AsStored));
    for (shape, weights) in cases.chain(quantized) {
        let case = Case::with(&gpu, &shape, weights);
        let mut on_cpu = Batcher::new(case.base.clone(), case.pool.clone(), LIMITS);
        let mut on_gpu =
            Batcher::on_gpu(&gpu, case.on_gpu.clone(), case.pool.clone(), LIMITS).unwrap();
        let tokens = example(case.base.config().vocab_size, 700, 1).tokens;
        for adapter in [None, Some(&case.adapter)] {
            let [a, b] = [&mut on_gpu, &mut on_cpu].map(|b| b.score(&tokens, adapter).unwrap());
            // What a training scores in bf16 on the CPU is as far from f32.
            let twin = {
                let config = Case::config(Precision::Bf16, MemoryLevel::KeepAll);
                let fresh = Adapter::init(case.base.config(), &LoraConfig::all_linear(8, 16.0), 0);
                let adapter = adapter.cloned().unwrap_or_else(|| fresh.unwrap());
                let mut twin = Trainer::new(case.base.clone(), adapter, config, case.pool.clone());
                let mask = vec![true; tokens.len()];
                let example = Example {
                    tokens: tokens.clone(),
                    mask,
                };
                let logits = twin.logits(&example.tokens).unwrap();
                log_probs(&logits, &tokens, case.base.config().vocab_size)
            };
            let (ours, theirs) = (distance(&a, &b), distance(&twin, &b));
            println!(
                "{:12} {weights:?} scores {ours:.5} from f32, the CPU's bf16 {theirs:.5}",
                shape.family
            );
            if !is_near(ours, theirs) {
                bad.push(shape.family);
            }
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

/// log p of each token after the first.
fn log_probs(logits: &[f32], tokens: &[u32], vocab: usize) -> Vec<f32> {
    let rows = logits.chunks_exact(vocab).zip(&tokens[1..]);
    rows.map(|(row, &target)| {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
        row[target as usize] - top - total.ln() as f32
    })
    .collect()
}
