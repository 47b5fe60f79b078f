//! Owns PEFT's rules for choosing modules, ranks and alphas by a module's path.
//! Source: `check_target_module_exists` and `get_pattern_key` of peft 0.21.2.

use regex::Regex;

use crate::config::ModelConfig;
use crate::lora::layout::Module;
use crate::lora::{AdapterError, LoraConfig, TargetModules};

/// The paths of a decoder that are no linear of a block. `*` stands for the block's number.
const NO_TARGETS: [&str; 17] = [
    "model",
    "model.embed_tokens",
    "model.layers",
    "model.layers.*",
    "model.layers.*.self_attn",
    "model.layers.*.mlp",
    "model.layers.*.input_layernorm",
    "model.layers.*.post_attention_layernorm",
    "model.layers.*.pre_feedforward_layernorm",
    "model.layers.*.post_feedforward_layernorm",
    "model.layers.*.post_self_attn_layernorm",
    "model.layers.*.post_mlp_layernorm",
    "model.layers.*.self_attn.q_norm",
    "model.layers.*.self_attn.k_norm",
    "model.norm",
    "model.rotary_emb",
    "lm_head",
];

/// A configuration's choices, ready to be asked.
pub(crate) struct Targets<'a> {
    config: &'a LoraConfig,
    included: Matcher<'a>,
    excluded: Option<Matcher<'a>>,
    ranks: Vec<Regex>,
    alphas: Vec<Regex>,
}

enum Matcher<'a> {
    Everything,
    Suffixes(&'a [String]),
    Whole(Regex),
}

