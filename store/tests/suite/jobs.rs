//! Making jobs, and reading what is known of them.

use domain::job::{JobSpec, JobState};
use domain::job_event::JobEvent;
use domain::page::{Order, PageRequest};
use store::{InsertLimits, MetadataFilter, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_new_job_comes_with_its_first_events,
    a_job_on_a_file_that_is_gone_or_another_s_is_not_made,
    of_jobs_made_at_once_only_as_many_as_allowed_are_made,
    a_job_that_is_over_makes_room_for_another,
    lists_are_filtered_by_metadata,
    metadata_with_nul_is_refused,
    jobs_are_counted_by_state,
    checkpoints_are_shown_sparingly_and_kept_sparingly,
    a_deleted_model_is_gone_and_its_name_is_not_free,
);

async fn a_new_job_comes_with_its_first_events(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::job(store, &project, at(7)).await;
    assert_eq!(
        store.jobs().find(&project.id, &job.id).await.unwrap(),
        Some(job.clone())
    );
    let events = store
        .events()
        .list_after_seq(&project.id, &job.id, 0, 10)
        .await
        .unwrap();
    let texts: Vec<_> = events
        .iter()
        .map(|e| (e.seq, e.message.clone(), e.created_at))
        .collect();
    let file = &job.spec.training_file;
    let expected = [
        (1, format!("Created fine-tuning job: {}", job.id), at(7)),
        (2, format!("Validating training file: {file}"), at(7)),
    ];
    assert_eq!(texts, expected);
    assert_eq!(store.jobs().validating(10).await.unwrap(), [job]);
}

async fn a_job_on_a_file_that_is_gone_or_another_s_is_not_made(db: Db) {
    let store = &db.store;
    let (mine, theirs) = (sample::project(store).await, sample::project(store).await);
    let (good, gone) = (sample::file(&mine.id, at(0)), sample::file(&mine.id, at(0)));
    let foreign = sample::file(&theirs.id, at(0));
    for file in [&good, &gone, &foreign] {
        store.files().insert(file, None).await.unwrap();
    }
    store
        .files()
        .delete(&mine.id, &gone.id, at(1))
        .await
        .unwrap();
    for bad in [&gone.id, &foreign.id, &sample::file(&mine.id, at(0)).id] {
        let as_training = sample::spec(bad);
        let as_validation = JobSpec {
            validation_file: Some(bad.clone()),
            ..sample::spec(&good.id)
        };
        for spec in [as_training, as_validation] {
            let (job, events) = sample::new_job(&mine, spec, at(2));
            let limits = InsertLimits::default();
            let refused = store
                .jobs()
                .insert(&job, events, &limits, None)
                .await
                .unwrap_err();
            assert_eq!(refused, StoreError::NotFound);
            assert_eq!(store.jobs().get_internal(&job.id).await.unwrap(), None);
        }
    }
    // One file may be both.
    let both = JobSpec {
        validation_file: Some(good.id.clone()),
        ..sample::spec(&good.id)
    };
    let (job, events) = sample::new_job(&mine, both, at(2));
    store
        .jobs()
        .insert(&job, events, &InsertLimits::default(), None)
        .await
        .unwrap();
}

async fn of_jobs_made_at_once_only_as_many_as_allowed_are_made(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let file = sample::file(&project.id, at(0));
    store.files().insert(&file, None).await.unwrap();
    let limits = InsertLimits {
        max_active: Some(1),
    };
    // Nobody can finish until two of them are as far as they can get.
    let mut other = db.other_program().await;
    if !store.is_embedded() {
        other.execute("BEGIN").await;
        let lock = "LOCK TABLE files IN ACCESS EXCLUSIVE MODE";
        other.execute(lock).await;
    }
    let inserts: Vec<_> = (0..4)
        .map(|_| {
            let (job, events) = sample::new_job(&project, sample::spec(&file.id), at(1));
            let store = store.clone();
            tokio::spawn(async move { store.jobs().insert(&job, events, &limits, None).await })
        })
        .collect();
    if !store.is_embedded() {
        other.until_two_wait().await;
        other.execute("COMMIT").await;
    }
    let mut n_made = 0;
    for insert in inserts {
        match insert.await.unwrap() {
            Ok(()) => n_made += 1,
            Err(refused) => assert_eq!(refused, StoreError::JobLimit { limit: 1 }),
        }
    }
    assert_eq!(n_made, 1);
    assert_eq!(store.jobs().n_active(&project.id).await.unwrap(), 1);
}

