//! From a job's options to the engine's configurations: the one place where the two meet.

use domain::message::Assignment;
use domain::preference::{self, DEFAULT_BETA};
use domain::x_training::{self, Compute, GradientCheckpointing, Training};
use engine::lora::{Bias, Init, LoraConfig, TargetModules};
use engine::schedule::Schedule;
use engine::train::{Packing, Preference, PreferenceLoss, TrainConfig};
use engine::{MemoryLevel, Precision};

/// Part of the steps over which the learning rate rises, so that Adam's second moments settle first.
const WARMUP: f64 = 0.03;

/// What to train with.
pub(super) fn training(assignment: &Assignment) -> Training {
    let context_length = assignment.base_model.context_length;
    let asked = assignment.training.clone();
    asked.unwrap_or_else(|| Training::default_for(context_length))
}

pub(crate) fn lora_config(adapter: &x_training::Adapter) -> LoraConfig {
    let alphas = adapter.alpha_pattern.0.iter();
    let ranks = adapter.rank_pattern.0.iter();
    LoraConfig {
        r: adapter.r as usize,
        lora_alpha: adapter.alpha as f32,
        target_modules: target_modules(&adapter.target_modules),
        rank_pattern: ranks.map(|(key, r)| (key.clone(), *r as usize)).collect(),
        alpha_pattern: alphas.map(|(key, a)| (key.clone(), *a as f32)).collect(),
        use_rslora: adapter.use_rslora,
        use_dora: adapter.use_dora,
        lora_dropout: adapter.dropout as f32,
        bias: match adapter.bias {
            x_training::Bias::None => Bias::None,
            x_training::Bias::All => Bias::All,
            x_training::Bias::LoraOnly => Bias::LoraOnly,
        },
        modules_to_save: adapter.modules_to_save.clone(),
        init_lora_weights: match adapter.init {
            x_training::Init::Default => Init::Default,
            x_training::Init::Gaussian => Init::Gaussian,
            x_training::Init::Pissa => Init::Pissa,
        },
        ..LoraConfig::default()
    }
}

fn target_modules(asked: &x_training::TargetModules) -> TargetModules {
    match asked {
        x_training::TargetModules::Named(names) => TargetModules::List(names.clone()),
        x_training::TargetModules::Pattern(text)
            if text == x_training::TargetModules::ALL_LINEAR =>
        {
            TargetModules::AllLinear
        }
        x_training::TargetModules::Pattern(regex) => TargetModules::Regex(regex.clone()),
    }
}

pub(super) fn train_config(assignment: &Assignment, training: &Training) -> TrainConfig {
    let loraplus_lr_ratio = training.optimizer.loraplus_lr_ratio;
    TrainConfig {
        learning_rate: assignment.hyperparameters.learning_rate as f32,
        total_steps: assignment.total_steps,
        warmup_steps: (assignment.total_steps as f64 * WARMUP) as u64,
        schedule: Schedule::Linear,
        loraplus_lr_ratio: loraplus_lr_ratio.map(|ratio| ratio as f32),
        seed: assignment.seed.into(),
        ..passes_config(training, assignment.preference.as_ref())
    }
}

/// How passes are computed, whatever they learn: all that memory depends on.
pub(crate) fn passes_config(
    training: &Training,
    asked: Option<&preference::Preference>,
) -> TrainConfig {
    TrainConfig {
        precision: precision(training.precision.compute),
        preference: asked.map(|asked| preference(asked, training.data.max_length as usize)),
        packing: match training.data.packing {
            x_training::Packing::None => Packing::None,
            x_training::Packing::Greedy => Packing::Greedy,
            x_training::Packing::BinPack => Packing::BinPack,
        },
        ..TrainConfig::default()
    }
}

/// `max_length` of a row, in tokens.
fn preference(asked: &preference::Preference, max_length: usize) -> Preference {
    use domain::preference::PreferenceLoss as Asked;
    Preference {
        loss: match asked.loss_type {
            Asked::Sigmoid => PreferenceLoss::Sigmoid,
            Asked::Robust => PreferenceLoss::Robust,
            Asked::Hinge => PreferenceLoss::Hinge,
            Asked::Ipo => PreferenceLoss::Ipo,
            Asked::ExoPair => PreferenceLoss::ExoPair,
            Asked::NcaPair => PreferenceLoss::NcaPair,
            Asked::BcoPair => PreferenceLoss::BcoPair,
            Asked::SppoHard => PreferenceLoss::SppoHard,
            Asked::ApoZero => PreferenceLoss::ApoZero,
            Asked::ApoDown => PreferenceLoss::ApoDown,
            Asked::Aot => PreferenceLoss::Aot,
            Asked::AotUnpaired => PreferenceLoss::AotUnpaired,
            Asked::Kto => PreferenceLoss::Kto,
            Asked::Orpo => PreferenceLoss::Orpo,
            Asked::Simpo => PreferenceLoss::Simpo,
            Asked::Cpo => PreferenceLoss::Cpo,
        },
        beta: asked.beta.unwrap_or(DEFAULT_BETA) as f32,
        label_smoothing: asked.label_smoothing as f32,
        gamma: asked.simpo_gamma as f32,
        ftx: asked.pref_ftx as f32,
        desirable_weight: asked.desirable_weight as f32,
        undesirable_weight: asked.undesirable_weight as f32,
        max_length: asked.loss_type.is_unpaired().then_some(max_length),
    }
}

/// What a GPU computes in, where it takes the job.
pub(crate) fn precision_on_gpu(training: &Training) -> Precision {
    let asked = &training.precision;
    precision(asked.compute_on_gpu.unwrap_or(asked.compute))
}

fn precision(compute: Compute) -> Precision {
    match compute {
        Compute::Bf16 => Precision::Bf16,
        Compute::Fp32 => Precision::Fp32,
    }
}

/// `None`: the device chooses by the memory it has.
pub(crate) fn memory_level(training: &Training) -> Option<MemoryLevel> {
    match training.memory.gradient_checkpointing {
        GradientCheckpointing::Auto => None,
        GradientCheckpointing::None => Some(MemoryLevel::KeepAll),
        GradientCheckpointing::Selective => Some(MemoryLevel::DropGateUp),
        GradientCheckpointing::Full => Some(MemoryLevel::LayerInputs),
    }
}
