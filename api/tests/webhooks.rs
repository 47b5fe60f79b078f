//! Webhook endpoints as their project keeps and tries them.

use domain::id::WebhookEndpointId;
use platform::webhook::SigningSecret;
use reqwest::Method;
use serde_json::{Value, json};
use tests::receiver::{Answer, Receiver};

use crate::support::{App, now};

const ENDPOINTS: &str = "/v1/webhook_endpoints";

/// An API whose receivers may be on loopback.
async fn app() -> App {
    App::start_with(|config| {
        config.webhooks.allowed_hosts = vec!["127.0.0.1".parse().unwrap()];
        config.webhooks.allow_http = true;
    })
    .await
}

fn order(url: &str) -> Value {
    json!({"name": "ends", "url": url, "event_types": ["fine_tuning.job.succeeded", "batch.failed"]})
}

async fn create(app: &App, url: &str) -> Value {
    let made = app.post(ENDPOINTS, order(url)).await;
    assert_eq!(made.status, 200, "{made:?}");
    made.json()
}

#[tokio::test]
async fn an_endpoint_is_made_seen_changed_and_deleted() {
    let app = app().await;
    let made = create(&app, "https://example.com/hook").await;
    let id = made["id"].as_str().unwrap().to_owned();
    let secret = made["signing_secret"].as_str().unwrap().to_owned();
    assert!(
        secret.starts_with("whsec_") && secret.len() == 50,
        "{secret}"
    );
    let hint = format!("whsec_…{}", &secret[secret.len() - 4..]);
    let mut shown = json!({
        "id": id, "object": "webhook_endpoint", "name": "ends", "url": "https://example.com/hook",
        "created_at": made["created_at"], "updated_at": made["created_at"],
        "event_types": ["fine_tuning.job.succeeded", "batch.failed"],
        "signing_secret_hint": hint, "x_disabled_at": null,
    });
    let path = format!("{ENDPOINTS}/{id}");
    assert_eq!(app.get(&path).await.json(), shown);
    let list = json!({"object": "list", "data": [shown], "first_id": id, "last_id": id, "has_more": false});
    assert_eq!(app.get(ENDPOINTS).await.json(), list);

    let unchanged = app.post(&path, json!({"name": "ends"})).await;
    assert_eq!(unchanged.json(), shown);
    let change =
        json!({"name": "other", "url": "http://127.0.0.1:9/x", "event_types": ["batch.expired"]});
    let changed = app.post(&path, change.clone()).await.json();
    for key in ["name", "url", "event_types"] {
        shown[key] = change[key].clone();
    }
    shown["updated_at"] = changed["updated_at"].clone();
    assert_eq!(changed, shown);
    assert_eq!(app.get(&path).await.json(), shown);

    let deleted = json!({"id": id, "object": "webhook_endpoint.deleted", "deleted": true});
    assert_eq!(app.delete(&path).await.json(), deleted);
    let gone = app.get(&path).await;
    gone.assert_error(
        404,
        None,
        Some("id"),
        &format!("No such webhook endpoint: {id}"),
    );
}

#[tokio::test]
async fn another_projects_endpoint_is_as_absent_as_one_that_never_was() {
    let app = app().await;
    let made = create(&app, "https://example.com/hook").await;
    let path = format!("{ENDPOINTS}/{}", made["id"].as_str().unwrap());
    for (method, path) in [(Method::GET, path.clone()), (Method::DELETE, path.clone())] {
        let foreign = app.foreign(method, &path).await;
        assert_eq!(foreign.status, 404);
    }
    let request = |path: String, body: Value| {
        let request = app.http.post(format!("{}{path}", app.base));
        request.bearer_auth(&app.other_key).json(&body).send()
    };
    for (tail, body) in [
        ("", json!({"name": "mine"})),
        ("/rotate_secret", json!({})),
        ("/test", json!({"event_type": "batch.failed"})),
    ] {
        let foreign = request(format!("{path}{tail}"), body).await.unwrap();
        assert_eq!(foreign.status(), 404, "{tail}");
    }
    let listed = app.foreign(Method::GET, ENDPOINTS).await.json();
    assert_eq!(listed["data"], json!([]));
    let shown = app.get(&path).await.json();
    assert_eq!(shown["signing_secret_hint"], made["signing_secret_hint"]);
}

