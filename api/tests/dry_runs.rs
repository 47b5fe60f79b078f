//! `/v1/fine_tuning/jobs?x_dry_run=true`, `/v1/x/files/{file_id}/validate`, `/v1/x/dry_runs`.

use domain::dry_run::{
    Answer, BadRow, DryRun, FileReport, Labels, Lengths, MAX_UNFINISHED, Plan, Repeat, Repeats,
    Report,
};
use domain::error::JobError;
use domain::hyperparameters::Auto;
use domain::id::{DryRunId, FileId, JobId};
use domain::job::JobSpec;
use domain::message::GenerateError;
use domain::method::Method;
use domain::x_training::{BaseWeights, TargetModules};
use platform::config::Config;
use reqwest::Method as Verb;
use serde_json::{Value, json};

use crate::support::worker::Plans;
use crate::support::{App, BASE_MODEL, Reply, now};

/// The scheduler's part: reports on the next dry run, and says what was ordered.
async fn report_on_next(app: &App, report: &Report) -> JobSpec {
    loop {
        let unfinished = app.store.dry_runs().unfinished(1).await.unwrap();
        if let [dry_run] = &unfinished[..] {
            app.store
                .dry_runs()
                .finish(&dry_run.id, report)
                .await
                .unwrap();
            return dry_run.spec.clone();
        }
        tokio::task::yield_now().await;
    }
}

async fn ask(app: &App, path: &str, body: Value, report: &Report) -> (Value, JobSpec) {
    let (reply, spec) = tokio::join!(app.post(path, body), report_on_next(app, report));
    assert_eq!(reply.status, 200, "{reply:?}");
    (reply.json(), spec)
}

fn report() -> Report {
    let method = Method::Supervised {
        hyperparameters: Default::default(),
    };
    let repeats = |line, first_line| Repeats {
        n_rows: 1,
        rows: vec![Repeat { line, first_line }],
        is_complete: true,
    };
    let training = FileReport {
        n_rows: 8,
        n_examples: 100,
        n_tokens: 5_000,
        longest: 90,
        n_cut: 2,
        duplicates: repeats(7, 3),
        labels: Labels {
            n_tokens: 400,
            lengths: vec![Lengths {
                at_most: 4,
                n_rows: 8,
            }],
            answers: Some(vec![Answer {
                text: "yes".to_owned(),
                n_rows: 8,
            }]),
        },
        ..FileReport::default()
    };
    Report {
        error: None,
        plan: Some(Plan::new(&method, 64, 100, 5_000)),
        validation: Some(FileReport::default()),
        leaked: Some(repeats(1, 2)),
        training: Some(training),
    }
}

