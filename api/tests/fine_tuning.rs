//! `POST /v1/fine_tuning/jobs`: what makes a job, and what is refused.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

const JOBS: &str = "/v1/fine_tuning/jobs";

async fn create(app: &App, body: Value) -> Reply {
    app.post(JOBS, body).await
}

#[tokio::test]
async fn a_new_job_has_every_field() {
    let app = App::start().await;
    let (training, validation) = (app.upload(b"{}\n").await, app.upload(b"{}\n").await);
    let body = json!({
        "model": BASE_MODEL, "training_file": training, "validation_file": validation, "suffix": "my-model", "seed": 42,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}}},
        "metadata": {"b": "2", "a": ""}, "integrations": [], "hyperparameters": {},
    });
    let job = create(&app, body).await.json();
    let hyperparameters =
        json!({"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5});
    assert_eq!(
        job,
        json!({
            "id": job["id"], "object": "fine_tuning.job", "model": BASE_MODEL, "created_at": job["created_at"],
            "finished_at": null, "fine_tuned_model": null, "organization_id": app.project.organization_id.as_str(),
            "result_files": [], "status": "validating_files", "validation_file": validation,
            "training_file": training, "hyperparameters": hyperparameters, "trained_tokens": null, "error": null,
            "user_provided_suffix": "my-model", "seed": 42, "estimated_finish": null, "integrations": [],
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "metadata": {"b": "2", "a": ""}, "x_status": "validating", "x_queue_position": null,
            "x_estimated_start": null, "x_training": job["x_training"],
        })
    );
    let id = job["id"].as_str().unwrap();
    assert!(id.starts_with("ftjob-"));
    assert_eq!(app.get(&format!("{JOBS}/{id}")).await.json(), job);
}

#[tokio::test]
async fn what_is_absent_or_null_is_auto() {
    let app = App::start().await;
    let file = app.upload(b"{}\n").await;
    let nulls = json!({
        "model": BASE_MODEL, "training_file": file, "validation_file": null, "suffix": null, "seed": null,
        "method": null, "metadata": null, "integrations": null, "hyperparameters": null,
    });
    for body in [json!({"model": BASE_MODEL, "training_file": file}), nulls] {
        let job = create(&app, body).await.json();
        let auto =
            json!({"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"});
        assert_eq!(job["hyperparameters"], auto);
        assert_eq!(job["method"]["supervised"]["hyperparameters"], auto);
        assert_eq!(
            (&job["metadata"], &job["user_provided_suffix"]),
            (&json!(null), &json!(null))
        );
        assert!((0..=i64::from(i32::MAX)).contains(&job["seed"].as_i64().unwrap()));
    }
    let legacy =
        json!({"model": BASE_MODEL, "training_file": file, "hyperparameters": {"n_epochs": 3}});
    let job = create(&app, legacy).await.json();
    assert_eq!(
        job["method"]["supervised"]["hyperparameters"]["n_epochs"],
        json!(3)
    );
}

#[tokio::test]
async fn a_dpo_job_shows_its_own_hyperparameters() {
    let app = App::start().await;
    let id = app
        .new_job(json!({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}}))
        .await;
    let job = app.get(&format!("{JOBS}/{id}")).await.json();
    assert_eq!(job["hyperparameters"], json!(null));
    let own = json!({
        "beta": 0.1, "n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto",
        "x_loss_type": "sigmoid", "x_label_smoothing": 0.0, "x_pref_ftx": 0.0,
    });
    assert_eq!(
        job["method"],
        json!({"type": "dpo", "dpo": {"hyperparameters": own}})
    );
    let simpo = json!({"beta": 2, "x_loss_type": "simpo", "x_simpo_gamma": 1.5, "x_pref_ftx": 0.1});
    let id = app
        .new_job(json!({"method": {"type": "dpo", "dpo": {"hyperparameters": simpo}}}))
        .await;
    let job = app.get(&format!("{JOBS}/{id}")).await.json();
    let shown = &job["method"]["dpo"]["hyperparameters"];
    for (key, value) in simpo.as_object().unwrap() {
        assert_eq!(shown[key].as_f64(), value.as_f64(), "{key}");
    }
    assert_eq!(shown["x_loss_type"], "simpo");
    let asked = json!({"x_loss_type": "kto", "x_desirable_weight": 1.5, "batch_size": 2});
    let id = app
        .new_job(json!({"method": {"type": "dpo", "dpo": {"hyperparameters": asked}}}))
        .await;
    let job = app.get(&format!("{JOBS}/{id}")).await.json();
    let kto = json!({
        "beta": "auto", "n_epochs": "auto", "batch_size": 2, "learning_rate_multiplier": "auto",
        "x_loss_type": "kto", "x_label_smoothing": 0.0, "x_pref_ftx": 0.0, "x_desirable_weight": 1.5, "x_undesirable_weight": 1.0,
    });
    assert_eq!(job["method"]["dpo"]["hyperparameters"], kto);
}

