//! `/v1/uploads`.

use domain::id::{FileId, UploadId};
use domain::upload::{LIFETIME_S, Upload, UploadState};
use futures::future::join_all;
use reqwest::Method;
use reqwest::multipart;
use serde_json::{Value, json};
use store::IdempotencyEntry;

use crate::support::{self, App, Reply, now};

const NAME: &str = "big.jsonl";
const WHOLE: &[u8] = b"{\"a\": 1}\n{\"b\": 2}\n";
/// Of [`WHOLE`]; printed by md5sum.
const MD5: &str = "f64b09016f1c93e8c72b45c601a5f6d9";

async fn announce(app: &App, bytes: usize) -> String {
    let order = json!({"filename": NAME, "purpose": "fine-tune", "bytes": bytes, "mime_type": "text/jsonl"});
    let made = app.post("/v1/uploads", order).await;
    made.json()["id"].as_str().unwrap().to_owned()
}

async fn send_part(app: &App, upload: &str, data: &[u8]) -> Reply {
    let part = multipart::Part::bytes(data.to_vec()).file_name("upload");
    let form = multipart::Form::new().part("data", part);
    let request = app.request(Method::POST, &format!("/v1/uploads/{upload}/parts"));
    Reply::of(request.multipart(form).send().await.unwrap()).await
}

async fn add(app: &App, upload: &str, data: &[u8]) -> String {
    let reply = send_part(app, upload, data).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["id"].as_str().unwrap().to_owned()
}

async fn complete(app: &App, upload: &str, body: Value) -> Reply {
    app.post(&format!("/v1/uploads/{upload}/complete"), body)
        .await
}

async fn cancel(app: &App, upload: &str) -> Reply {
    app.post(&format!("/v1/uploads/{upload}/cancel"), json!({}))
        .await
}

async fn n_objects(app: &App, folder: &str) -> usize {
    let prefix = format!("projects/{}/{folder}/", app.project.id);
    app.objects.list(&prefix).await.unwrap().len()
}

#[track_caller]
fn assert_over(reply: &Reply, status: &str) {
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status.as_u16(), &error["code"]),
        (400, &json!("invalid_upload_state")),
        "{error}"
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&format!(" is {status}")), "{message}");
}

#[tokio::test]
async fn parts_become_a_file_in_the_order_in_which_they_are_named() {
    let app = App::start().await;
    let order = json!({
        "filename": NAME, "purpose": "fine-tune", "bytes": WHOLE.len(), "mime_type": "text/jsonl",
        "expires_after": {"anchor": "created_at", "seconds": 7200},
    });
    let made = app.post("/v1/uploads", order).await.json();
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("upload_"), "{made}");
    let created_at = made["created_at"].as_i64().unwrap();
    let mut expected = json!({
        "id": id, "object": "upload", "bytes": WHOLE.len(), "created_at": created_at, "filename": NAME,
        "purpose": "fine-tune", "status": "pending", "expires_at": created_at + 3600, "file": null,
    });
    assert_eq!(made, expected);

    let sent = join_all([&WHOLE[10..], &WHOLE[..10]].map(|data| send_part(&app, id, data))).await;
    let parts: Vec<Value> = sent.iter().map(Reply::json).collect();
    for part in &parts {
        assert!(part["id"].as_str().unwrap().starts_with("part_"));
        let shown = json!({"id": part["id"], "created_at": part["created_at"], "object": "upload.part", "upload_id": id});
        assert_eq!(part, &shown);
    }
    let part_ids = [&parts[1]["id"], &parts[0]["id"]];
    let reply = complete(
        &app,
        id,
        json!({"part_ids": part_ids, "md5": MD5.to_uppercase()}),
    )
    .await;
    let done = reply.json();
    let file = &done["file"];
    expected["status"] = json!("completed");
    expected["file"] = json!({
        "id": file["id"], "object": "file", "bytes": WHOLE.len(), "created_at": file["created_at"],
        "expires_at": file["created_at"].as_i64().unwrap() + 7200, "filename": NAME, "purpose": "fine-tune",
        "status": "processed", "status_details": null,
    });
    assert_eq!(done, expected);
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(&app.get(&path).await.json(), file);
    assert_eq!(&app.get(&format!("{path}/content")).await.bytes[..], WHOLE);
    // As the hash of a file that came whole.
    let uploaded = file["id"].as_str().unwrap();
    assert_eq!(
        sha256(&app, uploaded).await,
        sha256(&app, &app.upload(WHOLE).await).await
    );
}

async fn sha256(app: &App, file: &str) -> String {
    let id = FileId::parse(file).unwrap();
    let found = app.store.files().find(&app.project.id, &id).await;
    found.unwrap().unwrap().sha256
}

