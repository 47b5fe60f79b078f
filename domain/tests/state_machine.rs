//! What holds for a job whatever happens to it, in whatever order.

mod sample;

use std::collections::{BTreeSet, HashSet, VecDeque};

use domain::error::FailureClass;
use domain::job::{FineTuningJob, JobState};
use domain::job_event::{Effect, JobEvent, Reject};
use domain::time::Timestamp;
use proptest::prelude::*;
use sample::*;

/// Every way from one state to another. What is not here must not happen; what is here must be possible.
const EDGES: [(JobState, JobState); 25] = {
    use JobState::*;
    [
        (Validating, Queued),
        (Validating, Failed),
        (Validating, Cancelled),
        (Queued, Dispatched),
        (Queued, Running),
        (Queued, Paused),
        (Queued, Cancelled),
        (Dispatched, Queued),
        (Dispatched, Running),
        (Dispatched, Paused),
        (Dispatched, Cancelled),
        (Running, Finalizing),
        (Running, Queued),
        (Running, Failed),
        (Running, Pausing),
        (Running, Cancelling),
        (Finalizing, Succeeded),
        (Finalizing, Queued),
        (Finalizing, Failed),
        (Finalizing, Cancelling),
        (Pausing, Paused),
        (Pausing, Finalizing),
        (Pausing, Cancelling),
        (Paused, Queued),
        (Paused, Cancelled),
    ]
};
/// And the last one.
const CANCELLED: (JobState, JobState) = (JobState::Cancelling, JobState::Cancelled);

fn is_edge(from: JobState, to: JobState) -> bool {
    from == to || EDGES.contains(&(from, to)) || CANCELLED == (from, to)
}

/// Something that may happen, before it is known which attempt is the current one.
#[derive(Debug, Clone, Copy)]
struct Happening {
    what: u8,
    /// Added to the current attempt: 0 names the right one.
    attempt_off_by: i8,
    /// Which offer, or which step.
    n: u8,
    wait_s: u8,
}

fn happening() -> impl Strategy<Value = Happening> {
    let off_by = prop_oneof![8 => Just(0_i8), 1 => Just(-1), 1 => Just(1)];
    (
        0_u8..17,
        off_by,
        0_u8..8,
        prop_oneof![4 => 0_u8..5, 1 => 40_u8..90],
    )
        .prop_map(|(what, attempt_off_by, n, wait_s)| Happening {
            what,
            attempt_off_by,
            n,
            wait_s,
        })
}

fn named_attempt(job: &FineTuningJob, h: Happening) -> u32 {
    job.progress()
        .attempt
        .saturating_add_signed(i32::from(h.attempt_off_by))
}

fn event(job: &FineTuningJob, h: Happening, now: Timestamp) -> JobEvent {
    let attempt = named_attempt(job, h);
    let step = u64::from(h.n);
    match h.what {
        0 => validated(),
        1 => validation_failed(),
        2 => offered(h.n),
        3 => JobEvent::OfferExpired {
            dispatch_id: dispatch(h.n),
        },
        4 => claimed(None, now),
        5 => claimed(Some(h.n), now),
        6 => beat(attempt, &[step, step + 1], now),
        7 => saved(attempt, step, h.n.is_multiple_of(2).then_some(1)),
        8 => JobEvent::Finalizing { attempt },
        9 => finished(attempt),
        10 => attempt_failed(attempt, FailureClass::User),
        11 => attempt_failed(attempt, FailureClass::Infra),
        12 => attempt_failed(attempt, FailureClass::Drain),
        13 => JobEvent::Stopped { attempt },
        14 => lease_expired(attempt),
        15 => JobEvent::CancelRequested,
        _ if h.n < 4 => JobEvent::PauseRequested,
        _ => JobEvent::ResumeRequested,
    }
}

fn names_an_attempt(event: &JobEvent) -> bool {
    matches!(
        event,
        JobEvent::Beat { .. }
            | JobEvent::CheckpointSaved { .. }
            | JobEvent::Finalizing { .. }
            | JobEvent::Finished { .. }
            | JobEvent::AttemptFailed { .. }
            | JobEvent::Stopped { .. }
            | JobEvent::LeaseExpired { .. }
    )
}

/// Holds in every state.
fn check_shape(job: &FineTuningJob) {
    let p = job.progress();
    assert_eq!(
        p.lease_until.is_some(),
        p.state.is_leased(),
        "a lease: {p:?}"
    );
    assert_eq!(
        p.worker_id.is_some(),
        p.state.is_leased(),
        "a worker: {p:?}"
    );
    assert_eq!(
        p.dispatch_id.is_some(),
        p.state == JobState::Dispatched,
        "an offer: {p:?}"
    );
    assert_eq!(
        p.result.is_some(),
        p.state == JobState::Succeeded,
        "a result: {p:?}"
    );
    assert_eq!(
        p.finished_at.is_some(),
        p.state == JobState::Succeeded,
        "an end: {p:?}"
    );
    assert_eq!(
        p.error.is_some(),
        p.state == JobState::Failed,
        "an error: {p:?}"
    );
    assert!(
        p.estimated_finish.is_none() || p.state.is_leased(),
        "an estimate: {p:?}"
    );
    assert_eq!(p.started_at.is_some(), p.attempt > 0, "a start: {p:?}");
}

