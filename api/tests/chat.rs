//! `/v1/chat/completions`.

use std::time::Duration;

use domain::generation::{ResponseFormat, Role, SamplingParams, ToolChoice};
use domain::id::{JobId, WorkerId};
use domain::worker::WorkerStatus;
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply, now};

const CHAT: &str = "/v1/chat/completions";

async fn chat(app: &App, text: &str, fields: Value) -> Reply {
    let mut body = json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": text}]});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    app.post(CHAT, body).await
}

#[tokio::test]
async fn an_answer_has_every_field() {
    let app = App::start().await;
    let reply = chat(&app, "hi", json!({})).await;
    let answer = reply.json();
    assert_eq!(
        answer,
        json!({
            "id": answer["id"], "object": "chat.completion", "created": answer["created"], "model": BASE_MODEL,
            "choices": [{
                "index": 0, "logprobs": null, "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Hello wörld", "refusal": null, "annotations": []},
            }],
            "usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens": 3, "total_tokens": 10},
        })
    );
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(reply.header("openai-model"), BASE_MODEL);
    assert_eq!(reply.header("cache-control"), "no-cache, must-revalidate");
}

#[tokio::test]
async fn what_is_asked_for_reaches_the_worker() {
    let app = App::start().await;
    let tool =
        json!({"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}});
    let body = json!({
        "model": BASE_MODEL,
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "bob", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "n": 2, "max_completion_tokens": 9, "stop": "\n", "stop_token_ids": [7], "seed": -1,
        "frequency_penalty": 0.25, "presence_penalty": -0.5, "logit_bias": {"5": -100}, "logprobs": true,
        "top_logprobs": 2, "tools": [tool], "tool_choice": "auto", "parallel_tool_calls": false,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {"type": "object"}}}, "user": "u", "service_tier": "auto",
    });
    let answer = app.post(CHAT, body).await.json();
    let asked = app.worker.last();
    assert_eq!(asked.model.base_model, BASE_MODEL);
    assert_eq!(asked.model.adapter, None);
    assert_eq!(asked.messages[0].role, Role::Developer);
    assert_eq!(asked.messages[1].content.as_deref(), Some("ab"));
    assert_eq!(
        (asked.n, asked.max_tokens, asked.top_logprobs),
        (2, Some(9), Some(2))
    );
    assert_eq!(
        (asked.stop, asked.stop_token_ids, asked.tools),
        (vec!["\n".to_owned()], vec![7], vec![tool])
    );
    let format = ResponseFormat::JsonSchema {
        schema: json!({"type": "object"}),
        strict: true,
    };
    assert_eq!(
        (
            asked.tool_choice,
            asked.parallel_tool_calls,
            asked.response_format
        ),
        (ToolChoice::Auto, false, format)
    );
    let expected = SamplingParams {
        temperature: 0.5,
        top_p: 0.9,
        top_k: Some(40),
        min_p: 0.05,
        frequency_penalty: 0.25,
        presence_penalty: -0.5,
        seed: Some(u64::MAX),
        logit_bias: vec![(5, -100.0)],
    };
    assert_eq!(asked.sampling, expected);
    assert_eq!(answer["choices"][1]["index"], json!(1));
    let logprobs = answer["choices"][1]["logprobs"]["content"]
        .as_array()
        .unwrap();
    let top = json!({"token": "Hello", "logprob": -0.5, "bytes": [72, 101, 108, 108, 111]});
    let first = json!({"token": "Hello", "logprob": -0.5, "bytes": [72, 101, 108, 108, 111], "top_logprobs": [top, top]});
    assert_eq!((logprobs.len(), &logprobs[0]), (2, &first));
}

#[tokio::test]
async fn an_answer_that_calls_functions_has_no_content() {
    let app = App::start().await;
    let tool = json!({"type": "function", "function": {"name": "get"}});
    let reply = chat(
        &app,
        "hi",
        json!({"tools": [tool], "tool_choice": "required"}),
    )
    .await;
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "get", "arguments": "{\"n\": 1}"}});
    let message = json!({
        "role": "assistant", "content": null, "tool_calls": [call("call_0"), call("call_1")], "refusal": null,
        "annotations": [],
    });
    let choice =
        json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "tool_calls"});
    assert_eq!(reply.json()["choices"], json!([choice]));
}

