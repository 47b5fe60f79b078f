//! Which token ends an answer, as the template shows it.

use domain::generation::{ChatMessage, Role};

use super::habits::Habits;
use super::rendering::Rendering;
use super::{ChatModel, RenderError};

/// Words that no template writes by itself.
const QUESTION: &str = "first-question";
const ANSWER: &str = "first-answer";
const NEXT: &str = "second-question";

pub(super) struct EndOfTurn {
    pub(super) id: u32,
    /// The template writes it only as the opening of the next message.
    pub(super) opens_next: bool,
}

impl ChatModel {
    /// What stands between an answer and the next question: a token of `declared`, which the model's files call its end,
    /// else the first control token, except `bos_id`. `None` where the template writes no such token.
    pub(super) fn end_of_turn(
        &self,
        declared: &[u32],
        bos_id: Option<u32>,
    ) -> Result<Option<EndOfTurn>, RenderError> {
        let messages = [
            ChatMessage::new(Role::User, QUESTION),
            ChatMessage::new(Role::Assistant, ANSWER),
            ChatMessage::new(Role::User, NEXT),
        ];
        let rendering = Rendering::new(
            &self.template,
            self.tokenizer.control(),
            &messages,
            &[],
            Habits::default(),
        );
        let short = rendering.until(2)?;
        let text = rendering.until(3).ok().filter(|text| text.contains(NEXT));
        let text = text.unwrap_or_else(|| short.clone());
        let answer = text.rfind(ANSWER).ok_or(RenderError::NotWritten(2))? + ANSWER.len();
        let next = text.rfind(NEXT).unwrap_or(text.len());

        let encoded = self.tokenizer.encode_template(&text, rendering.mark())?;
        let between: Vec<(u32, usize)> = encoded
            .ids
            .iter()
            .zip(&encoded.offsets)
            .filter(|(id, (from, to))| {
                *from >= answer && *to <= next && self.tokenizer.is_control(**id)
            })
            .map(|(id, (from, _))| (*id, *from))
            .collect();
        let is_declared = between.iter().find(|(id, _)| declared.contains(id));
        let found = is_declared.or_else(|| between.iter().find(|(id, _)| Some(*id) != bos_id));
        Ok(found.map(|(id, from)| EndOfTurn {
            id: *id,
            opens_next: text.starts_with(short.trim_end()) && *from >= short.trim_end().len(),
        }))
    }
}
