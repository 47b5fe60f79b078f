//! Words that were tokenized before. Most tokenizers cut a text at its spaces before anything else, so a word has the same
//! tokens wherever it stands, and most words of a file have been met.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::RwLock;

use super::Encoded;

/// A longer one hardly comes again. Bytes.
const MAX_WORD_BYTES: usize = 48;
/// Words that are remembered in each part; some 20 MB in all.
const MAX_WORDS: usize = 2048;
/// Parts of the memory, so that threads rarely wait for each other.
const N_PARTS: usize = 64;

/// Words and their tokens. A part that is full is forgotten.
pub(super) struct Words {
    hasher: RandomState,
    parts: Vec<RwLock<Part>>,
}

/// Words by their hashes; of two with the same hash the later one.
type Part = HashMap<u64, Word, BuildHasherDefault<Hashed>>;

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
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            parts: std::iter::repeat_with(RwLock::default)
                .take(N_PARTS)
                .collect(),
        }
    }

    /// Adds the tokens of `word` to `encoded`, where it begins at byte `start`, as `encode` has them or had them before.
    pub(super) fn add<E>(
        &self,
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
        // The map goes by other bits.
        let part = &self.parts[(hash >> 32) as usize % N_PARTS];
        // What a thread that panicked left is whole all the same: an entry is made in one call.
        let known = part.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(known) = known.get(&hash).filter(|known| *known.text == *word) {
            for token in &known.tokens {
                encoded.ids.push(token.id);
                let (from, to) = (usize::from(token.from), usize::from(token.to));
                encoded.offsets.push((start + from, start + to));
            }
            return Ok(());
        }
        drop(known);
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
        let mut known = part
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.len() >= MAX_WORDS {
            known.clear();
        }
        known.insert(hash, word);
        drop(known);
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

/// The parts of a text between its cuts, with the byte that each begins at.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    cuts(text)
        .chain(std::iter::once(text.len()))
        .map(move |end| {
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
