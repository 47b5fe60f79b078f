//! What a job's own options do to its attempt: the adapter's form, the examples' lengths, where training begins.

use domain::error::FailureClass;
use domain::hyperparameters::Auto;
use domain::message::{Assignment, FailRequest, FinishRequest, GenerateError, GenerateRequest};
use domain::metrics::StepMetrics;
use domain::model::AdapterRef;
use domain::x_training::{
    AskedAdapter, AskedTraining, BaseWeights, FrozenWeights, TargetModules, Training, Truncation,
};
use serde_json::{Value, json};

use crate::house::{House, ask, with_adapter};
use crate::tiny_model::CONTEXT;

fn resolved(asked: AskedTraining) -> Option<Training> {
    Some(asked.resolve(CONTEXT as u32, None).unwrap())
}

/// How an attempt ended, and what it measured.
type Ended = (Result<FinishRequest, FailRequest>, Vec<StepMetrics>);

async fn run(house: &House, name: &str, assignment: &Assignment) -> Ended {
    house.door.with(|script| {
        (script.finish, script.fail) = (None, None);
        script.metrics.clear();
        script.checkpoints.clear();
    });
    let worker = house.worker(name, |_| {}).await;
    house.give(assignment);
    house
        .door
        .until("an end", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    worker.stop().await.unwrap();
    house.door.with(|script| {
        let ended = match (script.finish.take(), script.fail.take()) {
            (Some(finish), None) => Ok(finish),
            (_, fail) => Err(fail.unwrap()),
        };
        (ended, script.metrics.clone())
    })
}

async fn adapter_config(house: &House, finish: &FinishRequest) -> Value {
    let key = format!("{}/adapter_config.json", finish.adapter.object_prefix);
    serde_json::from_slice(&house.objects.get_bytes(&key).await.unwrap()).unwrap()
}

#[tokio::test]
async fn the_adapter_has_the_form_that_was_asked_for() {
    let house = House::new().await;
    let asked = AskedTraining {
        adapter: AskedAdapter {
            r: Some(4),
            alpha: Some(6.0),
            target_modules: Some(TargetModules::Named(vec!["v_proj".into(), "q_proj".into()])),
            ..AskedAdapter::default()
        },
        ..AskedTraining::default()
    };
    let assignment = Assignment {
        training: resolved(asked),
        ..house.assignment(1).await
    };
    let finish = run(&house, "a", &assignment).await.0.unwrap();
    let config = adapter_config(&house, &finish).await;
    assert_eq!(
        (
            &config["r"],
            &config["lora_alpha"],
            &config["target_modules"]
        ),
        (&json!(4), &json!(6), &json!(["q_proj", "v_proj"]))
    );
    let ordinary = Assignment {
        training: None,
        object_prefix: "projects/p/jobs/other/attempts/1".into(),
        ..assignment
    };
    let finish = run(&house, "b", &ordinary).await.0.unwrap();
    let config = adapter_config(&house, &finish).await;
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&json!(16), &json!(32))
    );
}

#[tokio::test]
async fn a_module_that_the_base_has_not_is_the_client_s_fault() {
    let house = House::new().await;
    let asked = AskedTraining {
        adapter: AskedAdapter {
            target_modules: Some(TargetModules::Named(vec!["query_key_value".into()])),
            ..AskedAdapter::default()
        },
        ..AskedTraining::default()
    };
    let assignment = Assignment {
        training: resolved(asked),
        ..house.assignment(1).await
    };
    let fail = run(&house, "a", &assignment).await.0.unwrap_err();
    assert_eq!(fail.class, FailureClass::User);
    assert_eq!(fail.error.code, "invalid_x_training");
    assert_eq!(fail.error.param.as_deref(), Some("x_training.adapter"));
    assert!(fail.error.message.contains("query_key_value"), "{fail:?}");
}

