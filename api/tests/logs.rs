//! What the operator's log keeps of a request, and what it must not.

use std::io;
use std::sync::{Arc, Mutex};

use platform::config::{LogConfig, LogFormat};
use reqwest::Method;
use serde_json::json;

use crate::support::{App, BASE_MODEL};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_request_is_one_line_without_what_it_says() {
    let lines = Lines::default();
    let config = LogConfig {
        level: "debug".to_owned(),
        format: LogFormat::Text,
    };
    let writer = lines.clone();
    let subscriber = platform::telemetry::subscriber(&config, move || writer.clone()).unwrap();
    // Of the process: another test that runs in it may be heard too, which hurts nothing.
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let app = App::start().await;
    let body =
        |text: &str| json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": text}]});
    let ids = [
        app.post("/v1/chat/completions", body("private words"))
            .await,
        app.post("/v1/chat/completions", body("broken")).await,
        app.post("/v1/chat/completions", json!({"private": true}))
            .await,
        app.get("/v1/fine_tuning/jobs?metadata[private]=private")
            .await,
        app.get("/v1/files/private").await,
        app.foreign(Method::GET, "/v1/models").await,
    ]
    .map(|reply| reply.header("x-request-id").to_owned());
    let wrong = app
        .http
        .get(format!("{}/v1/models", app.base))
        .bearer_auth("sk-proj-private-0123456789");
    assert_eq!(wrong.send().await.unwrap().status(), 401);

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for secret in ["private", app.key.as_str(), app.other_key.as_str(), "Hello"] {
        assert!(!text.contains(secret), "{secret} is in the log:\n{text}");
    }
    for id in &ids {
        let about: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(id.as_str()))
            .collect();
        assert_eq!(about.len(), 1, "{about:?}");
    }
    let line = text
        .lines()
        .find(|line| line.contains(ids[1].as_str()))
        .unwrap();
    for part in [
        "ERROR",
        "method=\"POST\"",
        "route=\"/v1/chat/completions\"",
        "status=500",
        " ms=",
        "secret reason",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(line.contains(app.project.id.as_str()), "{line}");
}