#[tokio::test]
async fn a_dry_run_answers_with_numbers_and_makes_no_job() {
    let app = App::start().await;
    let (train, valid) = (app.upload(b"{}\n").await, app.upload(b"{}\n").await);
    let body =
        json!({"model": BASE_MODEL, "training_file": train, "validation_file": valid, "seed": 7});
    let path = "/v1/fine_tuning/jobs?x_dry_run=true";
    let (shown, spec) = ask(&app, path, body.clone(), &report()).await;
    assert_eq!(
        (spec.training_file.as_str(), spec.seed),
        (train.as_str(), 7)
    );
    let numbers = json!({"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0});
    let repeats = |line: u64, first_line: u64| json!({"n_rows": 1, "rows": [{"line": line, "first_line": first_line}], "is_complete": true});
    let nothing = json!({"n_rows": 0, "rows": [], "is_complete": false});
    let memory_plan = json!({
        "device": "gpu", "gpu_declined": null, "weights_bytes": 16_000, "adapter_bytes": 300, "activations_bytes": 40_000,
        "total_bytes": 56_300, "host_bytes": 2_000, "available_bytes": 80_000, "fits": true, "pass_tokens": 8_192,
        "gradient_checkpointing": "selective", "recomputed_layers": 3, "streams": "host",
    });
    let expected = json!({
        "id": shown["id"], "object": "x.dry_run", "created_at": shown["created_at"], "status": "completed",
        "model": BASE_MODEL, "training_file": train, "validation_file": valid, "error": null,
        "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}}, "hyperparameters": numbers,
        "x_training": shown["x_training"], "total_steps": 75, "trained_tokens": 15_000,
        "estimated_seconds": null, "estimated_memory_bytes": 56_300, "memory_plan": memory_plan, "memory_plan_error": null,
        "price": null,
        "training": {
            "n_rows": 8, "n_examples": 100, "n_tokens": 5000, "longest": 90, "n_bad_rows": 0, "bad_rows": [],
            "truncation": {"n_cut": 2, "n_split": 0, "n_dropped": 0, "share": 0.25}, "duplicates": repeats(7, 3),
            "labels": {"n_tokens": 400, "lengths": [{"at_most": 4, "n_rows": 8}], "answers": [{"text": "yes", "n_rows": 8}]},
        },
        "validation": {
            "n_rows": 0, "n_examples": 0, "n_tokens": 0, "longest": 0, "n_bad_rows": 0, "bad_rows": [],
            "truncation": {"n_cut": 0, "n_split": 0, "n_dropped": 0, "share": 0.0}, "duplicates": nothing,
            "labels": {"n_tokens": 0, "lengths": [], "answers": null},
        },
        "leaked": repeats(1, 2),
    });
    assert_eq!(shown, expected);
    assert_eq!(
        shown["x_training"]["resolved"]["data"]["max_length"],
        json!(512)
    );
    let id = shown["id"].as_str().unwrap();
    assert_eq!(app.get(&format!("/v1/x/dry_runs/{id}")).await.json(), shown);
    assert_eq!(
        app.get("/v1/fine_tuning/jobs").await.json()["data"],
        json!([])
    );
    let job = app
        .post("/v1/fine_tuning/jobs?x_dry_run=false", body)
        .await
        .json();
    assert_eq!(job["object"], json!("fine_tuning.job"));
}

fn priced(config: &mut Config) {
    let price = format!("{BASE_MODEL} input=1 output=2 trained=10");
    config.prices.models = vec![price.parse().unwrap()];
}

#[tokio::test]
async fn a_dry_run_says_what_the_job_will_be_charged_for_and_how_long_it_will_take() {
    let app = App::start_with(priced).await;
    let id = app.new_job(json!({})).await;
    app.succeed(&JobId::parse(&id).unwrap()).await;
    let billed = app.get(&format!("/v1/fine_tuning/jobs/{id}")).await.json()["trained_tokens"]
        .as_u64()
        .unwrap();
    let mut report = report();
    report.plan.as_mut().unwrap().trained_tokens = billed;
    let train = app.upload(b"{}\n").await;
    let body = json!({"model": BASE_MODEL, "training_file": train});
    let path = "/v1/fine_tuning/jobs?x_dry_run=true";
    let (shown, _) = ask(&app, path, body, &report).await;
    let start = now().unix_s() - 3_600;
    let costs = format!("/v1/organization/costs?start_time={start}");
    let costs = app.with_key(&app.admin_key, Verb::GET, &costs).await.json();
    let charged = &costs["data"][0]["results"][0]["amount"];
    let expected = json!({"amount": charged, "billed_tokens": billed, "per_million_tokens": 10.0});
    assert_eq!(shown["price"], expected);
    assert_eq!(charged, &json!({"value": 0.0507, "currency": "usd"}));
    // At the 100 tokens a second of the job before.
    assert_eq!(shown["estimated_seconds"], json!(51));
}

#[tokio::test]
async fn a_worker_is_asked_for_the_memory_of_just_this_training() {
    let app = App::start().await;
    let (train, valid) = (app.upload(b"{}\n").await, app.upload(b"{}\n").await);
    let body = json!({
        "model": BASE_MODEL, "training_file": train, "validation_file": valid,
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}},
        "x_training": {"adapter": {"r": 24, "target_modules": ["q_proj"]}, "precision": {"base_weights": "nf4"}},
    });
    let mut report = report();
    let validation = report.validation.as_mut().unwrap();
    (validation.longest, validation.longest_together) = (80, 150);
    ask(&app, "/v1/fine_tuning/jobs?x_dry_run=true", body, &report).await;
    let asked = app.worker.last_planned();
    assert_eq!(
        (asked.base_model.as_str(), asked.longest),
        (BASE_MODEL, 150)
    );
    assert_eq!(asked.training.adapter.r, 24);
    let q_proj = TargetModules::Named(vec!["q_proj".to_owned()]);
    assert_eq!(asked.training.adapter.target_modules, q_proj);
    assert_eq!(asked.training.precision.base_weights, BaseWeights::Nf4);
    assert_eq!(asked.preference.unwrap().beta, Auto::Given(0.2));
}

