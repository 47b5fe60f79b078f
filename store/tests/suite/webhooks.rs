//! Webhooks: an event is written with what it tells of, and tried until it was taken or is given up.

use std::collections::BTreeSet;

use domain::job_event::JobEvent;
use domain::page::{Order, PageRequest};
use domain::webhook::{MAX_ENDPOINTS, WebhookEndpoint, WebhookEvent, WebhookEventType};
use store::DueDelivery;

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    an_ended_job_leaves_a_delivery_for_each_endpoint_that_listens,
    a_refused_change_leaves_no_delivery,
    a_claimed_delivery_comes_back_until_it_is_taken,
    schedulers_at_once_share_the_deliveries,
    an_endpoint_with_many_events_holds_up_no_other,
    an_endpoint_where_nothing_gets_through_is_disabled_and_an_update_enables_it,
    a_delivery_that_another_one_ended_is_not_ended_again,
    a_deleted_endpoint_takes_its_rows_along,
    an_old_secret_signs_as_long_as_it_may,
    endpoints_are_listed_newest_first,
    of_two_that_want_the_last_endpoint_one_gets_it,
);

use WebhookEventType as T;

const ENDS: [T; 3] = [
    T::FineTuningJobSucceeded,
    T::FineTuningJobFailed,
    T::FineTuningJobCancelled,
];

async fn due(db: &Db, now: i64) -> Vec<DueDelivery> {
    let webhooks = db.store.webhooks();
    webhooks
        .claim_due(at(now), 100, at(now + 60))
        .await
        .unwrap()
}

async fn failed(db: &Db, due: &DueDelivery, next: Option<i64>, now: i64) -> bool {
    let webhooks = db.store.webhooks();
    let five_days_ago = at(now - domain::webhook::DISABLED_AFTER_S);
    let failed = webhooks.failed(due, "it answered 500", next.map(at), five_days_ago, at(now));
    failed.await.unwrap()
}

/// A job of a new project that was cancelled at 5, and the endpoint that was told.
async fn told(db: &Db) -> (domain::project::Project, WebhookEndpoint) {
    let project = sample::project(&db.store).await;
    let endpoint = sample::endpoint(&db.store, &project, &ENDS).await;
    cancel_one(db, &project).await;
    (project, endpoint)
}

async fn cancel_one(db: &Db, project: &domain::project::Project) {
    let job = sample::queued_job(&db.store, project, at(1)).await;
    let cancel = JobEvent::CancelRequested;
    db.store.jobs().apply(&job.id, cancel, at(5)).await.unwrap();
}

async fn an_ended_job_leaves_a_delivery_for_each_endpoint_that_listens(db: Db) {
    let store = &db.store;
    let (project, other) = (sample::project(store).await, sample::project(store).await);
    let all = sample::endpoint(store, &project, &ENDS).await;
    let ends = [T::FineTuningJobSucceeded, T::BatchCompleted];
    let some = sample::endpoint(store, &project, &ends).await;
    sample::endpoint(store, &project, &[T::FineTuningJobFailed]).await;
    sample::endpoint(store, &other, &ENDS).await;
    let job = sample::succeeded_job(store, &project, at(1)).await;

    assert_eq!(due(&db, 0).await, [], "nothing has happened yet");
    let event = WebhookEvent::new(T::FineTuningJobSucceeded, job.id.as_str(), at(1)).unwrap();
    let told = due(&db, 2).await;
    let endpoints: BTreeSet<_> = told.iter().map(|due| due.endpoint_id.clone()).collect();
    assert_eq!(endpoints, BTreeSet::from([all.id, some.id.clone()]));
    let one = told.iter().find(|due| due.endpoint_id == some.id).unwrap();
    let secrets = store.webhooks().secrets(&project.id, &some.id, at(2));
    let expected = DueDelivery {
        id: event.delivery_id(&some.id).unwrap(),
        endpoint_id: some.id.clone(),
        project_id: project.id.clone(),
        url: some.url.clone(),
        body: event.body(),
        n_tries: 0,
        secrets: secrets.await.unwrap(),
    };
    assert_eq!((one, one.secrets.len()), (&expected, 1));
}

async fn a_refused_change_leaves_no_delivery(db: Db) {
    let (project, _) = told(&db).await;
    assert_eq!(due(&db, 5).await.len(), 1);
    let ended = sample::succeeded_job(&db.store, &project, at(6)).await;
    assert_eq!(due(&db, 7).await.len(), 1);
    let cancel = JobEvent::CancelRequested;
    let refused = db.store.jobs().apply(&ended.id, cancel, at(8)).await;
    assert!(refused.is_err());
    assert_eq!(due(&db, 9).await, []);
}

