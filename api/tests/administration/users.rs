//! Who administers, and who is invited.

use domain::user::OrganizationRole;
use serde_json::Value;
use serde_json::json;

use super::{DELETE, GET, POST, add_user, ok, text};
use crate::support::{App, make_admin_key_of};

#[tokio::test]
async fn nobody_but_an_owner_administers_and_the_last_one_stays() {
    let app = App::start().await;
    let ada = add_user(&app, "ada@example.com", OrganizationRole::Owner).await;
    let organization = &app.project.organization_id;
    let key = make_admin_key_of(&app.store, &app.config, organization, Some(ada.id.clone())).await;
    let path = format!("/organization/users/{}", ada.id);
    let shown = ok(app.admin_with(&key, GET, &path, Value::Null).await);
    assert_eq!(
        shown,
        json!({
            "object": "organization.user", "id": ada.id.as_str(), "name": "Ada", "email": "ada@example.com",
            "role": "owner", "added_at": ada.added_at.unix_s(),
        })
    );
    let message = format!(
        "The user {} is the last owner of the organization: make another user an owner first.",
        ada.id
    );
    let last = app
        .admin_with(&key, POST, &path, json!({"role": "reader"}))
        .await;
    last.assert_error(400, Some("last_owner"), None, &message);
    let last = app.admin_with(&key, DELETE, &path, Value::Null).await;
    last.assert_error(400, Some("last_owner"), None, &message);
    // A key that she makes is hers, and both end with her role.
    let made = ok(app
        .admin_with(
            &key,
            POST,
            "/organization/admin_api_keys",
            json!({"name": "mine"}),
        )
        .await);
    assert_eq!(
        (&made["owner"]["id"], &made["owner"]["role"]),
        (&json!(ada.id.as_str()), &json!("owner"))
    );
    let hers = text(&made, "value");
    let ben = add_user(&app, "ben@example.com", OrganizationRole::Owner).await;
    ok(app
        .admin_with(&hers, POST, &path, json!({"role": "reader"}))
        .await);
    for key in [&key, &hers] {
        let raised = app
            .admin_with(key, POST, &path, json!({"role": "owner"}))
            .await;
        let code = &raised.json()["error"]["code"];
        assert_eq!(
            (raised.status.as_u16(), code),
            (403, &json!("insufficient_permissions"))
        );
    }
    let listed = ok(app
        .admin(
            GET,
            "/organization/users?emails[]=ben@example.com",
            Value::Null,
        )
        .await);
    assert_eq!(listed["data"][0]["id"], ben.id.as_str());
    assert_eq!(
        ok(app.admin(GET, "/organization/users", Value::Null).await)["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let deleted = ok(app.admin(DELETE, &path, Value::Null).await);
    assert_eq!(
        deleted,
        json!({"id": ada.id.as_str(), "object": "organization.user.deleted", "deleted": true})
    );
    let gone = app.admin_with(&key, GET, &path, Value::Null).await;
    assert_eq!(gone.status, 401, "her keys went with her");
    app.admin(
        POST,
        &format!("/organization/users/{}", ben.id),
        json!({"role": "king"}),
    )
    .await
    .assert_refused("invalid_value", "role");
}

#[tokio::test]
async fn an_invitation_is_pending_until_it_is_deleted() {
    let app = App::start().await;
    let invites = "/organization/invites";
    let project = app.project.id.as_str();
    let body = json!({
        "email": "Eve@Example.com", "role": "reader", "projects": [{"id": project, "role": "member"}],
    });
    let made = ok(app.admin(POST, invites, body.clone()).await);
    let (id, created_at) = (text(&made, "id"), made["created_at"].as_i64().unwrap());
    assert_eq!(
        made,
        json!({
            "object": "organization.invite", "id": id, "email": "eve@example.com", "role": "reader", "status": "pending",
            "created_at": created_at, "expires_at": created_at + 7 * 86_400, "accepted_at": null,
            "projects": [{"id": project, "role": "member"}],
        })
    );
    let path = format!("{invites}/{id}");
    assert_eq!(ok(app.admin(GET, &path, Value::Null).await), made);
    assert_eq!(
        ok(app.admin(GET, invites, Value::Null).await)["data"],
        json!([made])
    );
    let deleted = ok(app.admin(DELETE, &path, Value::Null).await);
    assert_eq!(
        deleted,
        json!({"id": id, "object": "organization.invite.deleted", "deleted": true})
    );
    assert_eq!(app.admin(GET, &path, Value::Null).await.status, 404);
    add_user(&app, "ada@example.com", OrganizationRole::Reader).await;
    for (change, code, param) in [
        (json!({"email": "nobody"}), "invalid_value", "email"),
        (
            json!({"email": "ada@example.com"}),
            "invalid_value",
            "email",
        ),
        (json!({"role": "member"}), "invalid_value", "role"),
        (
            json!({"projects": [{"id": "proj_none", "role": "member"}]}),
            "invalid_value",
            "projects[0].id",
        ),
        (
            json!({"projects": [{"id": project, "role": "reader"}]}),
            "invalid_value",
            "projects[0].role",
        ),
        (json!({"scopes": ["*"]}), "unknown_parameter", "scopes"),
    ] {
        let mut body = body.clone();
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        app.admin(POST, invites, body)
            .await
            .assert_refused(code, param);
    }
}
