//! What every reply has, and what happens to requests that are none.

use reqwest::Method;

use crate::support::{App, Reply};

#[tokio::test]
async fn every_reply_has_openais_headers() {
    let app = App::start().await;
    let (first, second) = (
        app.get("/v1/models").await,
        app.get("/v1/models/no-such-model").await,
    );
    for reply in [&first, &second] {
        let id = reply.header("x-request-id").strip_prefix("req_").unwrap();
        assert!(
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
        assert!(reply.header("openai-processing-ms").parse::<u64>().is_ok());
        assert_eq!(reply.header("openai-version"), "2020-10-01");
        assert_eq!(reply.header("openai-organization"), "luthier");
        assert_eq!(reply.header("access-control-allow-origin"), "*");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("server"), "");
    }
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

#[tokio::test]
async fn an_unknown_route_and_a_wrong_method_are_refused_in_the_envelope() {
    let app = App::start().await;
    app.get("/v1/foo")
        .await
        .assert_error(404, None, None, "Invalid URL (GET /v1/foo)");
    app.get("/foo")
        .await
        .assert_error(404, None, None, "Invalid URL (GET /foo)");
    app.get("/metrics")
        .await
        .assert_error(404, None, None, "Invalid URL (GET /metrics)");
    let put = Reply::of(
        app.request(Method::PUT, "/v1/fine_tuning/jobs")
            .send()
            .await
            .unwrap(),
    )
    .await;
    put.assert_error(
        405,
        Some("method_not_supported"),
        None,
        "Not allowed to PUT on /v1/fine_tuning/jobs.",
    );
    assert_eq!(put.header("allow"), "GET, POST");
    let one = app.request(Method::PATCH, "/v1/files/file-x");
    let one = Reply::of(one.send().await.unwrap()).await;
    assert_eq!(
        (one.status.as_u16(), one.header("allow")),
        (405, "DELETE, GET")
    );
    let trace = Reply::of(
        app.request(Method::TRACE, "/v1/models")
            .send()
            .await
            .unwrap(),
    )
    .await;
    trace.assert_error(
        405,
        Some("method_not_supported"),
        None,
        "Not allowed to TRACE on /v1/models.",
    );
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let app = App::start().await;
    let send = async |body: &'static str| {
        let request = app.request(Method::POST, "/v1/chat/completions").body(body);
        Reply::of(request.send().await.unwrap()).await
    };
    send("{\"model\": ").await.assert_error(
        400,
        None,
        None,
        "We could not parse the JSON body of your request. (HINT: what was sent is not valid JSON: line 1, column 10.)",
    );
    send("[]").await.assert_error(
        400,
        Some("invalid_type"),
        None,
        "Invalid body: expected an object, but got an array instead.",
    );
    assert_eq!(send("").await.status, 400);
    let deep: &'static str = Box::leak("[".repeat(100_000).into_boxed_str());
    assert_eq!(send(deep).await.status, 400);
}

#[tokio::test]
async fn of_a_key_that_comes_twice_the_last_counts() {
    let app = App::start().await;
    let body = r#"{"model": "x", "model": "no-such-model", "messages": [{"role": "user", "content": "hi"}]}"#;
    let sent = app
        .request(Method::POST, "/v1/chat/completions")
        .body(body)
        .send()
        .await
        .unwrap();
    Reply::of(sent).await.assert_error(
        404,
        Some("model_not_found"),
        None,
        "The model `no-such-model` does not exist or you do not have access to it.",
    );
}

#[tokio::test]
async fn a_body_that_is_too_large_or_compressed_is_refused() {
    let app = App::start().await;
    let large = vec![b' '; 16 * 1024 * 1024 + 1];
    let sent = app
        .request(Method::POST, "/v1/chat/completions")
        .body(large)
        .send()
        .await
        .unwrap();
    Reply::of(sent).await.assert_error(
        413,
        None,
        None,
        "The request body is too large: at most 16777216 bytes are accepted.",
    );
    let request = app
        .request(Method::POST, "/v1/chat/completions")
        .header("content-encoding", "gzip");
    Reply::of(request.body("x").send().await.unwrap())
        .await
        .assert_error(
            415,
            None,
            None,
            "A compressed request body is not supported.",
        );
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let app = App::start().await;
    let with = async |n: usize| {
        let request = app.request(Method::GET, "/v1/models");
        let sent = request.header("x-long", "x".repeat(n)).send().await;
        Reply::of(sent.unwrap()).await.status
    };
    assert_eq!(with(60_000).await, 200);
    assert_eq!(with(70_000).await, 431);
}

#[tokio::test]
async fn a_browser_may_ask_first() {
    let app = App::start().await;
    let sent = app
        .http
        .request(Method::OPTIONS, format!("{}/v1/chat/completions", app.base))
        .header("origin", "http://localhost:3000")
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type",
        )
        .send()
        .await
        .unwrap();
    let reply = Reply::of(sent).await;
    assert_eq!(reply.status, 204);
    assert_eq!(reply.header("access-control-allow-origin"), "*");
    assert_eq!(
        reply.header("access-control-allow-methods"),
        "GET, POST, DELETE, OPTIONS"
    );
    assert_eq!(
        reply.header("access-control-allow-headers"),
        "authorization,content-type"
    );
}

#[tokio::test]
async fn a_limit_that_is_none_is_refused() {
    let app = App::start().await;
    for path in ["/v1/files", "/v1/fine_tuning/jobs"] {
        app.get(&format!("{path}?limit=0"))
            .await
            .assert_refused("integer_below_min_value", "limit");
        app.get(&format!("{path}?limit=-1"))
            .await
            .assert_refused("integer_below_min_value", "limit");
        app.get(&format!("{path}?limit=10001"))
            .await
            .assert_refused("integer_above_max_value", "limit");
        app.get(&format!("{path}?limit=abc"))
            .await
            .assert_refused("invalid_type", "limit");
        let long = "x".repeat(200);
        app.get(&format!("{path}?after={long}"))
            .await
            .assert_refused("invalid_value", "after");
    }
    app.get("/v1/files?order=up")
        .await
        .assert_refused("invalid_value", "order");
}

#[tokio::test]
async fn a_public_listener_without_tls_does_not_open() {
    let public = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let refused = App::try_bind(|config| config.api.listen = public)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("0.0.0.0:0 can be reached from elsewhere"),
        "{refused}"
    );
    let insecure = App::try_bind(|config| {
        config.api.listen = public;
        config.api.insecure = true;
    });
    insecure.await.unwrap();
}
