//! `x_training` of a job: what is taken, what it becomes, what is refused by name, and training on from a tuned model.

use domain::id::JobId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

const JOBS: &str = "/v1/fine_tuning/jobs";

async fn create(app: &App, model: &str, x_training: Value) -> Reply {
    let training_file = app.upload(b"{}\n").await;
    let body = json!({"model": model, "training_file": training_file, "x_training": x_training});
    app.post(JOBS, body).await
}

/// A tuned model of the project, with the adapter of `ADAPTER_CONFIG`.
async fn tuned(app: &App, suffix: &str) -> String {
    let id = app.new_job(json!({"suffix": suffix})).await;
    let id = JobId::parse(&id).unwrap();
    app.succeed(&id).await
}

fn resolved() -> Value {
    json!({
        "adapter": {
            "type": "lora", "r": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": "all-linear", "rank_pattern": {},
            "alpha_pattern": {}, "use_rslora": false, "use_dora": false, "bias": "none", "modules_to_save": [],
            "init": "default", "continue_from": null,
        },
        "optimizer": {"loraplus_lr_ratio": null},
        "precision": {
            "compute": "fp32", "compute_on_gpu": "bf16", "base_weights": "stored", "double_quant": false,
        },
        "memory": {"gradient_checkpointing": "auto"},
        "data": {"format": "chat", "max_length": 512, "truncation": "right", "packing": "binpack"},
    })
}

#[tokio::test]
async fn a_job_shows_what_was_asked_and_what_it_became() {
    let app = App::start().await;
    let nothing = create(&app, BASE_MODEL, Value::Null).await.json();
    assert_eq!(nothing["x_training"], json!({"resolved": resolved()}));
    let asked = json!({
        "adapter": {"r": 8, "target_modules": ["q_proj", "v_proj"], "bias": null},
        "precision": {"compute": "auto"},
        "data": {"format": "alpaca", "max_length": 100, "truncation": "drop"},
    });
    let job = create(&app, BASE_MODEL, asked.clone()).await.json();
    let mut expected = asked;
    expected["resolved"] = resolved();
    expected["resolved"]["adapter"]["r"] = json!(8);
    expected["resolved"]["adapter"]["alpha"] = json!(16.0);
    expected["resolved"]["adapter"]["target_modules"] = json!(["q_proj", "v_proj"]);
    expected["resolved"]["data"]["format"] = json!("alpaca");
    expected["resolved"]["data"]["max_length"] = json!(100);
    expected["resolved"]["data"]["truncation"] = json!("drop");
    assert_eq!(job["x_training"], expected);
    let path = format!("{JOBS}/{}", job["id"].as_str().unwrap());
    assert_eq!(app.get(&path).await.json(), job);
    // What a job shows of `auto` can be asked for again.
    let precision = json!({"precision": {"compute": "fp32", "compute_on_gpu": "bf16"}});
    let again = create(&app, BASE_MODEL, precision).await.json();
    assert_eq!(again["x_training"]["resolved"], resolved());
}

