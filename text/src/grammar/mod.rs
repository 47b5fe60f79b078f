//! What an answer may be, token by token: JSON of a schema, or calls of functions in the model's own form. llguidance knows which tokens
//! may come next; here is what it is asked, and for which tokens.

mod lark;
mod walk;

use std::collections::HashSet;
use std::sync::Arc;

use domain::generation::{ResponseFormat, ToolChoice};
use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use serde_json::Value;

use self::lark::Lark;
use self::walk::WaitsFor;
pub use self::walk::Walk;
use crate::tokenizer::Tokenizer;
use crate::tools::ToolSyntax;

/// Longest grammar that is compiled, as text: no request has more to say. Bytes.
const MAX_GRAMMAR_BYTES: usize = 4 << 20;

/// Properties in all objects of a schema: OpenAI's limit.
const MAX_PROPERTIES: usize = 5000;

/// Properties that one object may leave out. llguidance holds four states for each at once, gives up at 2,000 of them, and takes time that
/// grows with their square.
const MAX_OPTIONAL: usize = 400;

/// Why there is no such grammar; the client's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// `param` is the path of what is at fault in a chat request.
    #[error("{reason}")]
    Schema { param: String, reason: String },
    #[error(
        "this model's chat template writes calls of functions in a form that is not understood, so none can be required"
    )]
    UnknownSyntax,
}

/// What a client wants of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'w> {
    pub format: &'w ResponseFormat,
    /// As the client spelled them.
    pub tools: &'w [Value],
    pub choice: &'w ToolChoice,
    /// Whether a turn may have more than one call.
    pub parallel: bool,
}

impl Wanted<'_> {
    /// Whether the answer may be anything.
    pub fn is_anything(&self) -> bool {
        let has_tools = !self.tools.is_empty() && *self.choice != ToolChoice::None;
        matches!(self.format, ResponseFormat::Text) && !has_tools
    }

    /// Whether the answer begins with a call, whatever the model likes.
    pub(crate) fn is_call(&self) -> bool {
        !self.tools.is_empty() && matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }
}

/// All answers that are as wanted.
pub struct Grammar {
    parser: llguidance::TokenParser,
    vocabulary: TokEnv,
    /// What an answer must say before the grammar begins to hold; `None`: it holds from the start.
    waits_for: Option<WaitsFor>,
}

impl Grammar {
    /// Before the first token of an answer.
    pub fn begin(self: &Arc<Self>) -> Walk {
        Walk::new(Arc::clone(self))
    }
}

/// Makes grammars for one vocabulary.
pub(crate) struct Grammars {
    factory: ParserFactory,
    vocabulary: TokEnv,
    /// The first space of an answer is not there when it is read.
    strips_first_space: bool,
}

impl Grammars {
    pub fn new(tokenizer: &Tokenizer, stop_token_ids: &[u32]) -> Self {
        let vocabulary: TokEnv = Arc::new(Vocabulary::new(tokenizer, stop_token_ids));
        let mut factory = ParserFactory::new(
            &vocabulary,
            InferenceCapabilities::default(),
            &SlicedBiasComputer::json_slices(),
        )
        .expect("the slices are constants — a bug in Grammars");
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Self {
            factory,
            vocabulary,
            strips_first_space: tokenizer.strips_first_space(),
        }
    }

    /// The grammar of what is wanted; `None`: anything. `syntax`: how the model calls functions.
    pub fn compile(
        &self,
        wanted: &Wanted,
        syntax: Option<&ToolSyntax>,
    ) -> Result<Option<Grammar>, GrammarError> {
        let has_tools = !wanted.tools.is_empty() && *wanted.choice != ToolChoice::None;
        let syntax = syntax.filter(|_| has_tools);
        if wanted.is_call() && syntax.is_none() {
            return Err(GrammarError::UnknownSyntax);
        }
        let mut lark = Lark::new(self.strips_first_space);
        let mut waits_for = None;
        if !wanted.is_call() {
            match (wanted.format, syntax) {
                (ResponseFormat::Text, None) => return Ok(None),
                (ResponseFormat::Text, Some(syntax)) => {
                    waits_for = Some(WaitsFor::new(&syntax.trigger));
                }
                (ResponseFormat::JsonObject, _) => lark.json_object(),
                (ResponseFormat::JsonSchema { schema, strict }, _) => {
                    self.check(schema, *strict)
                        .map_err(|reason| GrammarError::Schema {
                            param: "response_format.json_schema.schema".to_owned(),
                            reason,
                        })?;
                    lark.json_schema(schema, *strict);
                }
            }
        }
        if let Some(syntax) = syntax {
            lark.calls(syntax, self.functions(wanted)?, wanted);
        }
        let parser = self.parser(lark).map_err(|reason| GrammarError::Schema {
            param: if syntax.is_some() {
                "tools"
            } else {
                "response_format"
            }
            .to_owned(),
            reason,
        })?;
        Ok(Some(Grammar {
            parser,
            vocabulary: Arc::clone(&self.vocabulary),
            waits_for,
        }))
    }

