//! Words that were tokenized before. Most tokenizers cut a text at its added tokens and then at its spaces before anything else, so a
//! word has the same tokens wherever it stands, and most words of a file have been met.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, TryLockError};

use aho_corasick::{AhoCorasick, BuildError, MatchKind};

use super::Encoded;

/// A longer one hardly comes again. Bytes.
const MAX_WORD_BYTES: usize = 48;
/// Words that are remembered in all; some 40 MB.
const MAX_WORDS: usize = 1 << 18;
/// More of them in one memory are hardly met again.
const MAX_WORDS_OF_ONE: usize = 1 << 15;

/// What is known of a tokenizer's words, and the added tokens that stand between them.
pub(super) struct Words {
    added: AhoCorasick,
    /// By the automaton's patterns.
    added_ids: Vec<u32>,
    hasher: RandomState,
    /// Two for each processor, so that hardly a thread finds none free.
    memories: Vec<Mutex<Memory>>,
    /// Most words that each holds.
    max_words: usize,
}

/// A piece of a text.
pub(super) enum Piece<'t> {
    /// An added token, and its bytes of the text.
    Added(u32, Range<usize>),
    /// A word, and the byte of the text that it begins at.
    Word(usize, &'t str),
}

/// Words by their hashes; of two with the same hash the later one. One that is full is forgotten.
type Memory = HashMap<u64, Word, BuildHasherDefault<Hashed>>;

struct Word {
    text: Box<str>,
    tokens: Box<[Token]>,
}

/// The key is a hash.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a key is a u64")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// An id, and the bytes of the word that it stands for.
#[derive(Clone, Copy)]
struct Token {
    id: u32,
    from: u16,
    to: u16,
}

impl Words {
    /// `added`: the spellings and ids of the tokens that are looked for before anything else, as the tokenizers library does: the
    /// leftmost one, and of those the longest. Errors: there are too many of them.
    pub(super) fn new<'t>(added: impl Iterator<Item = (&'t str, u32)>) -> Result<Self, BuildError> {
        let (spellings, added_ids): (Vec<&str>, Vec<u32>) = added.unzip();
        let mut automaton = AhoCorasick::builder();
        let n_memories = 2 * std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            added: automaton
                .match_kind(MatchKind::LeftmostLongest)
                .build(spellings)?,
            added_ids,
            hasher: RandomState::new(),
            memories: std::iter::repeat_with(Mutex::default)
                .take(n_memories)
                .collect(),
            max_words: MAX_WORDS_OF_ONE.min(MAX_WORDS / n_memories),
        })
    }

    /// What `text` is made of, in its order.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = Piece<'t>> {
        let added = self.added.find_iter(text);
        let added = added.map(|found| (found.range(), Some(self.added_ids[found.pattern()])));
        let mut start = 0;
        let end = (text.len()..text.len(), None);
        added.chain([end]).flat_map(move |(range, id)| {
            let from = std::mem::replace(&mut start, range.end);
            let words = words(&text[from..range.start])
                .map(move |(start, word)| Piece::Word(from + start, word));
            words.chain(id.map(|id| Piece::Added(id, range)))
        })
    }

    /// A memory for the time of one text. `None`: other threads use all.
    pub(super) fn recall(&self) -> Option<Recalled<'_>> {
        let mut memories = self.memories.iter();
        let memory = memories.find_map(|memory| match memory.try_lock() {
            Ok(memory) => Some(memory),
            // What a thread that panicked left is whole all the same: an entry is made in one call.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        Some(Recalled {
            hasher: &self.hasher,
            max_words: self.max_words,
            memory: memory?,
        })
    }
}

/// A memory in use.
pub(super) struct Recalled<'w> {
    hasher: &'w RandomState,
    max_words: usize,
    memory: MutexGuard<'w, Memory>,
}

impl Recalled<'_> {
    /// Adds the tokens of `word` to `encoded`, where it begins at byte `start`, as `encode` has them or had them before.
    pub(super) fn add<E>(
        &mut self,
        word: &str,
        start: usize,
        encoded: &mut Encoded,
        encode: impl FnOnce() -> Result<Encoded, E>,
    ) -> Result<(), E> {
        if word.len() > MAX_WORD_BYTES {
            encoded.append(encode()?, start);
            return Ok(());
        }
        let hash = self.hasher.hash_one(word);
        let known = self.memory.get(&hash);
        if let Some(known) = known.filter(|known| *known.text == *word) {
            for token in &known.tokens {
                encoded.ids.push(token.id);
                let (from, to) = (usize::from(token.from), usize::from(token.to));
                encoded.offsets.push((start + from, start + to));
            }
            return Ok(());
        }
        let found = encode()?;
        let tokens = found.ids.iter().zip(&found.offsets);
        let tokens = tokens.map(|(id, (from, to))| Token {
            id: *id,
            from: *from as u16,
            to: *to as u16,
        });
        let word = Word {
            text: word.into(),
            tokens: tokens.collect(),
        };
        if self.memory.len() >= self.max_words {
            self.memory.clear();
        }
        self.memory.insert(hash, word);
        encoded.append(found, start);
        Ok(())
    }
}

impl Encoded {
    /// `other` is what stands at byte `start` of the text.
    pub(super) fn append(&mut self, other: Encoded, start: usize) {
        self.ids.extend(other.ids);
        let offsets = other.offsets.into_iter();
        self.offsets
            .extend(offsets.map(|(from, to)| (start + from, start + to)));
    }
}

/// Where a text may be cut: before a single space between visible ASCII characters.
pub(super) fn cuts(text: &str) -> impl DoubleEndedIterator<Item = usize> + '_ {
    let bytes = text.as_bytes();
    memchr::memchr_iter(b' ', bytes).filter(move |place| {
        let is_single = bytes.get(place + 1).is_some_and(u8::is_ascii_graphic);
        *place > 0 && is_single && bytes[place - 1].is_ascii_graphic()
    })
}

/// The parts of a text between its cuts, with the byte that each begins at; none of an empty text.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    let end = (!text.is_empty()).then_some(text.len());
    cuts(text).chain(end).map(move |end| {
        let word = (start, &text[start..end]);
        start = end;
        word
    })
}

/// Words of every kind that a cut may stand behind, and before.
pub(super) const BEFORE: [&str; 18] = [
    "the", "The", "THE", "x9", "42", "end.", "end,", "say:", "(a)", "\"so\"", "it's", "a_b", "{}",
    "é!?", "数据x", "\n\nSo", "a  -", "one\tx",
];
pub(super) const BEHIND: [&str; 13] = [
    " a", " The", " zero", " I'm", " x_y", " Ab, cd", " 42", " 1.5", " (b", " -x", " \"q\"", " |",
    " 'tis",
];
