//! Things by name, each of a size: those that were not used for longest go where all together exceed a budget. It reads no clock
//! and touches no file.

use std::collections::HashMap;

/// Invariant: `size` is the sum over `entries`, and within the budget.
pub(crate) struct Lru<T> {
    entries: HashMap<String, Entry<T>>,
    size: u64,
    budget: u64,
    /// Rises with every use.
    uses: u64,
}

struct Entry<T> {
    value: T,
    size: u64,
    last_use: u64,
}

impl<T> Lru<T> {
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            entries: HashMap::new(),
            size: 0,
            budget,
            uses: 0,
        }
    }

    /// Whether something of this size can be kept at all.
    pub(crate) fn takes(&self, size: u64) -> bool {
        size <= self.budget
    }

    /// What `name` stands for, which is used now.
    pub(crate) fn touch(&mut self, name: &str) -> Option<&T> {
        let entry = self.entries.get_mut(name)?;
        self.uses += 1;
        entry.last_use = self.uses;
        Some(&entry.value)
    }

    /// Puts `value` in, in place of what has its name. Returns what has to go: `value` itself, where it alone exceeds the budget.
    pub(crate) fn insert(&mut self, name: &str, value: T, size: u64) -> Vec<(String, T)> {
        self.remove(name);
        if !self.takes(size) {
            return vec![(name.to_owned(), value)];
        }
        let mut gone = Vec::new();
        while self.size + size > self.budget {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use);
            let (oldest, _) = oldest.expect("entries have a size — a bug in lru");
            let oldest = oldest.clone();
            gone.extend(self.remove(&oldest).map(|value| (oldest, value)));
        }
        self.uses += 1;
        self.size += size;
        let entry = Entry {
            value,
            size,
            last_use: self.uses,
        };
        self.entries.insert(name.to_owned(), entry);
        gone
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<T> {
        let entry = self.entries.remove(name)?;
        self.size -= entry.size;
        Some(entry.value)
    }

    /// Latest use first.
    pub(crate) fn values(&self) -> Vec<&T> {
        let mut entries: Vec<_> = self.entries.values().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.last_use));
        entries.into_iter().map(|entry| &entry.value).collect()
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(gone: Vec<(String, ())>) -> Vec<String> {
        gone.into_iter().map(|(name, ())| name).collect()
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let mut lru = Lru::new(100);
        for name in ["a", "b", "c"] {
            assert!(lru.insert(name, (), 30).is_empty());
        }
        assert!(lru.touch("a").is_some());
        assert_eq!(names(lru.insert("d", (), 40)), ["b"]);
        let held = ["a", "b", "c", "d"].map(|name| lru.touch(name).is_some());
        assert_eq!((held, lru.size()), ([true, false, true, true], 100));
        assert_eq!(names(lru.insert("e", (), 60)), ["a", "c"]);
        assert_eq!(lru.size(), 40 + 60);
    }

    #[test]
    fn what_comes_again_counts_once_and_what_is_too_large_stays_out() {
        let mut lru = Lru::new(100);
        lru.insert("a", (), 60);
        assert!(lru.insert("a", (), 10).is_empty());
        assert_eq!(lru.size(), 10);
        assert_eq!(names(lru.insert("huge", (), 101)), ["huge"]);
        assert!(lru.touch("a").is_some(), "nothing made room in vain");
        assert_eq!((lru.remove("a"), lru.size()), (Some(()), 0));
    }
}
