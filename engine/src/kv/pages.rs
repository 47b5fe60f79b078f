//! Owns how many pages there are and who has them: sequences, beginnings that may come again, or nobody.

use std::sync::Arc;

use super::prefixes::{Beginning, Prefixes};
use super::{PAGE, PageShape};
use crate::cpu::buffer::{Buffer, OutOfMemory};

/// Keys and values of up to [`PAGE`] tokens, in every block.
pub(crate) struct Page {
    words: Buffer<u32>,
    /// Its place among those of the batcher.
    number: usize,
}

impl Page {
    pub fn number(&self) -> usize {
        self.number
    }

    pub fn words(&self) -> &[u32] {
        &self.words
    }

    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }
}

/// All pages of a batcher. A page that nobody needs any more is kept as a beginning for as long as its memory is not needed.
/// Invariant: `n_made` counts the pages that are in `free`, with sequences, or in `prefixes`.
pub(crate) struct Pages {
    shape: PageShape,
    limit: usize,
    n_made: usize,
    free: Vec<Page>,
    prefixes: Prefixes,
}

impl Pages {
    /// Room for `n_tokens`, rounded up to whole pages; memory is taken as it is needed.
    pub fn new(shape: PageShape, n_tokens: usize) -> Self {
        Self {
            shape,
            limit: n_tokens.div_ceil(PAGE),
            n_made: 0,
            free: Vec::new(),
            prefixes: Prefixes::default(),
        }
    }

    /// Pages that no sequence has.
    pub fn n_available(&self) -> usize {
        self.limit - self.n_made + self.free.len() + self.prefixes.n_unused()
    }

    /// A page of its taker's own, with anything in it; `None` if sequences have all of them.
    /// Errors: `OutOfMemory`.
    pub fn take(&mut self) -> Result<Option<Arc<Page>>, OutOfMemory> {
        if let Some(page) = self.free.pop() {
            return Ok(Some(Arc::new(page)));
        }
        if self.n_made < self.limit {
            let words = Buffer::zeroed(self.shape.len())?;
            let number = self.n_made;
            self.n_made += 1;
            return Ok(Some(Arc::new(Page { words, number })));
        }
        Ok(self.prefixes.evict().map(Arc::new))
    }

    /// A sequence needs these no more.
    pub fn give_back(&mut self, pages: impl IntoIterator<Item = Arc<Page>>) {
        // What is shared stays with whoever else has it.
        let own = pages.into_iter().filter_map(Arc::into_inner);
        self.free.extend(own);
    }

    /// The page of `tokens` after `beginning`, and the beginning with them, if they were run before.
    pub fn find(
        &mut self,
        beginning: &Beginning,
        tokens: &[u32],
    ) -> Option<(Beginning, Arc<Page>)> {
        self.prefixes.find(beginning, tokens)
    }

    /// `page` is full, with `tokens` after `beginning`. If another sequence has run the same meanwhile, `page` becomes its page.
    pub fn keep(
        &mut self,
        beginning: &Beginning,
        tokens: &[u32],
        page: &mut Arc<Page>,
    ) -> Beginning {
        let (longer, kept) = self.prefixes.keep(beginning, tokens, page);
        let own = std::mem::replace(page, kept);
        self.give_back([own]);
        longer
    }
}
