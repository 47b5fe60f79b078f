//! Projects, what they may name, and what they share.

use std::collections::BTreeSet;

use domain::id::JobId;
use domain::user::OrganizationRole;
use serde_json::Value;
use serde_json::json;

use super::{DELETE, GET, POST, add_user, new_project, ok, text};
use crate::support::{App, BASE_MODEL, Reply, make_admin_key_of, now};

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
        "x_max_stored_bytes": null, "x_max_unfinished_jobs": null, "x_max_running_jobs": null,
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
        (
            format!("{path}/spend_limit"),
            json!({"threshold_amount": 1, "currency": "USD", "interval": "month"}),
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
async fn caps_of_a_project_are_changed_apart() {
    let app = App::start().await;
    let path = format!("/organization/projects/{}", app.project.id);
    let change = async |body: Value| {
        let project = ok(app.admin(POST, &path, body).await);
        assert_eq!(ok(app.admin(GET, &path, Value::Null).await), project);
        ["stored_bytes", "unfinished_jobs", "running_jobs"]
            .map(|cap| project[format!("x_max_{cap}")].clone())
    };
    let null = Value::Null;
    assert_eq!(
        change(json!({"x_max_stored_bytes": 0, "x_max_running_jobs": 2})).await,
        [json!(0), null.clone(), json!(2)]
    );
    assert_eq!(
        change(json!({"x_max_unfinished_jobs": 5, "x_max_running_jobs": null})).await,
        [json!(0), json!(5), null.clone()]
    );
    // Nothing is asked for, and nothing told.
    assert_eq!(change(json!({})).await, [json!(0), json!(5), null]);
    let log = "/organization/audit_logs?event_types[]=project.updated";
    let log = ok(app.admin(GET, log, Value::Null).await);
    let told: Vec<&Value> = log["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["project.updated"]["changes_requested"])
        .collect();
    assert_eq!(
        told,
        [
            &json!({"x_max_unfinished_jobs": 5, "x_max_running_jobs": null}),
            &json!({"x_max_stored_bytes": 0, "x_max_running_jobs": 2}),
        ]
    );
    for (cap, value, code) in [
        ("x_max_stored_bytes", json!(-1), "integer_below_min_value"),
        ("x_max_unfinished_jobs", json!(0), "integer_below_min_value"),
        ("x_max_running_jobs", json!("2"), "invalid_type"),
    ] {
        let refused = app.admin(POST, &path, json!({cap: value})).await;
        refused.assert_refused(code, cap);
    }
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
        .find_by_name(&app.project.organization_id, "other")
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
            GET,
            format!("/organization/projects/{project}/spend_limit"),
            Value::Null,
        ),
        (
            POST,
            format!("/organization/projects/{project}/spend_limit"),
            json!({"threshold_amount": 0, "currency": "USD", "interval": "month"}),
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
