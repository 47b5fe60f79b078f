//! Tokenizers out of GGUF metadata. The file is written here, from the fixture that was made of SmolLM2's own GGUF.

use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::Value as GgufValue;
use serde_json::{Value, json};
use tempfile::TempDir;
use text::chat_model::ChatModel;
use text::gguf::{GgufError, VocabularyError, vocabulary, write_tokenizer};

/// A value of GGUF metadata.
enum Meta {
    Text(String),
    U32(u32),
    Bool(bool),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// A GGUF file of version 3 without tensors.
fn gguf(metadata: &[(&str, Meta)]) -> Vec<u8> {
    fn put(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put(&mut bytes, key);
        match value {
            Meta::U32(n) => {
                bytes.extend(4u32.to_le_bytes());
                bytes.extend(n.to_le_bytes());
            }
            Meta::Bool(is) => {
                bytes.extend(7u32.to_le_bytes());
                bytes.push(u8::from(*is));
            }
            Meta::Text(text) => {
                bytes.extend(8u32.to_le_bytes());
                put(&mut bytes, text);
            }
            Meta::Texts(texts) => {
                bytes.extend(9u32.to_le_bytes());
                bytes.extend(8u32.to_le_bytes());
                bytes.extend((texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| put(&mut bytes, text));
            }
            Meta::I32s(numbers) => {
                bytes.extend(9u32.to_le_bytes());
                bytes.extend(5u32.to_le_bytes());
                bytes.extend((numbers.len() as u64).to_le_bytes());
                numbers.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
            }
        }
    }
    bytes
}

fn convert(metadata: &[(&str, Meta)]) -> Result<TempDir, GgufError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, gguf(metadata)).unwrap();
    write_tokenizer(&path, dir.path()).map(|()| dir)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The metadata of SmolLM2's file, with this pre-tokenizer.
fn smollm2(pre: &str, unpacked: &Path) -> Vec<(&'static str, Meta)> {
    let tokenizer = read(&unpacked.join("tokenizer.json"));
    let config = read(&unpacked.join("tokenizer_config.json"));
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[usize::try_from(id.as_u64().unwrap()).unwrap()] = token.clone();
    }
    let merge = |merge: &Value| match merge {
        Value::String(text) => text.clone(),
        pair => format!(
            "{} {}",
            pair[0].as_str().unwrap(),
            pair[1].as_str().unwrap()
        ),
    };
    let merges = tokenizer["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(merge)
        .collect();
    let types = (0..tokens.len())
        .map(|id| if id < 17 { 3 } else { 1 })
        .collect();
    let template = config["chat_template"].as_str().unwrap().to_owned();
    vec![
        ("general.architecture", Meta::Text("llama".into())),
        ("llama.context_length", Meta::U32(8192)),
        ("tokenizer.ggml.model", Meta::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::Text(pre.into())),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type", Meta::I32s(types)),
        ("tokenizer.ggml.merges", Meta::Texts(merges)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Meta::U32(0)),
        ("tokenizer.ggml.padding_token_id", Meta::U32(2)),
        ("tokenizer.ggml.add_bos_token", Meta::Bool(false)),
        ("tokenizer.chat_template", Meta::Text(template)),
    ]
}

fn unpack() -> TempDir {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2/tokenizer.zip");
    let unpacked = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(fixture).unwrap();
    zip::ZipArchive::new(Cursor::new(bytes))
        .unwrap()
        .extract(unpacked.path())
        .unwrap();
    unpacked
}

#[test]
fn smollm2s_tokenizer_comes_out_of_its_gguf_as_transformers_has_it() {
    let unpacked = unpack();
    let dir = convert(&smollm2("smollm", unpacked.path())).unwrap();
    let (ours, theirs) = (
        read(&dir.path().join("tokenizer.json")),
        read(&unpacked.path().join("tokenizer.json")),
    );
    for part in [
        "normalizer",
        "pre_tokenizer",
        "decoder",
        "post_processor",
        "added_tokens",
    ] {
        assert_eq!(ours[part], theirs[part], "{part}");
    }
    assert_eq!(ours["model"]["vocab"], theirs["model"]["vocab"]);
    let config = read(&dir.path().join("tokenizer_config.json"));
    for (key, value) in [
        ("bos_token", "<|im_start|>"),
        ("eos_token", "<|im_end|>"),
        ("unk_token", "<|endoftext|>"),
        ("pad_token", "<|im_end|>"),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["model_max_length"], 8192);
    let map = read(&dir.path().join("special_tokens_map.json"));
    assert_eq!(map["eos_token"], "<|im_end|>");

    std::fs::write(
        dir.path().join("config.json"),
        r#"{"eos_token_id": 2, "max_position_embeddings": 8192}"#,
    )
    .unwrap();
    let (ours, theirs) = (
        ChatModel::load(dir.path()).unwrap(),
        ChatModel::load(unpacked.path()).unwrap(),
    );
    for text in [
        "Hello, wörld! 12345 + 6 = ?\n\n  for i in range(10):\n\tpass",
        "數據 🦊 don't",
        "a<|im_end|>b",
    ] {
        assert_eq!(
            ours.encode_text(text).unwrap(),
            theirs.encode_text(text).unwrap(),
            "{text}"
        );
    }
}

#[test]
fn all_chat_templates_come_along() {
    let unpacked = unpack();
    let mut metadata = smollm2("smollm", unpacked.path());
    let dir = convert(&metadata).unwrap();
    let config = read(&dir.path().join("tokenizer_config.json"));
    let usual = config["chat_template"].clone();
    assert!(usual.is_string());
    for name in [
        "tokenizer.chat_template.tool_use",
        "tokenizer.chat_template.rag",
    ] {
        metadata.push((name, Meta::Text(format!("of {name}"))));
    }
    let dir = convert(&metadata).unwrap();
    let config = read(&dir.path().join("tokenizer_config.json"));
    let expected = serde_json::json!([
        {"name": "default", "template": usual},
        {"name": "rag", "template": "of tokenizer.chat_template.rag"},
        {"name": "tool_use", "template": "of tokenizer.chat_template.tool_use"},
    ]);
    assert_eq!(config["chat_template"], expected);
}

#[test]
fn pre_tokenizers_differ_and_an_unknown_one_is_refused_by_name() {
    let unpacked = unpack();
    for (pre, text, expected) in [
        ("smollm", "1234", vec!["1", "2", "3", "4"]),
        ("qwen2", "12 x", vec!["1", "2", "Ġx"]),
        ("llama-bpe", "don't", vec!["don", "'t"]),
        ("gpt-2", " the", vec!["Ġthe"]),
    ] {
        let dir = convert(&smollm2(pre, unpacked.path())).unwrap();
        let tokenizer =
            tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(encoding.get_tokens(), expected, "{pre}");
    }
    let error = convert(&smollm2("falcon", unpacked.path())).unwrap_err();
    assert!(matches!(&error, GgufError::UnknownPreTokenizer(name) if name == "falcon"));
    assert!(
        error
            .to_string()
            .contains("'falcon' is not supported; known: gpt-2"),
        "{error}"
    );
}

#[test]
fn what_is_missing_or_wrong_in_the_metadata_is_named() {
    let tokens = || {
        (
            "tokenizer.ggml.tokens",
            Meta::Texts(vec!["a".into(), "a".into()]),
        )
    };
    let merges = || ("tokenizer.ggml.merges", Meta::Texts(vec![]));
    let model = |name: &str| ("tokenizer.ggml.model", Meta::Text(name.into()));
    let pre = || ("tokenizer.ggml.pre", Meta::Text("smollm".into()));
    for (metadata, expected) in [
        (vec![], "tokenizer.ggml.model"),
        (vec![model("llama")], "'llama' is not supported"),
        (vec![model("gpt2")], "tokenizer.ggml.tokens"),
        (vec![model("gpt2"), tokens()], "tokenizer.ggml.pre"),
        (
            vec![model("gpt2"), tokens(), pre()],
            "tokenizer.ggml.merges",
        ),
        (
            vec![model("gpt2"), tokens(), pre(), merges()],
            "token 'a' twice",
        ),
        (
            vec![
                model("gpt2"),
                tokens(),
                pre(),
                merges(),
                ("tokenizer.ggml.eos_token_id", Meta::U32(7)),
            ],
            "is 7, but there are only 2",
        ),
    ] {
        let error = convert(&metadata).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    assert!(matches!(
        write_tokenizer(&path, dir.path()),
        Err(GgufError::Read { .. })
    ));
    std::fs::write(&path, b"no gguf at all").unwrap();
    assert!(matches!(
        write_tokenizer(&path, dir.path()),
        Err(GgufError::Invalid { .. })
    ));
}

/// What `vocabulary` says, by key.
fn vocabulary_of(folder: &Path) -> std::collections::BTreeMap<String, GgufValue> {
    vocabulary(folder).unwrap().into_iter().collect()
}

fn texts(value: &GgufValue) -> Vec<String> {
    let texts = value.to_vec().unwrap().iter();
    texts
        .map(|text| text.to_string().unwrap().clone())
        .collect()
}

#[test]
fn a_vocabulary_says_of_smollm2_what_its_own_gguf_says() {
    let unpacked = unpack();
    let config = json!({"vocab_size": 49152, "eos_token_id": 2});
    std::fs::write(unpacked.path().join("config.json"), config.to_string()).unwrap();
    let ours = vocabulary_of(unpacked.path());
    for (key, theirs) in smollm2("smollm", unpacked.path()) {
        match theirs {
            _ if !key.starts_with("tokenizer.") => {}
            Meta::Text(text) => assert_eq!(ours[key].to_string().unwrap(), &text, "{key}"),
            Meta::U32(n) => assert_eq!(ours[key].to_u32().unwrap(), n, "{key}"),
            Meta::Bool(is) => assert_eq!(ours[key].to_bool().unwrap(), is, "{key}"),
            Meta::Texts(values) => assert_eq!(texts(&ours[key]), values, "{key}"),
            Meta::I32s(values) => {
                let ours = ours[key].to_vec().unwrap().iter();
                let ours: Vec<i32> = ours.map(|kind| kind.to_i32().unwrap()).collect();
                assert_eq!(ours, values, "{key}");
            }
        }
    }
}

/// A folder of SmolLM2's files with `change` made to `tokenizer.json`.
fn changed(vocab_size: usize, change: impl FnOnce(&mut Value)) -> TempDir {
    let unpacked = unpack();
    let path = unpacked.path().join("tokenizer.json");
    let mut tokenizer = read(&path);
    change(&mut tokenizer);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let config = json!({"vocab_size": vocab_size, "eos_token_id": 2});
    std::fs::write(unpacked.path().join("config.json"), config.to_string()).unwrap();
    unpacked
}

#[test]
fn places_without_a_token_are_unused() {
    let folder = changed(49160, |_| {});
    let ours = vocabulary_of(folder.path());
    let (tokens, kinds) = (
        texts(&ours["tokenizer.ggml.tokens"]),
        &ours["tokenizer.ggml.token_type"],
    );
    assert_eq!(
        (tokens.len(), tokens[49159].as_str()),
        (49160, "[PAD49159]")
    );
    assert_eq!(kinds.to_vec().unwrap()[49159].to_i32().unwrap(), 5);
    let error = vocabulary(changed(49151, |_| {}).path()).unwrap_err();
    assert!(
        matches!(error, VocabularyError::BeyondVocabulary { id: 49151, .. }),
        "{error}"
    );
}

#[test]
fn each_pre_tokenizer_is_known_again_and_others_are_refused_by_name() {
    let unpacked = unpack();
    for pre in ["gpt-2", "llama-bpe", "dbrx", "qwen2", "smollm"] {
        let made = convert(&smollm2(pre, unpacked.path())).unwrap();
        let config = json!({"vocab_size": 49152}).to_string();
        std::fs::write(made.path().join("config.json"), config).unwrap();
        let ours = vocabulary_of(made.path());
        assert_eq!(ours["tokenizer.ggml.pre"].to_string().unwrap(), pre);
    }
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 4] = [
        (
            |t| t["pre_tokenizer"] = json!({"type": "Whitespace"}),
            "tokenizer.json has pre_tokenizer {\"type\":\"Whitespace\"}, ",
        ),
        (
            |t| t["normalizer"] = json!({"type": "Lowercase"}),
            "tokenizer.json has normalizer {\"type\":\"Lowercase\"}, ",
        ),
        (
            |t| t["model"]["type"] = json!("Unigram"),
            "tokenizer.json has model.type \"Unigram\", ",
        ),
        (
            |t| t["model"]["ignore_merges"] = json!(true),
            "tokenizer.json has pre_tokenizer ",
        ),
    ];
    for (change, expected) in cases {
        let error = vocabulary(changed(49152, change).path())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

/// Llama 2's kind of tokenizer, small.
fn sentencepiece(tokenizer: &mut Value) {
    let tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<0x0A>",
        "\u{2581}",
        "a",
        "b",
        "ab",
        "\u{2581}ab",
        "ba",
    ];
    let vocab: serde_json::Map<String, Value> = tokens
        .iter()
        .zip(0..)
        .map(|(t, id)| ((*t).to_owned(), json!(id)))
        .collect();
    let special = |id: usize| json!({"id": id, "content": tokens[id], "special": true});
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    *tokenizer = json!({
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}]},
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab, "merges": [
            ["a", "b"], ["b", "a"], ["\u{2581}", "ab"],
        ]},
    });
}