#[tokio::test]
async fn every_bad_option_is_named_by_its_path() {
    let app = App::start().await;
    for (x_training, code, param) in [
        (json!("lora"), "invalid_type", "x_training"),
        (
            json!({"update": "full"}),
            "unknown_parameter",
            "x_training.update",
        ),
        (
            json!({"adapter": {"foo": 1}}),
            "unknown_parameter",
            "x_training.adapter.foo",
        ),
        (
            json!({"adapter": {"lora_alpha": 1}}),
            "unknown_parameter",
            "x_training.adapter.lora_alpha",
        ),
        (
            json!({"resolved": {}}),
            "unknown_parameter",
            "x_training.resolved",
        ),
        (
            json!({"adapter": {"type": "ia3"}}),
            "invalid_value",
            "x_training.adapter.type",
        ),
        (
            json!({"adapter": {"r": 0}}),
            "integer_below_min_value",
            "x_training.adapter.r",
        ),
        (
            json!({"adapter": {"r": 1025}}),
            "integer_above_max_value",
            "x_training.adapter.r",
        ),
        (
            json!({"adapter": {"r": "8"}}),
            "invalid_type",
            "x_training.adapter.r",
        ),
        (
            json!({"adapter": {"alpha": 0}}),
            "decimal_below_min_value",
            "x_training.adapter.alpha",
        ),
        (
            json!({"adapter": {"dropout": 1}}),
            "decimal_above_max_value",
            "x_training.adapter.dropout",
        ),
        (
            json!({"adapter": {"target_modules": []}}),
            "empty_array",
            "x_training.adapter.target_modules",
        ),
        (
            json!({"adapter": {"target_modules": 3}}),
            "invalid_type",
            "x_training.adapter.target_modules",
        ),
        (
            json!({"adapter": {"rank_pattern": {"q": 0}}}),
            "integer_below_min_value",
            "x_training.adapter.rank_pattern.q",
        ),
        (
            json!({"adapter": {"alpha_pattern": {"q": "x"}}}),
            "invalid_type",
            "x_training.adapter.alpha_pattern.q",
        ),
        (
            json!({"adapter": {"use_dora": 1}}),
            "invalid_type",
            "x_training.adapter.use_dora",
        ),
        (
            json!({"adapter": {"bias": "some"}}),
            "invalid_value",
            "x_training.adapter.bias",
        ),
        (
            json!({"adapter": {"init": "olora"}}),
            "invalid_value",
            "x_training.adapter.init",
        ),
        (
            json!({"optimizer": {"loraplus_lr_ratio": 0.5}}),
            "decimal_below_min_value",
            "x_training.optimizer.loraplus_lr_ratio",
        ),
        (
            json!({"optimizer": {"type": "sgd"}}),
            "unknown_parameter",
            "x_training.optimizer.type",
        ),
        (
            json!({"precision": {"compute": "fp16"}}),
            "invalid_value",
            "x_training.precision.compute",
        ),
        (
            json!({"precision": {"compute_on_gpu": "fp32"}}),
            "invalid_value",
            "x_training.precision.compute_on_gpu",
        ),
        (
            json!({"precision": {"double_quant": true}}),
            "invalid_value",
            "x_training.precision.double_quant",
        ),
        (
            json!({"memory": {"gradient_checkpointing": true}}),
            "invalid_type",
            "x_training.memory.gradient_checkpointing",
        ),
        (
            json!({"data": {"max_length": 513}}),
            "invalid_value",
            "x_training.data.max_length",
        ),
        (
            json!({"data": {"max_length": 1}}),
            "integer_below_min_value",
            "x_training.data.max_length",
        ),
        (
            json!({"data": {"truncation": "middle"}}),
            "invalid_value",
            "x_training.data.truncation",
        ),
        (
            json!({"data": {"format": "csv"}}),
            "invalid_value",
            "x_training.data.format",
        ),
        (
            json!({"data": {"packing": "best"}}),
            "invalid_value",
            "x_training.data.packing",
        ),
        (
            json!({"precision": {"base_weights": "int4"}}),
            "invalid_value",
            "x_training.precision.base_weights",
        ),
    ] {
        create(&app, BASE_MODEL, x_training)
            .await
            .assert_refused(code, param);
    }
    assert_eq!(app.get(JOBS).await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_refusal_says_why() {
    let app = App::start().await;
    let longer = create(&app, BASE_MODEL, json!({"data": {"max_length": 600}})).await;
    longer.assert_error(
        400,
        Some("invalid_value"),
        Some("x_training.data.max_length"),
        "Invalid 'x_training.data.max_length': the base model reads at most 512 tokens.",
    );
}

#[tokio::test]
async fn a_tuned_model_or_a_checkpoint_of_it_is_trained_on() {
    let app = App::start().await;
    let name = tuned(&app, "mine").await;
    let model = app.store.models().find(&app.project.id, &name).await;
    let adapter = model.unwrap().unwrap().adapter;
    let earlier = app.store.models().list(&app.project.id).await.unwrap();
    let earlier = earlier
        .iter()
        .find(|m| m.name != name)
        .unwrap()
        .name
        .clone();
    for (model, asked, shown, from) in [
        (name.as_str(), Value::Null, name.as_str(), name.as_str()),
        (&earlier, Value::Null, &earlier, &earlier),
        (
            BASE_MODEL,
            json!({"adapter": {"continue_from": name}}),
            BASE_MODEL,
            &name,
        ),
        (
            &name,
            json!({"adapter": {"continue_from": name, "r": 4}}),
            &name,
            &name,
        ),
    ] {
        let reply = create(&app, model, asked).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let job = reply.json();
        assert_eq!(job["model"], json!(shown));
        let resolved = &job["x_training"]["resolved"]["adapter"];
        assert_eq!(
            (
                &resolved["continue_from"],
                &resolved["r"],
                &resolved["alpha"],
                &resolved["target_modules"]
            ),
            (&json!(from), &json!(4), &json!(8.0), &json!(["q_proj"]))
        );
        let id = JobId::parse(job["id"].as_str().unwrap()).unwrap();
        let stored = app.store.jobs().get_internal(&id).await.unwrap().unwrap();
        assert!(stored.tuned_model_name().starts_with("ft:tiny-llama:"));
        assert_eq!(
            stored.spec.model, BASE_MODEL,
            "the queue is the base model's"
        );
        assert_eq!(stored.spec.x_training.unwrap().start, Some(adapter.clone()));
    }
}

#[tokio::test]
async fn what_cannot_be_trained_on_is_refused_by_name() {
    let app = App::start().await;
    let name = tuned(&app, "mine").await;
    let path = "x_training.adapter.continue_from";
    let from = |name: &str| json!({"adapter": {"continue_from": name}});
    for (model, x_training, code, param) in [
        (
            name.as_str(),
            json!({"adapter": {"r": 8}}),
            "invalid_value",
            "x_training.adapter.r",
        ),
        (
            &name,
            json!({"adapter": {"init": "gaussian"}}),
            "invalid_value",
            "x_training.adapter.init",
        ),
        (
            BASE_MODEL,
            from("ft:tiny-llama:luthier::absent00"),
            "model_not_available",
            path,
        ),
        (BASE_MODEL, from(BASE_MODEL), "model_not_available", path),
        (
            "ft:tiny-llama:luthier::absent00",
            Value::Null,
            "model_not_available",
            "model",
        ),
    ] {
        create(&app, model, x_training)
            .await
            .assert_refused(code, param);
    }
    let other = tuned(&app, "other").await;
    create(&app, &name, from(&other))
        .await
        .assert_refused("invalid_value", path);
    let training_file = {
        let part = reqwest::multipart::Part::bytes(b"{}\n".to_vec()).file_name("a.jsonl");
        let form = reqwest::multipart::Form::new()
            .text("purpose", "fine-tune")
            .part("file", part);
        let request = app.http.post(format!("{}/v1/files", app.base));
        let sent = request.bearer_auth(&app.other_key).multipart(form).send();
        Reply::of(sent.await.unwrap()).await.json()["id"].clone()
    };
    let request = app
        .http
        .request(Method::POST, format!("{}{JOBS}", app.base))
        .bearer_auth(&app.other_key)
        .json(&json!({"model": name, "training_file": training_file}));
    Reply::of(request.send().await.unwrap())
        .await
        .assert_refused("model_not_available", "model");
}
