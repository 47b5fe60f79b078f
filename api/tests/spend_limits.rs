//! What a project may spend in a month, and what becomes of requests beyond it.

use std::time::Duration;

use domain::batch::{Batch, BatchEndpoint, BatchSpec};
use domain::id::{BatchId, FileId, JobId};
use domain::price::usd;
use domain::usage::{Service, Tally, TokenUsage, UsageKey};
use platform::config::Config;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply, now};

const CHAT: &str = "/v1/chat/completions";

/// A dollar for each token of an answer, and a cent for a hundred tokens of a training.
fn prices(config: &mut Config) {
    let price = format!("{BASE_MODEL} input=0 output=1000000 trained=100");
    config.prices.models = vec![price.parse().unwrap()];
}

fn limit_of(app: &App) -> String {
    format!("/organization/projects/{}/spend_limit", app.project.id)
}

async fn limit(app: &App, cents: u64) -> Value {
    let order = json!({"threshold_amount": cents, "currency": "USD", "interval": "month"});
    let reply = app.admin(Method::POST, &limit_of(app), order).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

async fn status(app: &App) -> Value {
    let reply = app.admin(Method::GET, &limit_of(app), Value::Null).await;
    reply.json()["enforcement"]["status"].clone()
}

/// As if answers had taken so many tokens in this minute.
async fn spend(app: &App, n_tokens: u64) {
    let key = UsageKey {
        minute_s: now().unix_s() / 60 * 60,
        project_id: app.project.id.clone(),
        api_key_id: None,
        model: BASE_MODEL.to_owned(),
        service: Service::Completions,
        is_batch: false,
    };
    let tally = Tally {
        n_requests: 1,
        tokens: TokenUsage {
            completion_tokens: n_tokens,
            ..TokenUsage::default()
        },
    };
    let usage = app.store.usage();
    usage.add_served(&[(key, tally)]).await.unwrap();
}

fn hi() -> Value {
    json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": "hi"}]})
}

/// OpenAI's body, and the word to its SDK that trying again is of no use.
#[track_caller]
fn assert_exceeded(app: &App, reply: &Reply, numbers: &str) {
    let month = domain::time::Timestamp::from_unix_s(now().month().end);
    let message = format!(
        "You exceeded your current quota, please check the spend limit of your project: {id} may spend {numbers}. It may spend \
         again from {} (UTC) on, or when an administrator raises the limit at /v1/organization/projects/{id}/spend_limit.",
        month.day(),
        id = app.project.id,
    );
    let expected = json!({"error": {
        "message": message, "type": "insufficient_quota", "param": null, "code": "insufficient_quota",
    }});
    assert_eq!(
        (reply.status.as_u16(), reply.json()),
        (429, expected),
        "{numbers}"
    );
    assert_eq!(reply.header("x-should-retry"), "false");
    assert_eq!(reply.header("retry-after"), "");
}

#[tokio::test]
async fn a_limit_is_set_shown_changed_and_taken_away() {
    let app = App::start().await;
    let path = limit_of(&app);
    let none = app.admin(Method::GET, &path, Value::Null).await;
    let message = format!(
        "The project {id} has no spend limit: POST /v1/organization/projects/{id}/spend_limit sets one.",
        id = app.project.id
    );
    none.assert_error(404, None, Some("project_id"), &message);
    let of = |cents: u64, status: &str| {
        json!({"object": "project.spend_limit", "threshold_amount": cents, "currency": "USD", "interval": "month",
            "enforcement": {"status": status}})
    };
    assert_eq!(limit(&app, 2_500).await, of(2_500, "inactive"));
    assert_eq!(limit(&app, 0).await, of(0, "enforcing"));
    let shown = app.admin(Method::GET, &path, Value::Null).await;
    assert_eq!(shown.json(), of(0, "enforcing"));
    let deleted = app.admin(Method::DELETE, &path, Value::Null).await;
    assert_eq!(
        deleted.json(),
        json!({"object": "project.spend_limit.deleted", "deleted": true})
    );
    let again = app.admin(Method::DELETE, &path, Value::Null).await;
    assert_eq!(again.status, 404);
    let log = "/organization/audit_logs?event_types[]=project.updated";
    let log = app.admin(Method::GET, log, Value::Null).await.json();
    let told = |i: usize| &log["data"][i]["project.updated"]["changes_requested"]["spend_limit"];
    assert_eq!(
        (told(0), log["data"].as_array().unwrap().len()),
        (&Value::Null, 3)
    );
    assert_eq!(
        told(2),
        &json!({"threshold_amount": 2_500, "currency": "USD", "interval": "month"})
    );
}

#[tokio::test]
async fn a_limit_that_cannot_be_is_refused_by_name() {
    let app = App::start().await;
    let good = json!({"threshold_amount": 1, "currency": "USD", "interval": "month"});
    for (key, value, code) in [
        ("threshold_amount", json!(-1), "integer_below_min_value"),
        ("threshold_amount", json!(0.5), "invalid_type"),
        ("currency", json!("EUR"), "invalid_value"),
        ("interval", json!("day"), "invalid_value"),
        ("x", json!(1), "unknown_parameter"),
    ] {
        let mut order = good.clone();
        order[key] = value;
        let refused = app.admin(Method::POST, &limit_of(&app), order).await;
        refused.assert_refused(code, key);
    }
    let unknown = "/organization/projects/proj_none/spend_limit";
    for method in [Method::GET, Method::DELETE] {
        let reply = app.admin(method, unknown, Value::Null).await;
        assert_eq!(reply.json()["error"]["param"], json!("project_id"));
    }
}

#[tokio::test]
async fn past_the_limit_what_costs_is_refused_and_everything_else_goes_on() {
    let app = App::start_with(prices).await;
    let training_file = app.upload(b"{}\n").await;
    let batch_file = app.upload_for("batch", b"{}\n").await;
    let job = app.new_job(json!({})).await;
    spend(&app, 7).await;
    limit(&app, 700).await;
    let costs = [
        (CHAT, hi()),
        (
            CHAT,
            json!({"model": BASE_MODEL, "messages": hi()["messages"], "stream": true}),
        ),
        (
            "/v1/completions",
            json!({"model": BASE_MODEL, "prompt": "hi"}),
        ),
        ("/v1/responses", json!({"model": BASE_MODEL, "input": "hi"})),
        (
            "/v1/embeddings",
            json!({"model": BASE_MODEL, "input": "hi"}),
        ),
        (
            "/v1/fine_tuning/jobs",
            json!({"model": BASE_MODEL, "training_file": training_file}),
        ),
        (
            "/v1/batches",
            json!({"input_file_id": batch_file, "endpoint": CHAT, "completion_window": "24h"}),
        ),
    ];
    for (path, body) in &costs {
        let refused = app.post(path, body.clone()).await;
        assert_exceeded(&app, &refused, "$7.00 a month, $7.00 is spent");
    }
    assert_eq!(app.worker.n_asked(), 0);
    for path in ["/v1/files", "/v1/models", "/v1/fine_tuning/jobs"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    let file = app.upload(b"{}\n").await;
    let deleted = app.delete(&format!("/v1/files/{file}")).await;
    assert_eq!(deleted.status, 200);
    let path = format!("/v1/fine_tuning/jobs/{job}/cancel");
    let cancelled = app.post(&path, json!({})).await;
    assert_eq!(cancelled.status, 200);
    // Its own limit alone.
    let url = format!("{}{CHAT}", app.base);
    let other = app.http.post(url).bearer_auth(&app.other_key).json(&hi());
    assert_eq!(other.send().await.unwrap().status(), 200);
    // What is spent is known, and a raised limit holds at once.
    limit(&app, 1_000_000).await;
    for (path, body) in costs {
        let answered = app.post(path, body).await;
        assert_eq!(answered.status, 200, "{path}: {answered:?}");
    }
}

#[tokio::test]
async fn what_was_spent_in_another_month_does_not_count() {
    let app = App::start_with(prices).await;
    let key = |minute_s| UsageKey {
        minute_s,
        project_id: app.project.id.clone(),
        api_key_id: None,
        model: BASE_MODEL.to_owned(),
        service: Service::Completions,
        is_batch: true,
    };
    let tally = Tally {
        n_requests: 1,
        tokens: TokenUsage {
            completion_tokens: 9,
            ..TokenUsage::default()
        },
    };
    let month = now().month();
    let others = [(key(month.start - 60), tally), (key(month.end), tally)];
    app.store.usage().add_served(&others).await.unwrap();
    limit(&app, 900).await;
    assert_eq!(status(&app).await, "inactive");
    let first = [(key(month.start), tally)];
    app.store.usage().add_served(&first).await.unwrap();
    assert_eq!(status(&app).await, "enforcing");
}

#[tokio::test]
async fn answers_and_trainings_count_as_costs_tell_them() {
    let app = App::start_with(prices).await;
    let job = app.new_job(json!({})).await;
    let tuned = app.succeed(&JobId::parse(&job).unwrap()).await;
    let mut asked = hi();
    asked["model"] = json!(tuned);
    assert_eq!(app.post(CHAT, asked).await.status, 200);
    let start = now().month().start;
    let costs = format!("/organization/costs?start_time={start}&limit=180");
    let told = async || -> f64 {
        let page = app.admin(Method::GET, &costs, Value::Null).await.json();
        let buckets = page["data"].as_array().unwrap();
        let results = buckets
            .iter()
            .flat_map(|b| b["results"].as_array().unwrap());
        results
            .map(|r| r["amount"]["value"].as_f64().unwrap())
            .sum()
    };
    // 5,070 trained tokens; the answer's are stored within seconds.
    let mut spent = told().await;
    for _ in 0..100 {
        if spent > 1.0 {
            break;
        }
        assert!(spent >= 0.507, "{spent}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        spent = told().await;
    }
    assert!(spent > 1.0, "{spent}");
    let cents = (spent * 100.0).floor() as u64;
    limit(&app, cents).await;
    let refused = app.post(CHAT, hi()).await;
    let numbers = format!(
        "{} a month, {} is spent",
        usd(cents as f64 / 100.0),
        usd(spent)
    );
    assert_exceeded(&app, &refused, &numbers);
    limit(&app, cents + 1).await;
    assert_eq!(app.post(CHAT, hi()).await.status, 200);
}

#[tokio::test]
async fn answers_are_refused_some_seconds_after_they_have_cost_too_much() {
    let app = App::start_with(prices).await;
    limit(&app, 1).await;
    let begun = std::time::Instant::now();
    let mut n_answered = 0;
    let refused = loop {
        let reply = app.post(CHAT, hi()).await;
        if reply.status != 200 {
            break reply;
        }
        n_answered += 1;
        // Two seconds until it is stored, five until it is counted again.
        assert!(begun.elapsed() < Duration::from_secs(15), "{n_answered}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(n_answered > 0);
    assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
}

#[tokio::test]
async fn what_unfinished_jobs_will_cost_is_reserved() {
    let app = App::start_with(prices).await;
    let id = app.new_job(json!({})).await;
    // 5,070 tokens, known once the files are judged.
    limit(&app, 50).await;
    assert_eq!(status(&app).await, "inactive");
    app.validate(&JobId::parse(&id).unwrap()).await;
    assert_eq!(status(&app).await, "enforcing");
    let refused = app.post(CHAT, hi()).await;
    let numbers =
        "$0.50 a month, $0.00 is spent and $0.51 is reserved for its unfinished fine-tuning jobs";
    assert_exceeded(&app, &refused, numbers);
    let cancel = format!("/v1/fine_tuning/jobs/{id}/cancel");
    assert_eq!(app.post(&cancel, json!({})).await.status, 200);
    assert_eq!(status(&app).await, "inactive");
}

#[tokio::test]
async fn requests_of_a_batch_beyond_the_limit_are_in_its_error_file() {
    let mut app = App::start_with(|config| {
        prices(config);
        // The first process takes no batch.
        config.api.batch_requests = 0;
    })
    .await;
    let line = json!({"custom_id": "a", "method": "POST", "url": CHAT, "body": hi()});
    let input = app.upload_for("batch", line.to_string().as_bytes()).await;
    let spec = BatchSpec {
        endpoint: BatchEndpoint::ChatCompletions,
        input_file: FileId::parse(&input).unwrap(),
        metadata: None,
        output_expires_after_s: None,
    };
    let id = BatchId::mint(rand::random());
    let batch = Batch::new(id.clone(), app.project.id.clone(), spec, now());
    app.store.batches().insert(&batch, None).await.unwrap();
    limit(&app, 0).await;
    app.config.api.batch_requests = 16;
    app.start_another().await;
    let over = async {
        loop {
            let batch = app.get(&format!("/v1/batches/{id}")).await.json();
            if batch["status"] == "completed" {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let over = tokio::time::timeout(Duration::from_secs(20), over);
    let batch = over.await.unwrap();
    assert_eq!(batch["output_file_id"], Value::Null);
    let errors = batch["error_file_id"].as_str().unwrap();
    let content = app.get(&format!("/v1/files/{errors}/content")).await;
    let response = &content.json()["response"];
    assert_eq!(
        (&response["status_code"], &response["body"]["error"]["type"]),
        (&json!(429), &json!("insufficient_quota"))
    );
}
