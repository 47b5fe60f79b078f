//! The walks of a job, from creation to its end, told by its public events.

mod sample;

use domain::attempt::AttemptEnd;
use domain::error::FailureClass;
use domain::job::{FineTuningJob, JobState};
use domain::job_event::{Effect, JobEvent, Reject};
use sample::*;

/// A job under way, and all it said.
struct Walk {
    job: FineTuningJob,
    texts: Vec<String>,
    effects: Vec<Effect>,
    clock_s: i64,
}

impl Walk {
    fn begin() -> Self {
        let (job, events) = job();
        let texts = events.into_iter().map(|e| e.message).collect();
        Walk {
            job,
            texts,
            effects: Vec::new(),
            clock_s: 1,
        }
    }

    /// Applies the events a second apart.
    fn then(mut self, events: impl IntoIterator<Item = JobEvent>) -> Self {
        for event in events {
            self.clock_s += 1;
            let name = event.name();
            let (job, effects) = self
                .job
                .apply(event, at(self.clock_s))
                .unwrap_or_else(|reject| panic!("{name} after {:?}: {reject}", self.texts));
            self.job = job;
            self.texts.extend(texts(&effects));
            self.effects.extend(effects);
        }
        self
    }

    fn later(mut self, seconds: i64) -> Self {
        self.clock_s += seconds;
        self
    }

    fn refuses(self, event: JobEvent, because: Reject) -> Self {
        let name = event.name();
        assert_eq!(
            self.job.apply(event, at(self.clock_s)).unwrap_err(),
            because,
            "{name}"
        );
        self
    }

    /// Where it stands, and what it said since `from`.
    fn ends(&self, state: JobState, from: usize, texts: &[&str]) {
        assert_eq!(self.texts[from..], *texts);
        assert_eq!(self.job.state(), state);
    }
}

const CREATED: [&str; 2] = [
    "Created fine-tuning job: ftjob-222222222222222222222222",
    "Validating training file: file-111111111111111111111111",
];

fn now() -> domain::time::Timestamp {
    at(0)
}

fn running() -> Walk {
    Walk::begin().then([validated(), offered(5), claimed(Some(5), now())])
}

#[test]
fn the_happy_path_tells_openai_s_story_in_order() {
    let walk = running().then([
        beat(1, &[1, 2], now()),
        saved(1, 2, Some(1)),
        saved(1, 3, None),
        beat(1, &[3, 4, 5, 6], now()),
        saved(1, 6, Some(2)),
        JobEvent::Finalizing { attempt: 1 },
        finished(1),
    ]);
    let story = [
        CREATED[0],
        CREATED[1],
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/6: training loss=1.50",
        "Step 2/6: training loss=1.50",
        "Checkpoint created at step 2 with Snapshot ID: ft:tiny:luthier:tickets:nonce:ckpt-step-2",
        "Step 3/6: training loss=1.50",
        "Step 4/6: training loss=1.50",
        "Step 5/6: training loss=1.50",
        "Step 6/6: training loss=1.50",
        "Checkpoint created at step 6 with Snapshot ID: ft:tiny:luthier:tickets:nonce:ckpt-step-6",
        "New fine-tuned model created: ft:tiny:luthier:tickets:aB3dE6gH",
        "The job has successfully completed",
    ];
    walk.ends(JobState::Succeeded, 0, &story);
    let p = walk.job.progress();
    assert_eq!((p.attempt, p.last_step, p.checkpoint_step), (1, 6, 6));
    assert_eq!(p.finished_at, Some(at(walk.clock_s)));
    assert_eq!(p.result.as_ref().unwrap().trained_tokens, 5_070);
    assert_eq!(
        (&p.worker_id, p.lease_until, p.estimated_finish),
        (&None, None, None)
    );
    assert!(walk.effects.contains(&Effect::PublishOffer {
        dispatch_id: dispatch(5)
    }));
    assert!(walk.effects.contains(&Effect::EndAttempt {
        number: 1,
        end: AttemptEnd::Succeeded
    }));
}

