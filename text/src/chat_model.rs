//! A model's reading and writing side: the folder's tokenizer and chat template as one thing. Prompts and training
//! examples go through the same rendering, so what is trained is what is served.

mod end_of_turn;
mod fit;
pub(crate) mod folder;
mod habits;
mod rendering;
pub(crate) mod turns;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use chrono::NaiveDateTime;
use domain::generation::{ChatMessage, ToolChoice};
use serde_json::Value;

use crate::chat_template::{ChatTemplate, TemplateError};
use crate::decode::DecodeStream;
use crate::formats::{ChatExample, TrainingExample};
use crate::grammar::{Grammar, GrammarError, Grammars, Wanted};
use crate::mask::{Labels, label_turn};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::tools::told::Untold;
use crate::tools::{CallReader, ToolSyntax};

pub use self::fit::{Fitted, FittedPair, TokenizedPair};
pub use self::folder::LoadError;
use self::habits::{CallHabits, Habits};
use self::rendering::Rendering;

const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<ChatModel>();
};

#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(
        "the chat template does not show where message {0} begins and ends, so it cannot be trained on"
    )]
    Unmaskable(usize),
    #[error(
        "the chat template does not write what message {0} says: it may want a list of parts, which is not supported"
    )]
    NotWritten(usize),
    #[error("has {n_tokens} tokens, more than max_length {max_length}")]
    TooLong { n_tokens: usize, max_length: usize },
    #[error("nothing is left to train on after cutting the example at {0} tokens")]
    NothingLeft(usize),
    #[error("rows in the {0} format have no conversation to render")]
    WrongFormat(&'static str),
}

/// Token ids and which of them are labels. Invariant: both are equally long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    pub tokens: Vec<u32>,
    /// `mask[i]`: token `i` is learned.
    pub mask: Vec<bool>,
}

/// What a model reads and how it is written.
pub struct ChatModel {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// For conversations with tools, where the model has one of its own.
    tool_template: Option<ChatTemplate>,
    stop_token_ids: Vec<u32>,
    /// The token that ends a turn where the template writes it only as the opening of the next message.
    opener_id: Option<u32>,
    context_length: usize,
    /// Found out when first asked for.
    takes_system: OnceLock<bool>,
    call_habits: OnceLock<CallHabits>,
    tool_syntax: OnceLock<Option<Arc<ToolSyntax>>>,
    grammars: OnceLock<Grammars>,
}

