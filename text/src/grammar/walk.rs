//! One answer on its way through a grammar.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::{SimpleVob, TokTrie};

use super::Grammar;
use crate::tools::{Part, Trigger};

/// What an answer says before a grammar begins to hold for it.
pub(super) struct WaitsFor {
    /// As the vocabulary spells it.
    bytes: Vec<u8>,
    /// It may come anywhere, and not at the beginning alone.
    is_tag: bool,
}

impl WaitsFor {
    pub fn new(trigger: &Trigger) -> Self {
        let mut bytes = Vec::new();
        for part in &trigger.spelling.0 {
            match part {
                Part::Text(text) => bytes.extend(text.as_bytes()),
                Part::Control(_, text) => {
                    bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
                    bytes.extend(text.as_bytes());
                }
                // Only a call's own words have ids; what opens a turn of calls with one is no trigger.
                Part::Id => {}
            }
        }
        Self {
            bytes,
            is_tag: trigger.is_tag,
        }
    }
}

/// The tokens of one answer so far, and what may follow.
pub struct Walk {
    grammar: Arc<Grammar>,
    state: State,
}

enum State {
    /// The bytes at the end that may be the beginning of what is waited for.
    Free { tail: Vec<u8> },
    /// Anything may come until the end.
    Unbound,
    Bound {
        matcher: Box<Matcher>,
        allowed: SimpleVob,
    },
}

impl Walk {
    pub(super) fn new(grammar: Arc<Grammar>) -> Self {
        let state = match grammar.waits_for {
            Some(_) => State::Free { tail: Vec::new() },
            None => bound(&grammar),
        };
        Self { grammar, state }
    }

    /// Which tokens may come next: bit i % 32 of word i / 32 for token i. `None`: every token. Errors: why none can.
    pub fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        match &mut self.state {
            State::Free { .. } | State::Unbound => Ok(None),
            State::Bound { matcher, allowed } => {
                *allowed = matcher
                    .compute_mask_or_eos()
                    .map_err(|error| error.to_string())?;
                Ok(Some(allowed.as_slice()))
            }
        }
    }

    /// Goes on with `token`. Returns whether nothing can follow; errors are those of the next [`Walk::allowed`].
    pub fn take(&mut self, token: u32) -> bool {
        if let State::Free { tail } = &mut self.state {
            tail.extend(self.grammar.vocabulary.tok_trie().token(token));
            self.look();
            return false;
        }
        let State::Bound { matcher, .. } = &mut self.state else {
            return false;
        };
        // The matcher keeps an error and tells it when it is asked what may follow.
        let _ = matcher.consume_token(token);
        matcher.is_stopped() && !matcher.is_error()
    }

    /// Begins to hold the answer to the grammar once it says what is waited for and goes on as the grammar does.
    fn look(&mut self) {
        let (State::Free { tail }, Some(WaitsFor { bytes, is_tag })) =
            (&mut self.state, &self.grammar.waits_for)
        else {
            return;
        };
        let is_space = |byte: &&u8| byte.is_ascii_whitespace();
        if !is_tag {
            let from = tail.iter().take_while(is_space).count();
            tail.drain(..from);
            let n_common = tail.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            if n_common < tail.len().min(bytes.len()) {
                self.state = State::Unbound;
                return;
            }
        }
        while let Some(at) = find(tail, bytes) {
            let mut state = bound(&self.grammar);
            if let State::Bound { matcher, .. } = &mut state {
                let tokens = self
                    .grammar
                    .vocabulary
                    .tok_trie()
                    .greedy_tokenize(&tail[at..]);
                if matcher
                    .try_consume_tokens(&tokens)
                    .is_ok_and(|n| n == tokens.len())
                {
                    self.state = state;
                    return;
                }
            }
            // It only looked like a call.
            tail.drain(..=at);
        }
        if *is_tag {
            tail.drain(..tail.len().saturating_sub(bytes.len() - 1));
        }
    }
}

fn bound(grammar: &Grammar) -> State {
    State::Bound {
        matcher: Box::new(Matcher::new(Ok(grammar.parser.clone()))),
        allowed: SimpleVob::new(),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
