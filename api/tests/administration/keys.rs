//! Keys of service accounts, of users and of administrators.

use domain::api_key::KeyOwner;
use domain::user::OrganizationRole;
use serde_json::Value;
use serde_json::json;

use super::{DELETE, GET, POST, add_user, new_project, ok, status_with, text};
use crate::support::{App, make_key_with};

#[tokio::test]
async fn a_service_account_comes_with_its_only_plain_key() {
    let app = App::start().await;
    let project = new_project(&app, "bots").await;
    let accounts = format!("/organization/projects/{project}/service_accounts");
    let made = ok(app.admin(POST, &accounts, json!({"name": "bot"})).await);
    let (id, key) = (text(&made, "id"), made["api_key"].clone());
    assert_eq!(
        made,
        json!({
            "object": "organization.project.service_account", "id": id, "name": "bot", "role": "member",
            "created_at": made["created_at"], "api_key": {
                "object": "organization.project.service_account.api_key", "id": key["id"], "name": "Secret Key",
                "created_at": key["created_at"], "expires_at": null, "value": key["value"],
            },
        })
    );
    let secret = text(&key, "value");
    assert!(secret.starts_with("sk-svcacct-"), "{secret}");
    assert_eq!(status_with(&app, &secret).await, 200);
    // The list shows who owns it, and never the secret.
    let keys = format!("/organization/projects/{project}/api_keys");
    let listed = app.admin(GET, &keys, Value::Null).await;
    assert!(!String::from_utf8_lossy(&listed.bytes).contains(&secret));
    let shown = &ok(listed)["data"][0];
    assert_eq!(
        shown,
        &json!({
            "object": "organization.project.api_key", "id": key["id"], "name": "Secret Key",
            "redacted_value": format!("{}…{}", &secret[..19], &secret[secret.len() - 4..]),
            "created_at": key["created_at"], "last_used_at": shown["last_used_at"],
            "owner_project_access": "active",
            "owner": {"type": "service_account", "service_account": {
                "id": id, "name": "bot", "created_at": made["created_at"], "role": "member",
            }},
            "expires_at": null, "x_scopes": ["api.all"],
        })
    );
    assert!(shown["last_used_at"].is_i64());
    let of_key = format!("{keys}/{}", text(&key, "id"));
    assert_eq!(&ok(app.admin(GET, &of_key, Value::Null).await), shown);
    let refused = app.admin(DELETE, &of_key, Value::Null).await;
    assert_eq!(refused.json()["error"]["code"], "service_account_key");
    // A further key may do less.
    let path = format!("{accounts}/{id}");
    let body = json!({"name": "reader", "scopes": ["api.files.read"], "expires_in_seconds": 60});
    let further = ok(app.admin(POST, &format!("{path}/api_keys"), body).await);
    let lifetime =
        further["expires_at"].as_i64().unwrap() - further["created_at"].as_i64().unwrap();
    assert_eq!(lifetime, 60);
    assert_eq!(status_with(&app, &text(&further, "value")).await, 403);
    let body = json!({"scopes": ["api.nothing"]});
    let refused = app.admin(POST, &format!("{path}/api_keys"), body).await;
    refused.assert_refused("invalid_value", "scopes");
    // Without the account there are no keys.
    let renamed = ok(app
        .admin(POST, &path, json!({"name": "old bot", "role": "owner"}))
        .await);
    assert_eq!(
        (&renamed["name"], &renamed["role"]),
        (&json!("old bot"), &json!("owner"))
    );
    assert_eq!(ok(app.admin(GET, &path, Value::Null).await), renamed);
    assert_eq!(
        ok(app.admin(GET, &accounts, Value::Null).await)["data"],
        json!([renamed])
    );
    let deleted = ok(app.admin(DELETE, &path, Value::Null).await);
    let object = "organization.project.service_account.deleted";
    assert_eq!(
        deleted,
        json!({"id": id, "object": object, "deleted": true})
    );
    assert_eq!(status_with(&app, &secret).await, 401);
    assert_eq!(
        ok(app.admin(GET, &keys, Value::Null).await)["data"],
        json!([])
    );
    assert_eq!(app.admin(DELETE, &path, Value::Null).await.status, 404);
}

