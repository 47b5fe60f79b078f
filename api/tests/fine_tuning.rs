//! `/v1/fine_tuning/jobs`.

use domain::error::JobError;
use domain::event::{Level, NewEvent};
use domain::id::JobId;
use domain::job_event::JobEvent;
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
            "metadata": {"b": "2", "a": ""}, "x_status": "validating",
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
    let own = json!({"beta": 0.1, "n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"});
    assert_eq!(
        job["method"],
        json!({"type": "dpo", "dpo": {"hyperparameters": own}})
    );
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
            json!({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}),
            "decimal_above_max_value",
            "method.dpo.hyperparameters.beta",
        ),
        (
            json!({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}),
            "unsupported_parameter",
            "integrations",
        ),
        (
            json!({"x_training": {"update": "full"}}),
            "unsupported_parameter",
            "x_training",
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
async fn training_on_from_a_tuned_model_is_refused_by_name() {
    let app = App::start().await;
    let id = JobId::parse(&app.new_job(json!({})).await).unwrap();
    let tuned = app.succeed(&id).await;
    let body = json!({"model": tuned, "training_file": app.upload(b"{}\n").await});
    create(&app, body)
        .await
        .assert_refused("unsupported_value", "model");
}

#[tokio::test]
async fn a_finished_job_shows_its_result() {
    let app = App::start().await;
    let id = app
        .new_job(json!({"suffix": "sup", "method": {"type": "supervised"}}))
        .await;
    let tuned = app.succeed(&JobId::parse(&id).unwrap()).await;
    let job = app.get(&format!("{JOBS}/{id}")).await.json();
    let parts: Vec<&str> = tuned.split(':').collect();
    assert_eq!(
        (parts.len(), parts[0], parts[1], parts[2], parts[3]),
        (5, "ft", BASE_MODEL, "luthier", "sup")
    );
    assert_eq!(job["status"], json!("succeeded"));
    assert_eq!(job["fine_tuned_model"], json!(tuned));
    assert_eq!(job["trained_tokens"], json!(5070));
    assert!(job["finished_at"].as_i64().unwrap() >= job["created_at"].as_i64().unwrap());
    assert_eq!(
        job["hyperparameters"],
        json!({"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0})
    );
    let results = job["result_files"][0].as_str().unwrap();
    let file = app.get(&format!("/v1/files/{results}")).await.json();
    assert_eq!(
        (&file["purpose"], &file["filename"]),
        (&json!("fine-tune-results"), &json!("step_metrics.csv"))
    );
    let csv = app.get(&format!("/v1/files/{results}/content")).await;
    assert!(
        csv.bytes
            .starts_with(b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n")
    );
}

#[tokio::test]
async fn a_failed_job_shows_why() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    let error = JobError {
        code: "invalid_n_examples".to_owned(),
        message: "Training file has 1 example(s), but must have at least 10 examples".to_owned(),
        param: Some("training_file".to_owned()),
    };
    let details = vec![NewEvent::message(Level::Error, "line 1: …")];
    app.apply(
        &JobId::parse(&id).unwrap(),
        JobEvent::ValidationFailed {
            error: error.clone(),
            details,
        },
    )
    .await;
    let job = app.get(&format!("{JOBS}/{id}")).await.json();
    assert_eq!(
        (&job["status"], &job["finished_at"]),
        (&json!("failed"), &json!(null))
    );
    assert_eq!(
        job["error"],
        json!({"code": error.code, "message": error.message, "param": "training_file"})
    );
    let events = app.get(&format!("{JOBS}/{id}/events")).await.json();
    assert_eq!(events["data"][0]["level"], json!("error"));
}

#[tokio::test]
async fn events_tell_the_story_backwards() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    app.succeed(&JobId::parse(&id).unwrap()).await;
    let (mut events, mut after) = (Vec::new(), String::new());
    loop {
        let page = app
            .get(&format!("{JOBS}/{id}/events?limit=3{after}"))
            .await
            .json();
        events.extend(page["data"].as_array().unwrap().clone());
        after = format!("&after={}", page["last_id"].as_str().unwrap());
        if page["has_more"] == json!(false) {
            break;
        }
    }
    let messages: Vec<&str> = events
        .iter()
        .rev()
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    assert_eq!(messages[0], format!("Created fine-tuning job: {id}"));
    assert_eq!(messages[2], "Files validated, moving job to queued state");
    assert_eq!(messages[3], "Fine-tuning job started");
    assert_eq!(messages[4], "Step 1/6: training loss=2.75");
    assert_eq!(
        *messages.last().unwrap(),
        "The job has successfully completed"
    );
    let metrics = events
        .iter()
        .find(|event| event["message"].as_str().unwrap().starts_with("Step 6/6"))
        .unwrap();
    assert_eq!(
        metrics,
        &json!({
            "id": metrics["id"], "object": "fine_tuning.job.event", "created_at": metrics["created_at"], "level": "info",
            "message": "Step 6/6: training loss=1.50, validation loss=1.75", "type": "metrics",
            "data": {
                "step": 6, "train_loss": 1.5, "train_mean_token_accuracy": 0.5, "x_n_tokens": 100, "valid_loss": 1.75,
                "valid_mean_token_accuracy": 0.625, "total_steps": 6,
            },
        })
    );
    let created = events.last().unwrap();
    assert_eq!(
        (&created["type"], &created["data"]),
        (&json!("message"), &json!({}))
    );
    assert!(created["id"].as_str().unwrap().starts_with("ftevent-"));
}

#[tokio::test]
async fn checkpoints_are_listed_newest_first() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    let tuned = app.succeed(&JobId::parse(&id).unwrap()).await;
    let page = app.get(&format!("{JOBS}/{id}/checkpoints")).await.json();
    let last = &page["data"][0];
    assert_eq!(
        last,
        &json!({
            "id": last["id"], "object": "fine_tuning.job.checkpoint", "created_at": last["created_at"],
            "fine_tuned_model_checkpoint": tuned, "step_number": 6, "fine_tuning_job_id": id,
            "metrics": {
                "step": 6, "train_loss": 1.5, "train_mean_token_accuracy": 0.5, "valid_loss": 1.75,
                "valid_mean_token_accuracy": 0.625,
            },
        })
    );
    let name = page["data"][1]["fine_tuned_model_checkpoint"]
        .as_str()
        .unwrap();
    assert!(name.ends_with(":9uJPavMj:ckpt-step-3"), "{name}");
    assert_eq!(
        page["data"][1]["metrics"],
        json!({"step": 3, "train_loss": 2.25, "train_mean_token_accuracy": 0.5})
    );
    let one = app
        .get(&format!("{JOBS}/{id}/checkpoints?limit=1"))
        .await
        .json();
    assert_eq!(
        (one["data"].as_array().unwrap().len(), &one["has_more"]),
        (1, &json!(true))
    );
}

#[tokio::test]
async fn an_unknown_and_a_foreign_job_are_the_same() {
    let app = App::start().await;
    let own = app.new_job(json!({})).await;
    for (method, tail) in [
        (Method::GET, ""),
        (Method::GET, "/events"),
        (Method::GET, "/checkpoints"),
        (Method::POST, "/cancel"),
        (Method::POST, "/pause"),
        (Method::POST, "/resume"),
    ] {
        let (code, param) = (Some("fine_tune_not_found"), Some("fine_tune_id"));
        let foreign = app
            .foreign(method.clone(), &format!("{JOBS}/{own}{tail}"))
            .await;
        foreign.assert_error(
            404,
            code,
            param,
            &format!("Could not find fine tune: {own}"),
        );
        for id in ["ftjob-nope", "123"] {
            let sent = app
                .request(method.clone(), &format!("{JOBS}/{id}{tail}"))
                .send()
                .await
                .unwrap();
            let message = format!("Could not find fine tune: {id}");
            Reply::of(sent)
                .await
                .assert_error(404, code, param, &message);
        }
    }
    let unknown = "No such object in this list: ftevent-nope";
    let path = format!("{JOBS}/{own}/events?after=ftevent-nope");
    app.get(&path)
        .await
        .assert_error(404, Some("invalid_value"), Some("after"), unknown);
    assert_eq!(
        app.foreign(Method::GET, JOBS).await.json()["data"],
        json!([])
    );
}

#[tokio::test]
async fn a_job_is_cancelled_once() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    let cancel = format!("{JOBS}/{id}/cancel");
    let job = app.post(&cancel, json!({})).await.json();
    assert_eq!(
        (&job["status"], &job["x_status"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    let message =
        format!("The fine-tuning job {id} cannot be cancelled: its status is 'cancelled'.");
    app.post(&cancel, json!({}))
        .await
        .assert_error(400, Some("invalid_job_state"), None, &message);
}

#[tokio::test]
async fn a_running_job_pauses_and_goes_on() {
    let app = App::start().await;
    let id = app.new_job(json!({})).await;
    let job_id = JobId::parse(&id).unwrap();
    app.validate(&job_id).await;
    app.claim(&job_id).await;
    let act = async |action: &str| app.post(&format!("{JOBS}/{id}/{action}"), json!({})).await;
    let pausing = act("pause").await.json();
    assert_eq!(
        (&pausing["status"], &pausing["x_status"]),
        (&json!("running"), &json!("pausing"))
    );
    act("resume").await.assert_error(
        400,
        Some("invalid_job_state"),
        None,
        &format!("The fine-tuning job {id} cannot be resumed: its status is 'pausing'."),
    );
    app.apply(&job_id, JobEvent::Stopped { attempt: 1 }).await;
    assert_eq!(
        app.get(&format!("{JOBS}/{id}")).await.json()["status"],
        json!("paused")
    );
    assert_eq!(act("resume").await.json()["status"], json!("queued"));
}

#[tokio::test]
async fn jobs_are_found_by_their_metadata() {
    let app = App::start().await;
    let one = app
        .new_job(json!({"metadata": {"run": "1", "empty": ""}}))
        .await;
    let two = app.new_job(json!({"metadata": {"run": "2"}})).await;
    let none = app.new_job(json!({})).await;
    let ids = async |query: &str| {
        let page = app.get(&format!("{JOBS}?{query}")).await.json();
        let ids = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<String>>()
    };
    assert_eq!(ids("").await, [none.clone(), two.clone(), one.clone()]);
    assert_eq!(ids("metadata%5Brun%5D=1").await, std::slice::from_ref(&one));
    assert_eq!(ids("metadata[run]=1&metadata[empty]=").await, [one]);
    assert_eq!(ids("metadata[run]=2&metadata[empty]=").await, [""; 0]);
    assert_eq!(ids("metadata=null").await, std::slice::from_ref(&none));
    assert_eq!(ids(&format!("limit=1&after={none}")).await, [two]);
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