async fn a_claimed_delivery_comes_back_until_it_is_taken(db: Db) {
    told(&db).await;
    let first = due(&db, 5).await;
    assert_eq!(first.len(), 1);
    assert_eq!(due(&db, 64).await, [], "its holder has a minute");
    let again = due(&db, 65).await;
    assert_eq!(again, first, "the holder is gone");
    assert!(!failed(&db, &again[0], Some(100), 66).await);
    assert_eq!(due(&db, 99).await, []);
    let third = due(&db, 100).await;
    assert_eq!((third[0].n_tries, &third[0].id), (1, &first[0].id));
    let webhooks = db.store.webhooks();
    webhooks.delivered(&third[0], at(101)).await.unwrap();
    assert_eq!(due(&db, 999_999).await, []);
    assert_eq!(webhooks.purge_deliveries(at(5), 9).await, Ok(0));
    assert_eq!(webhooks.purge_deliveries(at(6), 9).await, Ok(1));
}

async fn schedulers_at_once_share_the_deliveries(db: Db) {
    let (project, _) = told(&db).await;
    for _ in 0..5 {
        cancel_one(&db, &project).await;
    }
    let other = db.open_again().await;
    let claim = |store: store::Store| async move {
        let claimed = store.webhooks().claim_due(at(6), 100, at(66)).await;
        claimed.unwrap()
    };
    let (one, two) = tokio::join!(claim(db.store.clone()), claim(other));
    let ids: BTreeSet<_> = one.iter().chain(&two).map(|due| &due.id).collect();
    assert_eq!((ids.len(), one.len() + two.len()), (6, 6));
}

async fn an_endpoint_with_many_events_holds_up_no_other(db: Db) {
    let (noisy, endpoint) = told(&db).await;
    for _ in 0..11 {
        cancel_one(&db, &noisy).await;
    }
    let (_, quiet) = told(&db).await;
    let claimed = db.store.webhooks().claim_due(at(6), 3, at(66)).await;
    let claimed = claimed.unwrap();
    let of = |id| claimed.iter().filter(|due| due.endpoint_id == id).count();
    assert_eq!((of(endpoint.id), of(quiet.id)), (2, 1));
    assert_eq!(due(&db, 7).await.len(), 8, "no more than that at a time");
}

async fn an_endpoint_where_nothing_gets_through_is_disabled_and_an_update_enables_it(db: Db) {
    let day = 24 * 3600;
    let webhooks = db.store.webhooks();
    let (project, endpoint) = told(&db).await;
    let find = || async {
        let found = webhooks.find(&project.id, &endpoint.id).await;
        found.unwrap().unwrap()
    };
    let first = due(&db, 5).await.remove(0);
    assert!(!failed(&db, &first, Some(5 * day), 10).await);
    cancel_one(&db, &project).await;
    let second = due(&db, 11).await.remove(0);
    webhooks.delivered(&second, at(12)).await.unwrap();
    let first = due(&db, 5 * day).await.remove(0);
    assert!(
        !failed(&db, &first, Some(6 * day), 5 * day + 20).await,
        "something got through meanwhile"
    );
    cancel_one(&db, &project).await;
    let first = due(&db, 6 * day).await;
    assert_eq!(first.len(), 2);
    assert!(failed(&db, &first[0], Some(11 * day), 10 * day + 20).await);
    assert_eq!(find().await.disabled_at, Some(at(10 * day + 20)));
    assert!(
        !failed(&db, &first[1], None, 10 * day + 21).await,
        "it is already"
    );
    assert_eq!(
        due(&db, 30 * day).await,
        [],
        "all that was on its way is given up"
    );
    cancel_one(&db, &project).await;
    assert_eq!(due(&db, 30 * day).await, [], "it is told of nothing");

    let change = sample::change(&endpoint);
    assert!(
        webhooks
            .update(&project.id, &endpoint.id, &change)
            .await
            .unwrap()
    );
    let enabled = WebhookEndpoint {
        updated_at: at(9),
        ..endpoint.clone()
    };
    assert_eq!(find().await, enabled);
    cancel_one(&db, &project).await;
    assert_eq!(due(&db, 30 * day).await.len(), 1);
}

async fn a_delivery_that_another_one_ended_is_not_ended_again(db: Db) {
    told(&db).await;
    let slow = due(&db, 5).await.remove(0);
    let quick = due(&db, 65).await.remove(0);
    let webhooks = db.store.webhooks();
    webhooks.delivered(&quick, at(66)).await.unwrap();
    failed(&db, &slow, Some(70), 67).await;
    assert_eq!(due(&db, 70).await, []);
}