#[tokio::test]
async fn a_dry_run_without_a_memory_plan_says_why_and_is_as_good() {
    let app = App::start().await;
    let train = app.upload(b"{}\n").await;
    let body = json!({"model": BASE_MODEL, "training_file": train});
    let path = "/v1/fine_tuning/jobs?x_dry_run=true";
    let unfit = GenerateError::Unanswerable {
        param: "x_training.adapter".to_owned(),
        reason: "rank 99 is too large".to_owned(),
    };
    let secret = GenerateError::Internal {
        reason: "secret path".to_owned(),
    };
    for (plans, reason) in [
        (Plans::Refused(400, unfit), "rank 99 is too large"),
        (
            Plans::Refused(503, GenerateError::Busy),
            "All workers are busy",
        ),
        (Plans::Refused(500, secret), "The server had an error"),
        (Plans::Unknown, "The server had an error"),
        (Plans::Never, "No worker told within 5 s"),
    ] {
        app.worker.plans(plans);
        let (shown, _) = ask(&app, path, body.clone(), &report()).await;
        check_unplanned(&shown, reason);
    }
    app.worker.plans(Plans::Told);
    let worker = app.worker.status().worker_id;
    app.store.workers().remove(&worker).await.unwrap();
    let (shown, _) = ask(&app, path, body, &report()).await;
    check_unplanned(
        &shown,
        "No worker serves the model 'tiny-llama' at the moment",
    );
    // Once one is there, the same dry run has its plan.
    let status = app.worker.status();
    app.store.workers().upsert(&status, now()).await.unwrap();
    let id = shown["id"].as_str().unwrap();
    let again = app.get(&format!("/v1/x/dry_runs/{id}")).await.json();
    assert_eq!(again["memory_plan"]["total_bytes"], json!(56_300));
}

/// Everything but the plan is there.
fn check_unplanned(shown: &Value, reason: &str) {
    assert_eq!(
        (&shown["status"], &shown["error"]),
        (&json!("completed"), &json!(null))
    );
    assert_eq!(shown["trained_tokens"], json!(15_000));
    assert_eq!(
        (&shown["memory_plan"], &shown["estimated_memory_bytes"]),
        (&json!(null), &json!(null))
    );
    let told = shown["memory_plan_error"].as_str().unwrap();
    assert!(told.contains(reason) && !told.contains("secret"), "{told}");
}

#[tokio::test]
async fn what_would_fail_the_job_is_in_the_report() {
    let app = App::start_with(priced).await;
    let train = app.upload(b"{}\n").await;
    let row = BadRow {
        line: 3,
        byte_offset: 70,
        pointer: "/messages/0".to_owned(),
        reason: "has no role".to_owned(),
        suggested_fix: "Give it one.".to_owned(),
    };
    let report = Report {
        error: Some(JobError {
            code: "invalid_training_file".to_owned(),
            message: "bad".to_owned(),
            param: Some("training_file".to_owned()),
        }),
        training: Some(FileReport {
            n_bad_rows: 1,
            bad_rows: vec![row],
            ..FileReport::default()
        }),
        ..Report::default()
    };
    let path = format!("/v1/x/files/{train}/validate");
    let (shown, spec) = ask(&app, &path, json!({"model": BASE_MODEL}), &report).await;
    assert_eq!(spec.training_file.as_str(), train);
    let error =
        json!({"code": "invalid_training_file", "message": "bad", "param": "training_file"});
    assert_eq!(
        (&shown["error"], &shown["status"]),
        (&error, &json!("completed"))
    );
    for key in [
        "hyperparameters",
        "trained_tokens",
        "total_steps",
        "price",
        "estimated_seconds",
        "estimated_memory_bytes",
        "memory_plan",
        "memory_plan_error",
        "validation",
        "leaked",
    ] {
        assert_eq!(shown[key], json!(null), "{key}");
    }
    let row = json!({
        "line": 3, "byte_offset": 70, "pointer": "/messages/0", "reason": "has no role", "suggested_fix": "Give it one.",
    });
    assert_eq!(shown["training"]["bad_rows"], json!([row]));
}

