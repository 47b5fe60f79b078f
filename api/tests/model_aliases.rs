//! Models under other names.

use domain::id::JobId;
use domain::model_alias::ModelAlias;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, now};

const ALIASES: &str = "/v1/x/model_aliases";

async fn create(app: &App, id: &str, model: &str) -> Value {
    let made = app.post(ALIASES, json!({"id": id, "model": model})).await;
    assert_eq!(made.status, 200, "{made:?}");
    made.json()
}

async fn chat(app: &App, model: &str) -> crate::support::Reply {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    app.post(
        "/v1/chat/completions",
        json!({"model": model, "messages": messages}),
    )
    .await
}

#[tokio::test]
async fn a_model_answers_under_its_alias_and_says_its_own_name() {
    let app = App::start().await;
    let made = create(&app, "gpt-4o-mini-2024-07-18", BASE_MODEL).await;
    let shown = json!({
        "id": "gpt-4o-mini-2024-07-18", "object": "model_alias", "created_at": made["created_at"],
        "model": BASE_MODEL, "scope": "project",
    });
    assert_eq!(made, shown);
    assert_eq!(app.get(ALIASES).await.json()["data"], json!([shown]));

    let answer = chat(&app, "gpt-4o-mini-2024-07-18").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["model"]),
        (200, &json!(BASE_MODEL))
    );
    let id = app
        .new_job(json!({"model": "gpt-4o-mini-2024-07-18"}))
        .await;
    let job = app.get(&format!("/v1/fine_tuning/jobs/{id}")).await.json();
    assert_eq!(job["model"], json!(BASE_MODEL));

    let model = app.get("/v1/models/gpt-4o-mini-2024-07-18").await.json();
    assert_eq!(
        (&model["id"], &model["owned_by"]),
        (&json!("gpt-4o-mini-2024-07-18"), &json!("system"))
    );
    let models = app.get("/v1/models").await.json();
    assert!(
        models["data"].as_array().unwrap().contains(&model),
        "{models}"
    );
    let foreign = app
        .foreign(Method::GET, "/v1/models/gpt-4o-mini-2024-07-18")
        .await;
    assert_eq!(foreign.status, 404);
    let deleted = app
        .delete(&format!("{ALIASES}/gpt-4o-mini-2024-07-18"))
        .await
        .json();
    assert_eq!(
        deleted,
        json!({"id": "gpt-4o-mini-2024-07-18", "object": "model_alias.deleted", "deleted": true})
    );
    assert_eq!(chat(&app, "gpt-4o-mini-2024-07-18").await.status, 404);
}

#[tokio::test]
async fn an_alias_of_a_tuned_model_goes_with_it() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    let tuned = app.succeed(&JobId::parse(&id).unwrap()).await;
    let old = "ft:gpt-4o-2024-08-06:acme::AbC123";
    create(&app, old, &tuned).await;
    // Through one alias to the model, never to the other alias.
    assert_eq!(create(&app, "best/one", old).await["model"], json!(tuned));
    assert_eq!(chat(&app, old).await.json()["model"], json!(tuned));
    assert_eq!(chat(&app, "best/one").await.json()["model"], json!(tuned));

    assert_eq!(app.delete(&format!("/v1/models/{tuned}")).await.status, 200);
    let message = format!("The model `{old}` does not exist or you do not have access to it.");
    chat(&app, old)
        .await
        .assert_error(404, Some("model_not_found"), None, &message);
    assert_eq!(app.get(&format!("/v1/models/{old}")).await.status, 404);
    assert_eq!(
        app.delete(&format!("{ALIASES}/best%2Fone")).await.status,
        200
    );
}

#[tokio::test]
async fn what_cannot_be_an_alias_is_refused_by_name() {
    let app = App::start().await;
    create(&app, "taken", BASE_MODEL).await;
    for (id, model, code, param) in [
        ("x", "absent", "model_not_found", "model"),
        (BASE_MODEL, BASE_MODEL, "model_exists", "id"),
        ("taken", BASE_MODEL, "model_alias_exists", "id"),
        ("a b", BASE_MODEL, "invalid_value", "id"),
        ("", BASE_MODEL, "invalid_value", "id"),
    ] {
        let refused = app.post(ALIASES, json!({"id": id, "model": model})).await;
        refused.assert_refused(code, param);
    }
    let missing = app.delete(&format!("{ALIASES}/absent")).await;
    missing.assert_error(404, None, Some("id"), "No such model alias: absent");
}

#[tokio::test]
async fn the_operators_aliases_are_everyones_and_nobody_deletes_them() {
    let app = App::start().await;
    let alias = ModelAlias {
        name: "gpt-4o".to_owned(),
        project_id: None,
        model: BASE_MODEL.to_owned(),
        created_at: now(),
    };
    app.store.model_aliases().insert(&alias).await.unwrap();
    assert_eq!(
        chat(&app, "gpt-4o").await.json()["model"],
        json!(BASE_MODEL)
    );
    let seen = app.foreign(Method::GET, "/v1/models/gpt-4o").await;
    assert_eq!(seen.status, 200);
    let refused = app.delete(&format!("{ALIASES}/gpt-4o")).await;
    assert_eq!(refused.status, 403);
}
