//! What the scheduler is given to do.

use domain::audit::AuditKind;
use domain::id::JobId;
use domain::job::{FineTuningJob, JobState};
use domain::job_event::JobEvent;
use domain::project::Project;
use store::{ProjectChange, Store};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    no_project_waits_behind_another_s_crowd,
    what_is_under_way_counts_against_a_project,
    who_waits_is_told_how_many_on_the_same_base_go_before,
    only_jobs_that_may_and_can_run_are_picked,
    no_more_jobs_of_a_project_are_picked_than_may_run,
    offers_that_nobody_took_are_found,
    leases_that_ran_out_are_found,
    after_an_outage_no_lease_ends_at_once,
);

fn ids(jobs: &[FineTuningJob]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id.clone()).collect()
}

async fn queue(store: &Store, project: &Project, seconds: &[i64]) -> Vec<JobId> {
    let mut ids = Vec::new();
    for s in seconds {
        ids.push(sample::queued_job(store, project, at(*s)).await.id);
    }
    ids
}

async fn no_project_waits_behind_another_s_crowd(db: Db) {
    let store = &db.store;
    let (a, b) = (sample::project(store).await, sample::project(store).await);
    let of_a = queue(store, &a, &[1, 2, 3]).await;
    let of_b = queue(store, &b, &[4, 5]).await;
    let picked = store
        .jobs()
        .queued_fair(at(10), None, None, 10)
        .await
        .unwrap();
    let fair = [&of_a[0], &of_b[0], &of_a[1], &of_b[1], &of_a[2]].map(Clone::clone);
    assert_eq!(ids(&picked), fair);
    let picked = store
        .jobs()
        .queued_fair(at(10), None, None, 2)
        .await
        .unwrap();
    assert_eq!(ids(&picked), fair[..2]);
}

async fn what_is_under_way_counts_against_a_project(db: Db) {
    let store = &db.store;
    let (a, b) = (sample::project(store).await, sample::project(store).await);
    sample::running_job(store, &a, at(0)).await;
    let dispatched = sample::queued_job(store, &a, at(0)).await;
    store
        .jobs()
        .apply(&dispatched.id, sample::offered(), at(0))
        .await
        .unwrap();
    sample::succeeded_job(store, &b, at(0)).await;
    let of_a = queue(store, &a, &[1]).await;
    let of_b = queue(store, &b, &[2, 3, 4]).await;
    let picked = store
        .jobs()
        .queued_fair(at(10), None, None, 10)
        .await
        .unwrap();
    // a's job is its third at once, and older than b's third.
    let fair = [&of_b[0], &of_b[1], &of_a[0], &of_b[2]].map(Clone::clone);
    assert_eq!(ids(&picked), fair);
}

/// Lets a running job lose two leases in a row: it is not picked before 105.
async fn back_off(store: &Store, id: &JobId) {
    let jobs = store.jobs();
    for attempt in 1..=2 {
        let lost = JobEvent::LeaseExpired {
            attempt,
            retry_backoff_max_s: 15,
        };
        let lost = jobs.apply(id, lost, at(100)).await.unwrap();
        if attempt == 1 {
            let claim = sample::claimed(at(90));
            jobs.apply(id, claim, at(60)).await.unwrap();
        } else {
            assert_eq!(lost.progress().not_before, Some(at(105)));
        }
    }
}

