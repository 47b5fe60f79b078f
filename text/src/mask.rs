//! Which tokens of a rendered conversation are learned: what the model itself would have written, its end of turn
//! included. It knows text and offsets, not templates.

use crate::tokenizer::Encoded;

/// One assistant turn inside a rendered conversation, in bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Where the model starts to write: the end of the generation prompt.
    pub start: usize,
    /// Where what it says ends and its end of turn may begin, if that is known.
    pub content_end: Option<usize>,
    /// What lies behind belongs to the next message.
    pub bound: usize,
    /// Without an end-of-turn token nobody can say where the turn ends.
    pub needs_end: bool,
}

/// Sets `mask` for the tokens of one turn: from its start up to and with its first end-of-turn token. In some families
/// that is the token that opens the next message. Without one, up to the last character that is not whitespace.
/// A token that lies across the start counts. Returns `None`, and sets nothing, if the turn needs an end and has none.
pub fn label_turn(
    text: &str,
    encoded: &Encoded,
    turn: Turn,
    is_end_of_turn: impl Fn(u32) -> bool,
    mask: &mut [bool],
) -> Option<Labels> {
    let Turn {
        start,
        content_end,
        bound,
        needs_end,
    } = turn;
    let tokens = || {
        encoded
            .ids
            .iter()
            .copied()
            .zip(encoded.offsets.iter().copied())
    };
    let written = content_end.unwrap_or(start);
    let token = tokens()
        .find(|(id, (from, _))| *from >= written && is_end_of_turn(*id))
        .filter(|(_, (from, to))| {
            *to <= bound
                || text
                    .get(bound..*from)
                    .is_some_and(|gap| gap.trim().is_empty())
        });
    let end = match token {
        Some((_, (_, to))) => to,
        None if needs_end => return None,
        None => start + text[start..content_end.unwrap_or(bound)].trim_end().len(),
    };
    let mut is_any = false;
    for (label, (_, (from, to))) in mask.iter_mut().zip(tokens()) {
        if from < end && to > start {
            *label = true;
            is_any = true;
        }
    }
    Some(match token {
        _ if !is_any => Labels::Nothing,
        Some(_) => Labels::Whole,
        None => Labels::WithoutEnd,
    })
}

/// What of a turn is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    Nothing,
    /// There is no end-of-turn token.
    WithoutEnd,
    Whole,
}
