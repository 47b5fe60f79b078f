//! The worker's door: what a model makes of a text as a whole.

use domain::generation::Priority;
use domain::message::{EmbedEvent, EmbedRequest, Embedded, GenerateError, Prompt};
use domain::model::AdapterRef;
use domain::x_training::FrozenWeights;

use crate::house::{House, Running, ask};

fn request(input: Prompt) -> EmbedRequest {
    EmbedRequest {
        model: ask("", 1).model,
        input,
        priority: Priority::Live,
    }
}

fn text(text: &str) -> EmbedRequest {
    request(Prompt::Text(text.to_owned()))
}

async fn embed(house: &House, worker: &Running, request: &EmbedRequest) -> Embedded {
    let reply = house.post_to(worker, "/v1/embed", request).await;
    assert_eq!(reply.status(), 200, "{}", reply.text().await.unwrap());
    let reply = reply.text().await.unwrap();
    let last = reply.lines().last().unwrap();
    match serde_json::from_str(last).unwrap() {
        EmbedEvent::Embedded(embedded) => embedded,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_text_and_its_tokens_are_embedded_alike_and_another_text_is_not() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let hello = embed(&house, &worker, &text("Hello")).await;
    let length: f32 = hello.embedding.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}"); // f32 sum over the width
    assert_eq!(hello.prompt_tokens, 5, "a token a byte");
    assert_eq!(embed(&house, &worker, &text("Hello")).await, hello);
    assert_ne!(
        embed(&house, &worker, &text("Bye")).await.embedding,
        hello.embedding
    );
    let spare = EmbedRequest {
        priority: Priority::Spare,
        ..text("Hello")
    };
    assert_eq!(embed(&house, &worker, &spare).await, hello);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_with_the_reason() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let gone = AdapterRef {
        object_prefix: "nowhere".into(),
        sha256: "0".repeat(64),
        size_bytes: 1,
        frozen_weights: FrozenWeights::Stored,
    };
    let post = async |request: EmbedRequest| house.post_to(&worker, "/v1/embed", &request).await;
    let long = post(text(&"x".repeat(100_000))).await;
    assert_eq!(long.status(), 400);
    let error = long.json().await.unwrap();
    assert!(matches!(
        error,
        GenerateError::ContextLengthExceeded {
            prompt_tokens: 100_000,
            ..
        }
    ));
    let unknown = post(request(Prompt::Tokens(vec![1 << 20]))).await;
    assert_eq!(unknown.status(), 400);
    let error = unknown.json().await.unwrap();
    assert!(matches!(error, GenerateError::Unanswerable { param, .. } if param == "input"));
    let mut tuned = text("Hello");
    tuned.model.adapter = Some(gone);
    let reply = post(tuned).await.text().await.unwrap();
    let last = serde_json::from_str(reply.lines().last().unwrap()).unwrap();
    let EmbedEvent::Failed { error } = last else {
        panic!("{last:?}")
    };
    assert!(matches!(
        error,
        GenerateError::AdapterUnavailable {
            is_unfit: false,
            ..
        }
    ));
    worker.stop().await.unwrap();
}