async fn who_waits_is_told_how_many_on_the_same_base_go_before(db: Db) {
    let store = &db.store;
    let (a, b) = (sample::project(store).await, sample::project(store).await);
    let offered = sample::queued_job(store, &b, at(9)).await.id;
    let of_a = queue(store, &a, &[1, 2]).await;
    let of_b = queue(store, &b, &[3]).await;
    let elsewhere = sample::job_on(store, &a, "other-base", at(4)).await.id;
    let backing_off = sample::running_job(store, &b, at(3)).await.id;
    let jobs = store.jobs();
    for (id, event) in [
        (&offered, sample::offered()),
        (&elsewhere, sample::validated()),
    ] {
        jobs.apply(id, event, at(9)).await.unwrap();
    }
    back_off(store, &backing_off).await;
    let waiting = jobs.waiting(at(104), None, 10).await.unwrap();
    let told: Vec<_> = waiting
        .iter()
        .map(|w| (&w.id, w.base_model.as_str(), w.n_before))
        .collect();
    let expected = [
        (&offered, sample::BASE, 0),
        (&of_a[0], sample::BASE, 1),
        (&of_a[1], sample::BASE, 2),
        (&of_b[0], sample::BASE, 3),
        (&elsewhere, "other-base", 0),
    ];
    assert_eq!(told, expected);
    // Behind what is offered it is the order in which jobs are picked.
    let picked = jobs.queued_fair(at(104), None, None, 10).await.unwrap();
    let queued: Vec<JobId> = waiting[1..].iter().map(|w| w.id.clone()).collect();
    assert_eq!(ids(&picked), queued);
    let first = jobs.waiting(at(104), None, 2).await.unwrap();
    assert_eq!(first, waiting[..2]);
}

async fn only_jobs_that_may_and_can_run_are_picked(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let here = sample::queued_job(store, &project, at(1)).await;
    let elsewhere = sample::job_on(store, &project, "other-base", at(2)).await;
    store
        .jobs()
        .apply(&elsewhere.id, sample::validated(), at(2))
        .await
        .unwrap();
    sample::job(store, &project, at(0)).await;
    let waiting = sample::running_job(store, &project, at(3)).await;
    back_off(store, &waiting.id).await;
    let pick = |now: i64, bases: Option<Vec<String>>| async move {
        let picked = store
            .jobs()
            .queued_fair(at(now), bases.as_deref(), None, 10)
            .await
            .unwrap();
        ids(&picked)
    };
    let both = || Some(vec!["other-base".to_owned(), sample::BASE.to_owned()]);
    assert_eq!(
        pick(104, None).await,
        [here.id.clone(), elsewhere.id.clone()]
    );
    let all = [here.id.clone(), elsewhere.id.clone(), waiting.id.clone()];
    assert_eq!(pick(105, None).await, all);
    assert_eq!(pick(105, both()).await, all);
    assert_eq!(
        pick(105, Some(vec!["other-base".into()])).await,
        [elsewhere.id]
    );
    assert_eq!(pick(105, Some(vec!["no'such".into()])).await, []);
    assert_eq!(pick(105, Some(vec![])).await, []);
}

async fn no_more_jobs_of_a_project_are_picked_than_may_run(db: Db) {
    let store = &db.store;
    let (a, b) = (sample::project(store).await, sample::project(store).await);
    let running = sample::running_job(store, &a, at(0)).await;
    let of_a = queue(store, &a, &[1, 2, 3]).await;
    let of_b = queue(store, &b, &[4, 5]).await;
    let of_all = |default| async move {
        let picked = store.jobs().queued_fair(at(10), None, default, 10).await;
        let waiting = store.jobs().waiting(at(10), default, 10).await.unwrap();
        let picked = ids(&picked.unwrap());
        // Who may not run is behind nobody.
        let told: Vec<_> = waiting.into_iter().map(|w| w.id).collect();
        assert_eq!(told, picked);
        picked
    };
    let cap = async |jobs: Option<u64>| {
        let change = ProjectChange {
            running_jobs: Some(jobs),
            ..ProjectChange::default()
        };
        let entry = sample::entry(&a.organization_id, AuditKind::ProjectUpdated, "a");
        let changed = store.projects().modify(&a.id, &change, &entry).await;
        assert_eq!(changed, Ok(true));
    };
    let only_b = of_b.clone();
    assert_eq!(of_all(Some(1)).await, only_b[..1]);
    // Its own number goes before the installation's, to either side.
    cap(Some(3)).await;
    let [a1, a2] = [&of_a[0], &of_a[1]].map(Clone::clone);
    assert_eq!(
        of_all(Some(1)).await,
        [of_b[0].clone(), a1.clone(), a2.clone()]
    );
    cap(Some(1)).await;
    assert_eq!(of_all(None).await, only_b);
    let bases = [sample::BASE.to_owned()];
    let picked = store.jobs();
    let picked = picked.queued_fair(at(10), Some(&bases), None, 10).await;
    assert_eq!(ids(&picked.unwrap()), only_b, "on these bases, too");
    // An offer is as good as a job that runs; one that ended is none.
    cap(Some(2)).await;
    assert_eq!(
        of_all(None).await,
        [of_b[0].clone(), a1.clone(), of_b[1].clone()]
    );
    let jobs = store.jobs();
    jobs.apply(&a1, sample::offered(), at(10)).await.unwrap();
    let picked = jobs.queued_fair(at(10), None, None, 10).await.unwrap();
    assert_eq!(ids(&picked), only_b);
    for event in [JobEvent::CancelRequested, JobEvent::Stopped { attempt: 1 }] {
        jobs.apply(&running.id, event, at(11)).await.unwrap();
    }
    let picked = jobs.queued_fair(at(12), None, None, 10).await.unwrap();
    assert_eq!(ids(&picked), [of_b[0].clone(), a2, of_b[1].clone()]);
}

