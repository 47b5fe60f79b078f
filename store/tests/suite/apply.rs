//! One door for every change of a job: all of it or nothing, and one winner.

use domain::attempt::AttemptEnd;
use domain::error::FailureClass;
use domain::job::JobState;
use domain::job_event::{JobEvent, Reject};
use domain::metrics::StepMetrics;
use store::{ApplyError, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_success_leaves_every_row_it_should,
    of_many_claims_exactly_one_wins,
    of_many_claims_in_several_processes_exactly_one_wins,
    changes_at_once_all_happen_one_after_the_other,
    a_change_whose_last_row_is_refused_leaves_nothing,
    a_call_that_is_dropped_midway_leaves_all_or_nothing,
    a_stale_attempt_changes_nothing,
    a_repeated_step_overwrites_its_row_and_is_not_told_again,
    a_beat_may_carry_thousands_of_steps,
    a_loss_that_is_no_number_is_kept_as_such,
    text_with_nul_is_told_all_the_same,
    an_unknown_job_is_not_found,
    another_program_that_holds_the_lock_makes_the_store_unavailable,
);

async fn a_success_leaves_every_row_it_should(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::succeeded_job(store, &project, at(1)).await;
    let name = job.tuned_model_name();

    assert_eq!(
        store.jobs().find(&project.id, &job.id).await.unwrap(),
        Some(job.clone())
    );
    assert_eq!(
        store.jobs().get_internal(&job.id).await.unwrap(),
        Some(job.clone())
    );

    let events = store
        .events()
        .list_after_seq(&project.id, &job.id, 0, 100)
        .await
        .unwrap();
    let seqs: Vec<u64> = events.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, (1..=15).collect::<Vec<u64>>());
    assert!(events[0].message.starts_with("Created fine-tuning job: "));
    assert_eq!(events[14].message, "The job has successfully completed");
    assert_eq!(events[4].data["train_loss"], 1.0 / 3.0 + 1.0);

    let steps: Vec<StepMetrics> = (1..=6).map(sample::step).collect();
    assert_eq!(store.metrics().list(&job.id).await.unwrap(), steps);

    let all = store.checkpoints().all(&job.id).await.unwrap();
    let places: Vec<_> = all.iter().map(|c| (c.step, c.epoch, c.attempt)).collect();
    assert_eq!(places, [(2, Some(1), 1), (4, Some(2), 1), (6, Some(3), 1)]);
    assert_eq!(all[1].metrics, sample::step(4));
    assert_eq!(all[1].adapter, sample::adapter(&job, 4));
    assert_eq!(
        store.checkpoints().latest(&job.id).await.unwrap(),
        Some(all[2].clone())
    );

    let model = sample::tuned(&job, name.clone(), 6);
    assert_eq!(
        store.models().find(&project.id, &name).await.unwrap(),
        Some(model.clone())
    );
    let earlier = sample::tuned(&job, format!("{name}:ckpt-step-4"), 4);
    assert_eq!(
        store.models().list(&project.id).await.unwrap(),
        [model, earlier]
    );

    let result_file = job.progress().result.as_ref().unwrap().result_file.clone();
    assert!(
        store
            .files()
            .find(&project.id, &result_file)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(
        store
            .usage()
            .trained_tokens(&project.id, &job.id)
            .await
            .unwrap(),
        Some(5_070)
    );

    let attempts = store.jobs().attempts(&job.id).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (attempts[0].number, attempts[0].end),
        (1, Some(AttemptEnd::Succeeded))
    );
    assert_eq!(
        (attempts[0].claimed_at, attempts[0].ended_at),
        (at(1), Some(at(1)))
    );

    let history = store.jobs().transitions(&job.id).await.unwrap();
    let history: Vec<_> = history
        .iter()
        .map(|t| (t.event.as_str(), t.from, t.to))
        .collect();
    use JobState as S;
    let expected = [
        ("validated", S::Validating, S::Queued),
        ("claimed", S::Queued, S::Running),
        ("checkpoint_saved", S::Running, S::Running),
        ("checkpoint_saved", S::Running, S::Running),
        ("checkpoint_saved", S::Running, S::Running),
        ("finalizing", S::Running, S::Finalizing),
        ("finished", S::Finalizing, S::Succeeded),
    ];
    assert_eq!(history, expected);
}

