//! Usage and costs as administrators see them.

use domain::id::JobId;
use platform::config::Config;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, now};

const COMPLETIONS: &str = "/v1/organization/usage/completions";
const COSTS: &str = "/v1/organization/costs";

async fn ask(app: &App, text: &str, stream: bool) {
    let body = json!({
        "model": BASE_MODEL, "messages": [{"role": "user", "content": text}], "stream": stream,
    });
    let reply = app.post("/v1/chat/completions", body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

async fn admin(app: &App, path: &str) -> Value {
    let reply = app.with_key(&app.admin_key, Method::GET, path).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// The results of the page's buckets, once this many requests are stored.
async fn results_of(app: &App, path: &str, n_requests: u64) -> Vec<Value> {
    for _ in 0..100 {
        let page = admin(app, path).await;
        let buckets = page["data"].as_array().unwrap();
        let results: Vec<Value> = buckets
            .iter()
            .flat_map(|bucket| bucket["results"].as_array().unwrap().clone())
            .collect();
        let n: u64 = results
            .iter()
            .map(|r| r["num_model_requests"].as_u64().unwrap())
            .sum();
        if n == n_requests {
            return results;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{n_requests} requests were never stored");
}

#[tokio::test]
async fn what_answers_took_is_told_by_project_key_and_model() {
    let app = App::start().await;
    ask(&app, "one", false).await;
    ask(&app, "two", true).await;
    let start = now().unix_s() - 3_600;
    let path = format!(
        "{COMPLETIONS}?start_time={start}&group_by[]=project_id&group_by%5B%5D=model&group_by=batch"
    );
    let results = results_of(&app, &path, 2).await;
    let usage = &results[0];
    assert_eq!(
        (
            &usage["project_id"],
            &usage["model"],
            &usage["batch"],
            &usage["api_key_id"]
        ),
        (
            &json!(app.project.id),
            &json!(BASE_MODEL),
            &json!(false),
            &Value::Null
        )
    );
    let number = |name: &str| usage[name].as_u64().unwrap();
    assert!(
        number("input_tokens") > 0 && number("output_tokens") > 0,
        "{usage}"
    );
    assert_eq!(
        number("input_uncached_tokens") + number("input_cached_tokens"),
        number("input_tokens")
    );
    assert_eq!(
        usage["object"],
        json!("organization.usage.completions.result")
    );

    let none = format!("{COMPLETIONS}?start_time={start}&project_ids[]=proj_other");
    assert_eq!(results_of(&app, &none, 0).await, Vec::<Value>::new());
}

#[tokio::test]
async fn pages_of_buckets_begin_at_the_start_and_empty_ones_are_there() {
    let app = App::start().await;
    let start = 1_700_000_007;
    let path = |more: &str| {
        format!(
            "{COMPLETIONS}?start_time={start}&end_time={}&bucket_width=1h&limit=3{more}",
            start + 5 * 3_600
        )
    };
    let first = admin(&app, &path("")).await;
    let bucket = |i: i64| {
        let start_time = start + 3_600 * i;
        json!({"object": "bucket", "start_time": start_time, "end_time": start_time + 3_600, "results": []})
    };
    let next = first["next_page"].as_str().unwrap();
    assert_eq!(
        first,
        json!({"object": "page", "data": [bucket(0), bucket(1), bucket(2)], "has_more": true, "next_page": next})
    );
    let rest = admin(&app, &path(&format!("&page={next}"))).await;
    assert_eq!(
        rest,
        json!({"object": "page", "data": [bucket(3), bucket(4)], "has_more": false, "next_page": null})
    );
    for service in ["embeddings", "moderations"] {
        let page = admin(
            &app,
            &format!("/v1/organization/usage/{service}?start_time={start}&limit=1"),
        )
        .await;
        assert_eq!(page["data"][0]["results"], json!([]));
    }
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_by_name() {
    let app = App::start().await;
    for (query, code, param) in [
        ("start_time=5&end_time=5", "invalid_value", "start_time"),
        (
            "start_time=5&bucket_width=2d",
            "invalid_value",
            "bucket_width",
        ),
        ("start_time=5&limit=32", "integer_above_max_value", "limit"),
        ("start_time=5&page=page_6", "invalid_value", "page"),
        ("start_time=5&page=x", "invalid_value", "page"),
        ("start_time=5&group_by=user_id", "invalid_value", "group_by"),
        (
            "start_time=5&user_ids=user-1",
            "unsupported_parameter",
            "user_ids",
        ),
        ("start_time=x", "invalid_type", "start_time"),
    ] {
        let reply = app
            .with_key(
                &app.admin_key,
                Method::GET,
                &format!("{COMPLETIONS}?{query}"),
            )
            .await;
        assert_eq!(reply.json()["error"]["code"], json!(code), "{query}");
        reply.assert_refused(code, param);
    }
    let refused = app
        .with_key(
            &app.admin_key,
            Method::GET,
            &format!("{COSTS}?start_time=5&group_by=model"),
        )
        .await;
    refused.assert_refused("invalid_value", "group_by");
}

#[tokio::test]
async fn costs_are_what_was_taken_at_the_operators_prices() {
    let app = App::start_with(|config: &mut Config| {
        let price = format!("{BASE_MODEL} input=1000000 cached=500000 output=2000000 trained=10");
        config.prices.models = vec![price.parse().unwrap()];
    })
    .await;
    ask(&app, "one", false).await;
    let id = app.new_job(json!({})).await;
    app.succeed(&JobId::parse(&id).unwrap()).await;
    let start = now().unix_s() - 3_600;
    let usage = results_of(&app, &format!("{COMPLETIONS}?start_time={start}"), 1).await;
    let number = |name: &str| usage[0][name].as_f64().unwrap();

    let page = admin(
        &app,
        &format!("{COSTS}?start_time={start}&group_by[]=line_item&group_by[]=project_id"),
    )
    .await;
    let results = page["data"][0]["results"].as_array().unwrap();
    let item = |name: &str| {
        let line = format!("{BASE_MODEL}, {name}");
        let found = results.iter().find(|r| r["line_item"] == json!(line));
        found.unwrap_or_else(|| panic!("{line}: {page}")).clone()
    };
    let training = item("training");
    assert_eq!(
        training["amount"],
        json!({"value": 0.0507, "currency": "usd"})
    );
    assert_eq!(
        (
            &training["quantity"],
            &training["quantity_unit"],
            &training["project_id"]
        ),
        (&json!(5070.0), &json!("tokens"), &json!(app.project.id))
    );
    assert_eq!(
        item("output")["amount"]["value"],
        json!(2.0 * number("output_tokens"))
    );

    let whole = admin(&app, &format!("{COSTS}?start_time={start}")).await;
    let total = number("input_uncached_tokens")
        + 0.5 * number("input_cached_tokens")
        + 2.0 * number("output_tokens")
        + 0.0507;
    let one = &whole["data"][0]["results"];
    assert_eq!(one.as_array().unwrap().len(), 1);
    let told = one[0]["amount"]["value"].as_f64().unwrap();
    assert!((told - total).abs() < 1e-9, "{told} {total}");
    assert_eq!(
        (
            &one[0]["line_item"],
            &one[0]["quantity"],
            &one[0]["project_id"]
        ),
        (&Value::Null, &Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn without_prices_everything_is_free() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    app.succeed(&JobId::parse(&id).unwrap()).await;
    let start = now().unix_s() - 3_600;
    let page = admin(&app, &format!("{COSTS}?start_time={start}")).await;
    let expected = json!({"value": 0.0, "currency": "usd"});
    assert_eq!(page["data"][0]["results"][0]["amount"], expected);
}

#[tokio::test]
async fn responses_and_embeddings_are_counted_and_cost_what_they_take() {
    let app = App::start_with(|config: &mut Config| {
        let price = format!("{BASE_MODEL} input=1000000 cached=1000000 output=1000000 trained=0");
        config.prices.models = vec![price.parse().unwrap()];
    })
    .await;
    let response = json!({"model": BASE_MODEL, "input": "hi"});
    assert_eq!(app.post("/v1/responses", response).await.status, 200);
    let embedding = json!({"model": BASE_MODEL, "input": ["one", "two"]});
    let embedded = app.post("/v1/embeddings", embedding).await.json();
    let n_embedded = embedded["usage"]["total_tokens"].as_f64().unwrap();
    let start = now().unix_s() - 3_600;
    let answered = results_of(&app, &format!("{COMPLETIONS}?start_time={start}"), 1).await;
    let path = format!("/v1/organization/usage/embeddings?start_time={start}");
    let read = results_of(&app, &path, 1).await;
    assert_eq!(read[0]["input_tokens"].as_f64(), Some(n_embedded));
    let n_answered =
        ["input_tokens", "output_tokens"].map(|name| answered[0][name].as_f64().unwrap());
    let costs = admin(&app, &format!("{COSTS}?start_time={start}")).await;
    let told = costs["data"][0]["results"][0]["amount"]["value"].as_f64();
    assert_eq!(told, Some(n_embedded + n_answered[0] + n_answered[1]));
    let never = format!("{COSTS}?start_time=0&end_time={}", i64::MAX);
    let refused = app.with_key(&app.admin_key, Method::GET, &never).await;
    assert_eq!(refused.status, 400);
}
