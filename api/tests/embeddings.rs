//! `/v1/embeddings`.

use domain::message::Prompt;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

async fn embed(app: &App, fields: Value) -> Reply {
    let mut body = json!({"model": BASE_MODEL, "input": "hi"});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    app.post("/v1/embeddings", body).await
}

#[tokio::test]
async fn each_text_has_its_vector_in_order() {
    let app = App::start().await;
    let reply = embed(&app, json!({"input": ["hi", "hello"], "user": "u"})).await;
    assert_eq!(reply.header("openai-model"), BASE_MODEL);
    assert!(!reply.header("x-ratelimit-remaining-tokens").is_empty());
    let vector = |index: u32, embedding: Value| json!({"object": "embedding", "index": index, "embedding": embedding});
    // The worker makes (n, 0, -1) of n tokens, a token a character.
    assert_eq!(
        reply.json(),
        json!({
            "object": "list", "model": BASE_MODEL,
            "data": [vector(0, json!([2.0, 0.0, -1.0])), vector(1, json!([5.0, 0.0, -1.0]))],
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        })
    );
    embed(&app, json!({"input": "hello"})).await;
    assert_eq!(app.worker.last_embedded(), Prompt::Text("hello".into()));
    let reply = embed(&app, json!({"input": [7, 8, 9]})).await;
    assert_eq!(reply.json()["usage"]["prompt_tokens"], 3);
    assert_eq!(app.worker.last_embedded(), Prompt::Tokens(vec![7, 8, 9]));
}

#[tokio::test]
async fn a_vector_is_cut_and_spelled_as_asked_for() {
    let app = App::start().await;
    let of = async |fields| embed(&app, fields).await.json()["data"][0]["embedding"].clone();
    assert_eq!(of(json!({"dimensions": 2})).await, json!([1.0, 0.0]));
    assert_eq!(of(json!({"dimensions": 3})).await, json!([2.0, 0.0, -1.0]));
    assert_eq!(
        of(json!({"encoding_format": "base64"})).await,
        "AAAAQAAAAAAAAIC/"
    );
    let wide = embed(&app, json!({"dimensions": 4})).await;
    let message =
        "Invalid 'dimensions': this model's embeddings have 3 dimensions, but 4 were asked for.";
    wide.assert_error(
        400,
        Some("integer_above_max_value"),
        Some("dimensions"),
        message,
    );
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused() {
    let app = App::start().await;
    embed(&app, json!({"input": ""}))
        .await
        .assert_refused("invalid_value", "input");
    let long = embed(&app, json!({"input": ["hi", "too long"]})).await;
    long.assert_refused("context_length_exceeded", "input");
    let nobody = embed(&app, json!({"model": "nobody"})).await;
    let message = "The model `nobody` does not exist or you do not have access to it.";
    nobody.assert_error(404, Some("model_not_found"), None, message);
    let busy = embed(&app, json!({"input": "busy"})).await;
    assert_eq!(
        (busy.status.as_u16(), busy.header("retry-after")),
        (503, "1")
    );
}
