//! `/v1/x/models/{model}/export`.

use std::io::{Cursor, Read};

use domain::id::JobId;
use reqwest::Method;
use serde_json::json;

use crate::support::App;
use crate::support::jobs::{ADAPTER_CONFIG, weights};

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
    app.get(&format!("{path}?format=gguf"))
        .await
        .assert_refused("invalid_value", "format");
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