#[tokio::test]
async fn what_is_announced_wrongly_is_refused_by_name() {
    let app = App::start_with(|config| config.api.max_upload_bytes = 1000).await;
    let good =
        json!({"filename": NAME, "purpose": "fine-tune", "bytes": 1000, "mime_type": "text/jsonl"});
    assert_eq!(app.post("/v1/uploads", good.clone()).await.status, 200);
    let cases = [
        ("filename", json!(null), "invalid_type", "filename"),
        ("purpose", json!("nonsense"), "invalid_value", "purpose"),
        (
            "purpose",
            json!("fine-tune-results"),
            "invalid_value",
            "purpose",
        ),
        ("bytes", json!(0), "integer_below_min_value", "bytes"),
        ("bytes", json!(1001), "integer_above_max_value", "bytes"),
        ("bytes", json!("7"), "invalid_type", "bytes"),
        ("mime_type", json!(7), "invalid_type", "mime_type"),
        (
            "expires_after",
            json!({"seconds": 7200}),
            "missing_required_parameter",
            "expires_after.anchor",
        ),
        (
            "expires_after",
            json!({"anchor": "created_at", "seconds": 7}),
            "integer_below_min_value",
            "expires_after.seconds",
        ),
        ("color", json!("red"), "unknown_parameter", "color"),
    ];
    for (key, value, code, param) in cases {
        let mut order = good.clone();
        order[key] = value;
        app.post("/v1/uploads", order)
            .await
            .assert_refused(code, param);
    }
    for key in ["filename", "purpose", "bytes", "mime_type"] {
        let mut order = good.clone();
        order.as_object_mut().unwrap().remove(key);
        app.post("/v1/uploads", order)
            .await
            .assert_refused("missing_required_parameter", key);
    }
    let mut order = good;
    order["filename"] = json!("a.txt");
    let message = "Invalid file format for Fine-Tuning API. Must be .jsonl";
    app.post("/v1/uploads", order)
        .await
        .assert_error(400, None, Some("filename"), message);
}