#[test]
fn a_lost_worker_means_resuming_from_the_checkpoint_and_repeated_steps_stay_silent() {
    let walk = running()
        .then([beat(1, &[1, 2, 3], now()), saved(1, 2, None)])
        .later(LEASE_S + 5)
        .then([lease_expired(1)]);
    walk.ends(
        JobState::Queued,
        7,
        &["The worker stopped responding, resuming from step 2"],
    );
    assert!(walk.effects.contains(&Effect::EndAttempt {
        number: 1,
        end: AttemptEnd::Lost
    }));
    let stale = Reject::StaleAttempt {
        named: 1,
        current: 2,
    };
    let walk = walk
        .then([claimed(None, now())])
        .refuses(beat(1, &[4], now()), stale.clone())
        .refuses(saved(1, 4, None), stale.clone())
        .refuses(JobEvent::Finalizing { attempt: 1 }, stale.clone())
        .refuses(finished(1), stale.clone())
        .refuses(attempt_failed(1, FailureClass::Infra), stale.clone())
        .refuses(JobEvent::Stopped { attempt: 1 }, stale.clone())
        .refuses(lease_expired(1), stale)
        .then([beat(2, &[3, 4], now())]);
    let said = [
        "Fine-tuning job resuming from step 2",
        "Step 4/6: training loss=1.50",
    ];
    walk.ends(JobState::Running, 8, &said);
    let again = walk
        .effects
        .iter()
        .filter(|e| **e == Effect::UpsertMetrics(step(3)))
        .count();
    assert_eq!(again, 2, "the repeated step's row is written again");
}

#[test]
fn cancel_is_immediate_where_no_worker_holds_the_job() {
    let before: [(&str, Vec<JobEvent>); 4] = [
        ("validating", vec![]),
        ("queued", vec![validated()]),
        ("dispatched", vec![validated(), offered(5)]),
        ("paused", vec![validated(), JobEvent::PauseRequested]),
    ];
    for (state, events) in before {
        let walk = Walk::begin().then(events);
        assert_eq!(walk.job.state().as_str(), state);
        let n = walk.texts.len();
        let walk = walk.then([JobEvent::CancelRequested]);
        walk.ends(JobState::Cancelled, n, &["The job has been cancelled"]);
        walk.refuses(claimed(Some(5), now()), Reject::StaleOffer)
            .refuses(
                JobEvent::CancelRequested,
                Reject::WrongState(JobState::Cancelled),
            );
    }
}

#[test]
fn cancel_waits_for_the_worker_that_holds_the_job() {
    let before: [(&str, Vec<JobEvent>); 3] = [
        ("running", vec![]),
        ("finalizing", vec![JobEvent::Finalizing { attempt: 1 }]),
        ("pausing", vec![JobEvent::PauseRequested]),
    ];
    let answers: [(&str, JobEvent, AttemptEnd); 3] = [
        (
            "stopped",
            JobEvent::Stopped { attempt: 1 },
            AttemptEnd::Cancelled,
        ),
        (
            "failed",
            attempt_failed(1, FailureClass::Infra),
            AttemptEnd::Cancelled,
        ),
        ("lost", lease_expired(1), AttemptEnd::Lost),
    ];
    for (state, events) in before {
        for (answer, event, end) in &answers {
            let walk = running().then(events.clone());
            assert_eq!(walk.job.state().as_str(), state);
            let n = walk.texts.len();
            let walk = walk.then([JobEvent::CancelRequested, JobEvent::CancelRequested]);
            walk.ends(JobState::Cancelling, n, &[]);
            assert_eq!(
                walk.effects.last(),
                Some(&Effect::PublishControl),
                "{state}"
            );
            let walk = walk
                .refuses(saved(1, 2, None), Reject::WrongState(JobState::Cancelling))
                .refuses(finished(1), Reject::WrongState(JobState::Cancelling))
                .later(LEASE_S + 5)
                .then([event.clone()]);
            walk.ends(JobState::Cancelled, n, &["The job has been cancelled"]);
            let ended = Effect::EndAttempt {
                number: 1,
                end: *end,
            };
            assert!(walk.effects.contains(&ended), "{state}, {answer}");
        }
    }
}

#[test]
fn a_running_job_pauses_at_its_checkpoint_and_resumes_there() {
    let walk = running().then([beat(1, &[1, 2, 3], now()), JobEvent::PauseRequested]);
    walk.ends(JobState::Pausing, 7, &[]);
    assert_eq!(walk.effects.last(), Some(&Effect::PublishControl));
    let walk = walk.then([saved(1, 3, None), JobEvent::Stopped { attempt: 1 }]);
    walk.ends(JobState::Paused, 7, &["The job has been paused at step 3"]);
    let walk = walk
        .refuses(claimed(None, now()), Reject::StaleOffer)
        .then([JobEvent::ResumeRequested, claimed(None, now())]);
    let said = [
        "Job resumed, moving job to queued state",
        "Fine-tuning job resuming from step 3",
    ];
    walk.ends(JobState::Running, 8, &said);
    assert_eq!(walk.job.progress().attempt, 2);
}