impl<'a> Targets<'a> {
    /// Errors: `BadPattern`, `LayersOfRegex`.
    pub fn new(config: &'a LoraConfig) -> Result<Self, AdapterError> {
        let is_regex = matches!(config.target_modules, TargetModules::Regex(_));
        if config.layers_to_transform.is_some() && is_regex {
            return Err(AdapterError::LayersOfRegex);
        }
        let excluded = config.exclude_modules.as_ref();
        let ranks = config.rank_pattern.iter().map(|(key, _)| key);
        let alphas = config.alpha_pattern.iter().map(|(key, _)| key);
        Ok(Self {
            config,
            included: Matcher::new("target_modules", &config.target_modules)?,
            excluded: excluded
                .map(|modules| Matcher::new("exclude_modules", modules))
                .transpose()?,
            ranks: ranks
                .map(|key| at_the_end("rank_pattern", key))
                .collect::<Result<_, _>>()?,
            alphas: alphas
                .map(|key| at_the_end("alpha_pattern", key))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Refuses choices that reach beyond the linears of the model's blocks, where PEFT would change something else, or
    /// that reach nothing. Errors: `UnknownModule`, `UnknownLayer`.
    pub fn check(&self, model: &ModelConfig) -> Result<(), AdapterError> {
        let n_layers = model.num_hidden_layers;
        let linears = paths_of_linears(model);
        match &self.included {
            Matcher::Everything => {}
            Matcher::Suffixes(names) => {
                let reaches = |name: &&String| linears.iter().any(|path| is_suffix(path, name));
                if let Some(name) = names.iter().find(|name| !reaches(name)) {
                    return Err(unknown(name.clone(), model));
                }
            }
            Matcher::Whole(regex) => {
                let others = NO_TARGETS
                    .iter()
                    .flat_map(|path| (0..n_layers).map(|i| path.replace('*', &i.to_string())));
                if let Some(name) = others.into_iter().find(|path| regex.is_match(path)) {
                    return Err(unknown(name, model));
                }
            }
        }
        let layers = self.config.layers_to_transform.iter().flatten();
        match layers.copied().find(|&layer| layer >= n_layers) {
            Some(layer) => Err(AdapterError::UnknownLayer { layer, n_layers }),
            None => Ok(()),
        }
    }

    /// Refuses keys of `rank_pattern` and `alpha_pattern` that match none of `paths`: PEFT would pass over them.
    /// Errors: `UnmatchedPattern`.
    pub fn check_patterns(&self, paths: &[String]) -> Result<(), AdapterError> {
        let is_idle = |regex: &Regex| !paths.iter().any(|path| regex.is_match(path));
        let unmatched = |key, pattern: &String| {
            let pattern = pattern.clone();
            Err(AdapterError::UnmatchedPattern { key, pattern })
        };
        if let Some(i) = self.ranks.iter().position(is_idle) {
            return unmatched("rank_pattern", &self.config.rank_pattern[i].0);
        }
        match self.alphas.iter().position(is_idle) {
            Some(i) => unmatched("alpha_pattern", &self.config.alpha_pattern[i].0),
            None => Ok(()),
        }
    }

    /// Whether the linear at `path` of block `layer` is changed.
    pub fn contains(&self, layer: usize, path: &str) -> bool {
        let layers = self.config.layers_to_transform.as_ref();
        self.included.matches(path)
            && layers.is_none_or(|layers| layers.is_empty() || layers.contains(&layer))
            && !self.excluded.as_ref().is_some_and(|m| m.matches(path))
    }

    /// The rank at `path`.
    pub fn r(&self, path: &str) -> usize {
        let i = self.ranks.iter().position(|regex| regex.is_match(path));
        i.map_or(self.config.r, |i| self.config.rank_pattern[i].1)
    }

    /// The scale at `path`.
    pub fn scale(&self, path: &str) -> f32 {
        let i = self.alphas.iter().position(|regex| regex.is_match(path));
        let alpha = i.map_or(self.config.lora_alpha, |i| self.config.alpha_pattern[i].1);
        let r = self.r(path) as f64;
        let divisor = if self.config.use_rslora { r.sqrt() } else { r };
        (f64::from(alpha) / divisor) as f32
    }
}

impl<'a> Matcher<'a> {
    fn new(key: &'static str, modules: &'a TargetModules) -> Result<Self, AdapterError> {
        match modules {
            TargetModules::AllLinear => Ok(Self::Everything),
            TargetModules::List(names) => Ok(Self::Suffixes(names)),
            TargetModules::Regex(pattern) => anchored(key, pattern, "^(?:", ")$").map(Self::Whole),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Suffixes(names) => names.iter().any(|name| is_suffix(path, name)),
            Self::Whole(regex) => regex.is_match(path),
        }
    }
}

/// The path of a linear in Hugging Face's models.
pub(crate) fn path(layer: usize, module: Module) -> String {
    format!("model.layers.{layer}.{}", module.path())
}

fn paths_of_linears(model: &ModelConfig) -> Vec<String> {
    let paths = |layer| Module::of(model, layer).map(move |module| path(layer, module));
    (0..model.num_hidden_layers).flat_map(paths).collect()
}

fn unknown(name: String, model: &ModelConfig) -> AdapterError {
    let is_known = |module: &Module| {
        (0..model.num_hidden_layers).any(|i| Module::of(model, i).any(|known| known == *module))
    };
    let known = Module::ALL.into_iter().filter(is_known).map(Module::name);
    let known = known.collect::<Vec<_>>().join(", ");
    AdapterError::UnknownModule { name, known }
}

fn is_suffix(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn at_the_end(key: &'static str, pattern: &str) -> Result<Regex, AdapterError> {
    anchored(key, pattern, r"^(?:.*\.)?(?:", ")$")
}

/// `pattern` must be whole by itself: put between brackets, `a)(b` would become another one.
fn anchored(
    key: &'static str,
    pattern: &str,
    before: &str,
    after: &str,
) -> Result<Regex, AdapterError> {
    let bad = |error: regex::Error| AdapterError::BadPattern {
        key,
        pattern: pattern.to_owned(),
        reason: error.to_string(),
    };
    Regex::new(pattern).map_err(bad)?;
    Regex::new(&format!("{before}{pattern}{after}")).map_err(bad)
}