#[tokio::test]
async fn parts_that_are_not_what_was_announced_make_no_file() {
    let app = App::start().await;
    let id = announce(&app, 10).await;
    let (a, b) = (
        add(&app, &id, b"12345").await,
        add(&app, &id, b"67890").await,
    );
    let elsewhere = announce(&app, 5).await;
    let foreign = add(&app, &elsewhere, b"12345").await;
    let refused = async |body: Value, param: &str| {
        let reply = complete(&app, &id, body).await;
        reply.assert_refused("invalid_value", param);
        reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let message = refused(json!({"part_ids": [a]}), "part_ids").await;
    assert_eq!(
        message,
        "Invalid 'part_ids': the parts have 5 bytes together, but the upload was created for 10 bytes."
    );
    refused(json!({"part_ids": [a, a]}), "part_ids[1]").await;
    for unknown in [foreign.as_str(), "part_nope", "nonsense"] {
        let message = refused(json!({"part_ids": [a, unknown]}), "part_ids[1]").await;
        assert_eq!(
            message,
            format!("Invalid 'part_ids[1]': no such part of this upload: {unknown}")
        );
    }
    refused(json!({"part_ids": [a, b], "md5": "x"}), "md5").await;
    let message = refused(json!({"part_ids": [a, b], "md5": "0".repeat(32)}), "md5").await;
    // printf 1234567890 | md5sum
    assert!(
        message.contains("e807f1fcf82d132f9bb018ca6738a19f"),
        "{message}"
    );
    complete(&app, &id, json!({"part_ids": []}))
        .await
        .assert_refused("empty_array", "part_ids");
    assert_eq!(n_objects(&app, "files").await, 0);
    assert_eq!(app.get("/v1/files").await.json()["data"], json!([]));
    // It is pending still.
    let done = complete(&app, &id, json!({"part_ids": [b, a]}))
        .await
        .json();
    let path = format!("/v1/files/{}/content", done["file"]["id"].as_str().unwrap());
    assert_eq!(&app.get(&path).await.bytes[..], b"6789012345");
}

#[tokio::test]
async fn an_upload_that_is_over_takes_nothing_more() {
    let app = App::start().await;
    let completed = announce(&app, 5).await;
    let part = add(&app, &completed, b"12345").await;
    assert_eq!(
        complete(&app, &completed, json!({"part_ids": [part]}))
            .await
            .status,
        200
    );
    let cancelled = announce(&app, 5).await;
    add(&app, &cancelled, b"12345").await;
    let reply = cancel(&app, &cancelled).await.json();
    assert_eq!(
        (&reply["status"], &reply["file"]),
        (&json!("cancelled"), &json!(null))
    );
    let expired = expired_upload(&app).await;
    let before = n_objects(&app, "uploads").await;
    for (id, status) in [
        (&completed, "completed"),
        (&cancelled, "cancelled"),
        (&expired, "expired"),
    ] {
        assert_over(&send_part(&app, id, b"x").await, status);
        assert_over(
            &complete(&app, id, json!({"part_ids": [part]})).await,
            status,
        );
        assert_over(&cancel(&app, id).await, status);
    }
    assert_eq!(n_objects(&app, "uploads").await, before);
    assert_eq!(n_objects(&app, "files").await, 1);
}

async fn expired_upload(app: &App) -> String {
    let created_at = now().plus_s(-LIFETIME_S);
    let upload = Upload {
        id: UploadId::mint(rand::random()),
        project_id: app.project.id.clone(),
        filename: NAME.to_owned(),
        purpose: domain::file::Purpose::FineTune,
        size_bytes: 5,
        file_lifetime_s: None,
        created_at,
        expires_at: created_at.plus_s(LIFETIME_S),
        state: UploadState::Pending,
    };
    let request = IdempotencyEntry {
        endpoint: "test".to_owned(),
        key: None,
        api_key_id: domain::id::KeyId::mint(rand::random()),
        fingerprint: String::new(),
        began_at: created_at,
        repeats_since: None,
        expires_at: now(),
    };
    app.store.uploads().insert(&upload, &request).await.unwrap();
    upload.id.to_string()
}

#[tokio::test]
async fn an_upload_is_completed_once_however_often_it_is_asked_for() {
    let app = App::start().await;
    let id = announce(&app, 5).await;
    let part = add(&app, &id, b"12345").await;
    let path = format!("/v1/uploads/{id}/complete");
    let send = async |header: &str, value: &str| {
        let request = app.request(Method::POST, &path).header(header, value);
        Reply::of(
            request
                .json(&json!({"part_ids": [part]}))
                .send()
                .await
                .unwrap(),
        )
        .await
    };
    let replies = join_all((0..4).map(|_| send("x-a", "b"))).await;
    let (done, refused): (Vec<&Reply>, Vec<&Reply>) =
        replies.iter().partition(|reply| reply.status == 200);
    assert_eq!((done.len(), refused.len()), (1, 3));
    refused
        .iter()
        .for_each(|reply| assert_over(reply, "completed"));
    assert_eq!(n_objects(&app, "files").await, 1);
    // An SDK that did not hear the answer is told again.
    let again = send("x-stainless-retry-count", "1").await;
    assert_eq!(
        (again.json(), again.header("idempotent-replayed")),
        (done[0].json(), "true")
    );

    let id = announce(&app, 5).await;
    let part = add(&app, &id, b"12345").await;
    let path = format!("/v1/uploads/{id}/complete");
    let keyed = async || {
        let request = app
            .request(Method::POST, &path)
            .header("idempotency-key", "k");
        Reply::of(
            request
                .json(&json!({"part_ids": [part]}))
                .send()
                .await
                .unwrap(),
        )
        .await
    };
    let replies = join_all((0..3).map(|_| keyed())).await;
    for reply in &replies {
        assert_eq!(
            (reply.status.as_u16(), reply.json()),
            (200, replies[0].json())
        );
    }
    assert_eq!(n_objects(&app, "files").await, 2);
}

#[tokio::test]
async fn the_same_announcement_sent_again_is_the_same_upload() {
    let app = App::start().await;
    let order =
        json!({"filename": NAME, "purpose": "fine-tune", "bytes": 5, "mime_type": "text/jsonl"});
    let send = async |header: &str, value: &str, order: &Value| {
        let request = app
            .request(Method::POST, "/v1/uploads")
            .header(header, value);
        Reply::of(request.json(order).send().await.unwrap()).await
    };
    let first = send("idempotency-key", "k", &order).await;
    for (header, value) in [("idempotency-key", "k"), ("x-stainless-retry-count", "1")] {
        let again = send(header, value, &order).await;
        assert_eq!(
            (again.json(), again.header("idempotent-replayed")),
            (first.json(), "true")
        );
    }
    let mut other = order.clone();
    other["bytes"] = json!(6);
    send("idempotency-key", "k", &other)
        .await
        .assert_refused("idempotency_key_reused", "Idempotency-Key");
    assert_ne!(
        send("x-a", "b", &order).await.json()["id"],
        first.json()["id"]
    );
}

#[tokio::test]
async fn another_projects_upload_is_as_absent_as_one_that_never_was() {
    let app = App::start().await;
    let id = announce(&app, 5).await;
    let part = add(&app, &id, b"12345").await;
    let bearer = format!("Bearer {}", app.other_key);
    let foreign = async |path: &str, body: Value| {
        let request = app
            .http
            .post(format!("{}{path}", app.base))
            .header("authorization", &bearer);
        Reply::of(request.json(&body).send().await.unwrap()).await
    };
    for id in [id.as_str(), "upload_nope", "nonsense"] {
        let message = format!("No such Upload object: {id}");
        let body = json!({"part_ids": [part]});
        for reply in [
            foreign(&format!("/v1/uploads/{id}/complete"), body).await,
            foreign(&format!("/v1/uploads/{id}/cancel"), json!({})).await,
            foreign(&format!("/v1/uploads/{id}/parts"), json!({})).await,
        ] {
            reply.assert_error(404, None, Some("id"), &message);
        }
    }
    // Nor are its parts somebody else's.
    let order =
        json!({"filename": NAME, "purpose": "fine-tune", "bytes": 5, "mime_type": "text/jsonl"});
    let theirs = foreign("/v1/uploads", order).await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let reply = foreign(
        &format!("/v1/uploads/{theirs}/complete"),
        json!({"part_ids": [part]}),
    )
    .await;
    reply.assert_refused("invalid_value", "part_ids[0]");
    assert_eq!(
        complete(&app, &id, json!({"part_ids": [part]}))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_part_has_its_limit_and_so_have_all_together() {
    let app = App::start_with(|config| config.api.max_upload_bytes = 8).await;
    let id = announce(&app, 8).await;
    add(&app, &id, b"12345").await;
    let reply = send_part(&app, &id, b"1234").await;
    let message = format!("The upload {id} takes no more parts: at most 8 bytes are accepted.");
    reply.assert_error(400, Some("invalid_value"), Some("data"), &message);
    let path = format!("/v1/uploads/{id}/parts");
    let form = "multipart/form-data; boundary=XX";
    let head = "--XX\r\nContent-Disposition: form-data; name=\"data\"; filename=\"x\"\r\n\r\n";
    let body = support::body(head.into(), (64 << 20) + 1, "\r\n--XX--\r\n".into());
    let large = app
        .request(Method::POST, &path)
        .header("content-type", form);
    let large = Reply::of(large.body(body).send().await.unwrap()).await;
    let message = "The request body is too large: at most 67108864 bytes are accepted.";
    large.assert_error(413, None, None, message);
    let empty = app
        .request(Method::POST, &path)
        .multipart(multipart::Form::new().text("color", "red"));
    Reply::of(empty.send().await.unwrap())
        .await
        .assert_refused("unknown_parameter", "color");
    let file = app
        .request(Method::POST, &path)
        .header("content-type", form);
    let file = Reply::of(file.body("--XX--\r\n").send().await.unwrap()).await;
    file.assert_refused("missing_required_parameter", "data");
    assert_eq!(n_objects(&app, "uploads").await, 1);
}

#[tokio::test]
async fn uploads_are_refused_where_the_project_has_no_room() {
    let app = App::start_with(|config| config.limits.stored_bytes = 10).await;
    let order = |bytes: usize| json!({"filename": NAME, "purpose": "fine-tune", "bytes": bytes, "mime_type": "text/jsonl"});
    let refused = app.post("/v1/uploads", order(11)).await;
    let message = |stored: u64| {
        format!(
            "This project may store 10 bytes of files, and {stored} are stored: there is no room for this one. Please delete \
             files, or ask an administrator for a higher x_max_stored_bytes."
        )
    };
    let code = Some("storage_limit_exceeded");
    refused.assert_error(400, code, Some("bytes"), &message(0));
    // Either has room alone: what is sent first takes it.
    let [first, second] = [announce(&app, 8).await, announce(&app, 8).await];
    let part = add(&app, &first, b"{\"a\":1}").await;
    let refused = send_part(&app, &second, b"{ }\n").await;
    refused.assert_error(400, code, None, &message(7));
    let more = add(&app, &second, b"{}").await;
    let refused = app.post("/v1/uploads", order(2)).await;
    refused.assert_error(400, code, Some("bytes"), &message(9));
    let rest = add(&app, &first, b"\n").await;
    assert_eq!(n_objects(&app, "uploads").await, 3);
    let completed = complete(&app, &first, json!({"part_ids": [part, rest]})).await;
    assert_eq!(completed.status, 200, "{completed:?}");
    // Parts that are given up make room.
    assert_eq!(cancel(&app, &second).await.status, 200);
    let third = announce(&app, 2).await;
    let same = add(&app, &third, b"{}").await;
    assert_ne!(same, more);
    let completed = complete(&app, &third, json!({"part_ids": [same]})).await;
    assert_eq!(completed.status, 200, "{completed:?}");
}
