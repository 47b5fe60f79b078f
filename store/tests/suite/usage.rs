//! What answers and trainings took: added up by bucket, and by what is told apart.

use domain::id::KeyId;
use domain::job_event::JobEvent;
use domain::price::{Spending, Trained};
use domain::speed::{DeviceKind, TrainingSpeed};
use domain::usage::{
    Dimension, Service, Tally, TokenUsage, TrainedSum, UsageKey, UsageQuery, UsageSum,
};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    what_is_counted_twice_is_added,
    buckets_begin_where_they_are_asked_to,
    filters_and_groups_go_together,
    another_organisations_usage_is_not_there,
    trained_tokens_stand_in_the_bucket_of_their_jobs_end,
    how_fast_a_job_went_is_kept_for_the_next_ones,
    spending_is_all_that_costs_one_project_something,
);

const START: i64 = 1_790_000_000;

fn tally(n: u64) -> Tally {
    Tally {
        n_requests: n,
        tokens: TokenUsage {
            prompt_tokens: 10 * n,
            cached_tokens: 3 * n,
            completion_tokens: n,
        },
    }
}

fn key(project: &domain::project::Project, minute: i64, api_key: &str, model: &str) -> UsageKey {
    UsageKey {
        minute_s: START + 60 * minute,
        project_id: project.id.clone(),
        api_key_id: KeyId::parse(api_key).ok(),
        model: model.into(),
        service: Service::Completions,
        is_batch: false,
    }
}

fn query(project: &domain::project::Project) -> UsageQuery {
    UsageQuery {
        organization_id: project.organization_id.clone(),
        from_s: START,
        to_s: START + 3_600,
        width_s: 60,
        projects: vec![project.id.to_string()],
        api_keys: Vec::new(),
        models: Vec::new(),
        is_batch: None,
        group_by: Vec::new(),
    }
}

fn sum(bucket: u64, n: u64) -> UsageSum {
    UsageSum {
        bucket,
        project_id: None,
        api_key_id: None,
        model: None,
        is_batch: None,
        tally: tally(n),
    }
}

async fn served(db: &Db, query: &UsageQuery) -> Vec<UsageSum> {
    let served = db.store.usage().served(Service::Completions, query);
    served.await.unwrap()
}

async fn what_is_counted_twice_is_added(db: Db) {
    let project = sample::project(&db.store).await;
    let usage = db.store.usage();
    let counted = [
        (key(&project, 0, "key_a", "m"), tally(1)),
        (key(&project, 1, "key_a", "m"), tally(2)),
    ];
    usage.add_served(&counted).await.unwrap();
    usage.add_served(&counted[..1]).await.unwrap();
    usage.add_served(&[]).await.unwrap();
    assert_eq!(served(&db, &query(&project)).await, [sum(0, 2), sum(1, 2)]);
    let others = usage.served(Service::Embeddings, &query(&project)).await;
    assert_eq!(others.unwrap(), []);
}

async fn buckets_begin_where_they_are_asked_to(db: Db) {
    let project = sample::project(&db.store).await;
    let counted = [0, 1, 5, 6, 59, 60].map(|m| (key(&project, m, "key_a", "m"), tally(1)));
    db.store.usage().add_served(&counted).await.unwrap();
    let wide = UsageQuery {
        from_s: START + 60,
        to_s: START + 3_600,
        width_s: 300,
        ..query(&project)
    };
    assert_eq!(
        served(&db, &wide).await,
        [sum(0, 2), sum(1, 1), sum(11, 1)],
        "the first minute is before, the last one behind"
    );
}

async fn filters_and_groups_go_together(db: Db) {
    let project = sample::project(&db.store).await;
    let of_batch = UsageKey {
        is_batch: true,
        api_key_id: None,
        ..key(&project, 0, "key_b", "n")
    };
    let counted = [
        (key(&project, 0, "key_a", "m"), tally(1)),
        (key(&project, 0, "key_b", "m"), tally(2)),
        (of_batch, tally(4)),
    ];
    db.store.usage().add_served(&counted).await.unwrap();
    let by_key = UsageQuery {
        group_by: vec![Dimension::ApiKey, Dimension::Project],
        ..query(&project)
    };
    let of = |id: Option<&str>, n| UsageSum {
        api_key_id: id.map(str::to_owned),
        project_id: Some(project.id.to_string()),
        ..sum(0, n)
    };
    assert_eq!(
        served(&db, &by_key).await,
        [of(None, 4), of(Some("key_a"), 1), of(Some("key_b"), 2)]
    );
    let by_model = UsageQuery {
        group_by: vec![Dimension::Model, Dimension::Batch],
        ..query(&project)
    };
    let of = |model: &str, is_batch, n| UsageSum {
        model: Some(model.into()),
        is_batch: Some(is_batch),
        ..sum(0, n)
    };
    assert_eq!(
        served(&db, &by_model).await,
        [of("m", false, 3), of("n", true, 4)]
    );
    let only = |models: &[&str], is_batch| UsageQuery {
        models: models.iter().map(|m| (*m).into()).collect(),
        is_batch,
        ..query(&project)
    };
    let of_key = UsageQuery {
        api_keys: vec!["key_b".into(), "key_x".into()],
        ..query(&project)
    };
    assert_eq!(served(&db, &of_key).await, [sum(0, 2)]);
    assert_eq!(served(&db, &only(&["m"], None)).await, [sum(0, 3)]);
    assert_eq!(served(&db, &only(&[], Some(true))).await, [sum(0, 4)]);
    assert_eq!(served(&db, &only(&["m"], Some(true))).await, []);
    assert_eq!(served(&db, &only(&["x'; --", "\0"], None)).await, []);
    assert_eq!(served(&db, &only(&["\0"], None)).await, []);
}