#[tokio::test]
async fn examples_are_fitted_as_they_were_validated() {
    let house = House::new().await;
    let mut rows = vec![("What?", "That."); 10];
    rows.extend([("What else?", "And so on, and so on, and so on, and so on."); 2]);
    let training_file = house.dataset("lengths", &rows).await;
    let whole = house.assignment(1).await;
    let tokens = async |name: &str, truncation, max_length, total_steps| {
        let asked = AskedTraining {
            max_length: Some(max_length),
            truncation: Some(truncation),
            ..AskedTraining::default()
        };
        let assignment = Assignment {
            training: resolved(asked),
            training_file: training_file.clone(),
            validation_file: None,
            total_steps,
            object_prefix: format!("projects/p/jobs/{name}/attempts/1"),
            ..whole.clone()
        };
        run(&house, name, &assignment)
            .await
            .0
            .unwrap()
            .trained_tokens
    };
    // Ten short rows of equal length make three steps, twelve rows make three as well; a count of its own each.
    let dropped = tokens("drop", Truncation::Drop, 60, 3).await;
    let right = tokens("right", Truncation::Right, 60, 3).await;
    let left = tokens("left", Truncation::Left, 60, 3).await;
    assert_eq!((right, left), (dropped + 2 * 60, dropped + 2 * 60));
    // Each long row makes two pieces, that share a token.
    let whole = tokens("whole", Truncation::Right, 128, 3).await;
    let split = tokens("split", Truncation::Split, 60, 4).await;
    assert_eq!(split, whole + 2);
}

#[tokio::test]
async fn training_goes_on_where_the_adapter_ended() {
    let house = House::new().await;
    // Every batch is the same, so a loss depends on the adapter alone.
    let rows = vec![("What is 2+2?", "It is 4."); 10];
    let first = Assignment {
        training_file: house.dataset("same", &rows).await,
        validation_file: Some(house.dataset("same-valid", &rows[..1]).await),
        ..house.assignment(2).await
    };
    let (ended, metrics) = run(&house, "a", &first).await;
    let finish = ended.unwrap();
    let (began, last) = (metrics[0].train_loss, metrics.last().unwrap());
    let ended = last.full_valid_loss.unwrap();
    assert!(
        ended < began - 0.1,
        "{began} to {ended}: nothing was learned"
    );

    let second = Assignment {
        start: Some(finish.adapter),
        object_prefix: "projects/p/jobs/other/attempts/1".into(),
        ..first
    };
    let (ended_again, metrics) = run(&house, "b", &second).await;
    ended_again.unwrap();
    let goes_on = metrics[0].train_loss;
    // Both are the mean of the same labels; one is summed over a batch of four.
    assert!((goes_on - ended).abs() <= 1e-5, "{goes_on} after {ended}");
    assert!(metrics.last().unwrap().full_valid_loss.unwrap() < ended);
}

#[tokio::test]
async fn an_adapter_of_another_base_is_the_client_s_fault_and_a_lost_one_is_not() {
    let house = House::new().await;
    let assignment = house.assignment(1).await;
    let adapter = run(&house, "a", &assignment).await.0.unwrap().adapter;
    let config = format!("{}/adapter_config.json", adapter.object_prefix);
    let other = json!({"peft_type": "LORA", "r": 5, "lora_alpha": 5, "target_modules": ["q_proj"]});
    let bytes = other.to_string().into_bytes();
    house
        .objects
        .put_bytes(&config, bytes.into())
        .await
        .unwrap();
    let second = Assignment {
        start: Some(adapter),
        object_prefix: "projects/p/jobs/other/attempts/1".into(),
        ..assignment
    };
    let fail = run(&house, "b", &second).await.0.unwrap_err();
    let param = Some("x_training.adapter.continue_from");
    assert_eq!(
        (fail.class, fail.error.param.as_deref()),
        (FailureClass::User, param)
    );
    house.objects.delete(&config).await.unwrap();
    let fail = run(&house, "c", &second).await.0.unwrap_err();
    assert_eq!(fail.class, FailureClass::Infra);
}