#[tokio::test]
async fn a_dry_run_is_refused_where_the_job_is() {
    let app = App::start().await;
    let train = app.upload(b"{}\n").await;
    let order = |key: &str, value: Value| {
        let mut body = json!({"model": BASE_MODEL, "training_file": train});
        body[key] = value;
        body
    };
    for (key, value, code, param) in [
        ("model", json!("nope"), "model_not_available", "model"),
        (
            "training_file",
            json!("file-nope"),
            "invalid_value",
            "training_file",
        ),
        ("seed", json!(-1), "integer_below_min_value", "seed"),
        ("color", json!("red"), "unknown_parameter", "color"),
    ] {
        let reply = app
            .post("/v1/fine_tuning/jobs?x_dry_run=true", order(key, value))
            .await;
        reply.assert_refused(code, param);
    }
    let path = format!("/v1/x/files/{train}/validate");
    let validate = async |body: Value| app.post(&path, body).await;
    validate(json!({}))
        .await
        .assert_refused("missing_required_parameter", "model");
    let with_seed = json!({"model": BASE_MODEL, "seed": 1});
    validate(with_seed)
        .await
        .assert_refused("unknown_parameter", "seed");
    let reply = app
        .post(
            "/v1/x/files/file-nope/validate",
            json!({"model": BASE_MODEL}),
        )
        .await;
    reply.assert_error(404, None, Some("id"), "No such File object: file-nope");
    let odd = app
        .post(
            "/v1/fine_tuning/jobs?x_dry_run=maybe",
            order("seed", json!(1)),
        )
        .await;
    odd.assert_refused("invalid_type", "x_dry_run");
    assert_eq!(app.store.dry_runs().unfinished(10).await, Ok(Vec::new()));
}

/// A dry run that nobody reports on.
async fn unfinished(app: &App) -> DryRunId {
    let spec = JobSpec {
        model: BASE_MODEL.to_owned(),
        training_file: FileId::mint(rand::random()),
        validation_file: None,
        suffix: None,
        seed: 7,
        method: Method::Supervised {
            hyperparameters: Default::default(),
        },
        metadata: None,
        x_training: None,
    };
    let dry_run = DryRun {
        id: DryRunId::mint(rand::random()),
        project_id: app.project.id.clone(),
        spec,
        created_at: now(),
        report: None,
    };
    app.store.dry_runs().insert(&dry_run).await.unwrap();
    dry_run.id
}

#[tokio::test]
async fn a_dry_run_without_its_report_is_in_progress_and_others_do_not_see_it() {
    let app = App::start().await;
    let id = unfinished(&app).await;
    let shown = app.get(&format!("/v1/x/dry_runs/{id}")).await.json();
    assert_eq!(
        (&shown["status"], &shown["training"]),
        (&json!("in_progress"), &json!(null))
    );
    let path = format!("/v1/x/dry_runs/{id}");
    let message = format!("No such dry run: {id}");
    app.foreign(Verb::GET, &path)
        .await
        .assert_error(404, None, Some("id"), &message);
    let reply: Reply = app.get("/v1/x/dry_runs/nonsense").await;
    reply.assert_error(404, None, Some("id"), "No such dry run: nonsense");
}

#[tokio::test]
async fn a_project_waits_for_so_many_reports_at_most() {
    let app = App::start().await;
    let train = app.upload(b"{}\n").await;
    for _ in 0..MAX_UNFINISHED {
        unfinished(&app).await;
    }
    let path = format!("/v1/x/files/{train}/validate");
    let reply = app.post(&path, json!({"model": BASE_MODEL})).await;
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status.as_u16(), &error["code"]),
        (429, &json!("rate_limit_exceeded")),
        "{error}"
    );
    assert_eq!(reply.header("retry-after"), "1");
}