/// Holds between a job and the one after it.
fn check_change(
    before: &FineTuningJob,
    after: &FineTuningJob,
    event: &JobEvent,
    effects: &[Effect],
) {
    let (from, to) = (before.progress(), after.progress());
    assert!(
        is_edge(from.state, to.state),
        "{:?} → {:?} by {}",
        from.state,
        to.state,
        event.name()
    );
    assert_eq!(to.version, from.version + 1);
    let claim = matches!(event, JobEvent::Claimed { .. });
    assert_eq!(to.attempt, from.attempt + u32::from(claim));
    assert!(to.checkpoint_step >= from.checkpoint_step);
    assert!(to.last_step >= from.last_step);
    assert_eq!((&before.id, &before.spec), (&after.id, &after.spec));

    let count = |wanted: fn(&Effect) -> bool| effects.iter().filter(|e| wanted(e)).count();
    let finished = usize::from(matches!(event, JobEvent::Finished { .. }));
    assert_eq!(
        count(|e| matches!(e, Effect::RecordTrainedTokens(_))),
        finished
    );
    assert_eq!(count(|e| matches!(e, Effect::RecordSpeed(_))), finished);
    assert_eq!(count(|e| matches!(e, Effect::InsertFile(_))), finished);
    // The model itself and the one earlier checkpoint of the sample.
    assert_eq!(count(|e| matches!(e, Effect::InsertModel(_))), 2 * finished);
    assert_eq!(
        count(|e| matches!(e, Effect::BeginAttempt { .. })),
        usize::from(claim)
    );
    let released = from.state.is_leased() && !to.state.is_leased();
    assert_eq!(
        count(|e| matches!(e, Effect::EndAttempt { .. })),
        usize::from(released)
    );
    let newer = to.checkpoint_step > from.checkpoint_step;
    assert_eq!(
        count(|e| matches!(e, Effect::InsertCheckpoint(_))),
        usize::from(newer)
    );
    let offer = usize::from(matches!(event, JobEvent::Offered { .. }));
    assert_eq!(count(|e| matches!(e, Effect::PublishOffer { .. })), offer);
    let ended = usize::from(to.state.is_terminal());
    assert_eq!(count(|e| matches!(e, Effect::RaiseWebhook(_))), ended);
}

fn check_rejection(job: &FineTuningJob, event: &JobEvent, h: Happening, reject: &Reject) {
    if names_an_attempt(event) && named_attempt(job, h) != job.progress().attempt {
        let current = job.progress().attempt;
        assert_eq!(
            *reject,
            Reject::StaleAttempt {
                named: named_attempt(job, h),
                current
            }
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_job_stays_a_job(happenings in prop::collection::vec(happening(), 1..60)) {
        let (mut job, _) = job();
        let mut clock_s = 0;
        check_shape(&job);
        for h in happenings {
            clock_s += i64::from(h.wait_s);
            let event = event(&job, h, at(clock_s));
            match job.apply(event.clone(), at(clock_s)) {
                Ok((next, effects)) => {
                    prop_assert!(!job.state().is_terminal(), "{} left {:?}", event.name(), job.state());
                    let stale = names_an_attempt(&event)
                        && named_attempt(&job, h) != job.progress().attempt;
                    prop_assert!(!stale, "a stale {} was accepted", event.name());
                    check_shape(&next);
                    check_change(&job, &next, &event, &effects);
                    job = next;
                }
                Err(reject) => check_rejection(&job, &event, h, &reject),
            }
        }
    }
}

/// Everything that may happen to `job` at `now`.
fn everything(job: &FineTuningJob, now: Timestamp) -> Vec<JobEvent> {
    let all = (0..17).flat_map(|what| {
        [1, 6].map(|n| Happening {
            what,
            attempt_off_by: 0,
            n,
            wait_s: 0,
        })
    });
    all.map(|h| event(job, h, now)).collect()
}

#[test]
fn every_edge_of_the_list_can_be_walked_and_no_other() {
    let mut seen: HashSet<(JobState, u32, u32)> = HashSet::new();
    let mut edges: BTreeSet<(String, String)> = BTreeSet::new();
    let mut open = VecDeque::from([(job().0, 0_i64)]);
    while let Some((job, clock_s)) = open.pop_front() {
        // Every lease has run out by then, so that an expiry is possible.
        let clock_s = clock_s + 2 * LEASE_S;
        for event in everything(&job, at(clock_s)) {
            let Ok((next, effects)) = job.apply(event.clone(), at(clock_s)) else {
                continue;
            };
            check_shape(&next);
            check_change(&job, &next, &event, &effects);
            let (p, before) = (next.progress(), job.state());
            if before != p.state {
                edges.insert((format!("{before:?}"), format!("{:?}", p.state)));
            }
            if seen.insert((
                p.state,
                p.crashes_without_progress,
                p.failures_without_progress,
            )) {
                open.push_back((next, clock_s));
            }
        }
    }
    let listed = EDGES.into_iter().chain([CANCELLED]);
    let listed = listed
        .map(|(from, to)| (format!("{from:?}"), format!("{to:?}")))
        .collect();
    assert_eq!(edges, listed);
}