async fn of_many_claims_exactly_one_wins(db: Db) {
    claim_with(&db, vec![db.store.clone(); 8]).await;
}

async fn of_many_claims_in_several_processes_exactly_one_wins(db: Db) {
    let stores = vec![
        db.open_again().await,
        db.open_again().await,
        db.store.clone(),
    ];
    claim_with(&db, stores.into_iter().cycle().take(9).collect()).await;
}

async fn claim_with(db: &Db, stores: Vec<store::Store>) {
    let project = sample::project(&db.store).await;
    for round in 0..5 {
        let job = sample::queued_job(&db.store, &project, at(round)).await;
        let claims: Vec<_> = stores
            .iter()
            .cloned()
            .map(|store| {
                let id = job.id.clone();
                let claim = sample::claimed(at(60));
                tokio::spawn(async move { store.jobs().apply(&id, claim, at(10)).await })
            })
            .collect();
        let mut n_won = 0;
        for claim in claims {
            match claim.await.unwrap() {
                Ok(won) => {
                    n_won += 1;
                    assert_eq!(won.progress().attempt, 1);
                }
                Err(lost) => assert_eq!(lost, ApplyError::Rejected(Reject::StaleOffer)),
            }
        }
        assert_eq!(n_won, 1);
        assert_eq!(db.store.jobs().attempts(&job.id).await.unwrap().len(), 1);
    }
}

async fn changes_at_once_all_happen_one_after_the_other(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    let version = job.progress().version;
    let beats: Vec<_> = (1..=24_u64)
        .map(|step| {
            let (store, job) = (store.clone(), job.clone());
            let beat = sample::beat(&job, at(60), &[step]);
            tokio::spawn(async move { store.jobs().apply(&job.id, beat, at(10)).await })
        })
        .collect();
    for beat in beats {
        beat.await.unwrap().unwrap();
    }
    let after = store.jobs().get_internal(&job.id).await.unwrap().unwrap();
    assert_eq!(after.progress().version, version + 24);
    assert_eq!(after.progress().last_step, 24);
    assert_eq!(store.metrics().list(&job.id).await.unwrap().len(), 24);
    check_dense(&db, &job.id, &project.id).await;
}

/// No seq is missing or doubled, and the next one will be the right one.
async fn check_dense(db: &Db, job: &domain::id::JobId, project: &domain::id::ProjectId) {
    let events = db
        .store
        .events()
        .list_after_seq(project, job, 0, 10_000)
        .await
        .unwrap();
    let seqs: Vec<u64> = events.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, (1..=events.len() as u64).collect::<Vec<_>>());
}

async fn a_change_whose_last_row_is_refused_leaves_nothing(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let first = sample::succeeded_job(store, &project, at(0)).await;
    let second = sample::running_job(store, &project, at(0)).await;
    let finalizing = JobEvent::Finalizing { attempt: 1 };
    let second = store
        .jobs()
        .apply(&second.id, finalizing, at(1))
        .await
        .unwrap();
    let events = store
        .events()
        .list_after_seq(&project.id, &second.id, 0, 100)
        .await
        .unwrap();

    // Its model has a name that exists: the file before it was already written in the same transaction.
    let JobEvent::Finished {
        attempt,
        result,
        earlier,
        result_file,
        model,
        speed,
    } = sample::finished(&second)
    else {
        unreachable!()
    };
    let file = result_file.id.clone();
    let model = domain::model::TunedModel {
        name: first.tuned_model_name(),
        ..model
    };
    let event = JobEvent::Finished {
        attempt,
        result,
        earlier,
        result_file,
        model,
        speed,
    };
    let refused = store
        .jobs()
        .apply(&second.id, event, at(2))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, ApplyError::Store(StoreError::Conflict(_))),
        "{refused}"
    );

    let now = store.jobs().get_internal(&second.id).await.unwrap();
    assert_eq!(now, Some(second.clone()));
    assert_eq!(store.files().find(&project.id, &file).await.unwrap(), None);
    assert_eq!(
        store
            .usage()
            .trained_tokens(&project.id, &second.id)
            .await
            .unwrap(),
        None
    );
    let events_now = store
        .events()
        .list_after_seq(&project.id, &second.id, 0, 100)
        .await
        .unwrap();
    assert_eq!(events_now, events);
    assert_eq!(
        store.jobs().attempts(&second.id).await.unwrap()[0].end,
        None
    );
    // And the very same job can still end well.
    let done = store
        .jobs()
        .apply(&second.id, sample::finished(&second), at(3))
        .await
        .unwrap();
    assert_eq!(done.state(), JobState::Succeeded);
}

