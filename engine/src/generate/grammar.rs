//! What a sequence may say, as whoever asks for it knows: the engine knows tokens, not text.

/// What every answer to a request must be.
pub trait Grammar: Send + Sync {
    /// Before the first token of an answer.
    fn begin(&self) -> Box<dyn Walk>;
}

/// One answer on its way through a grammar.
pub trait Walk: Send {
    /// Which tokens may come next: bit i % 32 of word i / 32 for token i, absent words are 0. `None`: every token.
    /// Asked twice it says the same. Errors: why nothing can come next, which ends the sequence.
    fn allowed(&mut self) -> Result<Option<&[u32]>, String>;

    /// Goes on with `token`. Returns whether the answer is whole and nothing can follow; what went wrong is the error of the
    /// next [`Walk::allowed`].
    fn take(&mut self, token: u32) -> bool;
}

/// Bit `token` of what [`Walk::allowed`] says.
pub(crate) fn is_allowed(words: &[u32], token: usize) -> bool {
    words
        .get(token / 32)
        .is_some_and(|word| word >> (token % 32) & 1 == 1)
}
