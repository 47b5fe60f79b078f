//! Where a message stands in the rendered conversation, found without knowing how the template writes.

use serde_json::Value;

use super::RenderError;
use super::rendering::Rendering;
use crate::mask::Turn;

/// What a message says, in bytes of the rendered conversation.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    /// Only the name of a tool call was found.
    is_name: bool,
}

/// A rendering of the first `n_messages`.
#[derive(Clone, Copy)]
struct Rendered<'t> {
    text: &'t str,
    n_messages: usize,
    has_generation_prompt: bool,
}

impl Rendering<'_> {
    /// Where the assistant's message `index` (0-based) stands in `text`, the whole conversation. What the model is shown
    /// before it answers, and the conversation up to its answer, decide. Where a template rewrites earlier messages in
    /// the light of later ones, or shows the model something else than it writes down, the message is looked for.
    pub(super) fn turn(&self, text: &str, index: usize) -> Result<Turn, RenderError> {
        let shown = |part: String| text.starts_with(&part).then_some(part.len());
        // nothing is shown before an answer that opens the conversation
        let start = (index > 0)
            .then(|| self.prompt(index).ok())
            .flatten()
            .and_then(shown);
        let bound = if index + 1 == self.messages.len() {
            Some(text.len())
        } else {
            self.until(index + 1).ok().and_then(shown)
        };
        if let (Some(start), Some(bound)) = (start, bound)
            && start <= bound
        {
            return Ok(Turn {
                start,
                content_end: None,
                bound,
                needs_end: false,
            });
        }
        self.search(text, index, start, bound)
            .ok_or(RenderError::Unmaskable(index + 1))
    }

    /// The turn around what the message says; `start` and `bound` are taken where they agree with it.
    fn search(
        &self,
        text: &str,
        index: usize,
        start: Option<usize>,
        bound: Option<usize>,
    ) -> Option<Turn> {
        let whole = Rendered {
            text,
            n_messages: self.messages.len(),
            has_generation_prompt: false,
        };
        let content = self.locate(whole, index)?;
        let start = start.filter(|start| *start <= content.start);
        let start = start.or_else(|| self.start(whole, index, content))?;
        let later = || (index + 1..whole.n_messages).find_map(|next| self.locate(whole, next));
        let bound = bound.filter(|bound| content.end <= *bound);
        let bound = bound.unwrap_or_else(|| later().map_or(text.len(), |next| next.start));
        (start <= content.end && content.end <= bound).then_some(Turn {
            start,
            content_end: Some(content.end),
            bound,
            needs_end: content.is_name,
        })
    }

    /// Where the model starts to write message `index`: behind the last message before it that is written at all, and
    /// behind what the model is shown there before it answers.
    fn start(&self, whole: Rendered, index: usize, content: Span) -> Option<usize> {
        let Some(prompt) = self.prompt(index).ok().filter(|_| index > 0) else {
            return (!content.is_name).then_some(content.start);
        };
        let shown = Rendered {
            text: &prompt,
            n_messages: index,
            has_generation_prompt: true,
        };
        let both = |before: usize| {
            Some((
                self.locate(whole, before)?.end,
                self.locate(shown, before)?.end,
            ))
        };
        let (end, shown_end) = (0..index).rev().find_map(both).unwrap_or((0, 0));
        if content.start < end {
            return None;
        }
        let (between, shown) = (&whole.text[end..content.start], &prompt[shown_end..]);
        let n_shown = match between.find(shown) {
            Some(place) => place + shown.len(),
            None => common(between.chars(), shown.chars()),
        };
        Some(end + n_shown)
    }

    /// What message `index` says in a rendering: the same is rendered again with a pin in its place, and what is alike
    /// before and after the pin is not the message.
    fn locate(&self, rendered: Rendered, index: usize) -> Option<Span> {
        let text = rendered.text;
        self.with_pin(index)
            .into_iter()
            .find_map(|(message, is_name)| {
                let mut messages = self.messages[..rendered.n_messages].to_vec();
                messages[index] = message;
                let pinned = self
                    .render(&messages, rendered.has_generation_prompt)
                    .ok()?;
                let (before, after) = pinned.split_once(self.pin)?;
                let start = common(text.chars(), before.chars());
                let n_after = common(text[start..].chars().rev(), after.chars().rev());
                (!after.contains(self.pin)).then_some(Span {
                    start,
                    end: text.len() - n_after,
                    is_name,
                })
            })
    }

    /// The message with a pin as its content, beside its tool calls; instead of them, for templates that write either;
    /// and as the name of the first, for those that insist on calls.
    fn with_pin(&self, index: usize) -> Vec<(Value, bool)> {
        let message = &self.messages[index];
        let pin = Value::String(self.pin.to_string());
        let mut content = message.clone();
        content["content"] = pin.clone();
        let mut variants = vec![(content.clone(), false)];
        if message["tool_calls"].is_array() {
            content
                .as_object_mut()
                .and_then(|message| message.remove("tool_calls"));
            let mut name = message.clone();
            name["tool_calls"][0]["function"]["name"] = pin;
            variants.extend([(content, false), (name, true)]);
        }
        variants
    }
}

/// How many bytes two texts have in common.
pub(crate) fn common(left: impl Iterator<Item = char>, right: impl Iterator<Item = char>) -> usize {
    let same = left.zip(right).take_while(|(left, right)| left == right);
    same.map(|(c, _)| c.len_utf8()).sum()
}