async fn a_deleted_endpoint_takes_its_rows_along(db: Db) {
    let (project, endpoint) = told(&db).await;
    let webhooks = db.store.webhooks();
    assert!(webhooks.delete(&project.id, &endpoint.id).await.unwrap());
    assert!(!webhooks.delete(&project.id, &endpoint.id).await.unwrap());
    assert_eq!(due(&db, 5).await, []);
    assert_eq!(webhooks.all_secrets().await.unwrap(), []);
    cancel_one(&db, &project).await;
    assert_eq!(due(&db, 5).await, []);
}

async fn an_old_secret_signs_as_long_as_it_may(db: Db) {
    let project = sample::project(&db.store).await;
    let endpoint = sample::endpoint(&db.store, &project, &ENDS).await;
    let webhooks = db.store.webhooks();
    let active = |now: i64| {
        let (webhooks, project, id) = (webhooks, project.id.clone(), endpoint.id.clone());
        async move { webhooks.secrets(&project, &id, at(now)).await.unwrap() }
    };
    let first = active(0).await.remove(0);
    let rotate = |new, until: Option<i64>, now| {
        let (webhooks, project, id) = (webhooks, project.id.clone(), endpoint.id.clone());
        let until = until.map(at);
        async move {
            let rotated = webhooks.rotate_secret(&project, &id, &new, "new hint", until, at(now));
            assert!(rotated.await.unwrap());
        }
    };
    let (second, third, fourth) = (sample::sealed(), sample::sealed(), sample::sealed());
    rotate(second.clone(), Some(100), 10).await;
    assert_eq!(active(99).await, [second.clone(), first.clone()]);
    assert_eq!(active(100).await, std::slice::from_ref(&second));
    let shown = webhooks
        .find(&project.id, &endpoint.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (shown.secret_hint.as_str(), shown.updated_at),
        ("new hint", at(10))
    );

    rotate(third.clone(), Some(200), 20).await;
    assert_eq!(
        active(30).await,
        [third.clone(), second.clone()],
        "never three"
    );
    assert_eq!(webhooks.purge_secrets(at(200)).await, Ok(1));
    rotate(fourth.clone(), None, 300).await;
    assert_eq!(active(300).await, std::slice::from_ref(&fourth));

    assert!(webhooks.reseal(&fourth, "anew").await.unwrap());
    assert!(!webhooks.reseal(&fourth, "twice").await.unwrap());
    assert_eq!(active(300).await[0].sealed, "anew");
}

async fn endpoints_are_listed_newest_first(db: Db) {
    let project = sample::project(&db.store).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(sample::endpoint(&db.store, &project, &ENDS).await.id);
    }
    let webhooks = db.store.webhooks();
    let page = |after: Option<&str>| PageRequest {
        after: after.map(str::to_owned),
        limit: 2,
        order: Order::NewestFirst,
    };
    let first = webhooks.list(&project.id, &page(None)).await.unwrap();
    let shown: Vec<_> = first.items.iter().map(|e| &e.id).collect();
    assert_eq!((shown, first.has_more), (vec![&ids[2], &ids[1]], true));
    let rest = webhooks
        .list(&project.id, &page(Some(ids[1].as_str())))
        .await;
    assert_eq!(rest.unwrap().items[0].id, ids[0]);
    let unknown = webhooks.list(&project.id, &page(Some("we_x"))).await;
    assert_eq!(unknown, Err(store::StoreError::UnknownAfter("we_x".into())));
}

async fn of_two_that_want_the_last_endpoint_one_gets_it(db: Db) {
    let project = sample::project(&db.store).await;
    for _ in 1..MAX_ENDPOINTS {
        sample::endpoint(&db.store, &project, &ENDS).await;
    }
    let mut beside = db.other_program().await;
    beside.hold("webhook_endpoints").await;
    let both = [(), ()].map(|()| {
        let (store, endpoint) = (db.store.clone(), sample::new_endpoint(&project, &ENDS));
        tokio::spawn(async move {
            let webhooks = store.webhooks();
            webhooks.insert(&endpoint, &sample::sealed()).await.unwrap()
        })
    });
    beside.let_go().await;
    let mut n_made = 0;
    for made in both {
        n_made += u64::from(made.await.unwrap());
    }
    let listed = db.store.webhooks().list(&project.id, &sample::page()).await;
    let n_listed = listed.unwrap().items.len() as u64;
    assert_eq!((n_made, n_listed), (1, MAX_ENDPOINTS));
}
