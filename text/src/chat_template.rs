//! A model's chat template, run as Hugging Face's transformers runs it, within bounds: a template comes with a base
//! model that an operator installed, and must not be able to stop the process.

mod jinja;
mod json;
mod python;

use std::io::{self, Write};

use chrono::NaiveDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, context};

/// Templates of known models stay below 20 KiB. Bytes.
const MAX_SOURCE_BYTES: usize = 64 << 10;

/// The parser recurses once per operator: 64 KiB of minus signs overflow a usual stack, which would end the process.
const COMPILE_STACK_BYTES: usize = 128 << 20;

/// Instructions per rendering; a conversation of 2,048 messages takes about a quarter. A text that is put together costs one for 64
/// bytes, so this also bounds what a template may fill.
const FUEL: u64 = 2_000_000;

/// How deep macros may call each other, in minijinja's measure: a macro counts four, a loop one. Each macro takes
/// several KiB of a thread's stack, which may be 2 MiB; Kimi K3 writes nested JSON with about ten.
const MAX_RECURSION: usize = 100;

/// The name of the template in its environment; without an extension nothing is escaped.
const NAME: &str = "chat_template";

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("chat template has {0} bytes, more than {MAX_SOURCE_BYTES}")]
    TooLarge(usize),
    #[error("chat template does not compile: {0}")]
    Syntax(String),
    #[error("chat template refuses the conversation: {0}")]
    Refused(String),
    #[error("chat template took more than {FUEL} steps")]
    TooSlow,
    #[error("chat template writes more than {0} bytes")]
    TooLong(usize),
    #[error("cannot start a thread to compile the chat template: {0}")]
    Thread(io::Error),
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token` and the like, by name.
    special_tokens: Vec<(String, String)>,
}

/// What a template is run on.
pub struct Conversation<'c> {
    pub messages: &'c [Value],
    /// `none` where there are no tools.
    pub tools: &'c Value,
    pub add_generation_prompt: bool,
}

impl ChatTemplate {
    /// Compiles a template. `strftime_now` exists if `now` is given; most templates have a fixed date for its absence,
    /// and a fixed date keeps what is trained and what is served the same.
    pub fn new(
        source: &str,
        special_tokens: Vec<(String, String)>,
        now: Option<NaiveDateTime>,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooLarge(source.len()));
        }
        let template = jinja::adapt(source);
        let compile = move || {
            let mut environment = environment(now);
            environment
                .add_template_owned(NAME, template)
                .map(|()| environment)
        };
        let thread = std::thread::Builder::new()
            .name("compile-template".to_owned())
            .stack_size(COMPILE_STACK_BYTES)
            .spawn(compile)
            .map_err(TemplateError::Thread)?;
        let environment = thread
            .join()
            .map_err(|_| TemplateError::Syntax("the compiler panicked".to_owned()))?
            .map_err(|error| TemplateError::Syntax(explain(&error)))?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            special_tokens,
        })
    }

    /// Whether the template's text has this word somewhere: whether it can know of such a thing.
    pub fn mentions(&self, word: &str) -> bool {
        self.source.contains(word)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Runs the template. Errors: what the template raises, and output of more than `max_bytes`.
    pub fn render(
        &self,
        conversation: &Conversation,
        max_bytes: usize,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let special = Value::from_pairs(self.special_tokens.iter().cloned());
        let context = context! {
            messages => Value::from(conversation.messages.to_vec()),
            tools => conversation.tools.clone(),
            documents => Value::from(()),
            add_generation_prompt => conversation.add_generation_prompt,
            ..special
        };
        let mut output = Bounded {
            bytes: Vec::new(),
            max_bytes,
        };
        if let Err(error) = template.render_captured_to(context, &mut output) {
            if output.bytes.len() > max_bytes {
                return Err(TemplateError::TooLong(max_bytes));
            }
            return Err(refused(error));
        }
        String::from_utf8(output.bytes)
            .map_err(|error| TemplateError::Refused(format!("wrote no text: {error}")))
    }
}

fn refused(error: Error) -> TemplateError {
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::TooSlow,
        _ => TemplateError::Refused(explain(&error)),
    }
}

/// The error's own words, with the line of the template but without its text.
fn explain(error: &Error) -> String {
    let text = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{text} (template line {line})"),
        None => text,
    }
}

/// Keeps what is written and fails past the bound.
struct Bounded {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > self.max_bytes {
            return Err(io::Error::other("too long"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Jinja as transformers sets it up.
fn environment(now: Option<NaiveDateTime>) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("the usual delimiters differ — a bug in chat_template"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    // Differs: a stricter mode would refuse templates that transformers renders
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.remove_global("debug");
    jinja::set_up(&mut environment, now);
    environment
}
