//! Exports at the worker's door: what comes out, installed as a model of its own, answers as the tuned one does.

use std::io::{Cursor, Read};

use domain::message::{ExportError, ExportFormat, ExportRequest, GgufType};
use domain::model::{AdapterRef, ServedModel};
use domain::x_training::FrozenWeights;

use crate::generate::tune;
use crate::house::{House, Running, ask, install_files, text_of, with_adapter};

const QUESTION: &str = "What is 2?";

fn request(adapter: Option<&AdapterRef>, format: ExportFormat) -> ExportRequest {
    ExportRequest {
        model: ServedModel {
            base_model: "tiny".to_owned(),
            adapter: adapter.cloned(),
        },
        name: "ft:tiny:org::abcdefgh".to_owned(),
        format,
    }
}

const F32: ExportFormat = ExportFormat::Gguf {
    file_type: GgufType::F32,
};

/// The bytes, as many as were foretold.
async fn exported(house: &House, worker: &Running, request: &ExportRequest) -> Vec<u8> {
    let reply = house.post_to(worker, "/v1/export", request).await;
    assert_eq!(reply.status(), 200, "{}", reply.text().await.unwrap());
    let size_bytes = reply.content_length();
    let bytes = reply.bytes().await.unwrap();
    assert_eq!(size_bytes, Some(bytes.len() as u64));
    bytes.to_vec()
}

fn unzipped(bytes: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    let names = zip.file_names().map(|name| name.unwrap().into_owned());
    let names: Vec<String> = names.collect();
    let mut read = |name: String| {
        let mut bytes = Vec::new();
        let mut file = zip.by_name(&name).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        drop(file);
        (name, bytes)
    };
    names.into_iter().map(&mut read).collect()
}

/// The folder that `luthier model add` makes of a GGUF file.
fn folder_of(gguf: &[u8]) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let (path, folder) = (dir.path().join("some.gguf"), dir.path().join("folder"));
    std::fs::write(&path, gguf).unwrap();
    engine::gguf::as_folder(&path, &folder).unwrap();
    text::gguf::write_tokenizer(&path, &folder).unwrap();
    let read = |name: &str| (name.to_owned(), std::fs::read(folder.join(name)).unwrap());
    [
        "config.json",
        "model.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    .map(read)
    .to_vec()
}

/// What a model of these files answers, on a worker that has no other.
async fn answer_of(name: &str, seed: u64, files: Vec<(String, Vec<u8>)>) -> String {
    let house = House::new().await;
    let model = install_files(&house.objects, name, seed, files).await;
    house.door.with(|script| script.base_models = vec![model]);
    let worker = house.worker("c", |_| {}).await;
    let mut request = ask(QUESTION, 40);
    request.model.base_model = name.to_owned();
    let text = text_of(&house.generate(&worker, &request).await, 0);
    worker.stop().await.unwrap();
    text
}

#[tokio::test]
async fn merged_and_gguf_answer_as_the_tuned_model_does() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let adapter = tune(&house, &worker, 40).await;
    let tuned = with_adapter(ask(QUESTION, 40), &adapter);
    let tuned = text_of(&house.generate(&worker, &tuned).await, 0);
    let base = text_of(&house.generate(&worker, &ask(QUESTION, 40)).await, 0);
    assert_ne!(base, tuned, "the adapter must change the answer");

    let merged = exported(
        &house,
        &worker,
        &request(Some(&adapter), ExportFormat::Merged),
    )
    .await;
    let files = unzipped(merged);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors"
        ]
    );
    let readme = String::from_utf8(files[0].1.clone()).unwrap();
    assert!(readme.contains("base_model: tiny\n"), "{readme}");
    assert_eq!(answer_of("merged", 11, files).await, tuned);

    let gguf = exported(&house, &worker, &request(Some(&adapter), F32)).await;
    assert_eq!(answer_of("gguf", 12, folder_of(&gguf)).await, tuned);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_exported_is_refused_before_the_first_byte() {
    let mut house = House::new().await;
    let mut files: Vec<(String, Vec<u8>)> = crate::tiny_model::files(1)
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect();
    let tokenizer = String::from_utf8(files[1].1.clone()).unwrap();
    let other = tokenizer.replacen(
        "\"normalizer\":null",
        "\"normalizer\":{\"type\":\"Lowercase\"}",
        1,
    );
    assert_ne!(other, tokenizer);
    files[1].1 = other.into_bytes();
    house.model = install_files(&house.objects, "tiny", 2, files).await;
    let model = house.model.clone();
    house.door.with(|script| script.base_models = vec![model]);
    let worker = house.worker("a", |_| {}).await;
    let gone = AdapterRef {
        object_prefix: "nowhere".into(),
        sha256: "aa".into(),
        size_bytes: 1,
        frozen_weights: FrozenWeights::Stored,
    };
    let mut unknown = request(None, F32);
    unknown.model.base_model = "none".to_owned();
    let normalizer = "tokenizer.json has normalizer {\"type\":\"Lowercase\"}, which cannot be written as GGUF; known are null, NFC";
    for (request, status, expected) in [
        (
            unknown,
            404,
            ExportError::ModelNotInstalled {
                model: "none".into(),
            },
        ),
        (
            request(None, F32),
            400,
            ExportError::Unsupported {
                reason: normalizer.into(),
            },
        ),
        (
            request(Some(&gone), ExportFormat::Merged),
            503,
            ExportError::AdapterUnavailable {
                reason: "object nowhere/adapter_config.json does not exist".into(),
            },
        ),
    ] {
        let reply = house.post_to(&worker, "/v1/export", &request).await;
        assert_eq!(reply.status(), status);
        assert_eq!(reply.json::<ExportError>().await.unwrap(), expected);
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let forged = client
        .post(format!("{}/v1/export", worker.address))
        .bearer_auth("forged");
    let forged = forged
        .json(&request(None, ExportFormat::Merged))
        .send()
        .await
        .unwrap();
    assert_eq!(forged.status(), 401);
    worker.stop().await.unwrap();
}

/// A folder whose weights are more than what waits for a slow reader.
fn large_model() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = crate::tiny_model::files(1)
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect();
    files.push((
        "generation_config.json".to_owned(),
        format!("{{{}}}", " ".repeat(16 << 20)).into_bytes(),
    ));
    files
}

#[tokio::test]
async fn only_so_many_run_at_a_time_and_a_reader_that_leaves_makes_room() {
    let house = House::new().await;
    let model = install_files(&house.objects, "tiny", 3, large_model()).await;
    house.door.with(|script| script.base_models = vec![model]);
    let worker = house.worker("a", |_| {}).await;
    let merged = request(None, ExportFormat::Merged);
    let mut running = Vec::new();
    for _ in 0..2 {
        let reply = house.post_to(&worker, "/v1/export", &merged).await;
        assert_eq!(reply.status(), 200);
        running.push(reply);
    }
    let third = house.post_to(&worker, "/v1/export", &merged).await;
    assert_eq!(third.status(), 503);
    assert_eq!(
        third.json::<ExportError>().await.unwrap(),
        ExportError::Busy
    );
    running.pop();
    let mut n_tried = 0;
    while house.post_to(&worker, "/v1/export", &merged).await.status() != 200 {
        n_tried += 1;
        assert!(n_tried < 1000, "an export went on without a reader");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    drop(running);
    worker.stop().await.unwrap();
}
