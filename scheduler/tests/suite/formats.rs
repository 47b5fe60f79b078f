//! Files that are written as other tools write them.

use domain::dry_run::Report;
use domain::hyperparameters::{Auto, Hyperparameters};
use domain::job::{JobSpec, JobState};
use domain::method::Method;
use domain::preference::{Preference, PreferenceLoss};
use domain::x_training::{AskedTraining, DataFormat, XTraining};
use serde_json::{Value, json};

use crate::dry_runs::report;
use crate::house::{House, spec};

fn written_as(format: DataFormat) -> Option<XTraining> {
    let asked = AskedTraining {
        format: Auto::Given(format),
        ..AskedTraining::default()
    };
    Some(XTraining {
        asked: None,
        resolved: asked.resolve(2_048, None).unwrap(),
        start: None,
        named_model: None,
    })
}

fn rows(row: impl Fn(usize) -> Value) -> String {
    (0..12).map(|i| format!("{}\n", row(i))).collect()
}

async fn reported(house: &House, rows: &str, spec_of: JobSpec) -> Report {
    let training_file = house.upload(rows).await;
    report(
        house,
        JobSpec {
            training_file,
            ..spec_of
        },
    )
    .await
}

/// An order in `format`, its file still to come.
async fn order(house: &House, format: DataFormat) -> JobSpec {
    JobSpec {
        x_training: written_as(format),
        ..spec(house.upload("").await)
    }
}

#[tokio::test]
async fn the_same_conversations_count_the_same_however_they_are_written() {
    let house = House::new().await;
    let (asked, answer) = (
        |i: usize| format!("Say {i}.\nLoudly."),
        |i: usize| format!("{i}!"),
    );
    let message = |role: &str, content: String| json!({"role": role, "content": content});
    let chat =
        rows(|i| json!({"messages": [message("user", asked(i)), message("assistant", answer(i))]}));
    let expected = reported(&house, &chat, order(&house, DataFormat::Chat).await).await;
    let counted = |report: &Report| {
        assert_eq!(report.error, None);
        let training = report.training.clone().unwrap();
        (
            report.plan.clone(),
            training.n_tokens,
            training.longest,
            training.labels,
        )
    };
    for (format, rows) in [
        (
            DataFormat::Alpaca,
            rows(
                |i| json!({"instruction": format!("Say {i}."), "input": "Loudly.", "output": answer(i)}),
            ),
        ),
        (
            DataFormat::ShareGpt,
            rows(
                |i| json!({"conversations": [{"from": "human", "value": asked(i)}, {"from": "gpt", "value": answer(i)}]}),
            ),
        ),
        (
            DataFormat::QueryResponse,
            rows(|i| json!({"query": asked(i), "response": answer(i)})),
        ),
    ] {
        let found = reported(&house, &rows, order(&house, format).await).await;
        assert_eq!(counted(&found), counted(&expected), "{format:?}");
    }
    let text = rows(|i| json!({"prompt": asked(i), "completion": answer(i)}));
    let text = reported(
        &house,
        &text,
        order(&house, DataFormat::PromptCompletion).await,
    )
    .await;
    let (plan, n_tokens, _, _) = counted(&text);
    assert!(
        plan.is_some() && n_tokens < counted(&expected).1,
        "no template is written"
    );
}

#[tokio::test]
async fn pairs_and_judged_answers_count_the_same_however_they_are_written() {
    let house = House::new().await;
    let turn = |role: &str, text: String| json!({"role": role, "content": text});
    let answer = |text: &str| json!([turn("assistant", text.to_owned())]);
    let pairs = rows(|i| {
        json!({
            "input": {"messages": [turn("user", format!("{i}?"))]},
            "preferred_output": answer("Yes."), "non_preferred_output": answer("No."),
        })
    });
    let judged = rows(|i| {
        let messages = [
            turn("user", format!("{i}?")),
            turn("assistant", "Yes.".to_owned()),
        ];
        json!({"messages": messages, "label": i % 2 == 0})
    });
    let alpaca_pairs =
        rows(|i| json!({"instruction": format!("{i}?"), "chosen": "Yes.", "rejected": "No."}));
    let alpaca_judged =
        rows(|i| json!({"instruction": format!("{i}?"), "output": "Yes.", "kto_tag": i % 2 == 0}));
    for (loss_type, chat, alpaca) in [
        (PreferenceLoss::Sigmoid, pairs, alpaca_pairs),
        (PreferenceLoss::Kto, judged, alpaca_judged),
    ] {
        let method = Method::Dpo {
            preference: Preference {
                loss_type,
                ..Preference::default()
            },
            hyperparameters: Hyperparameters::default(),
        };
        let mut counted = Vec::new();
        for (format, rows) in [(DataFormat::Chat, chat), (DataFormat::Alpaca, alpaca)] {
            let order = JobSpec {
                method: method.clone(),
                ..order(&house, format).await
            };
            let found = reported(&house, &rows, order).await;
            assert_eq!(found.error, None);
            let training = found.training.unwrap();
            counted.push((training.n_tokens, training.n_desirable));
        }
        assert_eq!(counted[0], counted[1], "{loss_type:?}");
    }
}

#[tokio::test]
async fn bad_rows_are_named_by_their_own_keys() {
    let house = House::new().await;
    let good = rows(|i| json!({"instruction": format!("{i}?"), "output": "yes"}));
    let bad = r#"{"instruction": "a", "output": "b", "history": [["q", 7]]}"#;
    let found = reported(
        &house,
        &format!("{good}{bad}\n"),
        order(&house, DataFormat::Alpaca).await,
    )
    .await;
    let [row] = &found.training.as_ref().unwrap().bad_rows[..] else {
        panic!("{found:?}");
    };
    assert_eq!((row.line, row.pointer.as_str()), (13, "/history/0/1"));
    let place = (good.len() + bad.find('7').unwrap()) as u64;
    assert!((place..place + 2).contains(&row.byte_offset), "{row:?}");
}

#[tokio::test]
async fn a_file_in_a_format_that_nobody_named_fails_with_the_word_to_set() {
    let house = House::new().await;
    let alpaca = rows(|i| json!({"instruction": format!("{i}?"), "input": "", "output": "yes"}));
    let order = order(&house, DataFormat::Chat).await;
    let training_file = house.upload(&alpaca).await;
    let order = JobSpec {
        training_file,
        ..order
    };
    let found = report(&house, order.clone()).await;
    let row = &found.training.unwrap().bad_rows[0];
    assert_eq!(
        row.suggested_fix,
        "Set x_training.data.format to \"alpaca\"."
    );
    let id = house.create(order).await;
    house.scheduler.validate_pass().await.unwrap();
    let job = house.job(&id).await;
    assert_eq!(job.state(), JobState::Failed);
    let error = job.progress().error.clone().unwrap();
    assert_eq!(Some(&error), found.error.as_ref());
    let hint = "The rows look like alpaca; set x_training.data.format to \"alpaca\".";
    assert!(error.message.ends_with(hint), "{}", error.message);
}