#[tokio::test]
async fn what_cannot_be_told_or_called_is_refused_by_name() {
    let app = app().await;
    let order = |change: Value| {
        let mut order = order("https://example.com/hook");
        order
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        order
    };
    let cases = [
        (json!({"name": ""}), "invalid_value", "name"),
        (
            json!({"name": "x".repeat(257)}),
            "string_above_max_length",
            "name",
        ),
        (json!({"event_types": []}), "empty_array", "event_types"),
        (
            json!({"event_types": ["eval.run.succeeded"]}),
            "invalid_value",
            "event_types[0]",
        ),
        (
            json!({"event_types": "batch.failed"}),
            "invalid_type",
            "event_types",
        ),
        (json!({"secret": "x"}), "unknown_parameter", "secret"),
        (
            json!({"url": "http://169.254.169.254/latest"}),
            "invalid_value",
            "url",
        ),
        (json!({"url": "https://localhost/"}), "invalid_value", "url"),
        (
            json!({"url": "https://[::ffff:10.0.0.1]/"}),
            "invalid_value",
            "url",
        ),
        (
            json!({"url": "https://a:b@example.com/"}),
            "invalid_value",
            "url",
        ),
        (json!({"url": "ftp://example.com/"}), "invalid_value", "url"),
        (json!({"url": 5}), "invalid_type", "url"),
    ];
    for (change, code, param) in cases {
        let refused = app.post(ENDPOINTS, order(change.clone())).await;
        assert_eq!(refused.json()["error"]["code"], json!(code), "{change}");
        refused.assert_refused(code, param);
    }
    let refused = app
        .post(ENDPOINTS, order(json!({"url": "https://10.0.0.1/"})))
        .await;
    refused.assert_error(
        400,
        Some("invalid_value"),
        Some("url"),
        "Invalid 'url': '10.0.0.1' is not a public host.",
    );
    let made = create(&app, "https://example.com/hook").await;
    let path = format!("{ENDPOINTS}/{}", made["id"].as_str().unwrap());
    let refused = app
        .post(&path, json!({"url": "https://192.168.0.1/"}))
        .await;
    refused.assert_refused("invalid_value", "url");
    app.get(&format!("{ENDPOINTS}?after=we_x"))
        .await
        .assert_error(
            404,
            Some("invalid_value"),
            Some("after"),
            "No such object in this list: we_x",
        );
}

#[tokio::test]
async fn a_project_has_twenty_endpoints_at_most() {
    let app = app().await;
    for _ in 0..20 {
        create(&app, "https://1.1.1.1/").await;
    }
    let refused = app.post(ENDPOINTS, order("https://1.1.1.1/")).await;
    let code = &refused.json()["error"]["code"];
    assert_eq!(
        (refused.status.as_u16(), code),
        (400, &json!("webhook_endpoint_limit"))
    );
}

#[tokio::test]
async fn a_test_tells_what_the_receiver_answered_and_signs_as_a_delivery_does() {
    let app = app().await;
    let receiver = Receiver::start([Answer::Status(418)]).await.unwrap();
    let made = create(&app, &receiver.url()).await;
    let path = format!("{ENDPOINTS}/{}", made["id"].as_str().unwrap());
    let test = format!("{path}/test");
    let tested = app
        .post(&test, json!({"event_type": "batch.expired"}))
        .await;
    let expected = json!({
        "object": "webhook_endpoint.test", "webhook_endpoint_id": made["id"],
        "event_type": "batch.expired", "status_code": 418, "success": true,
    });
    assert_eq!(tested.json(), expected);
    let rotate = format!("{path}/rotate_secret");
    let keep = json!({"keep_old_secret_active_for_24_hours": true});
    let rotated = app.post(&rotate, keep).await.json();
    assert_ne!(rotated["signing_secret"], made["signing_secret"]);
    let again = app.post(&test, json!({"event_type": "batch.failed"})).await;
    assert_eq!(again.json()["status_code"], json!(200));
    app.post(&rotate, json!({})).await;
    app.post(&test, json!({"event_type": "batch.failed"})).await;

    let received = receiver.received();
    let signatures: Vec<usize> = received
        .iter()
        .map(|request| request.header("webhook-signature").split(' ').count())
        .collect();
    assert_eq!(signatures, [1, 2, 1]);
    let body: Value = serde_json::from_str(&received[0].body).unwrap();
    assert_eq!(body["type"], json!("batch.expired"));
    assert!(body["data"]["id"].as_str().unwrap().starts_with("batch_"));

    drop(receiver);
    let unreachable = app.post(&test, json!({"event_type": "batch.failed"})).await;
    let code = &unreachable.json()["error"]["code"];
    assert_eq!(
        (unreachable.status.as_u16(), code),
        (400, &json!("webhook_endpoint_unreachable"))
    );
}

#[tokio::test]
async fn a_secret_lies_in_the_database_sealed_for_its_row() {
    let app = app().await;
    let made = create(&app, "https://example.com/hook").await;
    let other = create(&app, "https://example.com/hook").await;
    let kept = app.store.webhooks().all_secrets().await.unwrap();
    for secret in [&made, &other].map(|made| made["signing_secret"].as_str().unwrap()) {
        let own_part = secret.strip_prefix("whsec_").unwrap();
        assert!(kept.iter().all(|kept| !kept.sealed.contains(own_part)));
    }
    // Moved into the other's row it signs nothing.
    let moved = app.store.webhooks().reseal(&kept[0], &kept[1].sealed);
    assert!(moved.await.unwrap());
    let (vault, mut statuses) = (app.config.vault().unwrap(), Vec::new());
    for endpoint in [&made, &other] {
        let id = WebhookEndpointId::parse(endpoint["id"].as_str().unwrap()).unwrap();
        let webhooks = app.store.webhooks();
        let kept = webhooks.secrets(&app.project.id, &id, now());
        let kept = kept.await.unwrap().remove(0);
        statuses.push(SigningSecret::open(&vault, &kept.id, &kept.sealed).is_ok());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [false, true]);
}

#[tokio::test]
async fn what_can_be_told_is_listed() {
    let app = app().await;
    let types = app.get("/v1/webhook_event_types").await.json();
    assert_eq!(types["object"], json!("list"));
    let names = types["data"].as_array().unwrap();
    for name in [
        "fine_tuning.job.succeeded",
        "batch.completed",
        "batch.expired",
    ] {
        assert!(names.contains(&json!(name)), "{names:?}");
    }
}