async fn another_organisations_usage_is_not_there(db: Db) {
    let project = sample::project(&db.store).await;
    let counted = [(key(&project, 0, "key_a", "m"), tally(1))];
    db.store.usage().add_served(&counted).await.unwrap();
    sample::succeeded_job(&db.store, &project, at(0)).await;
    let foreign = UsageQuery {
        organization_id: sample::organization_id(),
        ..query(&project)
    };
    assert_eq!(served(&db, &foreign).await, []);
    assert_eq!(db.store.usage().trained(&foreign).await, Ok(Vec::new()));
}

async fn trained_tokens_stand_in_the_bucket_of_their_jobs_end(db: Db) {
    let project = sample::project(&db.store).await;
    for second in [0, 59, 61] {
        sample::succeeded_job(&db.store, &project, at(second)).await;
    }
    let sum = |bucket, n_tokens| TrainedSum {
        bucket,
        project_id: project.id.to_string(),
        base_model: sample::BASE.into(),
        n_tokens,
    };
    let trained = db.store.usage().trained(&query(&project)).await;
    assert_eq!(trained, Ok(vec![sum(0, 2 * 5_070), sum(1, 5_070)]));
}

async fn how_fast_a_job_went_is_kept_for_the_next_ones(db: Db) {
    let store = &db.store;
    let latest = async |base: &str, method: &str, limit: u64| {
        let speeds = store.training_speeds().latest(base, method, limit).await;
        speeds.unwrap()
    };
    assert_eq!(latest(sample::BASE, "supervised", 9).await, []);
    for _ in 0..2 {
        let project = sample::project(store).await;
        sample::succeeded_job(store, &project, at(0)).await;
    }
    let speed = TrainingSpeed {
        device: DeviceKind::Cpu,
        tokens_per_s: 512.5,
    };
    assert_eq!(latest(sample::BASE, "supervised", 9).await, [speed, speed]);
    assert_eq!(latest(sample::BASE, "supervised", 1).await, [speed]);
    assert_eq!(latest(sample::BASE, "dpo", 9).await, []);
    assert_eq!(latest("other-base", "supervised", 9).await, []);
}

async fn spending_is_all_that_costs_one_project_something(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let other = sample::project(store).await;
    let spending = async |project: &domain::project::Project| {
        let seconds = START..START + 3_600;
        let spending = store.usage().spending(&project.id, seconds).await;
        spending.unwrap()
    };
    assert_eq!(spending(&project).await, Spending::default());
    let of = |service, is_batch| UsageKey {
        service,
        is_batch,
        ..key(&project, 59, "key_b", "m")
    };
    let counted = [
        (key(&project, 0, "key_a", "m"), tally(1)),
        (of(Service::Embeddings, false), tally(2)),
        (of(Service::Completions, true), tally(4)),
        (key(&project, 5, "key_a", "n"), tally(8)),
        // These are not of it: free, before, behind, another project's.
        (of(Service::Moderations, false), tally(16)),
        (key(&project, -1, "key_a", "m"), tally(16)),
        (key(&project, 60, "key_a", "m"), tally(16)),
        (key(&other, 0, "key_a", "m"), tally(16)),
    ];
    store.usage().add_served(&counted).await.unwrap();
    for second in [-1, 0, 3_599, 3_600] {
        sample::succeeded_job(store, &project, at(second)).await;
    }
    // Reserved from its validation on, whenever that was, until its end.
    sample::job(store, &project, at(0)).await;
    sample::running_job(store, &project, at(-9_999)).await;
    sample::queued_job(store, &project, at(1)).await;
    let given_up = sample::queued_job(store, &project, at(1)).await;
    let cancel = store.jobs();
    let cancel = cancel.apply(&given_up.id, JobEvent::CancelRequested, at(2));
    cancel.await.unwrap();
    sample::queued_job(store, &other, at(1)).await;
    let trained = |n_jobs: u64| Trained {
        base_model: sample::BASE.into(),
        n_tokens: n_jobs * 5_070,
    };
    let expected = Spending {
        served: vec![("m".into(), tally(7).tokens), ("n".into(), tally(8).tokens)],
        trained: vec![trained(2)],
        reserved: vec![trained(2)],
    };
    assert_eq!(spending(&project).await, expected);
    let of_other = spending(&other).await;
    assert_eq!(of_other.reserved, [trained(1)]);
}