    /// The functions that may be called, with parameters that can be held to. Only a strict function fails with its schema; any other
    /// one takes an object then.
    fn functions<'w>(&self, wanted: &Wanted<'w>) -> Result<Vec<Function<'w>>, GrammarError> {
        let mut functions = Vec::new();
        for (i, tool) in wanted.tools.iter().enumerate() {
            let function = &tool["function"];
            let name = function["name"].as_str().unwrap_or_default();
            if matches!(wanted.choice, ToolChoice::Named(named) if named != name) {
                continue;
            }
            let is_strict = function["strict"] == true;
            let parameters = function
                .get("parameters")
                .filter(|schema| schema.is_object());
            let checked = parameters.map_or(Ok(()), |schema| self.check(schema, is_strict));
            let parameters = match checked {
                Ok(()) => parameters,
                Err(reason) if is_strict => {
                    let param = format!("tools[{i}].function.parameters");
                    return Err(GrammarError::Schema { param, reason });
                }
                Err(_) => None,
            };
            functions.push(Function {
                name,
                parameters,
                takes_none: function.get("parameters").is_none_or(Value::is_null),
                is_strict,
            });
        }
        Ok(functions)
    }

    /// Whether a schema can be held to.
    fn check(&self, schema: &Value, is_strict: bool) -> Result<(), String> {
        let n_properties = count_properties(schema)?;
        if n_properties > MAX_PROPERTIES {
            return Err(format!(
                "its objects have {n_properties} properties, more than {MAX_PROPERTIES}"
            ));
        }
        let mut lark = Lark::new(false);
        lark.json_schema(schema, is_strict);
        self.parser(lark).map(drop)
    }

    fn parser(&self, lark: Lark) -> Result<llguidance::TokenParser, String> {
        let text = lark.finish();
        if text.len() > MAX_GRAMMAR_BYTES {
            return Err(format!(
                "schemas of {} bytes are more than {MAX_GRAMMAR_BYTES}",
                text.len()
            ));
        }
        let parser = self.factory.create_parser(TopLevelGrammar::from_lark(text));
        parser.map_err(|error| first_line(&error))
    }
}

/// Properties in all objects of a schema. Errors: one of them has more than [`MAX_OPTIONAL`] that are not required.
fn count_properties(schema: &Value) -> Result<usize, String> {
    let inner = match schema {
        Value::Array(values) => values.iter().map(count_properties).sum(),
        Value::Object(values) => values.values().map(count_properties).sum(),
        _ => return Ok(0),
    };
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return inner;
    };
    let required = schema.get("required").and_then(Value::as_array);
    let required: HashSet<&str> = required
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let is_optional = |name: &&String| !required.contains(name.as_str());
    let n_optional = properties.keys().filter(is_optional).count();
    if n_optional > MAX_OPTIONAL {
        return Err(format!(
            "an object has {n_optional} properties that are not required, more than {MAX_OPTIONAL}"
        ));
    }
    Ok(inner? + properties.len())
}

/// A function that may be called.
struct Function<'w> {
    name: &'w str,
    /// Their schema, if it can be held to.
    parameters: Option<&'w Value>,
    takes_none: bool,
    is_strict: bool,
}

/// llguidance adds where in the grammar it failed, which is ours and says nothing to a client.
fn first_line(error: &impl ToString) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// A tokenizer as llguidance sees one. It is only asked which token has which bytes.
struct Vocabulary {
    trie: TokTrie,
}

impl Vocabulary {
    fn new(tokenizer: &Tokenizer, stop_token_ids: &[u32]) -> Self {
        let n_ids = tokenizer.max_id() + 1;
        let word = |id| {
            let bytes = tokenizer.token_bytes(id);
            // A byte that no text has sets control tokens apart.
            if tokenizer.is_control(id) || stop_token_ids.contains(&id) {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
            } else {
                bytes
            }
        };
        let words: Vec<Vec<u8>> = (0..n_ids).map(word).collect();
        let info = TokRxInfo::new(n_ids, stop_token_ids[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(stop_token_ids);
        Self { trie }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