#[tokio::test]
async fn what_no_answer_can_be_held_to_is_the_clients_fault() {
    let app = App::start().await;
    let reply = chat(&app, "unanswerable", json!({})).await;
    reply.assert_error(
        400,
        Some("invalid_value"),
        Some("response_format.json_schema.schema"),
        "Invalid value for 'response_format.json_schema.schema': no such keyword.",
    );
}

/// The data of each event of a stream.
fn events(text: &str) -> Vec<&str> {
    let blocks = text.strip_suffix("\n\n").unwrap().split("\n\n");
    blocks
        .map(|block| block.strip_prefix("data: ").unwrap())
        .collect()
}

#[tokio::test]
async fn a_stream_is_spelled_as_openais() {
    let app = App::start().await;
    let reply = chat(
        &app,
        "hi",
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    )
    .await;
    assert_eq!(reply.status, 200);
    assert!(
        reply
            .header("content-type")
            .starts_with("text/event-stream")
    );
    assert!(reply.header("x-request-id").starts_with("req_"));
    let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
    let events = events(&text);
    let first: Value = serde_json::from_str(events[0]).unwrap();
    let (id, created) = (
        first["id"].as_str().unwrap(),
        first["created"].as_i64().unwrap(),
    );
    let chunk = |choices: &str, usage: &str| {
        format!(
            "{{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":{created},\"model\":\"{BASE_MODEL}\",\
             \"choices\":[{choices}],\"usage\":{usage}}}"
        )
    };
    let choice = |delta: &str, reason: &str| {
        format!("{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}")
    };
    assert_eq!(
        events,
        [
            chunk(
                &choice(
                    "{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}",
                    "null"
                ),
                "null"
            ),
            chunk(&choice("{\"content\":\"Hello\"}", "null"), "null"),
            chunk(&choice("{\"content\":\" wörld\"}", "null"), "null"),
            chunk(&choice("{}", "\"stop\""), "null"),
            chunk(
                "",
                "{\"prompt_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens\":3,\"total_tokens\":10}"
            ),
            "[DONE]".to_owned(),
        ]
    );
    assert!(id.starts_with("chatcmpl-"));
}

#[tokio::test]
async fn usage_is_only_streamed_when_asked_for() {
    let app = App::start().await;
    let reply = chat(&app, "hi", json!({"stream": true, "n": 2})).await;
    let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
    assert!(!text.contains("usage"), "{text}");
    assert_eq!(events(&text).len(), 2 + 2 * 2 + 2 + 1);
}

