//! `/v1/organization` and the permissions of checkpoints.

use std::collections::BTreeSet;

use domain::api_key::KeyOwner;
use domain::audit::AuditKind;
use domain::id::{JobId, UserId};
use domain::user::{OrganizationRole, User};
use reqwest::Method;
use serde_json::{Value, json};
use store::AuditVerdict;

use crate::support::{App, BASE_MODEL, Reply, entry, make_admin_key_of, make_key_with, now};

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const DELETE: Method = Method::DELETE;

#[track_caller]
fn ok(reply: Reply) -> Value {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

fn text(value: &Value, key: &str) -> String {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} of {value}"))
        .to_owned()
}

/// A user, as the command line adds it.
async fn add_user(app: &App, email: &str, role: OrganizationRole) -> User {
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

async fn new_project(app: &App, name: &str) -> String {
    let made = app
        .admin(POST, "/organization/projects", json!({"name": name}))
        .await;
    text(&ok(made), "id")
}

async fn status_with(app: &App, key: &str) -> u16 {
    app.with_key(key, GET, "/v1/models").await.status.as_u16()
}

#[tokio::test]
async fn a_project_is_made_renamed_and_archived_for_good() {
    let app = App::start().await;
    let made = ok(app
        .admin(POST, "/organization/projects", json!({"name": "search"}))
        .await);
    let (id, created_at) = (text(&made, "id"), &made["created_at"]);
    let mut expected = json!({
        "id": id, "object": "organization.project", "name": "search", "created_at": created_at,
        "archived_at": null, "status": "active",
    });
    assert_eq!(made, expected);
    let path = format!("/organization/projects/{id}");
    assert_eq!(ok(app.admin(GET, &path, Value::Null).await), expected);
    expected["name"] = json!("find");
    assert_eq!(
        ok(app.admin(POST, &path, json!({"name": "find"})).await),
        expected
    );
    let archived = ok(app
        .admin(POST, &format!("{path}/archive"), Value::Null)
        .await);
    assert_eq!(
        (&archived["status"], archived["archived_at"].is_i64()),
        (&json!("archived"), true)
    );
    let message = format!("The project {id} is archived: it cannot be used or changed any more.");
    for (path, body) in [
        (path.clone(), json!({"name": "again"})),
        (format!("{path}/archive"), Value::Null),
        (format!("{path}/service_accounts"), json!({"name": "bot"})),
        (
            format!("{path}/users"),
            json!({"user_id": "user-1", "role": "member"}),
        ),
        (
            format!("{path}/model_permissions"),
            json!({"mode": "deny_list", "model_ids": []}),
        ),
    ] {
        let refused = app.admin(POST, &path, body).await;
        refused.assert_error(400, Some("project_archived"), None, &message);
    }
    let names = |list: Value| -> BTreeSet<String> {
        list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| text(item, "name"))
            .collect()
    };
    let set = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    };
    let live = ok(app.admin(GET, "/organization/projects", Value::Null).await);
    assert_eq!(names(live), set(&["default", "other"]));
    let all = "/organization/projects?include_archived=true";
    let all = ok(app.admin(GET, all, Value::Null).await);
    assert_eq!(names(all), set(&["default", "find", "other"]));
    // Its name is free again.
    new_project(&app, "find").await;
}

#[tokio::test]
async fn what_cannot_be_of_a_project_is_refused() {
    let app = App::start().await;
    let projects = "/organization/projects";
    let post = |body| app.admin(POST, projects, body);
    post(json!({"name": "default"}))
        .await
        .assert_refused("invalid_value", "name");
    post(json!({"name": " "}))
        .await
        .assert_refused("empty_string", "name");
    post(json!({"name": "a".repeat(257)}))
        .await
        .assert_refused("string_above_max_length", "name");
    post(json!({}))
        .await
        .assert_refused("missing_required_parameter", "name");
    post(json!({"name": "a", "status": "archived"}))
        .await
        .assert_refused("unknown_parameter", "status");
    post(json!({"name": "a", "residency": "EU_STORAGE_PROCESSING"}))
        .await
        .assert_refused("unsupported_parameter", "residency");
    let default = format!("{projects}/{}", app.project.id);
    for (path, body, done) in [
        (default.clone(), json!({"name": "x"}), "renamed"),
        (format!("{default}/archive"), Value::Null, "archived"),
    ] {
        let message = format!("The default project cannot be {done}.");
        let refused = app.admin(POST, &path, body).await;
        refused.assert_error(400, Some("default_project"), None, &message);
    }
    let unknown = app
        .admin(GET, &format!("{projects}/proj_none"), Value::Null)
        .await;
    let message = "No such project in this organization: proj_none";
    unknown.assert_error(404, None, Some("project_id"), message);
    let unknown = app
        .admin(GET, &format!("{projects}?after=proj_none"), Value::Null)
        .await;
    assert_eq!(unknown.status, 404);
}

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

