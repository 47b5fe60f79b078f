//! `/v1/batches`: files of requests that the API answers beside the live ones.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::batch::{Batch, BatchEndpoint, BatchSpec};
use domain::generation::Priority;
use domain::id::{BatchId, FileId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply, now};

const BATCHES: &str = "/v1/batches";
const CHAT: &str = "/v1/chat/completions";

/// A file of chats, each with what it says for its `custom_id`.
fn chats(said: &[&str]) -> String {
    let line = |(i, text): (usize, &&str)| {
        let messages = json!([{"role": "user", "content": text}]);
        let body = json!({"model": BASE_MODEL, "messages": messages});
        json!({"custom_id": format!("{i} {text}"), "method": "POST", "url": CHAT, "body": body})
            .to_string()
            + "\n"
    };
    said.iter().enumerate().map(line).collect()
}

async fn create(app: &App, input: &str, fields: Value) -> Reply {
    let input_file_id = app.upload_for("batch", input.as_bytes()).await;
    let mut body =
        json!({"input_file_id": input_file_id, "endpoint": CHAT, "completion_window": "24h"});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    app.post(BATCHES, body).await
}

async fn created(app: &App, input: &str) -> String {
    let reply = create(app, input, json!({})).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["id"].as_str().unwrap().to_owned()
}

/// The batch once `is_so`.
async fn until(app: &App, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let poll = async {
        loop {
            let batch = app.get(&format!("{BATCHES}/{id}")).await.json();
            if is_so(&batch) {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), poll).await;
    waited.unwrap_or_else(|_| panic!("the batch {id} stands still"))
}

async fn over(app: &App, id: &str) -> Value {
    let ends = ["completed", "failed", "expired", "cancelled"];
    until(app, id, |batch| {
        ends.contains(&batch["status"].as_str().unwrap())
    })
    .await
}

/// The lines of one of the batch's files, by their `custom_id`.
async fn lines(app: &App, batch: &Value, file: &str) -> BTreeMap<String, Value> {
    let id = batch[file].as_str().unwrap();
    let content = app.get(&format!("/v1/files/{id}/content")).await.bytes;
    let text = std::str::from_utf8(&content).unwrap();
    assert!(text.ends_with('\n'));
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let n = lines.len();
    let name = |line: &Value| line["custom_id"].as_str().unwrap().to_owned();
    let by_name: BTreeMap<_, _> = lines.into_iter().map(|line| (name(&line), line)).collect();
    assert_eq!(by_name.len(), n, "each has one line");
    by_name
}

#[tokio::test]
async fn a_batch_is_answered_line_by_line() {
    let app = App::start().await;
    let fields = json!({"metadata": {"a": "b"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}});
    let made = create(&app, &chats(&["hi", "too long", "ho"]), fields)
        .await
        .json();
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("batch_"), "{id}");
    assert_eq!(made["status"], "validating");
    let batch = over(&app, id).await;
    let at = |key: &str| batch[key].as_i64().unwrap();
    assert_eq!(at("expires_at"), at("created_at") + 24 * 3600);
    assert!(at("in_progress_at") >= at("created_at") && at("completed_at") >= at("finalizing_at"));
    assert_eq!(
        batch,
        json!({
            "id": id, "object": "batch", "endpoint": CHAT, "model": BASE_MODEL, "errors": null,
            "input_file_id": made["input_file_id"], "completion_window": "24h", "status": "completed",
            "output_file_id": batch["output_file_id"], "error_file_id": batch["error_file_id"],
            "created_at": made["created_at"], "in_progress_at": batch["in_progress_at"],
            "expires_at": made["expires_at"], "finalizing_at": batch["finalizing_at"],
            "completed_at": batch["completed_at"], "failed_at": null, "expired_at": null, "cancelling_at": null,
            "cancelled_at": null, "request_counts": {"total": 3, "completed": 2, "failed": 1},
            "usage": {
                "input_tokens": 14, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 6,
                "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 20,
            },
            "metadata": {"a": "b"},
        })
    );
    let output = lines(&app, &batch, "output_file_id").await;
    assert_eq!(output.keys().collect::<Vec<_>>(), ["0 hi", "2 ho"]);
    let line = &output["0 hi"];
    assert!(line["id"].as_str().unwrap().starts_with("batch_req_"));
    assert!(
        line["response"]["request_id"]
            .as_str()
            .unwrap()
            .starts_with("req_")
    );
    assert_eq!(
        (&line["response"]["status_code"], &line["error"]),
        (&json!(200), &Value::Null)
    );
    let body = &line["response"]["body"];
    assert_eq!(
        (&body["object"], &body["model"]),
        (&json!("chat.completion"), &json!(BASE_MODEL))
    );
    assert_eq!(body["choices"][0]["message"]["content"], "Hello wörld");
    let failed = lines(&app, &batch, "error_file_id").await;
    let line = &failed["1 too long"];
    assert_eq!(
        (failed.len(), &line["response"]["status_code"]),
        (1, &json!(400))
    );
    assert_eq!(
        line["response"]["body"]["error"]["code"],
        "context_length_exceeded"
    );
    assert_eq!(app.worker.last().priority, Priority::Spare);
    assert_eq!(app.worker.last().scope, app.project.id.to_string());
    let file = batch["output_file_id"].as_str().unwrap();
    let file = app.get(&format!("/v1/files/{file}")).await.json();
    assert_eq!(file["filename"], json!(format!("{id}_output.jsonl")));
    assert_eq!(file["purpose"], "batch_output");
    assert_eq!(
        file["expires_at"],
        json!(file["created_at"].as_i64().unwrap() + 3600)
    );
}

