//! `/v1/files`.

use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{self, App, Reply};

/// A form as it stands on the wire, so that order and spelling are the test's own.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, filename, content) in parts {
        body.extend_from_slice(b"--XX\r\nContent-Disposition: form-data; name=\"");
        body.extend_from_slice(name.as_bytes());
        body.push(b'"');
        if let Some(filename) = filename {
            body.extend_from_slice(format!("; filename=\"{filename}\"").as_bytes());
        }
        body.extend_from_slice(b"\r\n\r\n");
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XX--\r\n");
    body
}

async fn send(app: &App, body: impl Into<reqwest::Body>) -> Reply {
    let request = app
        .request(Method::POST, "/v1/files")
        .header("content-type", "multipart/form-data; boundary=XX");
    Reply::of(request.body(body).send().await.unwrap()).await
}

fn purpose(word: &str) -> (&'static str, Option<&'static str>, &[u8]) {
    ("purpose", None, word.as_bytes())
}

/// How many objects the project's files are.
fn n_objects(app: &App) -> usize {
    let folder = format!("projects/{}/files/", app.project.id);
    walk(app.directory.path())
        .iter()
        .filter(|path| path.contains(&folder))
        .count()
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn the_fields_of_an_upload_come_in_either_order() {
    let app = App::start().await;
    let content = b"{\"a\": 1}\r\n\r\n{\"b\": 2}\n".as_slice();
    let file = ("file", Some("tr\u{e4}n ing \u{6570}.jsonl"), content);
    for parts in [[purpose("fine-tune"), file], [file, purpose("fine-tune")]] {
        let reply = send(&app, form(&parts)).await;
        let made = reply.json();
        let id = made["id"].as_str().unwrap().to_owned();
        assert_eq!(
            made,
            json!({
                "id": id, "object": "file", "bytes": content.len(), "created_at": made["created_at"],
                "expires_at": null, "filename": "tr\u{e4}n ing \u{6570}.jsonl", "purpose": "fine-tune",
                "status": "processed", "status_details": null,
            })
        );
        assert!(id.starts_with("file-") && made["created_at"].as_i64().unwrap() > 1_700_000_000);
        assert_eq!(app.get(&format!("/v1/files/{id}")).await.json(), made);
        let downloaded = app.get(&format!("/v1/files/{id}/content")).await;
        assert_eq!(&downloaded.bytes[..], content);
        assert_eq!(
            downloaded.header("content-type"),
            "application/octet-stream"
        );
        assert_eq!(downloaded.header("content-security-policy"), "sandbox");
        assert_eq!(
            downloaded.header("content-length"),
            content.len().to_string()
        );
        assert_eq!(
            downloaded.header("content-disposition"),
            "attachment; filename=\"tr_n ing _.jsonl\"; filename*=UTF-8''tr%C3%A4n%20ing%20%E6%95%B0.jsonl"
        );
    }
}

#[tokio::test]
async fn a_refused_upload_says_why_and_leaves_nothing() {
    let app = App::start_with(|config| config.api.max_file_bytes = 1000).await;
    let file = ("file", Some("a.jsonl"), b"{}\n".as_slice());
    let missing = |name: &str| format!("Missing required parameter: '{name}'.");
    send(&app, form(&[file])).await.assert_error(
        400,
        Some("missing_required_parameter"),
        Some("purpose"),
        &missing("purpose"),
    );
    send(&app, form(&[purpose("fine-tune")]))
        .await
        .assert_error(
            400,
            Some("missing_required_parameter"),
            Some("file"),
            &missing("file"),
        );
    let unknown = "'nonsense' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals'] - \
                   'purpose'";
    for parts in [[file, purpose("nonsense")], [purpose("nonsense"), file]] {
        let reply = send(&app, form(&parts)).await;
        reply.assert_error(400, Some("invalid_value"), Some("purpose"), unknown);
    }
    send(&app, form(&[file, purpose("fine-tune-results")]))
        .await
        .assert_refused("invalid_value", "purpose");
    let text = ("file", Some("a.txt"), b"hello".as_slice());
    send(&app, form(&[text, purpose("fine-tune")]))
        .await
        .assert_error(
            400,
            None,
            Some("file"),
            "Invalid file format for Fine-Tuning API. Must be .jsonl",
        );
    let large = ("file", Some("a.jsonl"), &[b'x'; 1001][..]);
    send(&app, form(&[large, purpose("fine-tune")]))
        .await
        .assert_error(
            413,
            None,
            None,
            "The request body is too large: at most 1000 bytes are accepted.",
        );
    let whole = form(&[file, purpose("fine-tune")]);
    let cut = send(&app, whole[..whole.len() - 10].to_vec()).await;
    assert_eq!(cut.status, 400, "{cut:?}");
    let strange = [
        file,
        purpose("fine-tune"),
        ("color", None, b"red".as_slice()),
    ];
    send(&app, form(&strange))
        .await
        .assert_refused("unknown_parameter", "color");
    let no_form = app.post("/v1/files", json!({})).await;
    no_form.assert_error(
        400,
        None,
        None,
        "Invalid content type: expected multipart/form-data with a boundary.",
    );
    assert_eq!(n_objects(&app), 0);
    assert_eq!(app.get("/v1/files").await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_file_may_expire() {
    let app = App::start().await;
    let upload = async |seconds: &str| {
        let parts = [
            ("file", Some("a.jsonl"), b"{}\n".as_slice()),
            purpose("fine-tune"),
            ("expires_after[anchor]", None, b"created_at".as_slice()),
            ("expires_after[seconds]", None, seconds.as_bytes()),
        ];
        send(&app, form(&parts)).await
    };
    let made = upload("3600").await.json();
    assert_eq!(
        made["expires_at"].as_i64().unwrap(),
        made["created_at"].as_i64().unwrap() + 3600
    );
    let param = "expires_after.seconds";
    upload("3599")
        .await
        .assert_refused("integer_below_min_value", param);
    upload("2592001")
        .await
        .assert_refused("integer_above_max_value", param);
    upload("soon").await.assert_refused("invalid_type", param);
}

#[tokio::test]
async fn a_batch_file_is_jsonl_and_goes_after_thirty_days() {
    let app = App::start().await;
    let text = ("file", Some("a.txt"), b"{}\n".as_slice());
    let message = "Invalid file format for Batch API. Must be .jsonl";
    let refused = send(&app, form(&[text, purpose("batch")])).await;
    refused.assert_error(400, None, Some("file"), message);
    let file = ("file", Some("a.jsonl"), b"{}\n".as_slice());
    let made = send(&app, form(&[file, purpose("batch")])).await.json();
    let lifetime = made["expires_at"].as_i64().unwrap() - made["created_at"].as_i64().unwrap();
    assert_eq!(lifetime, 30 * 24 * 3600);
    let shorter = [
        file,
        purpose("batch"),
        ("expires_after[anchor]", None, b"created_at".as_slice()),
        ("expires_after[seconds]", None, b"3600".as_slice()),
    ];
    let made = send(&app, form(&shorter)).await.json();
    let lifetime = made["expires_at"].as_i64().unwrap() - made["created_at"].as_i64().unwrap();
    assert_eq!(lifetime, 3600);
    let half = [
        file,
        purpose("batch"),
        ("expires_after[seconds]", None, b"3600".as_slice()),
    ];
    send(&app, form(&half))
        .await
        .assert_refused("missing_required_parameter", "expires_after.anchor");
}

#[tokio::test]
async fn a_batch_file_above_its_limit_is_refused_wherever_its_purpose_stands() {
    const LIMIT: usize = 200 << 20;
    let app = App::start().await;
    let purpose = form(&[purpose("batch")]);
    let (purpose, end) = purpose.split_at(purpose.len() - "--XX--\r\n".len());
    let head =
        "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n";
    let message = "The request body is too large: at most 209715200 bytes are accepted.";
    for (before, behind) in [(purpose, &b""[..]), (b"", purpose)] {
        let before = [before, head.as_bytes()].concat();
        let behind = [b"\r\n", behind, end].concat();
        let refused = send(&app, support::body(before, LIMIT + 1, behind)).await;
        refused.assert_error(413, None, None, message);
    }
    assert_eq!(n_objects(&app), 0);
}

/// What is answered to a request whose body never comes.
async fn answer_to_head(app: &App, content_length: usize) -> String {
    let address = app.base.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
         Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: {content_length}\r\n\r\n",
        app.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    read.expect("an answer before the body").unwrap();
    answer
}

#[tokio::test]
async fn a_file_for_which_there_is_no_room_is_refused_before_it_is_read() {
    let app = App::start_with(|config| config.limits.stored_bytes = 1_000_000).await;
    let some = |n: usize| {
        form(&[
            purpose("fine-tune"),
            ("file", Some("a.jsonl"), vec![b' '; n].as_slice()),
        ])
    };
    let first = send(&app, some(600_000)).await;
    assert_eq!(first.status, 200, "{first:?}");
    let message = "This project may store 1000000 bytes of files, and 600000 are stored: there is no room for this one. Please \
                   delete files, or ask an administrator for a higher x_max_stored_bytes.";
    let code = Some("storage_limit_exceeded");
    let answer = answer_to_head(&app, 600_000).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains(message), "{answer}");
    // By a little only, and without a word of how long it is.
    let refused = send(&app, some(400_001)).await;
    refused.assert_error(400, code, None, message);
    let before = form(&[
        purpose("fine-tune"),
        ("file", Some("a.jsonl"), b"".as_slice()),
    ]);
    let before = before[..before.len() - b"\r\n--XX--\r\n".len()].to_vec();
    let body = support::body(before, 400_001, b"\r\n--XX--\r\n".to_vec());
    let refused = send(&app, body).await;
    refused.assert_error(400, code, None, message);
    // Nor where it may be a repetition of one that was stored.
    let retried = app
        .request(Method::POST, "/v1/files")
        .header("content-type", "multipart/form-data; boundary=XX")
        .header("x-stainless-retry-count", "1");
    let again = retried.try_clone().unwrap().body(some(600_000));
    let again = Reply::of(again.send().await.unwrap()).await;
    assert_eq!(again.json()["id"], first.json()["id"]);
    let new = Reply::of(retried.body(some(400_001)).send().await.unwrap()).await;
    new.assert_error(400, code, None, message);
    assert_eq!(n_objects(&app), 1);
    // Exactly what is left; then a file's deletion, and the project's own number, make room.
    assert_eq!(send(&app, some(400_000)).await.status, 200);
    assert_eq!(send(&app, some(1)).await.status, 400);
    let project = format!("/organization/projects/{}", app.project.id);
    let cap = async |bytes: Value| {
        let change = json!({"x_max_stored_bytes": bytes});
        let changed = app.admin(Method::POST, &project, change).await;
        assert_eq!(changed.json()["x_max_stored_bytes"], bytes);
    };
    cap(json!(1_000_001)).await;
    assert_eq!(send(&app, some(1)).await.status, 200);
    cap(Value::Null).await;
    assert_eq!(send(&app, some(1)).await.status, 400);
    let first = first.json()["id"].as_str().unwrap().to_owned();
    app.delete(&format!("/v1/files/{first}")).await;
    assert_eq!(send(&app, some(1)).await.status, 200);
    let other = app.http.post(format!("{}/v1/files", app.base));
    let other = other
        .bearer_auth(&app.other_key)
        .header("content-type", "multipart/form-data; boundary=XX");
    let sent = other.body(some(600_000)).send().await.unwrap();
    assert_eq!(sent.status(), 200, "its own limit alone");
}

#[tokio::test]
async fn names_are_shown_and_never_become_paths() {
    let app = App::start().await;
    let long = format!("{}.jsonl", "n".repeat(400));
    for (name, shown) in [
        ("../../x.jsonl", "../../x.jsonl"),
        ("a\tb\u{7}.jsonl", "ab.jsonl"),
        ("C:\\x.jsonl", "C:\\x.jsonl"),
    ] {
        let file = ("file", Some(name), b"{}\n".as_slice());
        let made = send(&app, form(&[file, purpose("fine-tune")])).await.json();
        assert_eq!(made["filename"], json!(shown));
    }
    let file = ("file", Some(long.as_str()), b"{}\n".as_slice());
    let made = send(&app, form(&[file, purpose("evals")])).await.json();
    assert_eq!(made["filename"].as_str().unwrap().len(), 255);
    assert!(
        walk(app.directory.path())
            .iter()
            .all(|path| !path.contains("x.jsonl"))
    );
}

#[tokio::test]
async fn lists_go_both_ways_page_by_page() {
    let app = App::start().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(app.upload(b"{}\n").await);
    }
    let file = ("file", Some("b.jsonl"), b"{}\n".as_slice());
    send(&app, form(&[file, purpose("batch")])).await;
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = app
            .get(&format!(
                "/v1/files?purpose=fine-tune&order=asc&limit=2{after}"
            ))
            .await
            .json();
        let data: Vec<Value> = page["data"].as_array().unwrap().clone();
        assert_eq!(
            (&page["first_id"], &page["last_id"]),
            (&data[0]["id"], &data.last().unwrap()["id"])
        );
        seen.extend(
            data.iter()
                .map(|file| file["id"].as_str().unwrap().to_owned()),
        );
        after = format!("&after={}", page["last_id"].as_str().unwrap());
        if page["has_more"] == json!(false) {
            break;
        }
    }
    assert_eq!(seen, ids);
    let newest = app.get("/v1/files?limit=1").await.json();
    assert_eq!(
        (&newest["data"][0]["purpose"], &newest["has_more"]),
        (&json!("batch"), &json!(true))
    );
    let empty =
        json!({"object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false});
    assert_eq!(
        app.get("/v1/files?purpose=batch_output").await.json(),
        empty
    );
    app.get("/v1/files?after=file-nope").await.assert_error(
        404,
        Some("invalid_value"),
        Some("after"),
        "No such object in this list: file-nope",
    );
    assert_eq!(app.foreign(Method::GET, "/v1/files").await.json(), empty);
}

#[tokio::test]
async fn an_unknown_a_foreign_and_a_deleted_file_are_the_same() {
    let app = App::start().await;
    let id = app.upload(b"{}\n").await;
    let message = |id: &str| format!("No such File object: {id}");
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        app.foreign(Method::GET, &path)
            .await
            .assert_error(404, None, Some("id"), &message(&id));
    }
    let foreign = app
        .foreign(Method::DELETE, &format!("/v1/files/{id}"))
        .await;
    foreign.assert_error(404, None, Some("id"), &message(&id));
    let deleted = app.delete(&format!("/v1/files/{id}")).await;
    assert_eq!(
        deleted.json(),
        json!({"id": id, "object": "file", "deleted": true})
    );
    for id in [id.as_str(), "file-nope", "nonsense"] {
        app.get(&format!("/v1/files/{id}"))
            .await
            .assert_error(404, None, Some("id"), &message(id));
        app.get(&format!("/v1/files/{id}/content"))
            .await
            .assert_error(404, None, Some("id"), &message(id));
        app.delete(&format!("/v1/files/{id}")).await.assert_error(
            404,
            None,
            Some("id"),
            &message(id),
        );
    }
}

#[tokio::test]
async fn files_of_some_purposes_are_not_given_out() {
    let app = App::start().await;
    let file = ("file", Some("a.png"), b"x".as_slice());
    let made = send(&app, form(&[file, purpose("user_data")])).await.json();
    let path = format!("/v1/files/{}/content", made["id"].as_str().unwrap());
    app.get(&path).await.assert_error(
        400,
        None,
        None,
        "Not allowed to download files of purpose: user_data",
    );
}

#[tokio::test]
async fn an_upload_that_is_repeated_with_its_key_makes_one_file() {
    let app = App::start().await;
    let upload = async |key: &str, content: &[u8]| {
        let body = form(&[("file", Some("a.jsonl"), content), purpose("fine-tune")]);
        let request = app
            .request(Method::POST, "/v1/files")
            .header("content-type", "multipart/form-data; boundary=XX")
            .header("idempotency-key", key);
        Reply::of(request.body(body).send().await.unwrap()).await
    };
    let first = upload("k", b"{}\n").await;
    let second = upload("k", b"{}\n").await;
    assert_eq!(first.json(), second.json());
    assert_eq!(
        (
            first.header("idempotent-replayed"),
            second.header("idempotent-replayed")
        ),
        ("", "true")
    );
    assert_eq!(n_objects(&app), 1);
    upload("k", b"[]\n")
        .await
        .assert_refused("idempotency_key_reused", "Idempotency-Key");
    assert_eq!(n_objects(&app), 1);
}

#[tokio::test]
async fn what_was_deleted_is_made_anew_and_once() {
    let app = App::start().await;
    let upload = async |retry_count: u32| {
        let body = form(&[("file", Some("a"), b"words"), purpose("user_data")]);
        let request = app
            .request(Method::POST, "/v1/files")
            .header("content-type", "multipart/form-data; boundary=XX")
            .header("x-stainless-retry-count", retry_count);
        let reply = Reply::of(request.body(body).send().await.unwrap()).await;
        (
            reply.json()["id"].clone(),
            reply.header("idempotent-replayed") == "true",
        )
    };
    let (first, _) = upload(0).await;
    assert_eq!(upload(1).await, (first.clone(), true));
    let path = format!("/v1/files/{}", first.as_str().unwrap());
    assert_eq!(app.delete(&path).await.status, 200);
    let (second, is_replay) = upload(1).await;
    assert!(second != first && !is_replay, "{second}");
    assert_eq!(upload(2).await, (second, true));
}

/// The process's memory now. Bytes.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_passes_through_in_little_memory() {
    const CHUNK: usize = 64 * 1024;
    const N_CHUNKS: usize = 4096; // 256 MiB
    let app = App::start().await;
    app.upload(b"{}\n").await;
    let before = resident_bytes();
    let head =
        "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n";
    let tail = "\r\n--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--XX--\r\n";
    let chunk = bytes::Bytes::from(vec![b'x'; CHUNK]);
    let peak = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = peak.clone();
    let chunks = futures::stream::iter(0..N_CHUNKS).map(move |i| {
        if i % 64 == 0 {
            seen.fetch_max(resident_bytes(), std::sync::atomic::Ordering::Relaxed);
        }
        chunk.clone()
    });
    let body = futures::stream::iter([bytes::Bytes::from(head)])
        .chain(chunks)
        .chain(futures::stream::iter([bytes::Bytes::from(tail)]))
        .map(Ok::<_, std::io::Error>);
    let made = send(&app, reqwest::Body::wrap_stream(body)).await.json();
    assert_eq!(made["bytes"], json!(CHUNK * N_CHUNKS), "{made}");
    let grown = peak
        .load(std::sync::atomic::Ordering::Relaxed)
        .saturating_sub(before);
    assert!(
        grown < 32 * 1024 * 1024,
        "an upload of 256 MiB took {grown} bytes of memory"
    );
    let path = format!("/v1/files/{}/content", made["id"].as_str().unwrap());
    let mut content = app
        .request(Method::GET, &path)
        .send()
        .await
        .unwrap()
        .bytes_stream();
    let mut n = 0;
    while let Some(piece) = content.next().await {
        n += piece.unwrap().len();
    }
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(n, CHUNK * N_CHUNKS);
    assert!(
        grown < 32 * 1024 * 1024,
        "a download of 256 MiB took {grown} bytes of memory"
    );
}
