//! The document is what the code says.

use std::path::Path;

use serde_json::Value;

use crate::support::App;

fn document() -> Value {
    serde_json::from_str(&api::openapi_document()).unwrap()
}

#[test]
fn the_committed_document_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi/openapi.json");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == api::openapi_document(),
        "openapi/openapi.json is not what the routes say; regenerate it: cargo run -- openapi > openapi/openapi.json"
    );
}

#[test]
fn every_operation_of_v1_needs_a_key_and_says_how_it_fails() {
    let document = document();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let has_key = operation["security"]
                .as_array()
                .is_some_and(|schemes| !schemes.is_empty());
            assert_eq!(has_key, path.starts_with("/v1/"), "{method} {path}");
            assert!(operation["operationId"].is_string(), "{method} {path}");
            if has_key {
                for status in ["400", "401", "403", "404", "500", "503"] {
                    let error = &operation["responses"][status]["content"]["application/json; charset=utf-8"];
                    assert_eq!(
                        error["schema"]["$ref"], "#/components/schemas/ErrorResponse",
                        "{method} {path}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn every_documented_path_is_served() {
    let app = App::start().await;
    let document = document();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let url = path.replace(['{', '}'], "");
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let is_admins = operation["security"][0]["AdminApiKey"].is_array();
            let key = if is_admins { &app.admin_key } else { &app.key };
            let reply = app.with_key(key, method.clone(), &url).await;
            let text = String::from_utf8_lossy(&reply.bytes).into_owned();
            assert!(
                !text.contains("Invalid URL") && reply.status != 405,
                "{method} {url}: {text}"
            );
        }
    }
}