#[tokio::test]
async fn the_same_weights_under_another_configuration_are_another_adapter() {
    let house = House::new().await;
    let assignment = house.assignment(1).await;
    let adapter = run(&house, "a", &assignment).await.0.unwrap().adapter;
    let other = AdapterRef {
        object_prefix: "projects/p/adapters/adapter-1".into(),
        ..adapter.clone()
    };
    let read = async |file: &str| {
        let key = format!("{}/{file}", adapter.object_prefix);
        house.objects.get_bytes(&key).await.unwrap()
    };
    let mut config: Value = serde_json::from_slice(&read("adapter_config.json").await).unwrap();
    config["r"] = json!(5);
    let weights = read("adapter_model.safetensors").await;
    for (file, bytes) in [
        ("adapter_config.json", config.to_string().into()),
        ("adapter_model.safetensors", weights),
    ] {
        let key = format!("{}/{file}", other.object_prefix);
        house.objects.put_bytes(&key, bytes).await.unwrap();
    }
    let worker = house.worker("b", |_| {}).await;
    let first = house
        .post(&worker, &with_adapter(ask("Hi", 1), &adapter))
        .await;
    assert_eq!(first.status(), 200);
    let second = house
        .post(&worker, &with_adapter(ask("Hi", 1), &other))
        .await;
    assert!(matches!(
        second.json().await.unwrap(),
        GenerateError::AdapterUnavailable { is_unfit: true, .. }
    ));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_adapter_answers_on_the_weights_it_was_trained_on() {
    let house = House::new().await;
    let (mut losses, mut adapters) = (Vec::new(), Vec::new());
    for (frozen_weights, base_weights, double_quant) in [
        (FrozenWeights::Stored, BaseWeights::Stored, None),
        (FrozenWeights::Bf16, BaseWeights::Bf16, None),
        (FrozenWeights::Int8, BaseWeights::Int8, None),
        (FrozenWeights::Fp8, BaseWeights::Fp8, None),
        (FrozenWeights::Nf4, BaseWeights::Nf4, Some(false)),
        (FrozenWeights::Nf4DoubleQuant, BaseWeights::Nf4, None),
    ] {
        let name = frozen_weights.as_str();
        let asked = AskedTraining {
            base_weights: Auto::Given(base_weights),
            double_quant,
            ..AskedTraining::default()
        };
        let assignment = Assignment {
            training: resolved(asked),
            object_prefix: format!("projects/p/jobs/{name}/attempts/1"),
            ..house.assignment(1).await
        };
        // The job ends only where the served adapter scores rows as the trained one does.
        let (finish, metrics) = run(&house, name, &assignment).await;
        let adapter = finish.unwrap().adapter;
        assert_eq!(adapter.frozen_weights, frozen_weights);
        losses.push(metrics[0].train_loss);
        adapters.push(adapter);
    }
    let worker = house.worker("server", |_| {}).await;
    let logprobs = async |adapter: &AdapterRef| {
        let request = GenerateRequest {
            top_logprobs: Some(0),
            ..with_adapter(ask("Hi", 8), adapter)
        };
        format!("{:?}", house.generate(&worker, &request).await)
    };
    for adapter in adapters {
        let on_stored = AdapterRef {
            frozen_weights: FrozenWeights::Stored,
            ..adapter.clone()
        };
        let answers = (logprobs(&adapter).await, logprobs(&on_stored).await);
        let is_same = adapter.frozen_weights == FrozenWeights::Stored;
        assert_eq!(answers.0 == answers.1, is_same, "{adapter:?}: {answers:?}");
    }
    worker.stop().await.unwrap();
    losses.sort_by(f64::total_cmp);
    losses.dedup();
    assert_eq!(losses.len(), 6, "{losses:?}");
}
