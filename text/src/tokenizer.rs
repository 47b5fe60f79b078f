//! Text to token ids and back, by the model's own `tokenizer.json`. It knows tokens, not messages.

mod words;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizer::NormalizedString;
use tokenizers::normalizer::SplitDelimiterBehavior::Removed;
use tokenizers::{
    AddedToken, Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

use crate::control::{ControlTokens, unused_char};
use crate::decode::{DecodeStream, Pieces};
use words::{Piece, Words, cuts};

/// The largest `tokenizer.json` that is read; Gemma's, among the largest known, has 33 MB. Bytes.
const MAX_FILE_BYTES: u64 = 128 << 20;

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} has {size_bytes} bytes, more than {MAX_FILE_BYTES}", path.display())]
    TooLarge { path: PathBuf, size_bytes: u64 },
    #[error("not a tokenizer: {0}")]
    Invalid(String),
    #[error("the tokenizer failed: {0}")]
    Failed(String),
    #[error("text spells the control token {0}, which cannot be kept apart")]
    Control(u32),
}

/// A tokenizer and its control tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    control: ControlTokens,
    /// Every id that text must never become by itself.
    control_ids: HashSet<u32>,
    special_ids: HashSet<u32>,
    pieces: Pieces,
    /// `None`: a word's tokens depend on what stands around it.
    words: Option<Words>,
}

/// Token ids, each with the bytes of the encoded text it stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Half-open byte ranges of the text as it was given, marks included.
    pub offsets: Vec<(usize, usize)>,
}

/// The parts of `tokenizer.json` that the `tokenizers` crate does not show.
#[derive(Deserialize)]
struct Shown {
    #[serde(default)]
    decoder: Value,
    model: ShownModel,
}

