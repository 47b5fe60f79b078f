//! `/v1/x/models/{model}/export`.

use std::io::{Cursor, Read};

use domain::id::JobId;
use domain::message::{ExportFormat, GgufType};
use reqwest::Method;
use serde_json::json;

use crate::support::jobs::{ADAPTER_CONFIG, weights};
use crate::support::worker::EXPORTED;
use crate::support::{App, BASE_MODEL};

#[tokio::test(flavor = "multi_thread")]
async fn a_tuned_model_is_exported_as_a_peft_folder() {
    let app = App::start().await;
    let id = app.new_job(json!({"suffix": "x"})).await;
    let name = app.succeed(&JobId::parse(&id).unwrap()).await;
    let path = format!("/v1/x/models/{name}/export");
    let reply = app.get(&format!("{path}?format=peft")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let filename = format!("{}.zip", name.replace(':', "-"));
    let disposition = format!("attachment; filename=\"{filename}\"; filename*=UTF-8''{filename}");
    assert_eq!(reply.header("content-disposition"), disposition);
    let mut zip = zip::ZipArchive::new(Cursor::new(reply.bytes)).unwrap();
    let mut read = |name: &str| {
        let mut bytes = Vec::new();
        zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(read("adapter_config.json"), ADAPTER_CONFIG.as_bytes());
    assert_eq!(read("adapter_model.safetensors"), weights());
    let readme = String::from_utf8(read("README.md")).unwrap();
    assert!(
        readme.contains("base_model: tiny-llama") && readme.contains(&name),
        "{readme}"
    );
    assert_eq!(zip.len(), 3);

    assert_eq!(app.foreign(Method::GET, &path).await.status, 404);
    for (query, param) in [
        ("format=onnx", "format"),
        ("format=gguf&type=q4_k_m", "type"),
        ("format=merged&type=f16", "type"),
    ] {
        let reply = app.get(&format!("{path}?{query}")).await;
        reply.assert_refused("invalid_value", param);
    }
    app.get("/v1/x/models/tiny-llama/export")
        .await
        .assert_refused("unsupported_value", "model");
    app.get("/v1/x/models/no-such-model/export")
        .await
        .assert_error(
            404,
            Some("model_not_found"),
            Some("model"),
            "The model 'no-such-model' does not exist",
        );
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_weights_never_arrive_as_a_whole_zip() {
    let app = App::start().await;
    let id = JobId::parse(&app.new_job(json!({})).await).unwrap();
    let name = app.succeed(&id).await;
    let model = app
        .store
        .models()
        .find(&app.project.id, &name)
        .await
        .unwrap()
        .unwrap();
    let key = format!("{}/adapter_model.safetensors", model.adapter.object_prefix);
    let whole = weights();
    let mut flipped = whole.clone();
    flipped[1_000_000] ^= 1;
    for damaged in [
        flipped,
        whole[..whole.len() - 1].to_vec(),
        vec![0; 3_000_000],
    ] {
        app.objects.put_bytes(&key, damaged.into()).await.unwrap();
        let path = format!("/v1/x/models/{name}/export");
        let response = app.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let read = response.bytes().await;
        assert!(
            read.is_err(),
            "{} bytes arrived as a whole",
            read.unwrap().len()
        );
    }
}

/// A tuned model and the path of its export.
async fn tuned(app: &App) -> (String, String) {
    let id = JobId::parse(&app.new_job(json!({})).await).unwrap();
    let name = app.succeed(&id).await;
    let path = format!("/v1/x/models/{name}/export");
    (name, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_models_are_made_by_a_worker() {
    let app = App::start().await;
    let (name, path) = tuned(&app).await;
    let stem = name.replace(':', "-");
    let f16 = ExportFormat::Gguf {
        file_type: GgufType::F16,
    };
    for (query, format, filename) in [
        (
            "format=merged",
            ExportFormat::Merged,
            format!("{stem}-merged.zip"),
        ),
        ("format=gguf", f16, format!("{stem}-f16.gguf")),
        ("format=gguf&type=f16", f16, format!("{stem}-f16.gguf")),
    ] {
        let reply = app.get(&format!("{path}?{query}")).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.bytes[..]),
            (200, EXPORTED.as_bytes())
        );
        assert_eq!(reply.header("content-length"), EXPORTED.len().to_string());
        let disposition = reply.header("content-disposition");
        assert!(
            disposition.contains(&format!("filename=\"{filename}\"")),
            "{disposition}"
        );
        let asked = app.worker.last_export();
        assert_eq!((asked.name.as_str(), asked.format), (name.as_str(), format));
        assert_eq!(asked.model.base_model, BASE_MODEL);
        assert!(
            asked
                .model
                .adapter
                .unwrap()
                .object_prefix
                .ends_with("/step-6/adapter")
        );
    }
    assert_eq!(
        app.foreign(Method::GET, &format!("{path}?format=merged"))
            .await
            .status,
        404
    );
    app.get("/v1/x/models/tiny-llama/export?format=merged")
        .await
        .assert_refused("unsupported_value", "model");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_cannot_make_is_told_and_a_client_that_leaves_ends_it() {
    let app = App::start().await;
    let (_, path) = tuned(&app).await;
    let reply = app.get(&format!("{path}?format=gguf&type=f32")).await;
    reply.assert_refused("unsupported_value", "format");
    assert!(
        reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("its tokenizer is not known")
    );
    let busy = app.get(&format!("{path}?format=gguf&type=bf16")).await;
    assert_eq!(
        (busy.status.as_u16(), busy.header("retry-after")),
        (503, "10")
    );

    let endless = app.request(Method::GET, &format!("{path}?format=gguf&type=q8_0"));
    let mut endless = endless.send().await.unwrap();
    assert!(endless.chunk().await.unwrap().is_some());
    drop(endless);
    assert!(
        app.worker.is_dropped().await,
        "the worker went on without a reader"
    );

    let worker = &app.worker.status().worker_id;
    app.store.workers().remove(worker).await.unwrap();
    let alone = app.get(&format!("{path}?format=merged")).await;
    assert_eq!(
        (alone.status.as_u16(), alone.header("retry-after")),
        (503, "2")
    );
}
