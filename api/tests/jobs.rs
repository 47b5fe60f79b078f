//! A job's life as its owner follows and steers it.

use domain::error::JobError;
use domain::event::{Level, NewEvent};
use domain::id::JobId;
use domain::job_event::JobEvent;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

const JOBS: &str = "/v1/fine_tuning/jobs";

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
async fn a_project_has_so_many_unfinished_jobs_and_no_more() {
    let app = App::start_with(|config| config.limits.unfinished_jobs = 2).await;
    let order = json!({"model": BASE_MODEL, "training_file": app.upload(b"{}\n").await});
    let create = async || app.post(JOBS, order.clone()).await;
    let first = create().await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(create().await.status, 200);
    let refused = create().await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["message"]),
        (
            429,
            &json!(
                "This project already has 2 unfinished fine-tuning jobs. Please wait until one has ended, or ask an \
                 administrator for a higher x_max_unfinished_jobs."
            )
        )
    );
    let cancelled = app.post(&format!("{JOBS}/{first}/cancel"), json!({})).await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(create().await.status, 200);
    // A project's own number goes before the installation's, until it is taken back.
    let project = format!("/organization/projects/{}", app.project.id);
    let cap = async |jobs: Value| {
        let change = json!({"x_max_unfinished_jobs": jobs});
        let changed = app.admin(Method::POST, &project, change).await.json();
        assert_eq!(changed["x_max_unfinished_jobs"], jobs);
    };
    cap(json!(3)).await;
    assert_eq!(create().await.status, 200);
    let refused = create().await.json();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("3 unfinished"), "{message}");
    cap(Value::Null).await;
    let refused = create().await.json();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("2 unfinished"), "{message}");
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