#[test]
fn sentencepieces_scores_are_the_order_of_the_merges() {
    let ours = vocabulary_of(changed(10, sentencepiece).path());
    assert_eq!(ours["tokenizer.ggml.model"].to_string().unwrap(), "llama");
    let scores = ours["tokenizer.ggml.scores"].to_vec().unwrap().iter();
    let scores: Vec<f32> = scores.map(|score| score.to_f32().unwrap()).collect();
    assert_eq!(scores, [-3., -3., -3., -3., -3., -3., -3., 0., -2., -1.]);
    let kinds = ours["tokenizer.ggml.token_type"].to_vec().unwrap().iter();
    let kinds: Vec<i32> = kinds.map(|kind| kind.to_i32().unwrap()).collect();
    assert_eq!(kinds, [3, 3, 3, 6, 1, 1, 1, 1, 1, 1]);
    for (key, expected) in [
        ("add_space_prefix", true),
        ("add_bos_token", true),
        ("add_eos_token", false),
    ] {
        let key = format!("tokenizer.ggml.{key}");
        assert_eq!(ours[&key].to_bool().unwrap(), expected, "{key}");
    }
}

#[test]
fn merges_that_sentencepiece_would_not_make_are_refused() {
    let cases: [fn(&mut Value); 2] = [
        // "▁ab" could also be made of "▁a" and "b", if that were a pair.
        |t| t["model"]["vocab"]["\u{2581}a"] = json!(10),
        // "ab" comes twice, with another token between.
        |t| {
            let merges = t["model"]["merges"].as_array_mut().unwrap();
            merges.push(json!(["a", "b"]));
        },
    ];
    for change in cases {
        let folder = changed(11, |tokenizer| {
            sentencepiece(tokenizer);
            change(tokenizer);
        });
        let error = vocabulary(folder.path()).unwrap_err();
        assert!(
            matches!(error, VocabularyError::NotSentencePiece { .. }),
            "{error}"
        );
    }
}