async fn a_job_that_is_over_makes_room_for_another(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let first = sample::job(store, &project, at(0)).await;
    let (second, events) =
        sample::new_job(&project, sample::spec(&first.spec.training_file), at(1));
    let limits = InsertLimits {
        max_active: Some(1),
    };
    let jobs = store.jobs();
    let refused = jobs
        .insert(&second, events.clone(), &limits, None)
        .await
        .unwrap_err();
    assert_eq!(refused, StoreError::JobLimit { limit: 1 });
    store
        .jobs()
        .apply(&first.id, JobEvent::CancelRequested, at(2))
        .await
        .unwrap();
    jobs.insert(&second, events, &limits, None).await.unwrap();
    assert_eq!(store.jobs().n_active(&project.id).await.unwrap(), 1);
}

async fn lists_are_filtered_by_metadata(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let file = sample::file(&project.id, at(0));
    store.files().insert(&file, None).await.unwrap();
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let mut ids = Vec::new();
    for (n, metadata) in [
        None,
        Some(vec![pair("team", "red"), pair("run", "1")]),
        Some(vec![pair("team", "red"), pair("run", "")]),
        Some(vec![pair("team", "blue"), pair("run", "1")]),
        Some(vec![]),
    ]
    .into_iter()
    .enumerate()
    {
        let spec = JobSpec {
            metadata,
            ..sample::spec(&file.id)
        };
        let (job, events) = sample::new_job(&project, spec, at(n as i64));
        store
            .jobs()
            .insert(&job, events, &InsertLimits::default(), None)
            .await
            .unwrap();
        ids.push(job.id);
    }
    let all = |pairs: Vec<(String, String)>| MetadataFilter::All(pairs);
    for (filter, expected) in [
        (MetadataFilter::Any, vec![0, 1, 2, 3, 4]),
        (MetadataFilter::None_, vec![0, 4]),
        (all(vec![]), vec![0, 1, 2, 3, 4]),
        (all(vec![pair("team", "red")]), vec![1, 2]),
        (all(vec![pair("team", "red"), pair("run", "1")]), vec![1]),
        (all(vec![pair("run", "")]), vec![2]),
        (all(vec![pair("team", "green")]), vec![]),
    ] {
        let page = PageRequest {
            after: None,
            limit: 20,
            order: Order::OldestFirst,
        };
        let found = store
            .jobs()
            .list(&project.id, &filter, &page)
            .await
            .unwrap();
        let found: Vec<_> = found.items.into_iter().map(|job| job.id).collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|n: usize| ids[n].clone())
            .collect();
        assert_eq!(found, expected, "{filter:?}");
    }
}

async fn metadata_with_nul_is_refused(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let file = sample::file(&project.id, at(0));
    store.files().insert(&file, None).await.unwrap();
    let metadata = Some(vec![("a".into(), "b\0".into())]);
    let spec = JobSpec {
        metadata,
        ..sample::spec(&file.id)
    };
    let (job, events) = sample::new_job(&project, spec, at(0));
    let refused = store
        .jobs()
        .insert(&job, events, &InsertLimits::default(), None)
        .await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
}

