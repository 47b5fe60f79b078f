//! Every change is told, with who made it.

use std::collections::BTreeSet;

use domain::audit::AuditKind;
use domain::id::JobId;
use domain::user::OrganizationRole;
use serde_json::Value;
use serde_json::json;
use store::AuditVerdict;

use super::{DELETE, GET, POST, add_user, new_project, ok, text};
use crate::support::{App, BASE_MODEL, make_key_with};

/// Every operation that changes something, one after another: what it answers is used by the next.
async fn change_everything(app: &App) -> usize {
    let ada = add_user(app, "ada@example.com", OrganizationRole::Owner)
        .await
        .id;
    add_user(app, "ben@example.com", OrganizationRole::Owner).await;
    let job = app.new_job(json!({})).await;
    let model = app.succeed(&JobId::parse(&job).unwrap()).await;
    let project = new_project(app, "walked").await;
    let of = format!("/organization/projects/{project}");
    let id_of =
        async |path: String, body: Value| text(&ok(app.admin(POST, &path, body).await), "id");
    let account = id_of(format!("{of}/service_accounts"), json!({"name": "bot"})).await;
    let invite = json!({"email": "eve@example.com", "role": "owner"});
    let invite = id_of("/organization/invites".to_owned(), invite).await;
    let admin_key = id_of(
        "/organization/admin_api_keys".to_owned(),
        json!({"name": "k"}),
    )
    .await;
    let permissions = format!("/fine_tuning/checkpoints/{model}/permissions");
    let granted = app
        .admin(POST, &permissions, json!({"project_ids": [project]}))
        .await;
    let permission = text(&ok(granted)["data"][0], "id");
    let id = domain::id::ProjectId::parse(&project).unwrap();
    make_key_with(&app.store, &app.config, &id, |_key| {}).await;
    let keys = ok(app.admin(GET, &format!("{of}/api_keys"), Value::Null).await);
    let key = keys["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["owner"] == json!({}));
    let key = text(key.unwrap(), "id");
    let changes = [
        (POST, of.clone(), json!({"name": "renamed"})),
        (
            POST,
            format!("{of}/service_accounts/{account}"),
            json!({"role": "owner"}),
        ),
        (
            POST,
            format!("{of}/service_accounts/{account}/api_keys"),
            json!({}),
        ),
        (
            POST,
            format!("{of}/users"),
            json!({"user_id": ada.as_str(), "role": "member"}),
        ),
        (POST, format!("{of}/users/{ada}"), json!({"role": "owner"})),
        (
            POST,
            format!("{of}/model_permissions"),
            json!({"mode": "deny_list", "model_ids": ["a"]}),
        ),
        (DELETE, format!("{of}/model_permissions"), Value::Null),
        (
            POST,
            format!("{of}/spend_limit"),
            json!({"threshold_amount": 5, "currency": "USD", "interval": "month"}),
        ),
        (DELETE, format!("{of}/spend_limit"), Value::Null),
        (
            POST,
            format!("{of}/rate_limits/rl-{BASE_MODEL}"),
            json!({"max_requests_per_1_minute": 5}),
        ),
        (DELETE, format!("{of}/users/{ada}"), Value::Null),
        (DELETE, format!("{of}/api_keys/{key}"), Value::Null),
        (
            DELETE,
            format!("{of}/service_accounts/{account}"),
            Value::Null,
        ),
        (DELETE, format!("{permissions}/{permission}"), Value::Null),
        (POST, format!("{of}/archive"), Value::Null),
        (
            DELETE,
            format!("/organization/invites/{invite}"),
            Value::Null,
        ),
        (
            DELETE,
            format!("/organization/admin_api_keys/{admin_key}"),
            Value::Null,
        ),
        (
            POST,
            format!("/organization/users/{ada}"),
            json!({"role": "reader"}),
        ),
        (DELETE, format!("/organization/users/{ada}"), Value::Null),
    ];
    let n_made = 5; // project, service account, invitation, admin key, permission
    let n = n_made + changes.len();
    for (method, path, body) in changes {
        ok(app.admin(method, &path, body).await);
    }
    n
}

#[tokio::test]
async fn every_change_is_one_entry_with_who_where_and_what() {
    let app = App::start().await;
    let n_changes = change_everything(&app).await;
    // As many operations of the document change something.
    let document: Value = serde_json::from_str(&api::openapi_document()).unwrap();
    let operations = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|methods| {
            methods
                .as_object()
                .unwrap()
                .iter()
                .filter(|(method, operation)| {
                    *method != "get" && operation["security"][0]["AdminApiKey"].is_array()
                })
        });
    let n_operations = operations.count();
    assert_eq!(
        n_changes, n_operations,
        "an operation was left out of `change_everything`"
    );

    let listed = ok(app
        .admin(GET, "/organization/audit_logs?limit=100", Value::Null)
        .await);
    let entries = listed["data"].as_array().unwrap();
    let by_key: Vec<&Value> = entries
        .iter()
        .filter(|entry| !entry["actor"].is_null())
        .collect();
    assert_eq!(by_key.len(), n_changes, "one each");
    let mut kinds = BTreeSet::new();
    for entry in by_key {
        let kind = text(entry, "type");
        assert_eq!(
            (&entry["x_ip_address"], &entry["actor"]["type"]),
            (&json!("127.0.0.1"), &json!("api_key"))
        );
        assert!(
            text(&entry["actor"]["api_key"], "id").starts_with("key_"),
            "{entry}"
        );
        assert!(!text(&entry[&kind], "id").is_empty(), "{entry}");
        assert!(
            entry["effective_at"].is_i64() && text(entry, "id").starts_with("audit_log-"),
            "{entry}"
        );
        kinds.insert(kind);
    }
    let all: BTreeSet<String> = AuditKind::WORDS
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
    assert_eq!(kinds, all, "every name is used");
    let organization = &app.project.organization_id;
    let verdict = app.store.audit().verify(organization).await.unwrap();
    assert!(matches!(verdict, AuditVerdict::Whole { .. }), "{verdict:?}");
    // A refusal is no change.
    assert_eq!(
        app.admin(DELETE, "/organization/invites/invite-none", Value::Null)
            .await
            .status,
        404
    );
    let again = ok(app
        .admin(GET, "/organization/audit_logs?limit=100", Value::Null)
        .await);
    assert_eq!(again, listed);
}

