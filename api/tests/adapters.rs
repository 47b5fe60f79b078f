//! `POST /v1/x/adapters`.

use std::io::{Cursor, Write};

use domain::id::JobId;
use domain::message::GenerateError;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::support::jobs::ADAPTER_CONFIG;
use crate::support::{App, BASE_MODEL, Reply};

const ADAPTERS: &str = "/v1/x/adapters";

/// One tensor of one float.
fn weights() -> Vec<u8> {
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&[0; 4]);
    file
}

fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn adapter() -> Vec<u8> {
    zipped(&[
        ("adapter_config.json", ADAPTER_CONFIG.as_bytes()),
        ("adapter_model.safetensors", &weights()),
    ])
}

fn form(zip: Vec<u8>) -> Form {
    let file = Part::bytes(zip).file_name("adapter.zip");
    Form::new()
        .part("file", file)
        .text("base_model", BASE_MODEL)
        .text("suffix", "mine")
}

async fn bring(app: &App, form: Form) -> Reply {
    let request = app.request(Method::POST, ADAPTERS).multipart(form);
    Reply::of(request.send().await.unwrap()).await
}

/// Nothing of a refused adapter stays.
async fn assert_nothing_kept(app: &App) {
    let prefix = format!("projects/{}/adapters/", app.project.id);
    assert_eq!(app.objects.list(&prefix).await.unwrap(), []);
    assert_eq!(app.store.models().list(&app.project.id).await.unwrap(), []);
    let scratch = app.directory.path().join("cache/api");
    let left = std::fs::read_dir(scratch).map_or(0, Iterator::count);
    assert_eq!(left, 0, "files of a request outlive it");
}

#[tokio::test]
async fn a_brought_adapter_is_a_model_of_the_project() {
    let app = App::start().await;
    let reply = bring(&app, form(adapter())).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let model = reply.json();
    let name = model["id"].as_str().unwrap();
    assert!(name.starts_with("ft:tiny-llama:luthier:mine:"), "{name}");
    assert_eq!(
        model,
        json!({"id": name, "object": "model", "created": model["created"], "owned_by": "luthier"})
    );
    assert_eq!(app.get(&format!("/v1/models/{name}")).await.json(), model);
    let asked = app.worker.last();
    assert_eq!((asked.max_tokens, asked.n), (Some(1), 1), "it was tried");
    assert_eq!(asked.model.base_model, BASE_MODEL);

    let body = json!({"model": name, "messages": [{"role": "user", "content": "Hi"}]});
    let chat = app.post("/v1/chat/completions", body).await;
    assert_eq!(
        chat.json()["choices"][0]["message"]["content"],
        json!("Hello wörld")
    );
    assert_eq!(app.worker.last().model.adapter, asked.model.adapter);

    let export = app.get(&format!("/v1/x/models/{name}/export")).await;
    assert_eq!(export.status, 200);
    let again = bring(&app, form(export.bytes.to_vec())).await;
    assert_eq!(
        again.status, 200,
        "what is exported can be brought: {again:?}"
    );

    let body = json!({"model": name, "training_file": app.upload(b"{}\n").await});
    let job = app.post("/v1/fine_tuning/jobs", body).await.json();
    let id = JobId::parse(job["id"].as_str().unwrap()).unwrap();
    let job = app.store.jobs().get_internal(&id).await.unwrap().unwrap();
    assert_eq!(job.spec.x_training.unwrap().start, asked.model.adapter);

    assert_eq!(
        app.foreign(Method::GET, &format!("/v1/models/{name}"))
            .await
            .status,
        404
    );
    assert_eq!(app.delete(&format!("/v1/models/{name}")).await.status, 200);
    assert_eq!(app.get(&format!("/v1/models/{name}")).await.status, 404);
}