#[tokio::test]
async fn a_service_account_without_a_role_opens_nothing() {
    let app = App::start().await;
    let project = new_project(&app, "bots").await;
    let accounts = format!("/organization/projects/{project}/service_accounts");
    let body = json!({"name": "bot", "create_service_account_only": true});
    let made = ok(app.admin(POST, &accounts, body).await);
    assert_eq!(
        (&made["role"], &made["api_key"]),
        (&json!("none"), &Value::Null)
    );
    let path = format!("{accounts}/{}", text(&made, "id"));
    let key = ok(app
        .admin(POST, &format!("{path}/api_keys"), json!({}))
        .await);
    let secret = text(&key, "value");
    assert_eq!(status_with(&app, &secret).await, 403);
    let keys = format!("/organization/projects/{project}/api_keys");
    let shown = &ok(app.admin(GET, &keys, Value::Null).await)["data"][0];
    assert_eq!(shown["owner_project_access"], "inactive");
    ok(app.admin(POST, &path, json!({"role": "member"})).await);
    assert_eq!(status_with(&app, &secret).await, 200);
    app.admin(POST, &path, json!({"role": "none"}))
        .await
        .assert_refused("invalid_value", "role");
}

#[tokio::test]
async fn the_keys_of_an_archived_project_open_nothing_at_once() {
    let app = App::start().await;
    let project = new_project(&app, "gone").await;
    let path = format!("/organization/projects/{project}");
    let made = app
        .admin(
            POST,
            &format!("{path}/service_accounts"),
            json!({"name": "bot"}),
        )
        .await;
    let key = text(&ok(made)["api_key"], "value");
    assert_eq!(status_with(&app, &key).await, 200);
    ok(app
        .admin(POST, &format!("{path}/archive"), Value::Null)
        .await);
    let reply = app.with_key(&key, GET, "/v1/models").await;
    let code = &reply.json()["error"]["code"];
    assert_eq!(
        (reply.status.as_u16(), code),
        (401, &json!("project_archived"))
    );
}

#[tokio::test]
async fn a_user_s_key_opens_while_the_user_is_a_member() {
    let app = App::start().await;
    let ada = add_user(&app, "ada@example.com", OrganizationRole::Reader).await;
    let members = format!("/organization/projects/{}/users", app.project.id);
    let body = json!({"email": "Ada@Example.com", "role": "member"});
    let member = ok(app.admin(POST, &members, body.clone()).await);
    assert_eq!(
        member,
        json!({
            "object": "organization.project.user", "id": ada.id.as_str(), "name": "Ada", "email": "ada@example.com",
            "role": "member", "added_at": member["added_at"],
        })
    );
    app.admin(POST, &members, body)
        .await
        .assert_refused("invalid_value", "email");
    let key = make_key_with(&app.store, &app.config, &app.project.id, |key| {
        key.owner = KeyOwner::User(ada.id.clone());
    })
    .await;
    assert_eq!(status_with(&app, &key).await, 200);
    let path = format!("{members}/{}", ada.id);
    let owner = ok(app.admin(POST, &path, json!({"role": "owner"})).await);
    assert_eq!(ok(app.admin(GET, &path, Value::Null).await), owner);
    assert_eq!(
        ok(app.admin(GET, &members, Value::Null).await)["data"],
        json!([owner])
    );
    let deleted = ok(app.admin(DELETE, &path, Value::Null).await);
    let object = "organization.project.user.deleted";
    assert_eq!(
        deleted,
        json!({"id": ada.id.as_str(), "object": object, "deleted": true})
    );
    assert_eq!(status_with(&app, &key).await, 401, "at once");
    let keys = format!("/organization/projects/{}/api_keys", app.project.id);
    let inactive = format!("{keys}?owner_project_access=inactive");
    let inactive = ok(app.admin(GET, &inactive, Value::Null).await)["data"].clone();
    assert_eq!(inactive.as_array().unwrap().len(), 1);
    let user = json!({
        "id": ada.id.as_str(), "email": "ada@example.com", "name": "Ada", "created_at": ada.added_at.unix_s(), "role": "none",
    });
    assert_eq!(inactive[0]["owner"], json!({"type": "user", "user": user}));
    let of_key = format!("{keys}/{}", text(&inactive[0], "id"));
    let deleted = ok(app.admin(DELETE, &of_key, Value::Null).await);
    assert_eq!(deleted["object"], "organization.project.api_key.deleted");
    assert_eq!(app.admin(GET, &of_key, Value::Null).await.status, 404);
    for (body, code, param) in [
        (
            json!({"user_id": "user-none", "role": "member"}),
            "invalid_value",
            "user_id",
        ),
        (
            json!({"role": "member"}),
            "missing_required_parameter",
            "user_id",
        ),
        (
            json!({"user_id": "a", "email": "b", "role": "member"}),
            "invalid_parameter_combination",
            "email",
        ),
        (
            json!({"user_id": ada.id.as_str(), "role": "reader"}),
            "invalid_value",
            "role",
        ),
    ] {
        app.admin(POST, &members, body)
            .await
            .assert_refused(code, param);
    }
}