#[tokio::test]
async fn completions_are_answered_too_and_streams_are_not() {
    let app = App::start().await;
    let line = |id: &str, extra: Value| {
        let mut body = json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": "x"}]});
        body["stream"] = extra;
        json!({"custom_id": id, "method": "POST", "url": CHAT, "body": body}).to_string()
    };
    let input = [line("streamed", json!(true)), line("whole", json!(false))].join("\n");
    let batch = over(&app, &created(&app, &input).await).await;
    let failed = lines(&app, &batch, "error_file_id").await;
    assert_eq!(
        failed["streamed"]["response"]["body"]["error"]["param"],
        "stream"
    );
    assert!(
        lines(&app, &batch, "output_file_id")
            .await
            .contains_key("whole")
    );
    let completion = json!({
        "custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": BASE_MODEL, "prompt": 5},
    });
    let fields = json!({"endpoint": "/v1/completions"});
    let made = create(&app, &completion.to_string(), fields).await.json();
    let batch = over(&app, made["id"].as_str().unwrap()).await;
    let failed = lines(&app, &batch, "error_file_id").await;
    assert_eq!(failed["a"]["response"]["body"]["error"]["param"], "prompt");
    assert_eq!(batch["output_file_id"], Value::Null);
    let scored =
        json!({"model": BASE_MODEL, "prompt": "x", "echo": true, "logprobs": 1, "max_tokens": 0});
    let mut completion = completion;
    completion["body"] = scored;
    let fields = json!({"endpoint": "/v1/completions"});
    let made = create(&app, &completion.to_string(), fields).await.json();
    let batch = over(&app, made["id"].as_str().unwrap()).await;
    let answered = lines(&app, &batch, "output_file_id").await;
    let choice = &answered["a"]["response"]["body"]["choices"][0];
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.5]));
}

#[tokio::test]
async fn a_batch_of_responses_is_answered_as_the_route_answers() {
    let app = App::start().await;
    let line = json!({
        "custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": BASE_MODEL, "input": "hi"},
    });
    let fields = json!({"endpoint": "/v1/responses"});
    let made = create(&app, &line.to_string(), fields).await.json();
    let batch = over(&app, made["id"].as_str().unwrap()).await;
    assert_eq!(batch["usage"]["output_tokens"], json!(3), "{batch}");
    assert_eq!(app.worker.last().priority, Priority::Spare);
    let answered = lines(&app, &batch, "output_file_id").await;
    let response = &answered["a"]["response"]["body"];
    let id = response["id"].as_str().unwrap();
    assert_eq!(
        app.get(&format!("/v1/responses/{id}")).await.json(),
        *response
    );
}

