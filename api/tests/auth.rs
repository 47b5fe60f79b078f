//! Who may call.

use reqwest::Method;

use crate::support::{App, Reply, now};

async fn with(app: &App, name: &str, value: &str) -> Reply {
    let request = app
        .http
        .request(Method::GET, format!("{}/v1/models", app.base))
        .header(name, value);
    Reply::of(request.send().await.unwrap()).await
}

#[tokio::test]
async fn without_a_key_every_route_answers_401_before_anything_else() {
    let app = App::start().await;
    for (method, path) in [
        (Method::GET, "/v1/models"),
        (Method::POST, "/v1/fine_tuning/jobs"),
        (Method::POST, "/v1/chat/completions"),
        (Method::POST, "/v1/files"),
        (Method::PUT, "/v1/files"),
        (Method::GET, "/v1/no-such-route"),
    ] {
        let sent = app
            .http
            .request(method, format!("{}{path}", app.base))
            .body("{bad")
            .send()
            .await;
        Reply::of(sent.unwrap()).await.assert_error(
            401,
            None,
            None,
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer \
             auth (i.e. Authorization: Bearer YOUR_KEY). `luthier key create` makes one.",
        );
    }
}

#[tokio::test]
async fn a_wrong_key_is_named_by_its_ends_only() {
    let app = App::start().await;
    let reply = with(&app, "authorization", "Bearer sk-proj-0123456789abcdefghij").await;
    reply.assert_error(
        401,
        Some("invalid_api_key"),
        None,
        "Incorrect API key provided: sk-proj-…ghij. `luthier key create` makes one.",
    );
    assert_eq!(
        with(&app, "authorization", "Bearer \u{e4}").await.status,
        401
    );
}

#[tokio::test]
async fn the_scheme_is_bearer_however_it_is_spelled() {
    let app = App::start().await;
    assert_eq!(
        with(&app, "authorization", &format!("bEARER {}", app.key))
            .await
            .status,
        200
    );
    assert_eq!(
        with(&app, "authorization", &format!("Basic {}", app.key))
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn a_header_that_names_another_tenant_is_refused() {
    let app = App::start().await;
    let (organization, project) = (
        app.project.organization_id.as_str(),
        app.project.id.as_str(),
    );
    for (name, value, code) in [
        ("openai-organization", organization, None),
        ("openai-organization", "luthier", None),
        ("openai-project", project, None),
        (
            "openai-organization",
            "org-other",
            Some("invalid_organization"),
        ),
        ("openai-project", "proj_other", Some("invalid_project")),
    ] {
        let sent = app
            .request(Method::GET, "/v1/models")
            .header(name, value)
            .send()
            .await
            .unwrap();
        let reply = Reply::of(sent).await;
        match code {
            None => assert_eq!(reply.status, 200, "{name}: {value}"),
            Some(code) => {
                let message =
                    format!("The {name} header does not name what this API key belongs to.");
                reply.assert_error(401, Some(code), None, &message);
            }
        }
    }
}

#[tokio::test]
async fn a_revoked_key_that_was_never_used_opens_nothing() {
    let app = App::start().await;
    let keys = app.store.api_keys().list(&app.project.id).await.unwrap();
    assert!(
        app.store
            .api_keys()
            .revoke(&app.project.id, &keys[0].id, now())
            .await
            .unwrap()
    );
    assert_eq!(app.get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn health_needs_no_key() {
    let app = App::start().await;
    for base in [&app.base, &app.operational] {
        for (path, body) in [
            ("/healthz", r#"{"status":"ok"}"#),
            (
                "/readyz",
                r#"{"status":"ready","database":"ok","objects":"ok"}"#,
            ),
        ] {
            let reply =
                Reply::of(app.http.get(format!("{base}{path}")).send().await.unwrap()).await;
            assert_eq!(
                (reply.status.as_u16(), &reply.bytes[..]),
                (200, body.as_bytes()),
                "{path}"
            );
        }
    }
}