async fn jobs_are_counted_by_state(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    sample::job(store, &project, at(0)).await;
    sample::queued_job(store, &project, at(0)).await;
    sample::queued_job(store, &project, at(0)).await;
    sample::succeeded_job(store, &project, at(0)).await;
    let mut counts = store.jobs().count_by_state().await.unwrap();
    counts.sort_by_key(|(state, _)| state.as_str());
    let expected = [
        (JobState::Queued, 2),
        (JobState::Succeeded, 1),
        (JobState::Validating, 1),
    ];
    assert_eq!(counts, expected);
    assert_eq!(store.jobs().n_active(&project.id).await.unwrap(), 3);
}

async fn checkpoints_are_shown_sparingly_and_kept_sparingly(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    let written = [
        (1, None),
        (2, Some(1)),
        (3, None),
        (4, Some(2)),
        (6, Some(3)),
        (7, None),
        (8, Some(4)),
        (9, None),
    ];
    for (step, epoch) in written {
        store
            .jobs()
            .apply(&job.id, sample::saved(&job, step, epoch), at(1))
            .await
            .unwrap();
    }
    let steps = |checkpoints: &[domain::checkpoint::Checkpoint]| -> Vec<u64> {
        checkpoints.iter().map(|c| c.step).collect()
    };
    let page = |after: Option<&str>, limit, order| PageRequest {
        after: after.map(str::to_owned),
        limit,
        order,
    };
    let checkpoints = store.checkpoints();
    let list = |page: PageRequest| {
        let (project, job) = (project.id.clone(), job.id.clone());
        async move {
            store
                .checkpoints()
                .list_visible(&project, &job, &page)
                .await
        }
    };
    let newest = list(page(None, 10, Order::NewestFirst)).await.unwrap();
    assert_eq!(
        (steps(&newest.items), newest.has_more),
        (vec![8, 6, 4], false)
    );
    let oldest = list(page(None, 2, Order::OldestFirst)).await.unwrap();
    assert_eq!((steps(&oldest.items), oldest.has_more), (vec![4, 6], true));
    let after = newest.items[0].id.as_str();
    let rest = list(page(Some(after), 1, Order::NewestFirst))
        .await
        .unwrap();
    assert_eq!((steps(&rest.items), rest.has_more), (vec![6], true));
    let unknown = list(page(Some("ftckpt_no"), 1, Order::NewestFirst))
        .await
        .unwrap_err();
    assert_eq!(unknown, StoreError::UnknownAfter("ftckpt_no".into()));

    assert_eq!(checkpoints.latest(&job.id).await.unwrap().unwrap().step, 9);
    let superseded = checkpoints.superseded(&job.id).await.unwrap();
    assert_eq!(steps(&superseded), [1, 2, 3, 7]);
    checkpoints.remove(&superseded[0].id).await.unwrap();
    checkpoints.remove(&superseded[0].id).await.unwrap();
    assert_eq!(
        steps(&checkpoints.all(&job.id).await.unwrap()),
        [2, 3, 4, 6, 7, 8, 9]
    );
}

async fn a_deleted_model_is_gone_and_its_name_is_not_free(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::succeeded_job(store, &project, at(0)).await;
    let name = job.tuned_model_name();
    assert!(
        store
            .models()
            .delete(&project.id, &name, at(1))
            .await
            .unwrap()
    );
    assert!(
        !store
            .models()
            .delete(&project.id, &name, at(1))
            .await
            .unwrap()
    );
    assert_eq!(store.models().find(&project.id, &name).await.unwrap(), None);
    let left: Vec<_> = store
        .models()
        .list(&project.id)
        .await
        .unwrap()
        .into_iter()
        .map(|m| m.name)
        .collect();
    assert_eq!(left, [format!("{name}:ckpt-step-4")]);
    assert_eq!(
        store.models().find(&project.id, "a\0b").await.unwrap(),
        None
    );
    assert!(
        !store
            .models()
            .delete(&project.id, "a\0b", at(1))
            .await
            .unwrap()
    );
}