#[tokio::test]
async fn the_log_is_filtered_by_its_query() {
    let app = App::start().await;
    let project = new_project(&app, "logged").await;
    let body = json!({"name": "bot"});
    ok(app
        .admin(
            POST,
            &format!("/organization/projects/{project}/service_accounts"),
            body,
        )
        .await);
    let app = &app;
    let list = |query: &str| {
        let path = format!("/organization/audit_logs?{query}");
        async move { ok(app.admin(GET, &path, Value::Null).await) }
    };
    let types = |list: Value| -> Vec<String> {
        list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| text(entry, "type"))
            .collect()
    };
    let created = list("event_types[]=project.created").await;
    let entry = &created["data"][0];
    assert_eq!(
        entry,
        &json!({
            "id": entry["id"], "type": "project.created", "effective_at": entry["effective_at"],
            "actor": {"type": "api_key", "api_key": {"id": entry["actor"]["api_key"]["id"], "type": "user"}},
            "x_ip_address": "127.0.0.1", "project": {"id": project, "name": "logged"},
            "project.created": {"id": project, "data": {"name": "logged", "title": "logged"}},
        })
    );
    let both = ["service_account.created", "project.created"];
    assert_eq!(types(list(&format!("project_ids[]={project}")).await), both);
    let two = "event_types[]=project.created&event_types[]=service_account.created";
    assert_eq!(types(list(two).await), both);
    assert_eq!(
        types(list(&format!("resource_ids[]={project}")).await),
        both[1..]
    );
    let key = text(&entry["actor"]["api_key"], "id");
    assert_eq!(types(list(&format!("actor_ids[]={key}")).await), both);
    assert_eq!(types(list("event_types[]=login.failed").await).len(), 0);
    let at = entry["effective_at"].as_i64().unwrap();
    assert_eq!(
        types(list(&format!("effective_at[lt]={at}&{two}")).await).len(),
        0
    );
    assert_eq!(
        types(list(&format!("effective_at[gte]={at}&{two}")).await),
        both
    );
    assert_eq!(
        types(list(&format!("effective_at[gt]={}&{two}", i64::MAX)).await).len(),
        0
    );
    let newest = list(&format!("limit=1&{two}")).await;
    assert_eq!(
        (types(newest.clone()), &newest["has_more"]),
        (vec![both[0].to_owned()], &json!(true))
    );
    let id = text(&newest, "last_id");
    assert_eq!(types(list(&format!("after={id}&{two}")).await), both[1..]);
    let oldest = text(entry, "id");
    assert_eq!(
        types(list(&format!("before={oldest}&{two}")).await),
        both[..1]
    );
    let both_ways = app
        .admin(
            GET,
            &format!("/organization/audit_logs?after={id}&before={id}"),
            Value::Null,
        )
        .await;
    both_ways.assert_refused("invalid_parameter_combination", "before");
}
