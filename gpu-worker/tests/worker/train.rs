//! Attempts from claim to end, against a scripted door, with real training of a tiny model.

use std::time::{Duration, Instant};

use domain::error::FailureClass;
use domain::message::{Assignment, Desired};
use domain::object_key;

use crate::house::{House, Running, row};

/// Enough steps that a test can act while they go on.
const LONG: u32 = 50;

/// Runs `assignment` undisturbed; the hash of the adapter it ends with.
pub async fn undisturbed(house: &House, assignment: &Assignment) -> String {
    let worker = house.worker("undisturbed", |_| {}).await;
    house.give(assignment);
    house
        .door
        .until("finish", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    worker.stop().await.unwrap();
    let finish = house.door.with(|script| script.finish.take());
    finish.expect("finishes").adapter.sha256
}

/// A worker that makes a checkpoint after every step, so that there always is a fresh one.
async fn eager(house: &House, name: &str) -> Running {
    house
        .worker(name, |config| config.checkpoint_interval_s = 0)
        .await
}

#[tokio::test]
async fn an_attempt_reports_every_step_and_ends_with_finish() {
    let house = House::new().await;
    let assignment = house.assignment(3).await;
    let worker = house.worker("a", |_| {}).await;
    house.give(&assignment);
    house
        .door
        .until("finish", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    // One step more than the finish, so that the status after it is seen.
    worker.stop().await.unwrap();

    house.door.with(|script| {
        assert_eq!(script.fail, None);
        let steps: Vec<u64> = script.metrics.iter().map(|m| m.step).collect();
        assert_eq!(
            steps,
            (1..=9).collect::<Vec<_>>(),
            "each step once, in order"
        );
        let validated: Vec<u64> = script
            .metrics
            .iter()
            .filter(|m| m.valid_loss.is_some())
            .map(|m| m.step)
            .collect();
        assert_eq!(validated, [3, 6, 9], "at each epoch's end");
        assert!(script.metrics[8].full_valid_loss.is_some());
        let (first, last) = (&script.metrics[0], &script.metrics[8]);
        assert!(
            last.train_loss < first.train_loss,
            "{} then {}",
            first.train_loss,
            last.train_loss
        );
        assert!(script.metrics.iter().all(|m| m.n_tokens > 0));

        let saved: Vec<_> = script
            .checkpoints
            .iter()
            .map(|c| (c.step, c.epoch))
            .collect();
        assert_eq!(saved, [(3, Some(1)), (6, Some(2)), (9, Some(3))]);
        assert_eq!(
            script.calls,
            [
                "checkpoint",
                "checkpoint",
                "checkpoint",
                "finalizing",
                "finish"
            ]
        );
        let finish = script.finish.as_ref().unwrap();
        assert_eq!(finish.adapter, script.checkpoints[2].adapter);
        let n_tokens: u64 = script.metrics.iter().map(|m| m.n_tokens).sum();
        assert_eq!(
            finish.trained_tokens, n_tokens,
            "every example in every epoch"
        );
        let held = &script.statuses.last().unwrap().adapters;
        assert!(held.contains(&finish.adapter.sha256), "announced: {held:?}");
    });
    let finish = house.door.with(|script| script.finish.clone().unwrap());
    for (file, min_bytes) in [
        ("adapter_config.json", 100),
        ("adapter_model.safetensors", 10_000),
    ] {
        let key = format!("{}/{file}", finish.adapter.object_prefix);
        let size_bytes = house
            .objects
            .size(&key)
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("{key} is missing"));
        assert!(size_bytes > min_bytes, "{key}: {size_bytes} bytes");
    }
    let manifest = format!("{}/step-9/manifest.json", assignment.object_prefix);
    assert!(house.objects.size(&manifest).await.unwrap().is_some());
}

#[tokio::test]
async fn a_run_that_was_killed_ends_with_the_same_bytes() {
    let house = House::new().await;
    let first = house.assignment(6).await;
    let expected = undisturbed(&house, &first).await;
    house.door.with(|script| script.checkpoints.clear());

    let first = Assignment {
        object_prefix: format!("{}-killed", first.object_prefix),
        ..first
    };
    let worker = eager(&house, "killed").await;
    house.give(&first);
    house
        .door
        .until("five checkpoints", |script| script.checkpoints.len() >= 5)
        .await;
    worker.kill().await;

    let second = house.next_attempt(&first);
    let resumed_at = second.resume.as_ref().unwrap().step;
    assert!(
        (5..18).contains(&resumed_at),
        "killed in the middle, at {resumed_at}"
    );
    house.door.with(|script| {
        script.current_attempt = 2;
        script.metrics.clear();
    });
    let worker = house.worker("second", |_| {}).await;
    house.give(&second);
    house
        .door
        .until("finish", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    worker.stop().await.unwrap();
    house.door.with(|script| {
        assert_eq!(script.fail, None);
        assert_eq!(
            script.metrics.first().unwrap().step,
            resumed_at + 1,
            "no step is done twice"
        );
        assert_eq!(script.finish.as_ref().unwrap().adapter.sha256, expected);
    });
}

#[tokio::test]
async fn an_attempt_resumed_after_its_last_step_only_hands_over() {
    let house = House::new().await;
    let first = house.assignment(2).await;
    let expected = undisturbed(&house, &first).await;
    let second = house.next_attempt(&first);
    assert_eq!(second.resume.as_ref().unwrap().step, second.total_steps);
    house.door.with(|script| script.metrics.clear());
    house.give(&second);
    let worker = house.worker("second", |_| {}).await;
    house
        .door
        .until("finish", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    worker.stop().await.unwrap();
    house.door.with(|script| {
        assert!(script.metrics.is_empty());
        assert_eq!(script.finish.as_ref().unwrap().adapter.sha256, expected);
    });
}

#[tokio::test]
async fn a_paused_job_is_saved_where_it_stands() {
    let house = House::new().await;
    let assignment = house.assignment(LONG).await;
    let worker = house.worker("a", |_| {}).await;
    house.give(&assignment);
    house
        .door
        .until("a checkpoint", |script| !script.checkpoints.is_empty())
        .await;
    house
        .door
        .with(|script| script.desired = Some(Desired::Pause));
    house
        .door
        .until("stopped", |script| {
            script.calls.contains(&"stopped".to_owned())
        })
        .await;
    let (saved, calls) = house.door.with(|script| {
        (
            script.checkpoints.last().unwrap().step,
            script.calls[script.calls.len() - 2..].to_vec(),
        )
    });
    assert_eq!(calls, ["checkpoint", "stopped"]);
    assert!(
        saved < assignment.total_steps,
        "paused in the middle, at {saved}"
    );

    // The worker is free for the next job, and the paused one goes on from its checkpoint.
    house.door.with(|script| {
        script.desired = None;
        script.metrics.clear();
    });
    house.give(&house.next_attempt(&assignment));
    house
        .door
        .until("the first new step", |script| !script.metrics.is_empty())
        .await;
    house.door.with(|script| {
        assert_eq!(script.metrics[0].step, saved + 1);
        script.desired = Some(Desired::Cancel);
    });
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_job_stops_at_once_and_leaves_no_finish() {
    let house = House::new().await;
    let assignment = house.assignment(LONG).await;
    let worker = house.worker("a", |_| {}).await;
    house.give(&assignment);
    house
        .door
        .until("a checkpoint", |script| !script.checkpoints.is_empty())
        .await;
    house
        .door
        .with(|script| script.desired = Some(Desired::Cancel));
    house
        .door
        .until("stopped", |script| {
            script.calls.contains(&"stopped".to_owned())
        })
        .await;
    let n_calls = house.door.with(|script| {
        assert!(script.finish.is_none() && script.fail.is_none());
        script.desired = None;
        script.calls.len()
    });
    worker.stop().await.unwrap();
    house.door.with(|script| {
        assert_eq!(
            script.calls.len(),
            n_calls,
            "nothing after `stopped`: {:?}",
            script.calls
        )
    });
}

#[tokio::test]
async fn an_attempt_that_is_stale_drops_everything_without_a_word() {
    let house = House::new().await;
    let assignment = house.assignment(LONG).await;
    let worker = eager(&house, "a").await;
    house.give(&assignment);
    house
        .door
        .until("a checkpoint", |script| !script.checkpoints.is_empty())
        .await;
    house.door.with(|script| script.current_attempt = 2);
    house
        .door
        .until("a refused call", |script| {
            script.calls.iter().any(|call| call.starts_with("stale"))
        })
        .await;
    // A job for the freed worker proves that the first one is over.
    let other = Assignment {
        attempt: 2,
        object_prefix: "projects/p/jobs/other/attempts/2".into(),
        ..house.assignment(1).await
    };
    house.give(&other);
    house
        .door
        .until("finish", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    house.door.with(|script| {
        assert_eq!(script.fail, None);
        let stale: Vec<_> = script
            .calls
            .iter()
            .filter(|call| call.starts_with("stale"))
            .collect();
        assert!(
            stale.len() <= 2,
            "a checkpoint and a beat may be under way, no more: {stale:?}"
        );
    });
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn without_a_door_the_attempt_holds_still_before_its_lease_ends_and_then_goes_on() {
    const DOWN: Duration = Duration::from_secs(9);
    let house = House::new().await;
    let assignment = Assignment {
        lease_ttl_s: 3,
        ..house.long_assignment().await
    };
    let worker = house.worker("a", |_| {}).await;
    house.give(&assignment);
    house
        .door
        .until("some steps", |script| script.last_step() >= 1)
        .await;
    let (began, first) = (Instant::now(), house.door.with(|script| script.last_step()));
    house
        .door
        .until("more steps", |script| script.last_step() > first)
        .await;
    let before = house.door.with(|script| {
        script.down = true;
        script.last_step()
    });
    let per_second = (before - first) as f64 / began.elapsed().as_secs_f64();
    tokio::time::sleep(DOWN).await;
    house.door.with(|script| script.down = false);
    house
        .door
        .until("a beat after the outage", |script| {
            script.last_step() > before
        })
        .await;
    let resumed_at = house.door.with(|script| script.last_step());
    let done_meanwhile = resumed_at - before;
    // It may compute for two of the three seconds of its lease; half of the outage, and three steps, leave room for a
    // machine that is slow just now.
    let most = per_second * DOWN.as_secs_f64() / 2.0 + 3.0;
    assert!(
        (done_meanwhile as f64) < most,
        "{done_meanwhile} steps, at {per_second} a second"
    );
    house
        .door
        .until("steps after the outage", |script| {
            script.last_step() > resumed_at
        })
        .await;
    house.door.with(|script| {
        assert_eq!(script.fail, None);
        let steps: Vec<u64> = script.metrics.iter().map(|m| m.step).collect();
        assert_eq!(
            steps,
            (1..=script.last_step()).collect::<Vec<_>>(),
            "nothing lost, nothing twice"
        );
        script.desired = Some(Desired::Cancel);
    });
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_asked_to_end_saves_its_job_and_hands_it_back() {
    let house = House::new().await;
    let assignment = house.assignment(LONG).await;
    let worker = house.worker("a", |_| {}).await;
    house.give(&assignment);
    house
        .door
        .until("a checkpoint", |script| !script.checkpoints.is_empty())
        .await;
    worker.stop().await.unwrap();
    house.door.with(|script| {
        assert_eq!(
            script.fail.as_ref().map(|fail| fail.class),
            Some(FailureClass::Drain)
        );
        assert_eq!(
            script.calls[script.calls.len() - 2..],
            ["checkpoint", "fail"]
        );
        assert!(script.checkpoints.last().unwrap().step < assignment.total_steps);
    });
}

#[tokio::test]
async fn bad_rows_are_the_users_fault_and_lost_objects_are_not() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let good = house.assignment(1).await;

    let bad_row = format!("{}\n{{\"messages\": 7}}\n", row("a", "b"));
    let training_file = house.put_dataset("bad", bad_row.into_bytes()).await;
    house.give(&Assignment {
        training_file,
        ..good.clone()
    });
    house
        .door
        .until("fail", |script| script.fail.is_some())
        .await;
    let fail = house.door.with(|script| script.fail.take().unwrap());
    assert_eq!(fail.class, FailureClass::User);
    assert_eq!(fail.error.code, "invalid_training_file");
    assert!(
        fail.error.message.contains("line 2"),
        "{}",
        fail.error.message
    );

    house
        .objects
        .delete(&good.training_file.object_key)
        .await
        .unwrap();
    house.give(&good);
    house
        .door
        .until("fail", |script| script.fail.is_some())
        .await;
    let fail = house.door.with(|script| script.fail.take().unwrap());
    assert_eq!(fail.class, FailureClass::Infra);

    let other_count = Assignment {
        total_steps: 4,
        ..house.assignment(1).await
    };
    house.give(&other_count);
    house
        .door
        .until("fail", |script| script.fail.is_some())
        .await;
    let fail = house.door.with(|script| script.fail.take().unwrap());
    assert_eq!(fail.class, FailureClass::Infra);
    assert!(
        fail.error.message.contains("3 steps"),
        "{}",
        fail.error.message
    );
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_damaged_checkpoint_is_never_resumed_from() {
    let house = House::new().await;
    let first = house.assignment(2).await;
    undisturbed(&house, &first).await;
    let second = house.next_attempt(&first);
    let key =
        object_key::checkpoint_state(&first.object_prefix, second.resume.as_ref().unwrap().step);
    let mut bytes = house.objects.get_bytes(&key).await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    house.objects.put_bytes(&key, bytes.into()).await.unwrap();
    house.give(&second);
    let worker = house.worker("b", |_| {}).await;
    house
        .door
        .until("fail", |script| script.fail.is_some())
        .await;
    house.door.with(|script| {
        assert_eq!(script.fail.as_ref().unwrap().class, FailureClass::Infra);
        assert!(script.finish.is_none());
    });
    worker.stop().await.unwrap();
}
