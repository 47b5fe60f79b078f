//! Attempts that learn from pairs of answers, or from judged ones.

use domain::message::Assignment;
use domain::preference::{Preference, PreferenceLoss};
use domain::x_training::Training;
use engine::Precision;
use serde_json::json;

use crate::house::House;
use crate::tiny_model::CONTEXT;
use crate::train::undisturbed;

/// A pair of answers to a question.
fn pair(question: &str, better: &str, worse: &str) -> String {
    let answer = |content: &str| json!([{"role": "assistant", "content": content}]);
    let input = json!({"messages": [{"role": "user", "content": question}]});
    json!({"input": input, "preferred_output": answer(better), "non_preferred_output": answer(worse)}).to_string()
}

fn pairs(places: std::ops::Range<usize>) -> Vec<u8> {
    let rows = places.map(|i| {
        let question = format!("Is {i} odd?");
        let (better, worse) = match i % 2 {
            1 => ("Yes, it is.", "No."),
            _ => ("No, it is even.", "Yes!"),
        };
        pair(&question, better, worse)
    });
    rows.collect::<Vec<_>>().join("\n").into_bytes()
}

/// Of each pair one answer: two of three times the better one.
fn judged(places: std::ops::Range<usize>) -> Vec<u8> {
    let pairs = String::from_utf8(pairs(places.clone())).unwrap();
    let rows = pairs.lines().zip(places).map(|(pair, i)| {
        let pair: serde_json::Value = serde_json::from_str(pair).unwrap();
        let label = i % 3 != 1;
        let answer = match label {
            true => &pair["preferred_output"][0],
            false => &pair["non_preferred_output"][0],
        };
        json!({"messages": [pair["input"]["messages"][0], answer], "label": label}).to_string()
    });
    rows.collect::<Vec<_>>().join("\n").into_bytes()
}

/// Ten rows in batches of four; three of them are validated on.
async fn assignment(house: &House, n_epochs: u32, loss_type: PreferenceLoss) -> Assignment {
    let rows = match loss_type {
        PreferenceLoss::Kto => judged,
        _ => pairs,
    };
    Assignment {
        training_file: house.put_dataset("compared", rows(0..10)).await,
        validation_file: Some(house.put_dataset("valid_compared", rows(3..6)).await),
        preference: Some(Preference {
            loss_type,
            label_smoothing: 0.01,
            ..Preference::default()
        }),
        ..house.assignment(n_epochs).await
    }
}

#[tokio::test]
async fn the_better_answers_win_and_a_stop_changes_no_byte() {
    let house = House::new().await;
    for (loss_type, precision) in [
        (PreferenceLoss::Sigmoid, Precision::Fp32),
        (PreferenceLoss::Sigmoid, Precision::Bf16),
        (PreferenceLoss::Orpo, Precision::Fp32),
        (PreferenceLoss::Aot, Precision::Fp32),
        (PreferenceLoss::Kto, Precision::Fp32),
    ] {
        let mut whole = assignment(&house, 6, loss_type).await;
        if precision == Precision::Bf16 {
            let mut training = Training::default_for(CONTEXT as u32);
            training.precision.compute = domain::x_training::Compute::Bf16;
            whole.training = Some(training);
        }
        house.door.with(|script| {
            script.current_attempt = 1;
            script.checkpoints.clear();
            script.metrics.clear();
        });
        let expected = undisturbed(&house, &whole).await;
        house.door.with(|script| {
            assert_eq!(script.fail, None);
            assert_eq!(script.metrics.len(), 18);
            let (first, last) = (&script.metrics[0], &script.metrics[17]);
            // Nothing has been learned yet: all answers are as likely as they were.
            let begins_at = match loss_type {
                PreferenceLoss::Sigmoid | PreferenceLoss::Aot => Some(std::f64::consts::LN_2),
                PreferenceLoss::Kto => Some(0.5),
                _ => None,
            };
            if let Some(loss) = begins_at {
                assert!((first.train_loss - loss).abs() < 1e-9);
                assert_eq!(first.train_mean_token_accuracy, 0.0);
            }
            // The last batch has two rows, too few to say what KTO compares with.
            if loss_type != PreferenceLoss::Kto {
                assert!(last.train_loss < 0.7 * first.train_loss, "{last:?}");
            }
            assert_eq!(last.full_valid_mean_token_accuracy, Some(1.0));
            assert!(last.full_valid_loss.unwrap() < 0.7 * first.train_loss);
            let read: u64 = script.metrics.iter().map(|m| m.n_tokens).sum();
            assert!(read > 0);
        });

        let fourth = house.door.with(|script| {
            let checkpoints = &mut script.checkpoints;
            checkpoints.retain(|checkpoint| checkpoint.step <= 6);
            script.metrics.clear();
            script.current_attempt = 2;
            checkpoints.len()
        });
        assert_eq!(fourth, 2);
        let second = house.next_attempt(&whole);
        assert_eq!(second.resume.as_ref().unwrap().step, 6);
        assert_eq!(undisturbed(&house, &second).await, expected);
        house
            .door
            .with(|script| assert_eq!(script.metrics[0].step, 7));
    }
}

#[tokio::test]
async fn a_pair_that_is_too_long_is_left_out_with_both_answers() {
    let house = House::new().await;
    let long = "no ".repeat(CONTEXT);
    let mut rows = pairs(0..10);
    rows.extend(format!("\n{}", pair("Is 1 odd?", "Yes.", &long)).into_bytes());
    let mut training = Training::default_for(CONTEXT as u32);
    training.data.truncation = domain::x_training::Truncation::Drop;
    let whole = Assignment {
        training_file: house.put_dataset("long_pairs", rows).await,
        training: Some(training),
        ..assignment(&house, 1, PreferenceLoss::Sigmoid).await
    };
    // Three steps: ten pairs.
    undisturbed(&house, &whole).await;
    house
        .door
        .with(|script| assert_eq!(script.metrics.len(), 3));
}