impl ChatModel {
    /// Reads a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, `config.json`,
    /// `generation_config.json`. Errors: a missing or broken file, and a template that cannot render a conversation of
    /// one question and one answer.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        folder::load(dir, None)
    }

    /// As [`ChatModel::load`], for templates that write today's date: `strftime_now` gives `now`.
    pub fn load_at(dir: &Path, now: NaiveDateTime) -> Result<Self, LoadError> {
        folder::load(dir, Some(now))
    }

    /// The tokens after which the model answers.
    pub fn prompt(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Value]>,
    ) -> Result<Vec<u32>, RenderError> {
        let rendering = self.rendering(messages, tools.unwrap_or_default());
        let text = rendering.prompt(messages.len())?;
        Ok(self.tokenizer.encode_template(&text, rendering.mark())?.ids)
    }

    /// The tokens of a conversation as the template writes it, without a generation prompt.
    pub fn conversation(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Value]>,
    ) -> Result<Vec<u32>, RenderError> {
        let rendering = self.rendering(messages, tools.unwrap_or_default());
        let text = rendering.until(messages.len())?;
        Ok(self.tokenizer.encode_template(&text, rendering.mark())?.ids)
    }

    /// The text that [`ChatModel::prompt`] encodes.
    pub fn prompt_text(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Value]>,
    ) -> Result<String, RenderError> {
        let rendering = self.rendering(messages, tools.unwrap_or_default());
        Ok(rendering.unmarked(&rendering.prompt(messages.len())?))
    }

    /// The text that [`ChatModel::conversation`] encodes.
    pub fn conversation_text(
        &self,
        messages: &[ChatMessage],
        tools: Option<&[Value]>,
    ) -> Result<String, RenderError> {
        let rendering = self.rendering(messages, tools.unwrap_or_default());
        Ok(rendering.unmarked(&rendering.until(messages.len())?))
    }

    /// The tokens of a whole training example, however long it is. Labels are what the model would write itself: each
    /// trained assistant turn with its end-of-turn token. Where that is what opens the next message and none follows, it
    /// is added.
    pub fn example(&self, example: &TrainingExample) -> Result<TokenizedExample, RenderError> {
        match example {
            TrainingExample::Chat(chat) => self.chat_example(chat),
            TrainingExample::Unpaired(unpaired) => self.chat_example(&unpaired.chat),
            TrainingExample::Preference(_) => Err(RenderError::WrongFormat("preference")),
            TrainingExample::Reinforcement(_) => Err(RenderError::WrongFormat("reinforcement")),
            TrainingExample::Completion { prompt, completion } => {
                self.completion_example(prompt, completion)
            }
        }
    }

    /// A text and what follows on it, which is learned with the token that ends an answer. No template: the first tokens are those
    /// of [`ChatModel::text_prompt`], so that what is trained is what is served.
    fn completion_example(
        &self,
        prompt: &str,
        completion: &str,
    ) -> Result<TokenizedExample, RenderError> {
        let mut tokens = self.tokenizer.prefix()?;
        let (ids, n_prompt) = self.tokenizer.encode_followed(prompt, completion)?;
        if tokens.is_empty() && n_prompt == 0 {
            tokens.extend(self.stop_token_ids.first());
        }
        let n_given = tokens.len() + n_prompt;
        tokens.extend(ids);
        tokens.extend(self.stop_token_ids.first());
        let mask = (0..tokens.len()).map(|place| place >= n_given);
        Ok(TokenizedExample {
            mask: mask.collect(),
            tokens,
        })
    }

    fn chat_example(&self, chat: &ChatExample) -> Result<TokenizedExample, RenderError> {
        let rendering = self.rendering(&chat.messages, &chat.tools);
        let text = rendering.until(chat.messages.len())?;
        let encoded = self.tokenizer.encode_template(&text, rendering.mark())?;
        let mut mask = vec![false; encoded.ids.len()];
        let trained = (0..chat.messages.len()).filter(|index| chat.trained[*index]);
        let mut lacks_end = None;
        for index in trained {
            let turn = rendering.turn(&text, index)?;
            let is_end = |id| self.stop_token_ids.contains(&id);
            let labels = label_turn(&text, &encoded, turn, is_end, &mut mask);
            let opener = self.opener_id.filter(|_| index + 1 == chat.messages.len());
            match (labels, opener) {
                (Some(Labels::Whole), _) | (Some(Labels::WithoutEnd), None) => {}
                (Some(_), Some(opener)) => lacks_end = Some((turn.start, opener)),
                (Some(Labels::Nothing) | None, _) => {
                    return Err(RenderError::Unmaskable(index + 1));
                }
            }
        }
        let mut tokens = encoded.ids;
        if let Some((start, opener)) = lacks_end {
            // the whitespace before it is learned too
            for (label, (_, to)) in mask.iter_mut().zip(&encoded.offsets) {
                *label |= *to > start;
            }
            tokens.push(opener);
            mask.push(true);
        }
        Ok(TokenizedExample { tokens, mask })
    }

    fn rendering(&self, messages: &[ChatMessage], tools: &[Value]) -> Rendering<'_> {
        let template = match &self.tool_template {
            Some(template) if !tools.is_empty() => template,
            _ => &self.template,
        };
        let mut habits = Habits::default();
        if !tools.is_empty() && Untold::by(template).tools {
            habits.takes_system = self.takes_system();
        }
        if messages
            .iter()
            .any(|message| !message.tool_calls.is_empty())
        {
            habits.calls = self.call_habits();
        }
        Rendering::new(template, self.tokenizer.control(), messages, tools, habits)
    }

    /// How this model calls functions; `None` where its template does so in a form that is not understood.
    pub fn tool_syntax(&self) -> Option<&Arc<ToolSyntax>> {
        let syntax = self
            .tool_syntax
            .get_or_init(|| self.probe_tool_syntax().map(Arc::new));
        syntax.as_ref()
    }

    /// What an answer must be to be as wanted; `None`: anything. Takes milliseconds, with large schemas a second.
    /// Errors: a schema that cannot be held to; calls that are required of a model whose calls are not understood.
    pub fn grammar(&self, wanted: &Wanted) -> Result<Option<Grammar>, GrammarError> {
        if wanted.is_anything() {
            return Ok(None);
        }
        let grammars = self
            .grammars
            .get_or_init(|| Grammars::new(&self.tokenizer, &self.stop_token_ids));
        grammars.compile(wanted, self.tool_syntax().map(Arc::as_ref))
    }

    /// Takes calls out of an answer; `None` where there can be none.
    pub fn call_reader(&self, wanted: &Wanted) -> Option<CallReader> {
        if wanted.tools.is_empty() || *wanted.choice == ToolChoice::None {
            return None;
        }
        let syntax = Arc::clone(self.tool_syntax()?);
        Some(CallReader::new(syntax, wanted.tools, wanted.is_call()))
    }

    /// Whether a content or name spells a control token. It is read as plain text all the same; who wrote it may want
    /// to know.
    pub fn spells_control_tokens(&self, messages: &[ChatMessage]) -> bool {
        let control = self.tokenizer.control();
        let texts = messages.iter().flat_map(|message| {
            let calls = message
                .tool_calls
                .iter()
                .flat_map(|call| [&call.name, &call.arguments]);
            message.content.iter().chain(&message.name).chain(calls)
        });
        texts.into_iter().any(|text| control.are_spelled_in(text))
    }

    /// The tokens of a text to go on with, without a template: never a control token, but for what the tokenizer puts before any
    /// text. What follows on nothing is what follows on the end of a text.
    pub fn text_prompt(&self, text: &str) -> Result<Vec<u32>, RenderError> {
        let mut ids = self.tokenizer.prefix()?;
        ids.extend(self.tokenizer.encode_text(text)?.ids);
        if ids.is_empty() {
            ids.extend(self.stop_token_ids.first());
        }
        Ok(ids)
    }

    /// Encodes text that stands for itself (a stop string): never a control token.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, RenderError> {
        Ok(self.tokenizer.encode_text(text)?.ids)
    }

    /// The tokens that end a turn.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.stop_token_ids
    }

    /// How many tokens the model can read. Tokens.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Text out of tokens as they come.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        self.tokenizer.decode_stream()
    }

    /// The text of one token and its bytes.
    pub fn token_text(&self, id: u32) -> (String, Vec<u8>) {
        self.tokenizer.token_text(id)
    }
}