#[tokio::test]
async fn a_bad_input_fails_the_batch_and_names_the_lines() {
    let app = App::start().await;
    let input = chats(&["a"]) + "{\n" + &chats(&["a"]);
    let batch = over(&app, &created(&app, &input).await).await;
    assert_eq!(batch["status"], "failed");
    assert!(batch["failed_at"].is_i64());
    let errors = &batch["errors"];
    assert_eq!(errors["object"], "list");
    let of = |key: &str| [&errors["data"][0][key], &errors["data"][1][key]];
    assert_eq!(of("line"), [&json!(2), &json!(3)]);
    assert_eq!(
        of("code"),
        [&json!("invalid_json_line"), &json!("duplicate_custom_id")]
    );
    assert_eq!(of("param"), [&Value::Null, &json!("custom_id")]);
    let counts = json!({"total": 0, "completed": 0, "failed": 0});
    assert_eq!(
        (&batch["request_counts"], &batch["usage"]),
        (&counts, &Value::Null)
    );
    let input = chats(&["a"]).replace(BASE_MODEL, "nobody");
    let batch = over(&app, &created(&app, &input).await).await;
    assert_eq!(batch["errors"]["data"][0]["code"], "model_not_found");
    assert_eq!(app.worker.n_asked(), 0);
}

#[tokio::test]
async fn what_needs_no_look_into_the_file_is_refused_at_once() {
    let app = App::start().await;
    let train = app.upload(b"{}\n").await;
    let input = chats(&["a"]);
    for (fields, code, param) in [
        (
            json!({"input_file_id": "file-none"}),
            "invalid_value",
            "input_file_id",
        ),
        (
            json!({"input_file_id": train}),
            "invalid_value",
            "input_file_id",
        ),
        (json!({"input_file_id": 5}), "invalid_type", "input_file_id"),
        (
            json!({"endpoint": "/v1/moderations"}),
            "invalid_value",
            "endpoint",
        ),
        (
            json!({"completion_window": "1h"}),
            "invalid_value",
            "completion_window",
        ),
        (
            json!({"output_expires_after": {"anchor": "created_at", "seconds": 5}}),
            "integer_below_min_value",
            "output_expires_after.seconds",
        ),
        (json!({"priority": "high"}), "unknown_parameter", "priority"),
    ] {
        create(&app, &input, fields)
            .await
            .assert_refused(code, param);
    }
    let listed = app.get(BATCHES).await.json();
    assert_eq!(listed["data"], json!([]));
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_was_answered() {
    let app = App::start().await;
    let id = created(&app, &chats(&["hi", "busy", "ho"])).await;
    until(&app, &id, |batch| batch["request_counts"]["completed"] == 2).await;
    let cancel = format!("{BATCHES}/{id}/cancel");
    let cancelling = app.post(&cancel, json!({})).await.json();
    assert_eq!(cancelling["status"], "cancelling");
    assert!(cancelling["cancelling_at"].is_i64());
    let batch = over(&app, &id).await;
    assert_eq!(
        (&batch["status"], &batch["error_file_id"]),
        (&json!("cancelled"), &Value::Null)
    );
    let output = lines(&app, &batch, "output_file_id").await;
    assert_eq!(output.keys().collect::<Vec<_>>(), ["0 hi", "2 ho"]);
    let message = "Cannot cancel a batch with status 'cancelled'.";
    let again = app.post(&cancel, json!({})).await;
    again.assert_error(400, Some("invalid_batch_state"), None, message);
}

#[tokio::test]
async fn what_the_window_leaves_no_time_for_is_named() {
    let app = App::start().await;
    let input = app
        .upload_for("batch", chats(&["hi", "ho"]).as_bytes())
        .await;
    let spec = BatchSpec {
        endpoint: BatchEndpoint::ChatCompletions,
        input_file: FileId::parse(&input).unwrap(),
        metadata: None,
        output_expires_after_s: None,
    };
    let made = now().plus_s(-25 * 3600);
    let id = BatchId::mint(rand::random());
    let batch = Batch::new(id.clone(), app.project.id.clone(), spec, made);
    app.store.batches().insert(&batch, None).await.unwrap();
    let batch = over(&app, id.as_str()).await;
    assert_eq!(
        (&batch["status"], &batch["output_file_id"]),
        (&json!("expired"), &Value::Null)
    );
    assert!(batch["expired_at"].is_i64());
    let failed = lines(&app, &batch, "error_file_id").await;
    assert_eq!(failed.keys().collect::<Vec<_>>(), ["0 hi", "1 ho"]);
    for line in failed.values() {
        assert_eq!(
            (&line["response"], &line["error"]["code"]),
            (&Value::Null, &json!("batch_expired"))
        );
    }
    assert_eq!(app.worker.n_asked(), 0);
}

#[tokio::test]
async fn two_processes_ask_each_request_once() {
    let mut app = App::start().await;
    app.start_another().await;
    let said: Vec<String> = (0..60).map(|n| format!("say {n}")).collect();
    let said: Vec<&str> = said.iter().map(String::as_str).collect();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(created(&app, &chats(&said)).await);
    }
    for id in ids {
        let batch = over(&app, &id).await;
        assert_eq!(batch["request_counts"]["completed"], 60);
        assert_eq!(lines(&app, &batch, "output_file_id").await.len(), 60);
    }
    assert_eq!(app.worker.n_asked(), 180);
}

