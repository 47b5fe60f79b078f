//! Prompts with their completions: tokens without a template, of which the completion is learned.

use std::io::Cursor;
use std::path::Path;

use domain::x_training::{Data, DataFormat, Packing, Truncation};
use tempfile::TempDir;
use text::chat_model::{ChatModel, Fitted, RenderError, TokenizedExample};
use text::formats::TrainingExample;

/// A model of the fixtures; the real one is unpacked first.
fn load(name: &str) -> (ChatModel, Option<TempDir>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    let Ok(bytes) = std::fs::read(folder.join("tokenizer.zip")) else {
        return (ChatModel::load(&folder).unwrap(), None);
    };
    let unpacked = tempfile::tempdir().unwrap();
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    zip.extract(unpacked.path()).unwrap();
    (ChatModel::load(unpacked.path()).unwrap(), Some(unpacked))
}

fn example(prompt: &str, completion: &str) -> TrainingExample {
    TrainingExample::Completion {
        prompt: prompt.to_owned(),
        completion: completion.to_owned(),
    }
}

/// What is learned and what is not.
fn parts(example: &TokenizedExample) -> (Vec<u32>, Vec<u32>) {
    let (given, learned): (Vec<_>, Vec<_>) = example
        .tokens
        .iter()
        .zip(&example.mask)
        .partition(|(_, is_label)| !**is_label);
    let ids = |part: Vec<(&u32, &bool)>| part.into_iter().map(|(id, _)| *id).collect();
    assert!(example.mask.is_sorted(), "labels stand at the end");
    (ids(given), ids(learned))
}

const TEXTS: [(&str, &str); 8] = [
    ("2+2=", "4"),
    ("Once upon a", " time there was a fox."),
    ("Once upon a ti", "me"),
    ("Q: why?\nA: ", "because\n"),
    ("a  ", "  b"),
    ("naïve 数", "据 🦊"),
    ("say <|im_", "end|> and <|im_end|> too"),
    ("", "alone"),
];

#[test]
fn the_prompt_is_read_as_it_will_be_asked_and_the_rest_is_learned() {
    for name in ["smollm2", "chatml", "header"] {
        let (model, _unpacked) = load(name);
        let end = model.stop_token_ids()[0];
        for (prompt, completion) in TEXTS {
            let (given, learned) = parts(&model.example(&example(prompt, completion)).unwrap());
            let asked = model.text_prompt(prompt).unwrap();
            assert_eq!(given, asked, "{name}: {prompt:?}");
            let (last, said) = learned.split_last().unwrap();
            assert_eq!(*last, end, "{name}: {completion:?}");
            assert_eq!(model.tokenizer().decode(said), completion, "{name}");
            let control = said.iter().any(|id| model.tokenizer().is_control(*id));
            assert!(!control, "{name}: {completion:?}");
        }
    }
}

#[test]
fn what_no_border_cuts_is_tokenized_as_one_text() {
    let (model, _unpacked) = load("smollm2");
    let (prompt, completion) = TEXTS[1];
    let mut whole = model.encode_text(&format!("{prompt}{completion}")).unwrap();
    whole.push(model.stop_token_ids()[0]);
    assert_eq!(
        model.example(&example(prompt, completion)).unwrap().tokens,
        whole
    );
}

#[test]
fn a_long_prompt_keeps_its_end_where_the_left_is_cut() {
    let (model, _unpacked) = load("chatml");
    let data = |truncation| Data {
        format: DataFormat::PromptCompletion,
        max_length: 16,
        truncation,
        packing: Packing::BinPack,
    };
    let long = example(&"over and ".repeat(20), "out");
    let Fitted::Cut(cut) = model.fit(&long, &data(Truncation::Left)).unwrap() else {
        panic!("it is longer than 16 tokens");
    };
    let (_, learned) = parts(&cut);
    assert_eq!(
        model.tokenizer().decode(&learned[..learned.len() - 1]),
        "out"
    );
    assert!(matches!(
        model.fit(&long, &data(Truncation::Right)),
        Err(RenderError::NothingLeft(16))
    ));
}
