//! SentencePiece's view of a Hugging Face tokenizer that was made from one: a score for each token in place of ranked
//! pairs. It merges two neighbours whenever they make a token, the best token first; so the two views are one only if the
//! pairs are all there and in the order of the tokens they make.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::vocabulary::{VocabularyError, merges, unsupported};

/// The stand-in for a space.
const SPACE: &str = "\u{2581}";

/// `<0x0A>`: a byte that is no token by itself.
pub(super) fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// Whether a text is read as if a space stood before it. Errors: `Unsupported` where spaces are not SentencePiece's.
pub(super) fn add_space_prefix(tokenizer: &Value) -> Result<bool, VocabularyError> {
    let (normalizer, pre) = (&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]);
    if normalizer.is_null() && pre["type"] == "Metaspace" && pre["replacement"] == SPACE {
        let scheme = pre["prepend_scheme"].as_str();
        if pre["split"] == false && scheme != Some("always") {
            return Ok(scheme == Some("first"));
        }
    }
    // Gemma's cut at spaces comes after there are none left.
    let cuts_nothing = pre.is_null() || pre["pattern"] == json!({"String": " "});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    match normalizer {
        _ if !cuts_nothing => {
            let known = "null, Metaspace without split";
            Err(unsupported("pre_tokenizer", pre.to_string(), known))
        }
        found if *found == both => Ok(true),
        found if *found == replace => Ok(false),
        found => {
            let known = "those of Llama 2 and Gemma";
            Err(unsupported("normalizer", found.to_string(), known))
        }
    }
}

/// The score of each token: the higher, the earlier it is made. Errors: `NotSentencePiece`.
pub(super) fn scores(tokenizer: &Value, tokens: &[String]) -> Result<Vec<f32>, VocabularyError> {
    let merges = merges(tokenizer);
    let mut ranks: HashMap<String, usize> = HashMap::new();
    let mut pairs: HashSet<(&str, &str)> = HashSet::new();
    let mut last = String::new();
    for (left, right) in merges.iter().filter_map(|merge| merge.split_once(' ')) {
        pairs.insert((left, right));
        let token = format!("{left}{right}");
        if token != last {
            let rank = ranks.len();
            if ranks.insert(token.clone(), rank).is_some() {
                return Err(VocabularyError::NotSentencePiece { token });
            }
            last = token;
        }
    }
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    for token in ranks.keys() {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if known.contains(left) && known.contains(right) && !pairs.contains(&(left, right)) {
                let token = token.clone();
                return Err(VocabularyError::NotSentencePiece { token });
            }
        }
    }
    // What no pair makes comes last.
    let score = |token: &String| -(*ranks.get(token).unwrap_or(&ranks.len()) as f32);
    Ok(tokens.iter().map(score).collect())
}
