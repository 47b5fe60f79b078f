//! POSTs that come twice, where their answers are kept, and those that their own repetition overtakes. What else jobs, files
//! and batches do stands with each of them.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::administration::{new_project, ok, text};
use crate::support::{App, BASE_MODEL, Reply, make_admin_key, make_key};

const PROJECTS: &str = "/v1/organization/projects";

fn admin(app: &App, path: &str, body: &Value) -> RequestBuilder {
    let request = app.http.post(format!("{}{path}", app.base));
    request.bearer_auth(&app.admin_key).json(body)
}

async fn with_key(request: RequestBuilder, key: &str) -> Reply {
    Reply::of(request.header("Idempotency-Key", key).send().await.unwrap()).await
}

/// As an SDK sends it after `n` tries.
async fn retried(request: RequestBuilder, n: u32) -> Reply {
    let request = request.header("x-stainless-retry-count", n);
    Reply::of(request.send().await.unwrap()).await
}

async fn n_projects(app: &App) -> usize {
    let path = "/organization/projects?limit=100";
    let listed = ok(app.admin(Method::GET, path, Value::Null).await);
    listed["data"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_repeated_key_is_told_the_same_and_makes_nothing() {
    let mut app = App::start().await;
    let body = json!({"name": "one"});
    let first = with_key(admin(&app, PROJECTS, &body), "k").await;
    assert_eq!(
        (first.status.as_u16(), first.header("idempotent-replayed")),
        (200, "")
    );
    let n = n_projects(&app).await;
    // Another process of the installation knows it, too.
    app.start_another().await;
    let again = with_key(admin(&app, PROJECTS, &body), "k").await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.header("content-type"), first.header("content-type"));
    assert_eq!(again.bytes, first.bytes);
    assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
    assert_eq!(n_projects(&app).await, n);
    let other = with_key(admin(&app, PROJECTS, &json!({"name": "two"})), "k").await;
    other.assert_refused("idempotency_key_reused", "Idempotency-Key");
    for key in ["", &"k".repeat(256)] {
        let refused = with_key(admin(&app, PROJECTS, &body), key).await;
        refused.assert_refused("invalid_value", "Idempotency-Key");
    }
    assert_eq!(n_projects(&app).await, n);
    // Somebody else's key of the same name is another one.
    let organization = &app.project.organization_id;
    let stranger = make_admin_key(&app.store, &app.config, organization).await;
    let request = app.http.post(format!("{}{PROJECTS}", app.base));
    let theirs = request
        .bearer_auth(stranger)
        .json(&json!({"name": "theirs"}));
    let made = ok(with_key(theirs, "k").await);
    assert_ne!(made["id"], first.json()["id"]);
}

#[tokio::test]
async fn an_sdk_that_lost_the_answer_reads_the_secret_that_was_made() {
    let app = App::start().await;
    let project = new_project(&app, "bots").await;
    let accounts = format!("{PROJECTS}/{project}/service_accounts");
    let body = json!({"name": "bot"});
    let first = ok(retried(admin(&app, &accounts, &body), 0).await);
    let again = retried(admin(&app, &accounts, &body), 1).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.json(), first);
    let secret = text(&first["api_key"], "value");
    // Whoever sends it anew wants another one; a repetition is of that one then.
    let second = ok(retried(admin(&app, &accounts, &body), 0).await);
    assert_ne!(second["id"], first["id"]);
    assert_eq!(ok(retried(admin(&app, &accounts, &body), 2).await), second);
    // It lies nowhere as it was shown.
    let mut n_read = 0;
    for file in std::fs::read_dir(app.directory.path()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            n_read += bytes.len();
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
    assert!(n_read > 0);
}

#[tokio::test]
async fn of_requests_at_once_one_makes_something() {
    let app = App::start().await;
    let n = n_projects(&app).await;
    let body = json!({"name": "one"});
    let replies = (0..8).map(|_| with_key(admin(&app, PROJECTS, &body), "k"));
    let replies = futures::future::join_all(replies).await;
    let answered: Vec<Value> = replies
        .iter()
        .filter(|reply| {
            let is_under_way = reply.status == 409;
            assert!(is_under_way || reply.status == 200, "{reply:?}");
            assert!(!is_under_way || reply.header("retry-after") == "1");
            !is_under_way
        })
        .map(Reply::json)
        .collect();
    assert!(
        answered.windows(2).all(|two| two[0] == two[1]),
        "{answered:?}"
    );
    assert!(!answered.is_empty());
    assert_eq!(n_projects(&app).await, n + 1);
}

#[tokio::test]
async fn what_made_nothing_may_be_tried_again() {
    let app = App::start().await;
    let refused = with_key(admin(&app, PROJECTS, &json!({"name": 5})), "k").await;
    assert_eq!(refused.status, 400);
    ok(with_key(admin(&app, PROJECTS, &json!({"name": "five"})), "k").await);
}

#[tokio::test]
async fn a_change_is_made_again_unless_a_key_says_that_it_is_the_same() {
    let app = App::start().await;
    let project = new_project(&app, "a").await;
    let path = format!("{PROJECTS}/{project}");
    let name = async || {
        let path = path.strip_prefix("/v1").unwrap();
        text(&ok(app.admin(Method::GET, path, Value::Null).await), "name")
    };
    let b = ok(with_key(admin(&app, &path, &json!({"name": "b"})), "k").await);
    ok(admin_post(&app, &path, &json!({"name": "c"})).await);
    assert_eq!(
        ok(with_key(admin(&app, &path, &json!({"name": "b"})), "k").await),
        b
    );
    assert_eq!(name().await, "c");
    // Without a key it is no telling whether the answer to the first "b" was lost, or to this one.
    ok(retried(admin(&app, &path, &json!({"name": "b"})), 1).await);
    assert_eq!(name().await, "b");
}

async fn admin_post(app: &App, path: &str, body: &Value) -> Reply {
    Reply::of(admin(app, path, body).send().await.unwrap()).await
}

#[tokio::test]
async fn only_the_api_key_that_sent_it_is_told() {
    let app = App::start().await;
    let key = make_key(&app.store, &app.config, &app.project.id).await;
    let send = |key: String| {
        let request = app.http.post(format!("{}/v1/x/model_aliases", app.base));
        let body = json!({"id": "gpt-4o", "model": BASE_MODEL});
        with_key(request.bearer_auth(key).json(&body), "k")
    };
    let made = send(key.clone()).await;
    assert_eq!(made.status, 200, "{made:?}");
    // The project's other key did not send it.
    let other = send(app.key.clone()).await;
    assert_eq!(
        (other.status.as_u16(), other.header("idempotent-replayed")),
        (400, "")
    );
    let again = send(key).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    let foreign = send(app.other_key.clone()).await;
    assert_eq!(
        (
            foreign.status.as_u16(),
            foreign.header("idempotent-replayed")
        ),
        (200, "")
    );
}

/// A POST that the service has begun with, though its body is still to come.
struct Begun(TcpStream);

impl Begun {
    async fn open(app: &App, path: &str, content_type: &str, n_bytes: usize) -> Self {
        let address = app.base.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: {content_type}\r\n\
             content-length: {n_bytes}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
            app.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut asked_for_the_body = [0; 25];
        stream.read_exact(&mut asked_for_the_body).await.unwrap();
        assert_eq!(&asked_for_the_body, b"HTTP/1.1 100 Continue\r\n\r\n");
        Self(stream)
    }

    /// The head and the body of the answer.
    async fn finish(mut self, body: &[u8]) -> (String, Value) {
        self.0.write_all(body).await.unwrap();
        let mut text = String::new();
        self.0.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }
}

#[tokio::test]
async fn a_request_that_its_repetition_overtook_makes_nothing() {
    let app = App::start().await;
    let (training_file, input) = (
        app.upload(b"{}\n").await,
        app.upload_for("batch", b"{}\n").await,
    );
    let job = json!({"model": BASE_MODEL, "training_file": training_file});
    let batch = json!({
        "input_file_id": input, "endpoint": "/v1/chat/completions", "completion_window": "24h",
    });
    let file = "--XX\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--XX\r\n\
                content-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nwords\r\n--XX--\r\n";
    let upload = json!({
        "filename": "a.jsonl", "purpose": "fine-tune", "bytes": 5, "mime_type": "text/jsonl",
    });
    for (path, content_type, body) in [
        ("/v1/fine_tuning/jobs", "application/json", job.to_string()),
        ("/v1/batches", "application/json", batch.to_string()),
        ("/v1/uploads", "application/json", upload.to_string()),
        (
            "/v1/files",
            "multipart/form-data; boundary=XX",
            file.to_owned(),
        ),
    ] {
        let request = || {
            let request = app.request(Method::POST, path);
            request
                .header("content-type", content_type)
                .body(body.clone())
        };
        let begin = || Begun::open(&app, path, content_type, body.len());
        let (first, another) = (begin().await, begin().await);
        let repeated = ok(retried(request(), 1).await);
        let (head, told) = first.finish(body.as_bytes()).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("idempotent-replayed: true"), "{head}");
        assert_eq!(told["id"], repeated["id"], "{path}");
        // Nobody posted that one again: it is one of its own, as is one that comes later.
        let (head, another) = another.finish(body.as_bytes()).await;
        assert!(!head.contains("idempotent-replayed: true"), "{head}");
        let later = ok(retried(request(), 0).await);
        assert_ne!(another["id"], repeated["id"], "{path}");
        assert!(later["id"] != repeated["id"] && later["id"] != another["id"]);
    }
}
