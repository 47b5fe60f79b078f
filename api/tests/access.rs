//! What each kind of key opens: every operation of the document, tried.

use domain::scope::Scopes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, Reply, make_key_with};

/// Method, path with the parameters filled in, and the name of its security scheme.
fn operations() -> Vec<(Method, String, String)> {
    let document: Value = serde_json::from_str(&api::openapi_document()).unwrap();
    let paths = document["paths"].as_object().unwrap().clone();
    let of_v1 = paths
        .into_iter()
        .filter(|(path, _)| path.starts_with("/v1/"));
    of_v1
        .flat_map(|(path, methods)| {
            let path = path.replace(['{', '}'], "");
            let methods = methods.as_object().unwrap().clone();
            methods.into_iter().map(move |(method, operation)| {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                let scheme = operation["security"][0].as_object().unwrap().keys().next();
                (method, path.clone(), scheme.unwrap().clone())
            })
        })
        .collect()
}

fn of_scheme(name: &str) -> impl Iterator<Item = (Method, String)> {
    let operations = operations().into_iter();
    let of_scheme = operations.filter(move |(_, _, scheme)| scheme == name);
    of_scheme.map(|(method, path, _)| (method, path))
}

async fn key_with(app: &App, scopes: &[&str]) -> String {
    let scopes = Scopes::parse(scopes).unwrap();
    let project = &app.project.id;
    make_key_with(&app.store, &app.config, project, |key| key.scopes = scopes).await
}

#[track_caller]
fn assert_insufficient(reply: &Reply, what: &str) {
    let code = &reply.json()["error"]["code"];
    let expected = (403, &json!("insufficient_permissions"));
    assert_eq!((reply.status.as_u16(), code), expected, "{what}: {reply:?}");
}

#[test]
fn every_route_stands_in_the_table_and_asks_for_the_key_that_it_says() {
    for (method, path, scheme) in operations() {
        assert!(
            api::access::is_listed(&path),
            "{method} {path} has no row in api/src/access.rs: say there which resource it is about"
        );
        let is_organization = ["/v1/organization", "/v1/fine_tuning/checkpoints"]
            .iter()
            .any(|prefix| path.starts_with(prefix));
        let expected = if is_organization {
            "AdminApiKey"
        } else {
            "ApiKey"
        };
        assert_eq!(scheme, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn a_key_that_reads_writes_nowhere() {
    let app = App::start().await;
    let key = key_with(&app, &["api.read"]).await;
    let mut n_writing = 0;
    for (method, path) in of_scheme("ApiKey").filter(|(method, _)| *method != Method::GET) {
        let reply = app.with_key(&key, method.clone(), &path).await;
        assert_insufficient(&reply, &format!("{method} {path}"));
        n_writing += 1;
    }
    assert!(n_writing >= 9, "{n_writing} operations");
    for path in ["/v1/files", "/v1/models", "/v1/fine_tuning/jobs"] {
        let reply = app.with_key(&key, Method::GET, path).await;
        assert_eq!(reply.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_restricted_key_opens_what_it_names_and_nothing_else() {
    let app = App::start().await;
    let key = key_with(&app, &["api.files.write"]).await;
    for (method, path) in of_scheme("ApiKey") {
        let reply = app.with_key(&key, method.clone(), &path).await;
        if path.starts_with("/v1/files") || path.starts_with("/v1/uploads") {
            assert_ne!(reply.status, 403, "{method} {path}: {reply:?}");
        } else {
            assert_insufficient(&reply, &format!("{method} {path}"));
        }
    }
    let lacking = app.with_key(&key, Method::GET, "/v1/models").await;
    lacking.assert_error(
        403,
        Some("insufficient_permissions"),
        None,
        "You have insufficient permissions for this operation. Missing scopes: api.model.read. Check that you have the \
         correct role in your organization (Reader, Owner) and project (Member, Owner), and if you're using a restricted \
         API key, that it has the necessary scopes.",
    );
}

#[tokio::test]
async fn a_path_without_a_row_is_closed_to_restricted_keys() {
    let app = App::start().await;
    let key = key_with(&app, &["api.files.write"]).await;
    for path in [
        "/v1",
        "/v1/nothing",
        "/v1/filesystem",
        "/v1/%66iles",
        "/v1//files",
    ] {
        let reply = app.with_key(&key, Method::GET, path).await;
        assert_insufficient(&reply, path);
        assert_eq!(app.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn an_admin_key_opens_no_route_of_a_project() {
    let app = App::start().await;
    for (method, path) in of_scheme("ApiKey") {
        let reply = app.with_key(&app.admin_key, method.clone(), &path).await;
        assert_insufficient(&reply, &format!("{method} {path}"));
    }
    let reply = app
        .with_key(&app.admin_key, Method::GET, "/v1/nothing")
        .await;
    assert_insufficient(&reply, "/v1/nothing");
}

#[tokio::test]
async fn a_project_s_key_opens_no_route_of_the_organization() {
    let app = App::start().await;
    for (method, path) in of_scheme("AdminApiKey") {
        let reply = app.with_key(&app.key, method.clone(), &path).await;
        assert_insufficient(&reply, &format!("{method} {path}"));
    }
    for path in ["/v1/organization", "/v1/organization/projects"] {
        app.get(path).await.assert_error(
            403,
            Some("insufficient_permissions"),
            None,
            "You have insufficient permissions for this operation. Missing scopes: api.management.read. Check that you \
             have the correct role in your organization (Reader, Owner) and project (Member, Owner), and if you're using \
             a restricted API key, that it has the necessary scopes.",
        );
    }
}