#[tokio::test]
async fn what_is_no_adapter_is_refused_and_nothing_is_kept() {
    let app = App::start().await;
    let weights = weights();
    let config = ADAPTER_CONFIG.as_bytes();
    let pickled = [
        ("adapter_config.json", config),
        ("adapter_model.bin", b"\x80\x02"),
    ];
    let upwards = [
        ("../adapter_config.json", config),
        ("adapter_model.safetensors", &weights),
    ];
    let no_peft = [
        ("adapter_config.json", &b"{}"[..]),
        ("adapter_model.safetensors", &weights),
    ];
    for (zip, reason) in [
        (b"no zip".to_vec(), "it cannot be read as a zip archive"),
        (
            zipped(&pickled),
            "its entry \"adapter_model.bin\" is not taken",
        ),
        (zipped(&upwards), "is no plain file below one folder"),
        (zipped(&no_peft), "adapter_config.json: missing field"),
        (zipped(&no_peft[1..]), "it lacks adapter_config.json"),
    ] {
        let reply = bring(&app, form(zip)).await;
        reply.assert_refused("invalid_adapter", "file");
        let message = reply.json()["error"]["message"].to_string();
        let message = message.replace("\\\"", "\"");
        assert!(message.contains(reason), "{message}");
    }
    let file = || Part::bytes(adapter()).file_name("a.zip");
    for (form, code, param) in [
        (
            Form::new().text("base_model", BASE_MODEL),
            "missing_required_parameter",
            "file",
        ),
        (
            Form::new().part("file", file()),
            "missing_required_parameter",
            "base_model",
        ),
        (
            Form::new().part("file", file()).text("base_model", "other"),
            "model_not_available",
            "base_model",
        ),
        (
            form(adapter()).text("rank", "4"),
            "unknown_parameter",
            "rank",
        ),
        (
            Form::new()
                .text("suffix", "a:b")
                .part("file", file())
                .text("base_model", BASE_MODEL),
            "invalid_value",
            "suffix",
        ),
    ] {
        bring(&app, form).await.assert_refused(code, param);
    }
    assert_eq!(app.worker.n_asked(), 0, "no worker was troubled");
    assert_nothing_kept(&app).await;
}

#[tokio::test]
async fn an_adapter_that_no_worker_can_load_is_not_announced() {
    let app = App::start().await;
    let unfit = GenerateError::AdapterUnavailable {
        reason: "it does not fit the base model: tensor a belongs to no targeted module".to_owned(),
        is_unfit: true,
    };
    app.worker.refuse_adapters(503, unfit);
    bring(&app, form(adapter())).await.assert_error(
        400,
        Some("adapter_unfit"),
        Some("file"),
        "The adapter cannot be used on its base model: it does not fit the base model: tensor a belongs to no \
         targeted module.",
    );
    app.worker.refuse_adapters(503, GenerateError::Busy);
    let busy = bring(&app, form(adapter())).await;
    assert_eq!(
        (busy.status.as_u16(), busy.header("retry-after")),
        (503, "1")
    );
    assert_nothing_kept(&app).await;
}

#[tokio::test]
async fn an_archive_beyond_the_limit_is_refused() {
    let app = App::start_with(|config| config.api.max_file_bytes = 2_000).await;
    let large = vec![b'P'; 3_000];
    assert_eq!(bring(&app, form(large)).await.status, 413);
    let bomb = zipped(&[
        ("adapter_config.json", ADAPTER_CONFIG.as_bytes()),
        ("adapter_model.safetensors", &vec![0; 1_000_000]),
    ]);
    assert!(bomb.len() < 2_000);
    let reply = bring(&app, form(bomb)).await;
    reply.assert_refused("invalid_adapter", "file");
    assert!(
        reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("larger than 2000 bytes")
    );
    assert_nothing_kept(&app).await;
}

#[tokio::test]
async fn a_repeated_request_brings_one_adapter() {
    let app = App::start().await;
    let send = async |suffix: &'static str| -> Value {
        let file = Part::bytes(adapter()).file_name("a.zip");
        let form = Form::new()
            .text("suffix", suffix)
            .text("base_model", BASE_MODEL)
            .part("file", file);
        let request = app.request(Method::POST, ADAPTERS).multipart(form);
        let request = request.header("idempotency-key", "k");
        Reply::of(request.send().await.unwrap()).await.json()
    };
    let first = send("a").await;
    assert_eq!(send("a").await, first);
    assert_eq!(
        send("b").await["error"]["code"],
        json!("idempotency_key_reused")
    );
    let prefix = format!("projects/{}/adapters/", app.project.id);
    let kept = app.objects.list(&prefix).await.unwrap();
    assert_eq!(kept.len(), 2, "the two files of one adapter");
}
