//! Good files, bad files, and files that cannot be had just now.

use domain::event::Level;
use domain::hyperparameters::Hyperparameters;
use domain::id::JobId;
use domain::job::{JobSpec, JobState};
use domain::method::Method;
use domain::preference::{Preference, PreferenceLoss};
use serde_json::json;

use crate::house::{House, conversation, conversations, spec};

/// A job that validation failed: its error's code, message and param, and the lines of its story
/// at level error.
async fn failed(house: &House, spec: JobSpec) -> (String, String, Option<String>, Vec<String>) {
    let id = house.create(spec).await;
    house.scheduler.validate_pass().await.unwrap();
    let job = house.job(&id).await;
    assert_eq!(job.state(), JobState::Failed);
    let error = job.progress().error.clone().unwrap();
    let errors = house
        .events(&id)
        .await
        .into_iter()
        .filter(|e| e.level == Level::Error);
    (
        error.code,
        error.message,
        error.param,
        errors.map(|e| e.message).collect(),
    )
}

#[tokio::test]
async fn auto_hyperparameters_become_numbers() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(50)).await;
    let hyperparameters = Hyperparameters::default();
    let method = Method::Supervised { hyperparameters };
    let id = house
        .create(JobSpec {
            method: method.clone(),
            ..spec(training_file)
        })
        .await;
    house.scheduler.validate_pass().await.unwrap();
    let job = house.job(&id).await;
    let resolved = method.resolve(50, 576);
    assert_eq!((resolved.n_epochs, resolved.batch_size), (3, 4));
    assert_eq!(job.progress().hyperparameters, Some(resolved));
    assert_eq!(
        job.progress().total_steps,
        Some(3 * 13),
        "the last batch of an epoch is short"
    );
}

#[tokio::test]
async fn too_few_examples_fail_in_openais_words() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(7)).await;
    let (code, message, param, errors) = failed(&house, spec(training_file)).await;
    let expected = "Training file has 7 example(s), but must have at least 10 examples";
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("invalid_n_examples", expected)
    );
    assert_eq!(param.as_deref(), Some("training_file"));
    assert_eq!(errors, [expected]);
}

#[tokio::test]
async fn every_bad_line_of_both_files_is_named() {
    let house = House::new().await;
    let mut lines: Vec<String> = conversations(12).lines().map(str::to_owned).collect();
    lines[4] = r#"{"messages": [{"role": "user", "content": "?"}, {"content": "!"}]}"#.to_owned();
    lines[8] = "{not json".to_owned();
    let training_file = house.upload(&lines.join("\n")).await;
    let validation_file = Some(house.upload("[]\n").await);
    let (code, message, param, errors) = failed(
        &house,
        JobSpec {
            validation_file,
            ..spec(training_file)
        },
    )
    .await;
    assert_eq!(
        (code.as_str(), param.as_deref()),
        ("invalid_training_file", Some("training_file"))
    );
    let role = "Invalid file format. Example 5, message 2 Discriminator 'role' is missing in value";
    assert!(message.contains(role), "{message}");
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(
        errors[0].starts_with("Invalid training file: line 5 at /messages/1"),
        "{errors:?}"
    );
    assert!(
        errors[1].starts_with("Invalid training file: line 9"),
        "{errors:?}"
    );
    assert!(
        errors[2].starts_with("Invalid validation file: line 1"),
        "{errors:?}"
    );
    assert_eq!(errors[3], message);
}

#[tokio::test]
async fn a_bad_validation_file_alone_fails_the_job_too() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(12)).await;
    let validation_file = Some(house.upload("").await);
    let (code, message, param, _) = failed(
        &house,
        JobSpec {
            validation_file,
            ..spec(training_file)
        },
    )
    .await;
    assert_eq!(
        (code.as_str(), param.as_deref()),
        ("invalid_n_examples", Some("validation_file"))
    );
    assert!(
        message.starts_with("Validation file has 0 example(s)"),
        "{message}"
    );
}

