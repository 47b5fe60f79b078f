//! Examples that are longer than the job's `max_length`, and what the worker is told of the job's own options.

use domain::id::JobId;
use domain::job::{JobSpec, JobState};
use domain::model::AdapterRef;
use domain::x_training::{AskedTraining, FrozenWeights, Truncation, XTraining};

use crate::house::{House, conversation, conversations, spec};

/// Tokens that a short example never has.
const MAX_LENGTH: u32 = 60;

fn training(truncation: Truncation) -> XTraining {
    let asked = AskedTraining {
        max_length: Some(MAX_LENGTH),
        truncation: Some(truncation),
        ..AskedTraining::default()
    };
    XTraining {
        asked: None,
        resolved: asked.resolve(2_048, None).unwrap(),
        start: None,
        named_model: None,
    }
}

/// A validated job of twelve short examples and two long ones, which stand at lines 13 and 14.
async fn validated(house: &House, truncation: Truncation) -> JobId {
    let long = conversation(&"a long question ".repeat(30));
    let rows = format!("{}{long}\n{long}\n", conversations(12));
    let training_file = house.upload(&rows).await;
    let x_training = Some(training(truncation));
    let spec = JobSpec {
        x_training,
        ..spec(training_file)
    };
    let id = house.create(spec).await;
    house.scheduler.validate_pass().await.unwrap();
    id
}

#[tokio::test]
async fn long_examples_are_cut_and_the_story_says_so() {
    let house = House::new().await;
    let id = validated(&house, Truncation::Left).await;
    let total_steps = house.job(&id).await.progress().total_steps;
    assert_eq!(total_steps, Some(2 * 4), "14 examples in batches of 4");
    let notice = "2 example(s) of the training_file with more than 60 tokens were cut";
    let messages = house.messages(&id).await;
    assert_eq!(
        messages[messages.len() - 2..],
        [notice, "Files validated, moving job to queued state"]
    );
}

#[tokio::test]
async fn long_examples_are_left_out_and_counted_nowhere() {
    let house = House::new().await;
    let id = validated(&house, Truncation::Drop).await;
    let total_steps = house.job(&id).await.progress().total_steps;
    assert_eq!(total_steps, Some(2 * 3), "12 examples in batches of 4");
    let notice = "2 example(s) of the training_file with more than 60 tokens were left out";
    assert!(house.messages(&id).await.contains(&notice.to_owned()));
}

#[tokio::test]
async fn long_examples_are_split_and_every_piece_counts() {
    let house = House::new().await;
    // Of the long question only the last piece has a label, of the long answer every one.
    let short = conversations(11);
    let question = conversation(&"a long question ".repeat(30));
    let answer = conversation("why?").replace("yes", &"a long answer ".repeat(30));
    let training_file = house
        .upload(&format!("{short}{question}\n{answer}\n"))
        .await;
    let x_training = Some(training(Truncation::Split));
    let spec = JobSpec {
        x_training,
        ..spec(training_file)
    };
    let id = house.create(spec).await;
    house.scheduler.validate_pass().await.unwrap();
    let n_steps = house.job(&id).await.progress().total_steps.unwrap();
    assert!(
        n_steps > 2 * 4,
        "13 rows in batches of 4 made {n_steps} steps"
    );
    let notice = "2 example(s) of the training_file with more than 60 tokens were split";
    assert!(house.messages(&id).await.contains(&notice.to_owned()));
}

#[tokio::test]
async fn long_examples_are_refused_by_their_lines() {
    let house = House::new().await;
    let id = validated(&house, Truncation::Error).await;
    let job = house.job(&id).await;
    let error = job.progress().error.clone().unwrap();
    assert_eq!(job.state(), JobState::Failed);
    assert_eq!(
        (error.code.as_str(), error.param.as_deref()),
        ("invalid_training_file", Some("training_file"))
    );
    let messages = house.messages(&id).await;
    for line in ["line 13 ", "line 14 "] {
        let said = messages
            .iter()
            .any(|m| m.contains(line) && m.contains("tokens, more than max_length 60"));
        assert!(said, "{line}: {messages:?}");
    }
}

#[tokio::test]
async fn too_few_examples_are_left_when_the_long_ones_are_left_out() {
    let house = House::new().await;
    let long = conversation(&"a long question ".repeat(30)) + "\n";
    let training_file = house.upload(&(conversations(9) + &long)).await;
    let x_training = Some(training(Truncation::Drop));
    let spec = JobSpec {
        x_training,
        ..spec(training_file)
    };
    let id = house.create(spec).await;
    house.scheduler.validate_pass().await.unwrap();
    let messages = house.messages(&id).await;
    assert_eq!(
        messages[messages.len() - 2..],
        [
            "1 example(s) of the training_file with more than 60 tokens were left out",
            "Training file has 9 example(s), but must have at least 10 examples"
        ]
    );
}

#[tokio::test]
async fn the_worker_is_told_what_to_train_and_from_where() {
    let house = House::new().await;
    let start = AdapterRef {
        object_prefix: "projects/p/adapters/adapter-1".to_owned(),
        sha256: "ab".to_owned(),
        size_bytes: 5,
        frozen_weights: FrozenWeights::Stored,
    };
    let x_training = XTraining {
        start: Some(start.clone()),
        ..training(Truncation::Right)
    };
    let resolved = x_training.resolved.clone();
    let training_file = house.upload(&conversations(12)).await;
    let spec = JobSpec {
        x_training: Some(x_training),
        ..spec(training_file)
    };
    house.create(spec).await;
    house.scheduler.validate_pass().await.unwrap();
    let assignment = house.worker("a").claim(None, 0).await.unwrap();
    assert_eq!(
        (assignment.training, assignment.start),
        (Some(resolved), Some(start))
    );
}