#[tokio::test]
async fn every_bad_parameter_is_named() {
    let app = App::start().await;
    let file = app.upload(b"{}\n").await;
    let foreign = {
        let part = reqwest::multipart::Part::bytes(b"{}\n".to_vec()).file_name("a.jsonl");
        let form = reqwest::multipart::Form::new()
            .text("purpose", "fine-tune")
            .part("file", part);
        let request = app
            .http
            .post(format!("{}/v1/files", app.base))
            .bearer_auth(&app.other_key);
        Reply::of(request.multipart(form).send().await.unwrap())
            .await
            .json()["id"]
            .clone()
    };
    let supervised =
        |h: Value| json!({"method": {"type": "supervised", "supervised": {"hyperparameters": h}}});
    let dpo = |h: Value| json!({"method": {"type": "dpo", "dpo": {"hyperparameters": h}}});
    let n_epochs = "method.supervised.hyperparameters.n_epochs";
    for (fields, code, param) in [
        (
            json!({"model": "no-such-model"}),
            "model_not_available",
            "model",
        ),
        (json!({"model": 5}), "invalid_type", "model"),
        (
            json!({"training_file": "file-nope"}),
            "invalid_value",
            "training_file",
        ),
        (
            json!({"training_file": "../x"}),
            "invalid_value",
            "training_file",
        ),
        (json!({"training_file": 7}), "invalid_type", "training_file"),
        (
            json!({"training_file": foreign}),
            "invalid_value",
            "training_file",
        ),
        (
            json!({"validation_file": "file-nope"}),
            "invalid_value",
            "validation_file",
        ),
        (
            supervised(json!({"n_epochs": 0})),
            "integer_below_min_value",
            n_epochs,
        ),
        (
            supervised(json!({"n_epochs": 51})),
            "integer_above_max_value",
            n_epochs,
        ),
        (
            supervised(json!({"n_epochs": 1.5})),
            "invalid_type",
            n_epochs,
        ),
        (
            supervised(json!({"n_epochs": "many"})),
            "invalid_value",
            n_epochs,
        ),
        (
            supervised(json!({"batch_size": 257})),
            "integer_above_max_value",
            "method.supervised.hyperparameters.batch_size",
        ),
        (
            supervised(json!({"learning_rate_multiplier": 0})),
            "decimal_below_min_value",
            "method.supervised.hyperparameters.learning_rate_multiplier",
        ),
        (
            supervised(json!({"warmup": 1})),
            "unknown_parameter",
            "method.supervised.hyperparameters.warmup",
        ),
        (
            json!({"hyperparameters": {"batch_size": 999}}),
            "integer_above_max_value",
            "hyperparameters.batch_size",
        ),
        (json!({"seed": -1}), "integer_below_min_value", "seed"),
        (
            json!({"seed": 2_147_483_648_u64}),
            "integer_above_max_value",
            "seed",
        ),
        (
            json!({"suffix": "x".repeat(65)}),
            "string_above_max_length",
            "suffix",
        ),
        (json!({"suffix": "a:b"}), "invalid_value", "suffix"),
        (json!({"suffix": ""}), "invalid_value", "suffix"),
        (json!({"metadata": {"k": 1}}), "invalid_type", "metadata.k"),
        (
            json!({"metadata": {"k": "v".repeat(513)}}),
            "string_above_max_length",
            "metadata.k",
        ),
        (
            json!({"metadata": {"k".repeat(65): "v"}}),
            "string_above_max_length",
            "metadata",
        ),
        (
            json!({"method": {}}),
            "missing_required_parameter",
            "method.type",
        ),
        (
            json!({"method": {"type": "magic"}}),
            "invalid_value",
            "method.type",
        ),
        (
            json!({"method": {"type": "reinforcement"}}),
            "unsupported_value",
            "method.type",
        ),
        (
            dpo(json!({"beta": 3})),
            "decimal_above_max_value",
            "method.dpo.hyperparameters.beta",
        ),
        (
            dpo(json!({"x_loss_type": "discopop"})),
            "invalid_value",
            "method.dpo.hyperparameters.x_loss_type",
        ),
        (
            dpo(json!({"x_loss_type": "kto", "batch_size": 1})),
            "invalid_value",
            "method.dpo.hyperparameters.batch_size",
        ),
        (
            dpo(json!({"x_loss_type": "kto", "x_label_smoothing": 0.1})),
            "invalid_value",
            "method.dpo.hyperparameters.x_label_smoothing",
        ),
        (
            dpo(json!({"x_loss_type": "kto", "x_pref_ftx": 0.1})),
            "invalid_value",
            "method.dpo.hyperparameters.x_pref_ftx",
        ),
        (
            dpo(json!({"x_loss_type": "kto", "x_undesirable_weight": 0})),
            "decimal_below_min_value",
            "method.dpo.hyperparameters.x_undesirable_weight",
        ),
        (
            dpo(json!({"x_loss_type": "aot", "x_desirable_weight": 1})),
            "invalid_value",
            "method.dpo.hyperparameters.x_desirable_weight",
        ),
        (
            dpo(json!({"x_loss_type": "ipo", "x_label_smoothing": 0.1})),
            "invalid_value",
            "method.dpo.hyperparameters.x_label_smoothing",
        ),
        (
            dpo(json!({"x_label_smoothing": 0.5})),
            "decimal_above_max_value",
            "method.dpo.hyperparameters.x_label_smoothing",
        ),
        (
            dpo(json!({"x_loss_type": "exo_pair"})),
            "invalid_value",
            "method.dpo.hyperparameters.x_label_smoothing",
        ),
        (
            dpo(json!({"x_simpo_gamma": 1})),
            "invalid_value",
            "method.dpo.hyperparameters.x_simpo_gamma",
        ),
        (
            json!({
                "method": {"type": "dpo"}, "x_training": {"data": {"truncation": "split", "max_length": 8}},
            }),
            "invalid_value",
            "x_training.data.truncation",
        ),
        (
            json!({
                "method": {"type": "dpo"}, "x_training": {"data": {"format": "prompt_completion"}},
            }),
            "invalid_value",
            "x_training.data.format",
        ),
        (
            json!({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}),
            "unsupported_parameter",
            "integrations",
        ),
        (
            json!({"status": "succeeded"}),
            "unknown_parameter",
            "status",
        ),
    ] {
        let mut body = json!({"model": BASE_MODEL, "training_file": file});
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        create(&app, body).await.assert_refused(code, param);
    }
    let pairs: serde_json::Map<String, Value> =
        (0..17).map(|i| (format!("k{i}"), json!("v"))).collect();
    let many = json!({"model": BASE_MODEL, "training_file": file, "metadata": pairs});
    create(&app, many)
        .await
        .assert_refused("object_above_max_properties", "metadata");
    create(&app, json!({})).await.assert_error(
        400,
        Some("missing_required_parameter"),
        Some("model"),
        "Missing required parameter: 'model'.",
    );
    assert_eq!(app.get(JOBS).await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_file_for_another_purpose_is_refused() {
    let app = App::start().await;
    let part = reqwest::multipart::Part::bytes(b"{}\n".to_vec()).file_name("a.jsonl");
    let form = reqwest::multipart::Form::new()
        .text("purpose", "batch")
        .part("file", part);
    let sent = app
        .request(Method::POST, "/v1/files")
        .multipart(form)
        .send()
        .await
        .unwrap();
    let id = Reply::of(sent).await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    create(&app, json!({"model": BASE_MODEL, "training_file": id})).await.assert_error(
        400,
        Some("invalid_value"),
        Some("training_file"),
        &format!("Invalid training_file: the file {id} has the purpose 'batch', but 'fine-tune' is needed."),
    );
}

#[tokio::test]
async fn a_repeated_request_makes_one_job() {
    let app = App::start().await;
    let body = json!({"model": BASE_MODEL, "training_file": app.upload(b"{}\n").await, "metadata": {"a": "b"}});
    let send = async |header: Option<(&str, &str)>, body: &Value| {
        let mut request = app.request(Method::POST, JOBS).json(body);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        Reply::of(request.send().await.unwrap()).await
    };
    // Twice on purpose is two jobs; what an SDK sends again is one.
    let first = send(None, &body).await.json();
    let second = send(Some(("x-stainless-retry-count", "0")), &body)
        .await
        .json();
    assert_ne!(first["id"], second["id"]);
    let again = send(Some(("x-stainless-retry-count", "1")), &body).await;
    assert_eq!(again.json(), second);
    assert_eq!(again.header("idempotent-replayed"), "true");
    let mut changed = body.clone();
    changed["seed"] = json!(1);
    assert_ne!(
        send(Some(("x-stainless-retry-count", "1")), &changed)
            .await
            .json()["id"],
        second["id"]
    );

    let key = Some(("idempotency-key", "key-1"));
    let first = send(key, &body).await.json();
    assert_eq!(send(key, &body).await.json(), first);
    send(key, &changed)
        .await
        .assert_refused("idempotency_key_reused", "Idempotency-Key");
    let (left, right) = tokio::join!(
        send(Some(("idempotency-key", "key-2")), &body),
        send(Some(("idempotency-key", "key-2")), &body)
    );
    assert_eq!(left.json()["id"], right.json()["id"]);
}
