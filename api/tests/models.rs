//! `/v1/models`.

use domain::id::JobId;
use reqwest::Method;
use serde_json::json;

use crate::support::{App, BASE_MODEL};

fn base() -> serde_json::Value {
    json!({"id": BASE_MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "system"})
}

#[tokio::test]
async fn base_models_are_everyones_and_nobodys_to_delete() {
    let app = App::start().await;
    assert_eq!(
        app.get("/v1/models").await.json(),
        json!({"object": "list", "data": [base()]})
    );
    assert_eq!(app.get("/v1/models/tiny-llama").await.json(), base());
    assert_eq!(app.get("/v1/models/tiny%2Dllama").await.json(), base());
    app.delete("/v1/models/tiny-llama").await.assert_error(
        403,
        None,
        None,
        "A base model belongs to the installation: only its operator can remove it.",
    );
}

#[tokio::test]
async fn an_unknown_model_is_named_however_its_name_is_spelled() {
    let app = App::start().await;
    for (path, name) in [
        ("/v1/models/no-such-model", "no-such-model"),
        ("/v1/models/org/name", "org/name"),
        ("/v1/models/org%2Fname", "org/name"),
        ("/v1/models/ft:a:b:c:d", "ft:a:b:c:d"),
        ("/v1/models/a%0Ab", "a\u{fffd}b"),
    ] {
        let message = format!("The model '{name}' does not exist");
        app.get(path)
            .await
            .assert_error(404, Some("model_not_found"), Some("model"), &message);
        app.delete(path)
            .await
            .assert_error(404, Some("model_not_found"), Some("model"), &message);
    }
}

#[tokio::test]
async fn a_tuned_model_is_its_projects_alone_until_it_is_deleted() {
    let app = App::start().await;
    let job = app.new_job(json!({})).await;
    let name = app.succeed(&JobId::parse(&job).unwrap()).await;
    let path = format!("/v1/models/{name}");
    let model = app.get(&path).await.json();
    assert_eq!(
        model,
        json!({"id": name, "object": "model", "created": model["created"], "owned_by": "luthier"})
    );
    let listed = app.get("/v1/models").await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 3); // the base, the model and its earlier checkpoint
    assert_eq!(app.foreign(Method::GET, &path).await.status, 404);
    assert_eq!(app.foreign(Method::DELETE, &path).await.status, 404);
    assert_eq!(
        app.delete(&path).await.json(),
        json!({"id": name, "object": "model", "deleted": true})
    );
    assert_eq!(app.get(&path).await.status, 404);
    assert_eq!(app.delete(&path).await.status, 404);
    assert_eq!(
        app.get(&format!("/v1/fine_tuning/jobs/{job}")).await.json()["fine_tuned_model"],
        json!(name)
    );
}
