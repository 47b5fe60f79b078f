//! Metrics, in a process of their own: a process has one recorder, and the first API in it holds it.

#[allow(dead_code, reason = "shared with the other suite, which uses the rest")]
mod support;

use reqwest::Method;
use serde_json::json;
use support::{App, Reply};

#[tokio::test]
async fn metrics_count_requests_by_route() {
    let app = App::start().await;
    app.get("/v1/models/no-such-model").await;
    let project = app.project.id.as_str();
    let path = format!("/v1/organization/projects/{project}");
    // Made, told again, and refused before it came to its route.
    for (cap, status) in [(1, 200), (1, 200), (2, 400)] {
        let request = app
            .http
            .request(Method::POST, format!("{}{path}", app.base));
        let request = request.bearer_auth(&app.admin_key);
        let request = request.header("idempotency-key", "k");
        let sent = request
            .json(&json!({"x_max_running_jobs": cap}))
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status(), status);
    }
    let metrics = Reply::of(
        app.http
            .get(format!("{}/metrics", app.operational))
            .send()
            .await
            .unwrap(),
    )
    .await;
    let text = String::from_utf8(metrics.bytes.to_vec()).unwrap();
    for line in [
        r#"{method="GET",route="/v1/models/:param0",status="404"} 1"#,
        r#"{method="POST",route="/v1/organization/projects/:param0",status="200"} 2"#,
        r#"{method="POST",route="/v1/organization/projects/:param0",status="400"} 1"#,
    ] {
        let line = format!("luthier_http_requests_total{line}");
        assert!(text.contains(&line), "{line} is not in {text}");
    }
}
