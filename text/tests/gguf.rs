//! Tokenizers out of GGUF metadata. The file is written here, from the fixture that was made of SmolLM2's own GGUF.

use std::io::Cursor;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use text::chat_model::ChatModel;
use text::gguf::{GgufError, write_tokenizer};

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