async fn a_call_that_is_dropped_midway_leaves_all_or_nothing(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    let n_before = store
        .events()
        .list_after_seq(&project.id, &job.id, 0, 100)
        .await
        .unwrap()
        .len();
    for n in 1..=60_u64 {
        let (store, job) = (store.clone(), job.clone());
        let call = async move {
            let beat = sample::beat(&job, at(60), &[n]);
            store.jobs().apply(&job.id, beat, at(10)).await
        };
        // Each is cut at another point: the deadline only has to differ.
        let deadline = std::time::Duration::from_micros(n * 150);
        let _ = tokio::time::timeout(deadline, call).await;
    }
    check_dense(&db, &job.id, &project.id).await;
    let events = store
        .events()
        .list_after_seq(&project.id, &job.id, 0, 100)
        .await
        .unwrap();
    let steps = store.metrics().list(&job.id).await.unwrap();
    assert_eq!(
        events.len() - n_before,
        steps.len(),
        "an event for each row of metrics"
    );
    let after = store.jobs().get_internal(&job.id).await.unwrap().unwrap();
    let changes = after.progress().version - job.progress().version;
    assert_eq!(changes as usize, steps.len(), "a version for each change");
    assert_eq!(
        after.progress().last_step,
        steps.last().map_or(0, |m| m.step)
    );
}

async fn a_stale_attempt_changes_nothing(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let first = sample::running_job(store, &project, at(0)).await;
    let lost = JobEvent::LeaseExpired {
        attempt: 1,
        retry_backoff_max_s: 15,
    };
    store.jobs().apply(&first.id, lost, at(100)).await.unwrap();
    let second = store
        .jobs()
        .apply(&first.id, sample::claimed(at(200)), at(101))
        .await
        .unwrap();
    assert_eq!(second.progress().attempt, 2);

    let failed = JobEvent::AttemptFailed {
        attempt: 1,
        class: FailureClass::Infra,
        error: sample::error("server_error"),
        retry_backoff_max_s: 15,
    };
    let stale = ApplyError::Rejected(Reject::StaleAttempt {
        named: 1,
        current: 2,
    });
    for event in [
        sample::beat(&first, at(300), &[1]),
        sample::saved(&first, 2, Some(1)),
        sample::finished(&first),
        failed,
    ] {
        let name = event.name();
        let refused = store
            .jobs()
            .apply(&first.id, event, at(102))
            .await
            .unwrap_err();
        assert_eq!(refused, stale, "{name}");
    }
    assert_eq!(
        store.jobs().get_internal(&first.id).await.unwrap(),
        Some(second)
    );
    assert_eq!(store.metrics().list(&first.id).await.unwrap(), []);
    let ends: Vec<_> = store
        .jobs()
        .attempts(&first.id)
        .await
        .unwrap()
        .into_iter()
        .map(|a| a.end)
        .collect();
    assert_eq!(ends, [Some(AttemptEnd::Lost), None]);
}