#[tokio::test]
async fn another_process_goes_on_where_one_that_stops_has_been() {
    let mut app = App::start().await;
    let id = created(&app, &chats(&["hi", "busy", "ho"])).await;
    until(&app, &id, |batch| batch["request_counts"]["completed"] == 2).await;
    let n_busy = |app: &App| {
        app.worker
            .last_words()
            .iter()
            .filter(|w| *w == "busy")
            .count()
    };
    app.shutdown.begin();
    app.start_another().await;
    let before = n_busy(&app);
    let asked_again = async {
        while n_busy(&app) < before + 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), asked_again).await;
    waited.expect("the other process asks");
    app.post(&format!("{BATCHES}/{id}/cancel"), json!({})).await;
    let batch = over(&app, &id).await;
    assert_eq!(lines(&app, &batch, "output_file_id").await.len(), 2);
    let words = app.worker.last_words();
    for word in ["hi", "ho"] {
        assert_eq!(words.iter().filter(|w| *w == word).count(), 1, "{words:?}");
    }
}

#[tokio::test]
async fn a_request_on_which_the_service_fails_is_tried_again_and_then_told() {
    let app = App::start().await;
    let batch = over(&app, &created(&app, &chats(&["broken"])).await).await;
    let failed = lines(&app, &batch, "error_file_id").await;
    assert_eq!(failed["0 broken"]["response"]["status_code"], 500);
    assert_eq!(app.worker.n_asked(), 3);
}

#[tokio::test]
async fn another_project_s_batch_is_as_absent_as_none() {
    let app = App::start().await;
    let id = created(&app, &chats(&["hi"])).await;
    over(&app, &id).await;
    let message = format!("No batch found with id '{id}'.");
    let path = format!("{BATCHES}/{id}");
    for reply in [
        app.foreign(Method::GET, &path).await,
        app.foreign(Method::POST, &format!("{path}/cancel")).await,
    ] {
        reply.assert_error(404, None, Some("batch_id"), &message);
    }
    assert_eq!(
        app.foreign(Method::GET, BATCHES).await.json()["data"],
        json!([])
    );
    let page = app.get(&format!("{BATCHES}?limit=1")).await.json();
    assert_eq!(
        (&page["last_id"], &page["has_more"]),
        (&json!(id), &json!(false))
    );
}

#[tokio::test]
async fn the_same_key_makes_one_batch() {
    let app = App::start().await;
    let input = app.upload_for("batch", chats(&["hi"]).as_bytes()).await;
    let body = json!({"input_file_id": input, "endpoint": CHAT, "completion_window": "24h"});
    let post = async || {
        let request = app.request(Method::POST, BATCHES).json(&body);
        let sent = request.header("idempotency-key", "k").send().await.unwrap();
        Reply::of(sent).await
    };
    let (first, second) = (post().await, post().await);
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert_eq!(second.header("idempotent-replayed"), "true");
}

#[tokio::test]
async fn the_limits_of_a_minute_are_for_live_requests() {
    let app = App::start_with(|config| config.limits.requests_per_minute = 1).await;
    let batch = over(&app, &created(&app, &chats(&["hi", "ho", "hu"])).await).await;
    assert_eq!(batch["request_counts"]["completed"], 3);
    let live = json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(app.post(CHAT, live.clone()).await.status, 200);
    assert_eq!(app.post(CHAT, live).await.status, 429);
}

#[tokio::test]
async fn a_model_that_is_closed_to_the_project_fails_the_batch() {
    let app = App::start().await;
    let path = format!(
        "/organization/projects/{}/model_permissions",
        app.project.id
    );
    let denied = json!({"mode": "deny_list", "model_ids": [BASE_MODEL]});
    app.admin(reqwest::Method::POST, &path, denied).await;
    let batch = over(&app, &created(&app, &chats(&["hi"])).await).await;
    assert_eq!(
        (&batch["status"], &batch["errors"]["data"][0]["code"]),
        (&json!("failed"), &json!("model_not_found"))
    );
}