#[derive(Deserialize)]
struct ShownModel {
    #[serde(default)]
    unk_token: Option<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let read = |source| TokenizerError::Read {
            path: path.to_owned(),
            source,
        };
        let size_bytes = std::fs::metadata(path).map_err(read)?.len();
        if size_bytes > MAX_FILE_BYTES {
            return Err(TokenizerError::TooLarge {
                path: path.to_owned(),
                size_bytes,
            });
        }
        Self::from_bytes(&std::fs::read(path).map_err(read)?)
    }

    /// The bytes of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let shown: Shown = serde_json::from_slice(json)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        // a whole text is encoded; who cuts or pads does so knowingly
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let unk_id = shown
            .model
            .unk_token
            .and_then(|token| inner.token_to_id(&token));
        let added = inner.get_added_tokens_decoder();
        let controls = || added.iter().filter(|(_, token)| is_control(token));
        let mut tokenizer = Self {
            control: ControlTokens::new(controls().map(|(_, token)| token.content.clone())),
            control_ids: controls()
                .map(|(id, _)| *id)
                .filter(|id| Some(*id) != unk_id)
                .collect(),
            special_ids: added
                .iter()
                .filter(|(_, t)| t.special)
                .map(|(id, _)| *id)
                .collect(),
            pieces: Pieces::new(&shown.decoder),
            words: None,
            inner,
        };
        if tokenizer.cuts_at_words() {
            let found_first = added.iter().filter(|(_, token)| !token.normalized);
            let found_first = found_first.map(|(id, token)| (token.content.as_str(), *id));
            tokenizer.words = Words::new(found_first).ok();
        }
        if tokenizer.cuts_at_added_tokens() != Some(true) {
            tokenizer.words = None;
        }
        Ok(tokenizer)
    }

    /// Whether a text with every added token in it, and words of every kind around them, has the tokens of its pieces. `None`: there is
    /// no memory of words, or the tokenizer fails.
    fn cuts_at_added_tokens(&self) -> Option<bool> {
        self.words.as_ref()?;
        let mark = '\u{e000}';
        let added = self.inner.get_added_tokens_decoder();
        let mut spellings: Vec<&str> = added.values().map(|token| &*token.content).collect();
        spellings.sort_unstable();
        let before = words::BEFORE.into_iter().cycle();
        let behind = words::BEHIND.into_iter().cycle();
        let text: String = (spellings.iter().zip(before).zip(behind))
            .flat_map(|((token, before), behind)| [before, token, behind, token, token])
            .chain(["end"])
            .collect();
        let by_pieces = self.encode_template(&text, mark).ok()?;
        Some(by_pieces == self.encode_whole(&text, mark).ok()?)
    }

    /// Whether a text has the tokens of its words: no added token reaches over a cut, and at every kind of cut the text is seen to be
    /// split before words are looked up, so that no entry of the vocabulary can lie across.
    fn cuts_at_words(&self) -> bool {
        let added = self.inner.get_added_tokens_decoder();
        let reaches_over = |token: &AddedToken| {
            let is_space = |c: char| c.is_whitespace() || c == '▁';
            let has_space = token.content.contains(is_space)
                && !token.content.trim_matches(is_space).is_empty();
            has_space || token.single_word || token.lstrip || token.rstrip
        };
        if added.values().any(reaches_over) {
            return false;
        }
        if self.splits_between_all_characters() != Some(true) {
            return false;
        }
        let is_cut = |(before, behind)| self.is_cut(before, behind) == Some(true);
        let behind = words::BEHIND.iter();
        let mut kinds = behind.flat_map(|behind| words::BEFORE.map(|before| (before, *behind)));
        kinds.all(is_cut)
    }

    /// Whether a text is split at every cut, whatever visible ASCII characters stand around it. `None`: the tokenizer fails.
    fn splits_between_all_characters(&self) -> Option<bool> {
        let visible = || '!'..='~';
        let pairs = visible().flat_map(|a| visible().map(move |b| format!("{a} {b}\n")));
        let text: String = pairs.collect();
        let starts: HashSet<usize> = self.split_starts(&text)?.into_iter().collect();
        Some(words::cuts(&text).all(|cut| starts.contains(&cut)))
    }

    /// Where the parts begin into which a text is split before words are looked up.
    fn split_starts(&self, text: &str) -> Option<Vec<usize>> {
        let added = self.inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        let pre_tokenizer = self.inner.get_pre_tokenizer()?;
        pre_tokenizer.pre_tokenize(&mut pieces).ok()?;
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Some(splits.iter().map(|(_, (from, _), _)| *from).collect())
    }

    /// Whether two texts are split, and tokenized, beside each other as alone. `None`: the tokenizer fails on them.
    fn is_cut(&self, before: &str, behind: &str) -> Option<bool> {
        let mark = '\u{e000}';
        let text = format!("{before}{behind}");
        let is_split = self.split_starts(&text)?.contains(&before.len());
        let mut parts = self.encode_whole(before, mark).ok()?;
        parts.append(self.encode_whole(behind, mark).ok()?, before.len());
        Some(is_split && parts == self.encode_whole(&text, mark).ok()?)
    }

    /// The control tokens by spelling.
    pub fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// Whether `id` is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        self.control_ids.contains(&id)
    }

    /// Whether `id` is an added token marked special, which decoding leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How many ids there are, added ones included.
    pub fn n_tokens(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id.
    pub(crate) fn max_id(&self) -> u32 {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().unwrap_or_default()
    }

    /// Whether decoding leaves out a space that a text begins with.
    pub(crate) fn strips_first_space(&self) -> bool {
        self.pieces.strips_first_space()
    }

    /// Encodes a rendered template: control tokens are recognised, except where `mark` breaks them; then `mark` is
    /// taken out. No token is put before or after: templates write those themselves.
    /// On a text without `mark` the ids are those of Hugging Face's tokenizers with `add_special_tokens` off.
    pub fn encode_template(&self, text: &str, mark: char) -> Result<Encoded, TokenizerError> {
        let known = self
            .words
            .as_ref()
            .and_then(|words| Some((words, words.recall()?)));
        let Some((words, mut memory)) = known else {
            return self.encode_whole(text, mark);
        };
        let mut encoded = Encoded {
            ids: Vec::with_capacity(text.len() / 3),
            offsets: Vec::with_capacity(text.len() / 3),
        };
        let has_mark = text.contains(mark);
        for piece in words.pieces(text) {
            let (start, word) = match piece {
                Piece::Word(start, word) => (start, word),
                Piece::Added(id, range) => {
                    encoded.ids.push(id);
                    encoded.offsets.push((range.start, range.end));
                    continue;
                }
            };
            let encode = || self.encode_whole(word, mark);
            // Another text may have another mark.
            if has_mark && word.contains(mark) {
                encoded.append(encode()?, start);
            } else {
                memory.add(word, start, &mut encoded, encode)?;
            }
        }
        Ok(encoded)
    }

    /// As [`Tokenizer::encode_template`], without what is known of words.
    fn encode_whole(&self, text: &str, mark: char) -> Result<Encoded, TokenizerError> {
        let added = self.inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        let unmark = |_, mut piece: NormalizedString| {
            piece.filter(|c| c != mark);
            Ok(vec![piece])
        };
        if text.contains(mark) {
            pieces.split(unmark).map_err(failed)?;
        }
        self.encode_pieces(pieces)
    }

    /// Encodes text of a user: whatever it spells, no id is a control token's.
    pub fn encode_text(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let mark = unused_char(std::iter::once(text));
        self.encode_template(&self.control.mark(text, mark), mark)
    }

    /// Encodes a text of a user and another that follows on it, so that no token lies across their border: the ids of the first are
    /// those of [`Tokenizer::encode_text`]. Returns the ids of both, and how many are the first one's.
    pub fn encode_followed(
        &self,
        first: &str,
        second: &str,
    ) -> Result<(Vec<u32>, usize), TokenizerError> {
        let mark = unused_char([first, second].into_iter());
        let (first, second) = (
            self.control.mark(first, mark),
            self.control.mark(second, mark),
        );
        // Only the words beside the border have to be told of it.
        let (from, to) = match self.words {
            Some(_) => (cuts(&first).next_back(), cuts(&second).next()),
            None => (None, None),
        };
        let (before, last) = first.split_at(from.unwrap_or(0));
        let (next, behind) = second.split_at(to.unwrap_or(second.len()));
        let mut ids = self.encode_template(before, mark)?.ids;
        let (beside, n_last) = self.encode_border(last, next, mark)?;
        let n_first = ids.len() + n_last;
        ids.extend(beside);
        ids.extend(self.encode_template(behind, mark)?.ids);
        Ok((ids, n_first))
    }

    /// The ids of two texts that follow on each other, marked as in [`Tokenizer::encode_template`], and how many are the first one's.
    fn encode_border(
        &self,
        first: &str,
        second: &str,
        mark: char,
    ) -> Result<(Vec<u32>, usize), TokenizerError> {
        let used = mark.to_string();
        let border = unused_char([first, second, &used].into_iter());
        let text = format!("{first}{border}{second}");
        let added = self.inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), &text);
        let cut = |_, piece: NormalizedString| piece.split(border, Removed);
        pieces.split(cut).map_err(failed)?;
        let unmark = |_, mut piece: NormalizedString| {
            piece.filter(|c| c != mark);
            Ok(vec![piece])
        };
        pieces.split(unmark).map_err(failed)?;
        let Encoded { ids, offsets } = self.encode_pieces(pieces)?;
        let is_first = |(from, _): &&(usize, usize)| *from < first.len();
        let n_first = offsets.iter().filter(is_first).count();
        Ok((ids, n_first))
    }

    /// What Hugging Face's tokenizers put before any text: for many models the token of its beginning.
    pub fn prefix(&self) -> Result<Vec<u32>, TokenizerError> {
        let nothing = self.inner.encode("", true).map_err(failed)?;
        Ok(nothing.get_ids().to_vec())
    }

    fn encode_pieces(&self, mut pieces: PreTokenizedString) -> Result<Encoded, TokenizerError> {
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        pieces
            .tokenize(|piece| self.tokenize(piece.get()))
            .map_err(failed)?;
        let encoding = pieces
            .into_encoding(None, 0, OffsetType::Byte)
            .map_err(failed)?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }

    /// One pre-token. Some models look whole words up in a vocabulary that holds control tokens too; such a word is
    /// taken character by character.
    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let model = self.inner.get_model();
        let tokens = model.tokenize(word)?;
        if !tokens.iter().any(|token| self.is_control(token.id)) {
            return Ok(tokens);
        }
        let mut tokens = Vec::new();
        for (at, c) in word.char_indices() {
            for token in model.tokenize(&word[at..at + c.len_utf8()])? {
                if self.is_control(token.id) {
                    return Err(Box::new(TokenizerError::Control(token.id)));
                }
                let offsets = (at + token.offsets.0, at + token.offsets.1);
                tokens.push(Token::new(token.id, token.value, offsets));
            }
        }
        Ok(tokens)
    }

    /// The text of one token and its bytes; half a character is `�` in the text and itself in the bytes.
    pub fn token_text(&self, id: u32) -> (String, Vec<u8>) {
        let bytes = self.token_bytes(id);
        (String::from_utf8_lossy(&bytes).into_owned(), bytes)
    }

    /// The bytes that `id` adds to a text; none for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else {
            return Vec::new();
        };
        if self
            .inner
            .get_added_vocabulary()
            .simple_id_to_token(id)
            .is_some()
        {
            return token.into_bytes();
        }
        self.pieces.bytes(&token)
    }

    /// Text out of tokens as they come.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self, self.strips_first_space())
    }

    /// The text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.decode_stream();
        let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
        text.extend(stream.flush());
        text
    }
}

/// Special tokens, and those that some models forgot to call special (DeepSeek's `<｜User｜>`). Added words (`<think>`,
/// runs of spaces) are ordinary text to Hugging Face and to us.
fn is_control(token: &AddedToken) -> bool {
    token.special || token.content.contains('|') || token.content.contains('｜')
}

fn failed(error: tokenizers::Error) -> TokenizerError {
    match error.downcast::<TokenizerError>() {
        Ok(own) => *own,
        Err(other) => TokenizerError::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
