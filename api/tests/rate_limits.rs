//! Limits of requests and tokens on generated text.

use domain::id::JobId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

async fn chat(app: &App, key: &str, fields: Value) -> Reply {
    let mut body = json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    let call = post(app, key, &body);
    Reply::of(call.send().await.unwrap()).await
}

fn post(app: &App, key: &str, body: &Value) -> reqwest::RequestBuilder {
    let url = format!("{}/v1/chat/completions", app.base);
    app.http.post(url).bearer_auth(key).json(body)
}

async fn limited(requests_per_minute: u64, tokens_per_minute: u64) -> App {
    App::start_with(|config| {
        config.limits.requests_per_minute = requests_per_minute;
        config.limits.tokens_per_minute = tokens_per_minute;
    })
    .await
}

#[tokio::test]
async fn an_answer_says_how_the_limits_stand() {
    let app = limited(30, 6_000).await;
    let reply = chat(&app, &app.key, json!({"max_tokens": 99})).await;
    let rate = |name: &str| reply.header(&format!("x-ratelimit-{name}")).to_owned();
    assert_eq!(
        [rate("limit-requests"), rate("remaining-requests")],
        ["30", "29"]
    );
    assert_eq!(
        [rate("limit-tokens"), rate("remaining-tokens")],
        ["6000", "5900"]
    );
    assert_eq!([rate("reset-requests"), rate("reset-tokens")], ["2s", "1s"]);
    let files = app.get("/v1/files").await;
    assert_eq!(files.header("x-ratelimit-limit-requests"), "");
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_as_openai_does_and_other_projects_are_not() {
    let app = limited(3, 1_000_000).await;
    for left in ["2", "1", "0"] {
        let reply = chat(&app, &app.key, json!({"stream": left == "1"})).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), left);
    }
    let refused = chat(&app, &app.key, json!({})).await;
    let error = &refused.json()["error"];
    assert_eq!(
        (refused.status.as_u16(), &error["type"], &error["code"]),
        (429, &json!("requests"), &json!("rate_limit_exceeded"))
    );
    let message = error["message"].as_str().unwrap();
    let begin = format!(
        "Rate limit reached for {BASE_MODEL} in project {} on requests per min (RPM): Limit 3, Used 3, Requested 1. \
         Please try again in ",
        app.project.id
    );
    assert!(message.starts_with(&begin), "{message}");
    let wait: u32 = refused.header("retry-after").parse().unwrap();
    assert!((15..=20).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    assert_eq!(app.worker.n_asked(), 3);
    assert_eq!(chat(&app, &app.other_key, json!({})).await.status, 200);
}

#[tokio::test]
async fn tokens_that_were_not_reckoned_are_settled_when_the_answer_ends() {
    let app = limited(1_000, 100).await;
    // Reckoned 1 + 40, used 10.
    assert_eq!(
        chat(&app, &app.key, json!({"max_tokens": 40})).await.status,
        200
    );
    let second = chat(&app, &app.key, json!({"max_tokens": 80})).await;
    assert_eq!(
        (
            second.status.as_u16(),
            second.header("x-ratelimit-remaining-tokens")
        ),
        (200, "9")
    );
    let large = chat(&app, &app.key, json!({"max_tokens": 100})).await;
    let error = &large.json()["error"];
    assert_eq!(
        (large.status.as_u16(), &error["type"]),
        (429, &json!("tokens"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("Request too large for"), "{message}");
}

#[tokio::test]
async fn a_project_s_own_limit_holds_for_what_is_tuned_from_the_model() {
    let app = App::start().await;
    let job = JobId::parse(&app.new_job(json!({})).await).unwrap();
    let tuned = app.succeed(&job).await;
    let path = format!("/organization/projects/{}/rate_limits", app.project.id);
    let listed = app.admin(Method::GET, &path, json!(null)).await.json();
    let of = |requests: u64| {
        json!({"id": "rl-tiny-llama", "object": "project.rate_limit", "model": BASE_MODEL,
            "max_requests_per_1_minute": requests, "max_tokens_per_1_minute": 10_000_000})
    };
    assert_eq!(listed["data"], json!([of(10_000)]));
    let change = json!({"max_requests_per_1_minute": 1});
    let path = format!("{path}/rl-tiny-llama");
    let changed = app.admin(Method::POST, &path, change).await;
    assert_eq!(changed.json(), of(1));
    assert_eq!(chat(&app, &app.key, json!({})).await.status, 200);
    let refused = chat(&app, &app.key, json!({"model": tuned})).await;
    assert_eq!(refused.status, 429);
}

#[tokio::test]
async fn requests_at_the_same_time_are_bounded_and_an_answer_given_up_frees_its_place() {
    let app = App::start_with(|config| config.limits.concurrent_requests = 1).await;
    let body = json!({"model": BASE_MODEL, "stream": true, "messages": [{"role": "user", "content": "endless"}]});
    let endless = post(&app, &app.key, &body).send().await.unwrap();
    let refused = chat(&app, &app.key, json!({})).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["type"]),
        (429, &json!("requests"))
    );
    drop(endless);
    assert!(app.worker.is_dropped().await);
    let mut reply = chat(&app, &app.key, json!({})).await;
    // The worker may notice before the API has let go.
    while reply.status == 429 {
        reply = chat(&app, &app.key, json!({})).await;
    }
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn two_processes_keep_one_limit() {
    let mut app = limited(5, 1_000_000).await;
    let first = app.base.clone();
    app.start_another().await;
    let mut n_answered = 0;
    for turn in 0..10 {
        let base = if turn % 2 == 0 { &first } else { &app.base };
        let body = json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": "hi"}]});
        let call = app.http.post(format!("{base}/v1/chat/completions"));
        let sent = call.bearer_auth(&app.key).json(&body).send().await.unwrap();
        n_answered += u32::from(sent.status() == 200);
    }
    assert_eq!(n_answered, 5);
}

#[tokio::test]
async fn a_limit_that_cannot_be_is_refused_by_name() {
    let app = App::start().await;
    let path = format!("/organization/projects/{}/rate_limits", app.project.id);
    for (change, code, param) in [
        (
            json!({"max_requests_per_1_minute": 0}),
            "integer_below_min_value",
            "max_requests_per_1_minute",
        ),
        (
            json!({"max_images_per_1_minute": 1}),
            "unsupported_parameter",
            "max_images_per_1_minute",
        ),
        (json!({"model": "x"}), "unknown_parameter", "model"),
    ] {
        let reply = app
            .admin(Method::POST, &format!("{path}/rl-tiny-llama"), change)
            .await;
        reply.assert_refused(code, param);
    }
    let unknown = app
        .admin(Method::POST, &format!("{path}/rl-no"), json!({}))
        .await;
    assert_eq!(unknown.status, 404);
    let after = app
        .admin(Method::GET, &format!("{path}?after=rl-no"), json!(null))
        .await;
    assert_eq!(after.status, 404);
}