async fn a_repeated_step_overwrites_its_row_and_is_not_told_again(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    let with_loss = |train_loss| StepMetrics {
        train_loss,
        ..sample::step(1)
    };
    let beat = |metrics| JobEvent::Beat {
        attempt: 1,
        lease_until: at(60),
        metrics,
        estimated_finish: None,
    };
    store
        .jobs()
        .apply(&job.id, beat(vec![with_loss(0.5), with_loss(0.25)]), at(1))
        .await
        .unwrap();
    assert_eq!(
        store.metrics().list(&job.id).await.unwrap(),
        [with_loss(0.25)]
    );
    store
        .jobs()
        .apply(&job.id, beat(vec![with_loss(0.125)]), at(2))
        .await
        .unwrap();
    assert_eq!(
        store.metrics().list(&job.id).await.unwrap(),
        [with_loss(0.125)]
    );
    let events = store
        .events()
        .list_after_seq(&project.id, &job.id, 0, 100)
        .await
        .unwrap();
    let told = events
        .iter()
        .filter(|e| e.message.starts_with("Step 1/6"))
        .count();
    assert_eq!(told, 1);
}

async fn a_beat_may_carry_thousands_of_steps(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    let steps: Vec<u64> = (1..=2_500).collect();
    store
        .jobs()
        .apply(&job.id, sample::beat(&job, at(60), &steps), at(1))
        .await
        .unwrap();
    let stored = store.metrics().list(&job.id).await.unwrap();
    assert_eq!(
        stored,
        steps.iter().map(|s| sample::step(*s)).collect::<Vec<_>>()
    );
    check_dense(&db, &job.id, &project.id).await;
}

async fn a_loss_that_is_no_number_is_kept_as_such(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    let metrics = vec![StepMetrics {
        train_loss: f64::NAN,
        ..sample::step(1)
    }];
    let beat = JobEvent::Beat {
        attempt: 1,
        lease_until: at(60),
        metrics,
        estimated_finish: None,
    };
    store.jobs().apply(&job.id, beat, at(1)).await.unwrap();
    assert!(
        store.metrics().list(&job.id).await.unwrap()[0]
            .train_loss
            .is_nan()
    );
}

async fn text_with_nul_is_told_all_the_same(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::job(store, &project, at(0)).await;
    let detail = domain::event::NewEvent::info("line 1: \"a\0b\"");
    let mut error = sample::error("invalid_training_file");
    error.message = "it holds \0".into();
    let failed = JobEvent::ValidationFailed {
        error: error.clone(),
        details: vec![detail],
    };
    store.jobs().apply(&job.id, failed, at(1)).await.unwrap();
    let events = store
        .events()
        .list_after_seq(&project.id, &job.id, 2, 100)
        .await
        .unwrap();
    let texts: Vec<_> = events.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(texts, ["line 1: \"a\u{fffd}b\"", "it holds \u{fffd}"]);
    let stored = store.jobs().get_internal(&job.id).await.unwrap().unwrap();
    assert_eq!(stored.progress().error, Some(error));
}

async fn an_unknown_job_is_not_found(db: Db) {
    let id = domain::id::JobId::mint(sample::entropy());
    let refused = db
        .store
        .jobs()
        .apply(&id, JobEvent::CancelRequested, at(0))
        .await
        .unwrap_err();
    assert_eq!(refused, ApplyError::NotFound);
}

async fn another_program_that_holds_the_lock_makes_the_store_unavailable(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::job(store, &project, at(0)).await;
    let mut other = db.other_program().await;
    if store.is_embedded() {
        other.execute("BEGIN IMMEDIATE").await;
    } else {
        other.execute("BEGIN").await;
        other
            .execute(&format!(
                "SELECT 1 FROM jobs WHERE id = '{}' FOR UPDATE",
                job.id
            ))
            .await;
    }
    let refused = store
        .jobs()
        .apply(&job.id, JobEvent::CancelRequested, at(1))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, ApplyError::Store(StoreError::Unavailable(_))),
        "{refused}"
    );
    // Readers do not wait for it.
    assert!(
        store
            .jobs()
            .find(&project.id, &job.id)
            .await
            .unwrap()
            .is_some()
    );
    other.execute("ROLLBACK").await;
    let done = store
        .jobs()
        .apply(&job.id, JobEvent::CancelRequested, at(1))
        .await
        .unwrap();
    assert_eq!(done.state(), JobState::Cancelled);
}