#[tokio::test]
async fn what_goes_wrong_before_the_first_token_is_an_ordinary_error() {
    let app = App::start().await;
    for fields in [json!({}), json!({"stream": true})] {
        chat(&app, "too long", fields.clone()).await.assert_error(
            400,
            Some("context_length_exceeded"),
            Some("messages"),
            "This model's maximum context length is 512 tokens. However, your messages resulted in 900 tokens. Please \
             reduce the length of the messages.",
        );
        chat(&app, "unrenderable", fields.clone())
            .await
            .assert_error(
                400,
                Some("invalid_value"),
                Some("messages"),
                "The chat template of this model refuses these messages: roles must alternate.",
            );
        let busy = chat(&app, "busy", fields.clone()).await;
        busy.assert_error(
            503,
            Some("server_is_overloaded"),
            None,
            "All workers are busy. Please try again shortly.",
        );
        assert_eq!(busy.header("retry-after"), "1");
        chat(&app, "no adapter", fields.clone()).await.assert_error(
            503,
            None,
            None,
            "The weights of this model cannot be loaded at the moment. Please try again shortly.",
        );
        chat(&app, "broken", fields.clone()).await.assert_error(
            500,
            None,
            None,
            "The server had an error while processing your request. Please name the request id in the x-request-id \
             header when you report it to the operator.",
        );
        let unknown = json!({"model": "no-such-model", "stream": fields["stream"]});
        chat(&app, "hi", unknown).await.assert_error(
            404,
            Some("model_not_found"),
            None,
            "The model `no-such-model` does not exist or you do not have access to it.",
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error() {
    let app = App::start().await;
    assert_eq!(chat(&app, "breaks off", json!({})).await.status, 500);
    let reply = chat(&app, "breaks off", json!({"stream": true})).await;
    let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
    let events = events(&text);
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(
        (&last["error"]["type"], &last["error"]["code"]),
        (&json!("server_error"), &json!(null))
    );
    assert!(!text.contains("[DONE]"));
}

#[tokio::test]
async fn without_a_worker_the_client_is_told_to_wait() {
    let app = App::start().await;
    app.store
        .workers()
        .remove(&app.worker.status().worker_id)
        .await
        .unwrap();
    let reply = chat(&app, "hi", json!({})).await;
    let message =
        "No worker serves the model 'tiny-llama' at the moment. Please try again shortly.";
    reply.assert_error(503, Some("server_is_overloaded"), None, message);
    assert_eq!(reply.header("retry-after"), "2");
}

#[tokio::test]
async fn a_dead_worker_is_passed_over() {
    let app = App::start().await;
    let mut busier = app.worker.status();
    busier.n_live = 3;
    app.store.workers().upsert(&busier, now()).await.unwrap();
    let dead = WorkerStatus {
        worker_id: WorkerId::mint([2; 24]),
        address: "http://127.0.0.1:9".to_owned(),
        ..app.worker.status()
    };
    app.store.workers().upsert(&dead, now()).await.unwrap();
    assert_eq!(chat(&app, "hi", json!({})).await.status, 200);
}

#[tokio::test]
async fn a_worker_that_moved_is_found_at_once() {
    let app = App::start().await;
    let moved = app.worker.status();
    let dead = WorkerStatus {
        address: "http://127.0.0.1:9".to_owned(),
        ..moved.clone()
    };
    app.store.workers().upsert(&dead, now()).await.unwrap();
    assert_eq!(chat(&app, "hi", json!({})).await.status, 503);
    app.store.workers().upsert(&moved, now()).await.unwrap();
    assert_eq!(chat(&app, "hi", json!({})).await.status, 200);
}

#[tokio::test]
async fn tuned_models_and_checkpoints_are_served_with_their_adapter() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    let tuned = app.succeed(&JobId::parse(&id).unwrap()).await;
    let checkpoints = app
        .get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints"))
        .await
        .json();
    let earlier = checkpoints["data"][1]["fine_tuned_model_checkpoint"]
        .as_str()
        .unwrap();
    for name in [tuned.as_str(), earlier] {
        let answer = chat(&app, "hi", json!({"model": name})).await.json();
        assert_eq!(answer["model"], json!(name));
        let asked = app.worker.last().model;
        assert_eq!(asked.base_model, BASE_MODEL);
        assert!(
            asked
                .adapter
                .unwrap()
                .object_prefix
                .ends_with("/step-6/adapter")
        );
    }
    let n = app.worker.n_asked();
    let body = json!({"model": tuned, "messages": [{"role": "user", "content": "hi"}]});
    let request = app
        .http
        .post(format!("{}{CHAT}", app.base))
        .bearer_auth(&app.other_key)
        .json(&body);
    assert_eq!(Reply::of(request.send().await.unwrap()).await.status, 404);
    app.delete(&format!("/v1/models/{tuned}")).await;
    assert_eq!(chat(&app, "hi", json!({"model": tuned})).await.status, 404);
    assert_eq!(app.worker.n_asked(), n);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_generation() {
    let app = App::start().await;
    let body = |stream: bool| json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": "endless"}], "stream": stream});
    let response = app
        .request(Method::POST, CHAT)
        .json(&body(true))
        .send()
        .await
        .unwrap();
    let mut chunks = response.bytes_stream();
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    assert!(
        app.worker.is_dropped().await,
        "a stream goes on although nobody reads it"
    );
    let waiting = app.request(Method::POST, CHAT).json(&body(false)).send();
    assert!(
        tokio::time::timeout(Duration::from_millis(500), waiting)
            .await
            .is_err()
    );
    assert!(
        app.worker.is_dropped().await,
        "an answer is computed although nobody waits for it"
    );
}

#[tokio::test]
async fn what_is_not_done_here_is_refused_by_name() {
    let app = App::start().await;
    let tool = json!({"type": "function", "function": {"name": "get"}});
    for (fields, code, param) in [
        (
            json!({"response_format": {"type": "grammar"}}),
            "invalid_value",
            "response_format.type",
        ),
        (
            json!({"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "put"}}}),
            "invalid_value",
            "tool_choice",
        ),
        (
            json!({"tool_choice": "auto"}),
            "invalid_value",
            "tool_choice",
        ),
        (
            json!({"lora_path": "/etc"}),
            "unknown_parameter",
            "lora_path",
        ),
        (json!({"messages": []}), "empty_array", "messages"),
        (
            json!({"messages": [{"role": "user"}]}),
            "missing_required_parameter",
            "messages[0].content",
        ),
    ] {
        chat(&app, "hi", fields).await.assert_refused(code, param);
    }
    assert_eq!(app.worker.n_asked(), 0);
}
