//! Metrics, in a process of their own: a process has one recorder, and the first API in it holds it.

#[allow(dead_code, reason = "shared with the other suite, which uses the rest")]
mod support;

use support::{App, Reply};

#[tokio::test]
async fn metrics_count_requests_by_route() {
    let app = App::start().await;
    app.get("/v1/models/no-such-model").await;
    let metrics = Reply::of(
        app.http
            .get(format!("{}/metrics", app.operational))
            .send()
            .await
            .unwrap(),
    )
    .await;
    let text = String::from_utf8(metrics.bytes.to_vec()).unwrap();
    let line =
        r#"luthier_http_requests_total{method="GET",route="/v1/models/:param0",status="404"} 1"#;
    assert!(text.contains(line), "{text}");
}
