//! Which tokens of a rendered conversation are learned: what the model itself would have written, its end of turn
//! included. It knows text and offsets, not templates.

use crate::tokenizer::Encoded;

/// One assistant turn inside a rendered conversation, in bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Where the model starts to write: the end of the generation prompt.
    pub start: usize,
    /// What lies behind belongs to the next message.
    pub bound: usize,
    /// Whether the turn certainly ends at `bound`, so that it is whole even without an end-of-turn token.
    pub is_exact: bool,
}

/// Sets `mask` for the tokens of one turn: from its start up to and with its first end-of-turn token; without one, up
/// to the last character that is not whitespace. A token that lies across the start counts.
/// Returns whether any token was set.
pub fn label_turn(
    text: &str,
    encoded: &Encoded,
    turn: Turn,
    is_end_of_turn: impl Fn(u32) -> bool,
    mask: &mut [bool],
) -> bool {
    let Turn {
        start,
        bound,
        is_exact,
    } = turn;
    let tokens = || {
        encoded
            .ids
            .iter()
            .copied()
            .zip(encoded.offsets.iter().copied())
    };
    let end = tokens()
        .find(|(id, (from, to))| *from >= start && *to <= bound && is_end_of_turn(*id))
        .map(|(_, (_, to))| to);
    let end = match end {
        Some(end) => end,
        None if is_exact => start + text[start..bound].trim_end().len(),
        None => return false,
    };
    let mut is_any = false;
    for (label, (_, (from, to))) in mask.iter_mut().zip(tokens()) {
        if from < end && to > start {
            *label = true;
            is_any = true;
        }
    }
    is_any
}
