//! Owns the beginnings of texts whose pages can be used again. A beginning is known by its tokens, whose they are, and the adapter that
//! read them, compared whole: no hash decides what is shared.

use std::collections::HashMap;
use std::sync::Arc;

use super::Page;

/// Some whole pages of tokens, from the first on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Beginning {
    /// No token yet.
    Empty {
        /// Whose sequences share it.
        scope: Arc<str>,
        /// The number of the adapter, whose values never change; `None` is the base.
        adapter: Option<u64>,
        /// Whether positions turn by the frequencies of long texts.
        is_long: bool,
    },
    /// The number of the last page's entry.
    Pages(u64),
}

struct Entry {
    page: Arc<Page>,
    after: Beginning,
    tokens: Arc<[u32]>,
    last_used: u64,
    /// Entries that go on from this one.
    n_longer: usize,
}

/// Invariant: `longer` has each entry once, by what it goes on from. Whoever has an entry's page has those of all entries before it.
#[derive(Default)]
pub(super) struct Prefixes {
    entries: HashMap<u64, Entry>,
    longer: HashMap<(Beginning, Arc<[u32]>), u64>,
    next: u64,
    uses: u64,
}

impl Prefixes {
    pub fn find(&mut self, after: &Beginning, tokens: &[u32]) -> Option<(Beginning, Arc<Page>)> {
        let &number = self.longer.get(&(after.clone(), tokens.into()))?;
        self.uses += 1;
        let entry = self.entries.get_mut(&number)?;
        entry.last_used = self.uses;
        Some((Beginning::Pages(number), Arc::clone(&entry.page)))
    }

    /// Takes `page` over, unless there is one already; returns the one that counts.
    pub fn keep(
        &mut self,
        after: &Beginning,
        tokens: &[u32],
        page: &Arc<Page>,
    ) -> (Beginning, Arc<Page>) {
        if let Some(found) = self.find(after, tokens) {
            return found;
        }
        let tokens: Arc<[u32]> = tokens.into();
        self.next += 1;
        self.uses += 1;
        if let Beginning::Pages(number) = after {
            let shorter = self.entries.get_mut(number);
            shorter.expect("its page is with the sequence").n_longer += 1;
        }
        let key = (after.clone(), Arc::clone(&tokens));
        self.longer.insert(key, self.next);
        let entry = Entry {
            page: Arc::clone(page),
            after: after.clone(),
            tokens,
            last_used: self.uses,
            n_longer: 0,
        };
        self.entries.insert(self.next, entry);
        (Beginning::Pages(self.next), Arc::clone(page))
    }

    /// Entries whose page no sequence has.
    pub fn n_unused(&self) -> usize {
        let unused = self.entries.values().filter(|entry| entry.is_unused());
        unused.count()
    }

    /// Forgets the entry that was not used for longest and hands its page out: one that nobody has and none goes on from.
    pub fn evict(&mut self) -> Option<Page> {
        let last = self.entries.iter();
        let last = last.filter(|(_, entry)| entry.is_unused() && entry.n_longer == 0);
        let (&number, _) = last.min_by_key(|(_, entry)| entry.last_used)?;
        let entry = self.entries.remove(&number)?;
        if let Beginning::Pages(shorter) = entry.after {
            let shorter = self.entries.get_mut(&shorter);
            shorter.expect("entries go from the longest on").n_longer -= 1;
        }
        self.longer.remove(&(entry.after, entry.tokens));
        Arc::into_inner(entry.page)
    }
}

impl Entry {
    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.page) == 1
    }
}