#[tokio::test]
async fn a_project_names_only_the_models_it_is_allowed() {
    let app = App::start().await;
    let path = format!(
        "/organization/projects/{}/model_permissions",
        app.project.id
    );
    let none = json!({"object": "project.model_permissions", "mode": "deny_list", "model_ids": []});
    assert_eq!(ok(app.admin(GET, &path, Value::Null).await), none);
    let chat = json!({"model": BASE_MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    let n_models = || async {
        app.get("/v1/models").await.json()["data"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(
        (
            n_models().await,
            app.post("/v1/chat/completions", chat.clone())
                .await
                .status
                .as_u16()
        ),
        (1, 200)
    );
    let denied = json!({"mode": "deny_list", "model_ids": [BASE_MODEL]});
    let set = ok(app.admin(POST, &path, denied).await);
    assert_eq!(set["model_ids"], json!([BASE_MODEL]));
    assert_eq!(ok(app.admin(GET, &path, Value::Null).await), set);
    assert_eq!(n_models().await, 0);
    let file = app.upload(b"{}").await;
    let message = format!(
        "Project `{}` does not have access to model `{BASE_MODEL}`",
        app.project.id
    );
    for reply in [
        app.post("/v1/chat/completions", chat.clone()).await,
        app.post(
            "/v1/completions",
            json!({"model": BASE_MODEL, "prompt": "Hi"}),
        )
        .await,
        app.get(&format!("/v1/models/{BASE_MODEL}")).await,
        app.post(
            "/v1/fine_tuning/jobs",
            json!({"model": BASE_MODEL, "training_file": file}),
        )
        .await,
    ] {
        reply.assert_error(403, Some("model_not_found"), None, &message);
    }
    assert_eq!(
        app.foreign(GET, "/v1/models").await.json()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let deleted = ok(app.admin(DELETE, &path, Value::Null).await);
    assert_eq!(
        deleted,
        json!({"object": "project.model_permissions.deleted", "deleted": true})
    );
    assert_eq!(
        (
            n_models().await,
            app.post("/v1/chat/completions", chat).await.status.as_u16()
        ),
        (1, 200)
    );
}

#[tokio::test]
async fn a_checkpoint_is_used_by_another_project_while_it_is_permitted() {
    let app = App::start().await;
    let job = app.new_job(json!({})).await;
    let model = app.succeed(&JobId::parse(&job).unwrap()).await;
    let listed = app.foreign(GET, "/v1/models").await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "the base only");
    let other = app
        .store
        .projects()
        .find_by_name("other")
        .await
        .unwrap()
        .unwrap()
        .id;
    let permissions = format!("/fine_tuning/checkpoints/{model}/permissions");
    let body = json!({"project_ids": [other.as_str()]});
    let granted = ok(app.admin(POST, &permissions, body.clone()).await);
    let permission = granted["data"][0].clone();
    let id = text(&permission, "id");
    assert_eq!(
        permission,
        json!({
            "id": id, "object": "checkpoint.permission", "created_at": permission["created_at"],
            "project_id": other.as_str(),
        })
    );
    assert_eq!(
        ok(app.admin(POST, &permissions, body).await),
        granted,
        "twice is once"
    );
    assert_eq!(
        ok(app.admin(GET, &permissions, Value::Null).await)["data"],
        json!([permission])
    );
    let of_mine = format!(
        "{permissions}?project_id={}&order=ascending",
        app.project.id
    );
    assert_eq!(
        ok(app.admin(GET, &of_mine, Value::Null).await)["data"],
        json!([])
    );
    let chat = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
    let chat_as_other = || async {
        let url = format!("{}/v1/chat/completions", app.base);
        let request = app.http.post(url).bearer_auth(&app.other_key).json(&chat);
        Reply::of(request.send().await.unwrap()).await
    };
    assert_eq!(chat_as_other().await.status, 200);
    let path = format!("/v1/models/{model}");
    assert_eq!(app.foreign(GET, &path).await.status, 200);
    assert_eq!(app.foreign(DELETE, &path).await.status, 404, "not its own");
    let export = format!("/v1/x/models/{model}/export?format=peft");
    assert_eq!(app.foreign(GET, &export).await.status, 403, "not its own");
    let deleted = ok(app
        .admin(DELETE, &format!("{permissions}/{id}"), Value::Null)
        .await);
    assert_eq!(
        deleted,
        json!({"id": id, "object": "checkpoint.permission", "deleted": true})
    );
    assert_eq!(
        chat_as_other().await.json()["error"]["code"],
        "model_not_found"
    );
    assert_eq!(
        app.admin(DELETE, &format!("{permissions}/{id}"), Value::Null)
            .await
            .status,
        404
    );
    for (ids, code) in [
        (json!([]), "empty_array"),
        (json!(["proj_none"]), "invalid_value"),
        (json!([app.project.id.as_str()]), "invalid_value"),
    ] {
        let refused = app
            .admin(POST, &permissions, json!({"project_ids": ids}))
            .await;
        assert_eq!(
            (refused.status.as_u16(), &refused.json()["error"]["code"]),
            (400, &json!(code))
        );
    }
    let unknown = app
        .admin(
            GET,
            "/fine_tuning/checkpoints/ft:a:b:c:d/permissions",
            Value::Null,
        )
        .await;
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
}

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

#[tokio::test]
async fn what_is_another_organization_s_is_absent() {
    let app = App::start().await;
    let elsewhere = domain::project::Organization {
        id: domain::id::OrganizationId::mint(rand::random()),
        name: "elsewhere".to_owned(),
        slug: "elsewhere".to_owned(),
        created_at: now(),
    };
    app.store
        .projects()
        .insert_organization(&elsewhere)
        .await
        .unwrap();
    let stranger = make_admin_key_of(&app.store, &app.config, &elsewhere.id, None).await;
    let ada = add_user(&app, "ada@example.com", OrganizationRole::Owner).await;
    let project = app.project.id.as_str();
    let job = app.new_job(json!({})).await;
    let model = app.succeed(&JobId::parse(&job).unwrap()).await;
    for (method, path, body) in [
        (
            GET,
            format!("/organization/projects/{project}"),
            Value::Null,
        ),
        (
            POST,
            format!("/organization/projects/{project}"),
            json!({"name": "mine"}),
        ),
        (
            POST,
            format!("/organization/projects/{project}/archive"),
            Value::Null,
        ),
        (
            GET,
            format!("/organization/projects/{project}/api_keys"),
            Value::Null,
        ),
        (
            POST,
            format!("/organization/projects/{project}/service_accounts"),
            json!({"name": "spy"}),
        ),
        (GET, format!("/organization/users/{}", ada.id), Value::Null),
        (
            POST,
            format!("/organization/users/{}", ada.id),
            json!({"role": "reader"}),
        ),
        (
            DELETE,
            format!("/organization/users/{}", ada.id),
            Value::Null,
        ),
        (
            GET,
            format!("/fine_tuning/checkpoints/{model}/permissions"),
            Value::Null,
        ),
    ] {
        let reply = app.admin_with(&stranger, method.clone(), &path, body).await;
        assert_eq!(reply.status, 404, "{method} {path}: {reply:?}");
    }
    for list in ["projects", "users", "invites", "audit_logs"] {
        let listed = app
            .admin_with(
                &stranger,
                GET,
                &format!("/organization/{list}"),
                Value::Null,
            )
            .await;
        let data = ok(listed)["data"].clone();
        let is_own_key = |data: &Value| data[0]["type"] == "api_key.created" && data[1].is_null();
        assert!(
            data == json!([]) || list == "audit_logs" && is_own_key(&data),
            "{list}: {data}"
        );
    }
}
