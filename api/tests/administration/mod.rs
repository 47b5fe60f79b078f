//! `/v1/organization` and the permissions of checkpoints.

mod audit_log;
mod keys;
mod projects;
mod users;

use domain::audit::AuditKind;
use domain::id::UserId;
use domain::user::OrganizationRole;
use domain::user::User;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::{App, Reply, entry, now};

pub const GET: Method = Method::GET;
pub const POST: Method = Method::POST;
pub const DELETE: Method = Method::DELETE;

#[track_caller]
pub fn ok(reply: Reply) -> Value {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

pub fn text(value: &Value, key: &str) -> String {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} of {value}"))
        .to_owned()
}

/// A user, as the command line adds it.
pub async fn add_user(app: &App, email: &str, role: OrganizationRole) -> User {
    let user = User {
        id: UserId::mint(rand::random()),
        organization_id: app.project.organization_id.clone(),
        email: email.to_owned(),
        name: "Ada".to_owned(),
        role,
        added_at: now(),
    };
    let added = entry(
        &user.organization_id,
        AuditKind::UserAdded,
        user.id.as_str(),
    );
    app.store.users().insert(&user, &added).await.unwrap();
    user
}

pub async fn new_project(app: &App, name: &str) -> String {
    let made = app
        .admin(POST, "/organization/projects", json!({"name": name}))
        .await;
    text(&ok(made), "id")
}

pub async fn status_with(app: &App, key: &str) -> u16 {
    app.with_key(key, GET, "/v1/models").await.status.as_u16()
}
