//! Owns what can be wrong with an adapter.

/// Why an adapter cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("target module {name:?} is no linear of a block; known are {known}")]
    UnknownModule { name: String, known: String },
    #[error("layers_to_transform names block {layer}, but the model has {n_layers}")]
    UnknownLayer { layer: usize, n_layers: usize },
    #[error(
        "layers_to_transform cannot stand beside a target_modules that is a regex; name the blocks in the regex"
    )]
    LayersOfRegex,
    #[error("target_modules leaves no module to change")]
    NoTargets,
    #[error("{key} has {pattern:?}, which cannot be read as a regex: {reason}")]
    BadPattern {
        key: &'static str,
        pattern: String,
        reason: String,
    },
    #[error("{key} has {pattern:?}, which matches no module that is changed")]
    UnmatchedPattern { key: &'static str, pattern: String },
    #[error(
        "r = {r} with a scale of {scale} cannot be at {path}: r is in 1..={limit}, the scale is finite, for pissa also positive"
    )]
    BadRank {
        r: usize,
        limit: usize,
        scale: f32,
        path: String,
    },
    #[error("lora_dropout = {0} cannot be: it is a probability below 1")]
    BadDropout(f32),
    #[error("init_lora_weights = \"pissa\" cannot stand beside lora_dropout")]
    PissaWithDropout,
    #[error("modules_to_save has {name:?}; only lm_head and embed_tokens can be trained whole")]
    UnknownSaved { name: String },
    #[error("{what} needs the base's weights; make the adapter from the base")]
    NeedsBase { what: &'static str },
    #[error("adapter_config.json is not valid: {0}")]
    MalformedConfig(String),
    #[error("adapter_config.json has {key} = {value}, which is not supported")]
    Unsupported { key: String, value: String },
    #[error(
        "adapter_config.json has init_lora_weights = {value}, with which PEFT changes the base's weights; save it with path_initial_model_for_weight_conversion, as plain LoRA"
    )]
    ChangedBase { value: String },
    #[error("the adapter's file cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("the adapter's safetensors are not valid: {0}")]
    MalformedTensors(#[from] safetensors::SafeTensorError),
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name} belongs to no targeted module of the model")]
    UnexpectedTensor { name: String },
    #[error("tensor {name} is {found}, not {expected}")]
    WrongTensor {
        name: String,
        found: String,
        expected: String,
    },
}