#[tokio::test]
async fn a_line_that_the_template_refuses_is_named() {
    let house = House::new().await;
    let template = "{% for m in messages %}{% if 'forbidden' in m.content %}\
         {{ raise_exception('this word is not for me') }}{% endif %}\
         <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    house.install("picky", Some(template)).await;
    let rows = conversations(11) + &conversation("a forbidden word") + "\n";
    let training_file = house.upload(&rows).await;
    let model = "picky".to_owned();
    let (code, message, _, errors) = failed(
        &house,
        JobSpec {
            model,
            ..spec(training_file)
        },
    )
    .await;
    assert_eq!(code, "invalid_training_file");
    assert!(message.contains("Example 12"), "{message}");
    assert!(
        errors[0].starts_with("Invalid training file: line 12"),
        "{errors:?}"
    );
    assert!(errors[0].contains("this word is not for me"), "{errors:?}");
}

#[tokio::test]
async fn a_file_for_another_method_is_told_apart() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(12)).await;
    let hyperparameters = Hyperparameters::default();
    let method = Method::Dpo {
        preference: Preference::default(),
        hyperparameters,
    };
    let spec = JobSpec {
        method,
        ..spec(training_file.clone())
    };
    let (code, message, _, _) = failed(&house, spec).await;
    assert_eq!(code, "invalid_training_file");
    let expected = format!(
        "Input file {training_file} is in the fine-tune-chat format, but the specified fine-tuning \
         job is not using 'supervised' as the training method (provided method=dpo)."
    );
    assert!(message.contains(&expected), "{message}");
}

#[tokio::test]
async fn pairs_are_counted_and_trained_at_a_rate_of_their_own() {
    let house = House::new().await;
    let row = |i: usize| {
        let answer = |content: String| json!([{"role": "assistant", "content": content}]);
        json!({
            "input": {"messages": [{"role": "user", "content": format!("{i}?")}]},
            "preferred_output": answer(format!("Yes, {i}.")), "non_preferred_output": answer("No.".to_owned()),
        })
    };
    let rows: String = (0..24).map(|i| format!("{}\n", row(i))).collect();
    let training_file = house.upload(&rows).await;
    let preference = Preference {
        loss_type: PreferenceLoss::Ipo,
        ..Preference::default()
    };
    let method = Method::Dpo {
        preference,
        hyperparameters: Hyperparameters::default(),
    };
    let id = house
        .create(JobSpec {
            method: method.clone(),
            ..spec(training_file)
        })
        .await;
    house.scheduler.validate_pass().await.unwrap();
    let job = house.job(&id).await;
    assert_eq!(job.state(), JobState::Queued, "{:?}", job.progress().error);
    let resolved = method.resolve(24, 576);
    assert_eq!(job.progress().hyperparameters, Some(resolved));
    let supervised = Method::Supervised {
        hyperparameters: Hyperparameters::default(),
    };
    let times = supervised.resolve(24, 576).learning_rate / resolved.learning_rate;
    assert!((times - 10.0).abs() < 1e-9, "{times}");
    let steps = 24_u64.div_ceil(resolved.batch_size.into());
    assert_eq!(
        job.progress().total_steps,
        Some(u64::from(resolved.n_epochs) * steps)
    );
}

fn kto() -> Method {
    Method::Dpo {
        preference: Preference {
            loss_type: PreferenceLoss::Kto,
            ..Preference::default()
        },
        hyperparameters: Hyperparameters::default(),
    }
}

/// Rows of one answer; `label` of each.
fn judged(n: usize, label: impl Fn(usize) -> bool) -> String {
    let row = |i: usize| {
        let messages = json!([
            {"role": "user", "content": format!("{i}?")},
            {"role": "assistant", "content": "Yes."},
        ]);
        format!("{}\n", json!({"messages": messages, "label": label(i)}))
    };
    (0..n).map(row).collect()
}