#[test]
fn a_pause_that_comes_after_the_last_step_is_too_late() {
    let walk = running().then([
        JobEvent::PauseRequested,
        JobEvent::Finalizing { attempt: 1 },
    ]);
    walk.then([finished(1)]).ends(
        JobState::Succeeded,
        4,
        &[
            "New fine-tuned model created: ft:tiny:luthier:tickets:aB3dE6gH",
            "The job has successfully completed",
        ],
    );
}

#[test]
fn a_bad_file_fails_the_job_and_names_its_lines_first() {
    let walk = Walk::begin().then([validation_failed()]);
    let said = ["Line 3: not JSON", "it failed: invalid_training_file"];
    walk.ends(JobState::Failed, 2, &said);
    assert_eq!(
        walk.job.progress().error,
        Some(error("invalid_training_file"))
    );
    walk.refuses(validated(), Reject::WrongState(JobState::Failed));
}

#[test]
fn an_offer_nobody_claims_is_made_again_and_the_old_one_is_worth_nothing() {
    let walk = Walk::begin()
        .then([validated(), offered(5)])
        .refuses(offered(6), Reject::WrongState(JobState::Dispatched))
        .refuses(
            JobEvent::OfferExpired {
                dispatch_id: dispatch(6),
            },
            Reject::StaleOffer,
        )
        .then([
            JobEvent::OfferExpired {
                dispatch_id: dispatch(5),
            },
            offered(6),
        ])
        .refuses(claimed(Some(5), now()), Reject::StaleOffer)
        .then([claimed(Some(6), now())])
        .refuses(claimed(Some(6), now()), Reject::StaleOffer)
        .refuses(claimed(None, now()), Reject::StaleOffer);
    assert_eq!(walk.job.progress().attempt, 1);
}

#[test]
fn a_drained_job_is_queued_at_once_and_counts_no_failure() {
    let walk = running().then([attempt_failed(1, FailureClass::Drain)]);
    walk.ends(
        JobState::Queued,
        4,
        &["The worker is shutting down, moving job to queued state"],
    );
    let p = walk.job.progress();
    assert_eq!((p.failures_without_progress, p.not_before), (0, None));
}

#[test]
fn the_input_s_fault_is_final() {
    let walk = running().then([attempt_failed(1, FailureClass::User)]);
    walk.ends(JobState::Failed, 4, &["it failed: server_error"]);
}

#[test]
fn three_crashes_without_progress_are_the_end_and_progress_forgives() {
    fn crash(walk: Walk, attempt: u32) -> Walk {
        walk.then([claimed(None, now())])
            .later(2 * LEASE_S)
            .then([lease_expired(attempt)])
    }
    let mut walk = Walk::begin().then([validated()]);
    walk = crash(walk, 1);
    walk = crash(walk, 2);
    walk = walk
        .then([claimed(None, now()), saved(3, 2, None)])
        .later(2 * LEASE_S);
    walk = walk.then([lease_expired(3)]);
    walk = crash(walk, 4);
    assert_eq!(walk.job.state(), JobState::Queued);
    walk = crash(walk, 5);
    assert_eq!(walk.job.state(), JobState::Failed);
    assert_eq!(
        walk.job.progress().error.as_ref().unwrap().code,
        "worker_crash_loop"
    );
}

#[test]
fn failures_of_the_surroundings_are_retried_ever_later_and_twenty_in_a_row_are_the_end() {
    let mut walk = Walk::begin().then([validated()]);
    let mut waits = Vec::new();
    for attempt in 1..=20 {
        let class = FailureClass::Infra;
        walk = walk.then([claimed(None, now()), attempt_failed(attempt, class)]);
        let not_before = walk.job.progress().not_before;
        waits.extend(not_before.map(|t| t.since_s(at(walk.clock_s))));
    }
    assert_eq!(walk.job.state(), JobState::Failed);
    assert_eq!(waits[..5], [0.0, 5.0, 10.0, 15.0, 15.0]);
}

#[test]
fn a_lease_that_has_not_run_out_is_not_expired() {
    running().refuses(lease_expired(1), Reject::WrongState(JobState::Running));
}

#[test]
fn a_repeated_checkpoint_is_accepted_and_changes_nothing_but_the_version() {
    let walk = running().then([saved(1, 2, Some(1))]);
    let (repeated, effects) = walk.job.apply(saved(1, 2, Some(1)), at(50)).unwrap();
    assert_eq!(effects, []);
    assert_eq!(repeated.progress().version, walk.job.progress().version + 1);
    assert_eq!(repeated.progress().checkpoint_step, 2);
}
