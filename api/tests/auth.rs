//! Who may call.

use domain::api_key::{KeyKind, spell};
use domain::audit::AuditKind;
use domain::id::{ProjectId, base62};
use domain::page::{Order, PageRequest};
use domain::project::Project;
use reqwest::Method;
use store::AccessFilter;

use crate::support::{App, Reply, api_without_tables, entry, make_key, make_key_with, now};

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
async fn two_keys_are_none() {
    let app = App::start().await;
    for second in [&app.key, &app.other_key] {
        let request = app
            .request(Method::GET, "/v1/models")
            .header("authorization", format!("Bearer {second}"));
        let reply = Reply::of(request.send().await.unwrap()).await;
        assert_eq!(reply.status, 401);
        assert_eq!(reply.header("www-authenticate"), "Bearer");
    }
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
    let keys = app.store.api_keys();
    let page = PageRequest {
        after: None,
        limit: 9,
        order: Order::NewestFirst,
    };
    let listed = keys.list(&app.project.id, AccessFilter::Any, &page).await;
    let id = &listed.unwrap().items[0].key.id;
    let organization = &app.project.organization_id;
    let deleted = entry(organization, AuditKind::ApiKeyDeleted, id.as_str());
    assert_eq!(keys.revoke(&app.project.id, id, &deleted).await, Ok(true));
    assert_eq!(app.get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn an_expired_key_opens_nothing_though_it_did_before() {
    let app = App::start().await;
    let project = &app.project.id;
    let key = make_key_with(&app.store, &app.config, project, |key| {
        key.expires_at = Some(now().plus_s(1));
    })
    .await;
    let get = || app.with_key(&key, Method::GET, "/v1/models");
    assert_eq!(get().await.status, 200);
    let expired = loop {
        let reply = get().await;
        if reply.status != 200 {
            break reply;
        }
    };
    let error = &expired.json()["error"];
    assert_eq!(
        (expired.status.as_u16(), error["code"].as_str()),
        (401, Some("expired_api_key"))
    );
}

#[tokio::test]
async fn a_key_from_before_checksums_opens_its_project() {
    let app = App::start().await;
    let former = format!("sk-proj-{}", base62(&rand::random::<[u8; 48]>()));
    let hmac = api::auth::key_hmac(app.config.key_pepper().unwrap(), &former);
    let project = &app.project.id;
    make_key_with(&app.store, &app.config, project, |key| key.hmac = hmac).await;
    let reply = app.with_key(&former, Method::GET, "/v1/models").await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn a_key_with_a_typing_error_costs_no_query() {
    // Where there is no table, a query is an error.
    let (base, _folder) = api_without_tables().await;
    let ask = |key: String| {
        let request = reqwest::Client::new().get(format!("{base}/v1/models"));
        async move { Reply::of(request.bearer_auth(key).send().await.unwrap()).await }
    };
    for kind in [KeyKind::Project, KeyKind::ServiceAccount, KeyKind::Admin] {
        let key = spell(kind, &rand::random());
        let (head, last) = key.split_at(key.len() - 1);
        let wrong = format!("{head}{}", if last == "0" { "1" } else { "0" });
        assert_eq!(ask(wrong).await.status, 401, "{kind:?}");
        assert_eq!(
            ask(key).await.status,
            500,
            "{kind:?}: this one is looked up"
        );
    }
}

#[tokio::test]
async fn odd_authorization_headers_are_refused() {
    let app = App::start().await;
    let good = format!("Bearer {}", app.key);
    let twice = app
        .request(Method::GET, "/v1/models")
        .header("authorization", &good);
    let twice = Reply::of(twice.send().await.unwrap()).await;
    assert_eq!(twice.status, 401, "two headers");
    for value in [
        "Bearer ".to_owned(),
        "Bearer".to_owned(),
        format!("Bearer {}", "a".repeat(10_000)),
        format!("Bearer {}\u{ff10}", app.key),
        format!("{good} {}", app.key),
        good.replace("sk-proj-", "sk-admin-"),
    ] {
        let reply = with(&app, "authorization", &value).await;
        assert_eq!(reply.status, 401, "{value}");
    }
    let in_query = app
        .http
        .get(format!("{}/v1/models?api_key={}", app.base, app.key));
    assert_eq!(in_query.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn an_admin_key_names_its_organization_whatever_the_project() {
    let app = App::start().await;
    for (name, value, status) in [
        ("openai-organization", "luthier", 404),
        ("openai-organization", "org-other", 401),
        ("openai-project", "proj_other", 404),
    ] {
        let url = format!("{}/v1/organization/nothing", app.base);
        let request = app
            .http
            .get(url)
            .bearer_auth(&app.admin_key)
            .header(name, value);
        let reply = Reply::of(request.send().await.unwrap()).await;
        assert_eq!(reply.status, status, "{name}: {value}");
        if status == 404 {
            assert_eq!(reply.header("openai-organization"), "luthier");
        }
    }
}

#[tokio::test]
async fn a_key_of_an_archived_project_says_so() {
    let app = App::start().await;
    let archived = Project {
        id: ProjectId::mint(rand::random()),
        name: "old".to_owned(),
        archived_at: Some(now()),
        ..app.project.clone()
    };
    app.store.projects().insert(&archived).await.unwrap();
    let key = make_key(&app.store, &app.config, &archived.id).await;
    let reply = app.with_key(&key, Method::GET, "/v1/models").await;
    let message = format!(
        "The project {} of this API key is archived: its keys open nothing any more. Use a key of another project.",
        archived.id
    );
    reply.assert_error(401, Some("project_archived"), None, &message);
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