async fn offers_that_nobody_took_are_found(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::queued_job(store, &project, at(0)).await;
    store
        .jobs()
        .apply(&job.id, sample::offered(), at(10))
        .await
        .unwrap();
    assert_eq!(store.jobs().offers_older_than(at(10), 9).await.unwrap(), []);
    let found = store.jobs().offers_older_than(at(11), 9).await.unwrap();
    assert_eq!(ids(&found), std::slice::from_ref(&job.id));
    store
        .jobs()
        .apply(&job.id, sample::claimed(at(60)), at(12))
        .await
        .unwrap();
    assert_eq!(store.jobs().offers_older_than(at(99), 9).await.unwrap(), []);
}

async fn leases_that_ran_out_are_found(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    sample::succeeded_job(store, &project, at(0)).await;
    assert_eq!(store.jobs().leases_expired(at(30), 9).await.unwrap(), []);
    assert_eq!(
        ids(&store.jobs().leases_expired(at(31), 9).await.unwrap()),
        std::slice::from_ref(&job.id)
    );
    store
        .jobs()
        .apply(&job.id, sample::beat(&job, at(90), &[]), at(31))
        .await
        .unwrap();
    assert_eq!(store.jobs().leases_expired(at(90), 9).await.unwrap(), []);
}

async fn after_an_outage_no_lease_ends_at_once(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let short = sample::running_job(store, &project, at(0)).await;
    let long = sample::running_job(store, &project, at(0)).await;
    let long = store
        .jobs()
        .apply(&long.id, sample::beat(&long, at(500), &[]), at(1))
        .await
        .unwrap();
    assert_eq!(store.jobs().extend_leases(at(130)).await.unwrap(), 1);
    assert_eq!(store.jobs().leases_expired(at(130), 9).await.unwrap(), []);
    assert_eq!(
        store.jobs().get_internal(&long.id).await.unwrap(),
        Some(long)
    );
    let lengthened = store.jobs().get_internal(&short.id).await.unwrap().unwrap();
    assert_eq!(lengthened.progress().lease_until, Some(at(130)));
    assert_eq!(lengthened.progress().version, short.progress().version + 1);
    // The job goes on from there.
    let lost = JobEvent::LeaseExpired {
        attempt: 1,
        retry_backoff_max_s: 15,
    };
    store
        .jobs()
        .apply(&short.id, lost.clone(), at(130))
        .await
        .unwrap_err();
    let lost = store.jobs().apply(&short.id, lost, at(131)).await.unwrap();
    assert_eq!(lost.state(), JobState::Queued);
}
