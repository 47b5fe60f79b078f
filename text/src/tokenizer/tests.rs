use std::io::{Cursor, Read};
use std::path::Path;

use proptest::prelude::*;

use super::Tokenizer;

const MARK: char = '\u{e000}';

/// The tokenizer of a fixture.
fn tokenizer(name: &str) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    let Ok(bytes) = std::fs::read(folder.join("tokenizer.zip")) else {
        return Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
    };
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut json = Vec::new();
    zip.by_name("tokenizer.json")
        .unwrap()
        .read_to_end(&mut json)
        .unwrap();
    Tokenizer::from_bytes(&json).unwrap()
}

/// Pieces of text that stand beside each other in every order.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        4 => Just(" ".to_owned()),
        1 => "[0-9.,;:!?'\"()<>|_-]{1,4}",
        1 => "[ \\n\\t\\r]{1,4}",
        1 => "\\PC{1,3}",
        1 => prop_oneof![
            Just("<|im_start|>"), Just("<|im_end|>"), Just("<|\u{e000}im_end|>"), Just("it's"), Just("数据"), Just("e\u{301}"),
            Just("\u{e000}"), Just("\u{e001}"),
        ].prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

#[test]
fn remembered_words_have_the_tokens_that_they_have_in_a_text() {
    for name in ["smollm2", "chatml", "header"] {
        let tokenizer = tokenizer(name);
        assert!(tokenizer.words.is_some(), "{name} cuts at spaces");
        proptest!(ProptestConfig::with_cases(400), |(text in any_text())| {
            let whole = tokenizer.encode_whole(&text, MARK).unwrap();
            // The first time words are new, then they are known.
            for _ in 0..2 {
                prop_assert_eq!(&tokenizer.encode_template(&text, MARK).unwrap(), &whole, "{}: {:?}", name, text);
            }
        });
    }
}

#[test]
fn a_tokenizer_that_joins_words_or_has_tokens_over_spaces_is_asked_for_whole_texts() {
    let joins = r#"{"version":"1.0","added_tokens":ADDED,"normalizer":null,"pre_tokenizer":PRE,"post_processor":null,"decoder":null,
        "model":{"type":"BPE","vocab":{"a":0,"b":1," ":2,"a ":3,"a b":4,"<unk>":5},"merges":[["a"," "],["a ","b"]],"unk_token":"<unk>"}}"#;
    let with = |added: &str, pre: &str| {
        let json = joins.replace("ADDED", added).replace("PRE", pre);
        Tokenizer::from_bytes(json.as_bytes())
            .unwrap()
            .words
            .is_some()
    };
    let splits =
        r#"{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithNext","invert":false}"#;
    let token = |content: &str, flag: &str| {
        let flags =
            ["single_word", "lstrip", "rstrip"].map(|name| format!(r#""{name}":{}"#, name == flag));
        let flags = flags.join(",");
        format!(r#"[{{"id":9,"content":"{content}",{flags},"normalized":false,"special":true}}]"#)
    };
    assert!(!with("[]", "null"), "'a b' is one token");
    let apart = splits.replace("MergedWithNext", "MergedWithPrevious");
    assert!(!with("[]", &apart), "the space is behind its word");
    assert!(with("[]", splits));
    assert!(with(&token("<s>", ""), splits));
    assert!(!with(&token("<s s>", ""), splits));
    for flag in ["single_word", "lstrip", "rstrip"] {
        assert!(!with(&token("<s>", flag), splits), "{flag}");
    }
    let first = r#"{"type":"Metaspace","replacement":"_","prepend_scheme":"first","split":false}"#;
    let prepends = format!(r#"{{"type":"Sequence","pretokenizers":[{splits},{first}]}}"#);
    assert!(with("[]", &prepends));
    assert!(
        !with(&token("<s>", ""), &prepends),
        "what is behind <s> is not the first word"
    );
}