#[tokio::test]
async fn an_admin_key_shows_its_secret_once_and_ends_when_it_is_deleted() {
    let app = App::start().await;
    let keys = "/organization/admin_api_keys";
    let body = json!({"name": "ci", "expires_in_seconds": 60});
    let made = ok(app.admin(POST, keys, body).await);
    let (id, secret) = (text(&made, "id"), text(&made, "value"));
    assert!(secret.starts_with("sk-admin-"), "{secret}");
    let lifetime = made["expires_at"].as_i64().unwrap() - made["created_at"].as_i64().unwrap();
    assert_eq!(lifetime, 60);
    let path = format!("{keys}/{id}");
    let shown = ok(app.admin_with(&secret, GET, &path, Value::Null).await);
    assert_eq!(
        shown,
        json!({
            "object": "organization.admin_api_key", "id": id, "name": "ci",
            "redacted_value": format!("{}…{}", &secret[..17], &secret[secret.len() - 4..]),
            "created_at": made["created_at"], "expires_at": made["expires_at"], "last_used_at": shown["last_used_at"],
            "owner": {"type": "user", "object": "organization.user"},
        })
    );
    let listed = ok(app.admin(GET, keys, Value::Null).await);
    assert_eq!(
        (
            listed["data"].as_array().unwrap().len(),
            &listed["data"][1]["id"]
        ),
        (2, &json!(id))
    );
    let newest = ok(app
        .admin(GET, &format!("{keys}?order=desc&limit=1"), Value::Null)
        .await);
    assert_eq!(
        (&newest["data"][0]["id"], &newest["has_more"]),
        (&json!(id), &json!(true))
    );
    let deleted = ok(app.admin(DELETE, &path, Value::Null).await);
    assert_eq!(
        deleted,
        json!({"id": id, "object": "organization.admin_api_key.deleted", "deleted": true})
    );
    assert_eq!(
        app.admin_with(&secret, GET, keys, Value::Null).await.status,
        401
    );
    assert_eq!(app.admin(DELETE, &path, Value::Null).await.status, 404);
    for (body, code, param) in [
        (
            json!({"name": "a", "expires_in_seconds": 0}),
            "integer_below_min_value",
            "expires_in_seconds",
        ),
        (
            json!({"name": "a", "role": "owner"}),
            "unknown_parameter",
            "role",
        ),
    ] {
        app.admin(POST, keys, body)
            .await
            .assert_refused(code, param);
    }
}
