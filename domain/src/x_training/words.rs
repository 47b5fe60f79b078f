//! The words that `x_training` knows. Each enum is spelled in one place: its words are what a request may say, what a
//! row holds and what a reply shows.

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$about])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text {
                    $($word => Some($name::$variant),)*
                    _ => None,
                }
            }
        }
    )*};
}

words! {
    /// What kind of adapter is trained.
    AdapterType {
        Lora = "lora",
    }

    /// Which biases of the base are trained with the adapter, as PEFT's `bias` says.
    Bias {
        None = "none",
        All = "all",
        LoraOnly = "lora_only",
    }

    /// How A and B begin, as PEFT's `init_lora_weights` says.
    Init {
        /// A uniform, B zero.
        Default = "default",
        /// A normal, B zero.
        Gaussian = "gaussian",
        /// The largest singular directions of the weight itself.
        Pissa = "pissa",
    }

    /// The element type that activations are computed in.
    Compute {
        Bf16 = "bf16",
        Fp32 = "fp32",
    }

    /// How the frozen weights are held.
    BaseWeights {
        /// As the base model's files hold them.
        Stored = "stored",
        Bf16 = "bf16",
        Int8 = "int8",
        Fp8 = "fp8",
        Nf4 = "nf4",
    }

    /// [`BaseWeights`] and whether nf4's scales are quantised too, in one word: what an adapter was trained on.
    FrozenWeights {
        Stored = "stored",
        Bf16 = "bf16",
        Int8 = "int8",
        Fp8 = "fp8",
        Nf4 = "nf4",
        Nf4DoubleQuant = "nf4_double_quant",
    }

    /// Which activations a step keeps for its backward pass.
    GradientCheckpointing {
        /// The worker chooses for each step, by the batch and by its memory. The numbers are the same whatever it chooses.
        Auto = "auto",
        None = "none",
        Selective = "selective",
        Full = "full",
    }

    /// How the rows of a training file are written.
    DataFormat {
        /// As OpenAI has it: conversations, for method `dpo` a prompt and two answers.
        Chat = "chat",
        /// `instruction`, `input`, `output`.
        Alpaca = "alpaca",
        /// `conversations` of turns `from` somebody with a `value`.
        ShareGpt = "sharegpt",
        /// `query` and `response`.
        QueryResponse = "query_response",
        /// `prompt` and `completion`: texts that no chat template writes.
        PromptCompletion = "prompt_completion",
    }

    /// What becomes of an example that is longer than `max_length`.
    Truncation {
        /// The file is refused, and the lines are named.
        Error = "error",
        /// Its beginning is cut off.
        Left = "left",
        /// Its end is cut off, as OpenAI does.
        Right = "right",
        /// It is left out.
        Drop = "drop",
        /// It becomes several examples.
        Split = "split",
    }

    /// Which examples of a batch share a forward pass. It changes how fast a step is and the order of its sums, not which
    /// examples are in it.
    Packing {
        /// Each has its own.
        None = "none",
        /// In their order, as many as fit.
        Greedy = "greedy",
        /// By size, so that passes are full.
        BinPack = "binpack",
    }
}

/// Every adapter of which nothing else is known: those that clients bring.
impl Default for FrozenWeights {
    fn default() -> Self {
        Self::Stored
    }
}

/// Of a job that was made before there was a choice.
impl Default for DataFormat {
    fn default() -> Self {
        Self::Chat
    }
}