#[tokio::test]
async fn judged_answers_are_trained_on_and_one_judgement_for_all_is_warned_of() {
    let house = House::new().await;
    for (rows, warning) in [
        (judged(12, |i| i % 3 > 0), None),
        (judged(12, |_| true), Some("label true")),
        (judged(12, |_| false), Some("label false")),
    ] {
        let training_file = house.upload(&rows).await;
        let spec = JobSpec {
            method: kto(),
            ..spec(training_file)
        };
        let id = house.create(spec).await;
        house.scheduler.validate_pass().await.unwrap();
        let job = house.job(&id).await;
        assert_eq!(job.state(), JobState::Queued, "{:?}", job.progress().error);
        let events = house.events(&id).await.into_iter();
        let warned = events.filter(|event| event.level == Level::Warn);
        let warned: Vec<String> = warned.map(|event| event.message).collect();
        let expected = warning.map(|label| {
            format!("all 12 example(s) of the training_file have the {label}; 'kto' learns from good answers beside bad ones")
        });
        assert_eq!(warned, Vec::from_iter(expected));
    }
}

#[tokio::test]
async fn pairs_and_judged_answers_are_not_taken_for_each_other() {
    let house = House::new().await;
    let bad = judged(12, |_| true).replacen("true", "\"yes\"", 1);
    let training_file = house.upload(&bad).await;
    let (_, message, _, errors) = failed(
        &house,
        JobSpec {
            method: kto(),
            ..spec(training_file)
        },
    )
    .await;
    assert!(message.contains("neither true nor false"), "{message}");
    assert!(
        errors[0].starts_with("Invalid training file: line 1 at /label"),
        "{errors:?}"
    );
    let training_file = house.upload(&judged(12, |_| true)).await;
    let method = Method::Dpo {
        preference: Preference::default(),
        hyperparameters: Hyperparameters::default(),
    };
    let (code, message, _, _) = failed(
        &house,
        JobSpec {
            method,
            ..spec(training_file)
        },
    )
    .await;
    assert_eq!(code, "invalid_training_file");
    assert!(
        message.ends_with("which needs method 'dpo' and x_loss_type 'kto'."),
        "{message}"
    );
}

#[tokio::test]
async fn a_base_model_that_was_removed_fails_the_job() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(12)).await;
    let model = "gone".to_owned();
    let (code, _, param, _) = failed(
        &house,
        JobSpec {
            model,
            ..spec(training_file)
        },
    )
    .await;
    assert_eq!(
        (code.as_str(), param.as_deref()),
        ("model_not_available", Some("model"))
    );
}

#[tokio::test]
async fn an_object_that_cannot_be_read_postpones_the_verdict() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(12)).await;
    let files = house.store.files();
    let key = files
        .find_for_job(&training_file)
        .await
        .unwrap()
        .unwrap()
        .object_key;
    let bytes = house.objects.get_bytes(&key).await.unwrap();
    house.objects.delete(&key).await.unwrap();
    let id = house.create(spec(training_file)).await;
    let n_started = async |id: &JobId| {
        let n_started = house.scheduler.validate_pass().await.unwrap();
        (n_started, house.state(id).await)
    };
    assert_eq!(n_started(&id).await, (1, JobState::Validating));
    assert_eq!(
        n_started(&id).await,
        (0, JobState::Validating),
        "not at once again"
    );
    house.objects.put_bytes(&key, bytes).await.unwrap();
    house.advance_s(2);
    assert_eq!(n_started(&id).await, (1, JobState::Queued));
}

#[tokio::test]
async fn a_file_deleted_after_the_order_is_still_trained_on() {
    let house = House::new().await;
    let training_file = house.upload(&conversations(12)).await;
    let id = house.create(spec(training_file.clone())).await;
    let files = house.store.files();
    files
        .delete(&house.project.id, &training_file, house.now())
        .await
        .unwrap()
        .unwrap();
    house.scheduler.sweep_pass().await.unwrap();
    house.scheduler.validate_pass().await.unwrap();
    assert_eq!(house.state(&id).await, JobState::Queued);
    let a = house.worker("a").claim(None, 0).await.unwrap();
    assert!(
        house
            .objects
            .size(&a.training_file.object_key)
            .await
            .unwrap()
            .is_some()
    );
}
