//! What is left of a limit is drawn by all processes from one row.

use domain::audit::AuditKind;
use domain::id::ProjectId;
use domain::project::Project;
use domain::rate_limit::{Amount, ModelRateLimit, RateLimit};
use store::rate_limits::{Draw, Drawn};
use store::{RateLimitChange, Store};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    processes_together_draw_no_more_than_the_limit,
    a_bucket_refills_with_time,
    a_project_s_own_limit_replaces_the_default,
    changes_of_one_limit_at_once_are_both_kept,
);

pub const DEFAULT: RateLimit = RateLimit {
    requests_per_minute: 60,
    tokens_per_minute: 600,
};

/// A limit unlike the default.
pub fn of_model(model: &str) -> ModelRateLimit {
    ModelRateLimit {
        model: model.to_owned(),
        limit: RateLimit {
            requests_per_minute: 7,
            tokens_per_minute: 9,
        },
    }
}

/// What of the project's limit of `model` becomes what; the limit afterwards.
async fn modify(
    store: &Store,
    project: &Project,
    model: &str,
    wanted: RateLimitChange,
) -> RateLimit {
    let kind = AuditKind::RateLimitUpdated;
    let entry = sample::entry(&project.organization_id, kind, model);
    let rates = store.rate_limits();
    let modified = rates.modify(&project.id, model, wanted, DEFAULT, &entry);
    modified.await.unwrap()
}

/// Gives the project this limit.
pub async fn set(store: &Store, project: &Project, limited: &ModelRateLimit) {
    let wanted = RateLimitChange {
        requests_per_minute: Some(limited.limit.requests_per_minute),
        tokens_per_minute: Some(limited.limit.tokens_per_minute),
    };
    let limit = modify(store, project, &limited.model, wanted).await;
    assert_eq!(limit, limited.limit);
}

/// Takes all that is left.
pub async fn draw_all(store: &Store, project: &ProjectId, model: &str) -> Drawn {
    let draw = Draw {
        of_limit: 1.0,
        ..needs(1.0, 1.0)
    };
    let drawn = store
        .rate_limits()
        .draw(project, model, DEFAULT, draw, at(2));
    drawn.await.unwrap()
}

fn amount(requests: f64, tokens: f64) -> Amount {
    Amount { requests, tokens }
}

fn needs(requests: f64, tokens: f64) -> Draw {
    Draw {
        of_limit: 0.0,
        debt: Amount::default(),
        needed: amount(requests, tokens),
    }
}

async fn processes_together_draw_no_more_than_the_limit(db: Db) {
    let project = sample::project(&db.store).await;
    let drawers: Vec<_> = (0..40)
        .map(|_| {
            let (store, project) = (db.store.clone(), project.id.clone());
            tokio::spawn(async move {
                let rates = store.rate_limits();
                let drawn = rates.draw(&project, "m", DEFAULT, needs(2.0, 1.0), at(0));
                drawn.await.unwrap().given
            })
        })
        .collect();
    let mut given = Amount::default();
    for drawer in drawers {
        given = given + drawer.await.unwrap();
    }
    assert_eq!(given, amount(60.0, 30.0));
}

async fn a_bucket_refills_with_time(db: Db) {
    let project = sample::project(&db.store).await;
    let rates = db.store.rate_limits();
    let draw = async |draw, s| {
        let drawn = rates.draw(&project.id, "m", DEFAULT, draw, at(s)).await;
        drawn.unwrap().given
    };
    assert_eq!(draw(needs(60.0, 600.0), 0).await, amount(60.0, 600.0));
    assert_eq!(draw(needs(5.0, 5.0), 0).await, amount(0.0, 0.0));
    assert_eq!(draw(needs(5.0, 15.0), 2).await, amount(0.0, 0.0));
    assert_eq!(draw(needs(2.0, 15.0), 2).await, amount(2.0, 15.0));
    // A share of what is needed, nothing of what is not.
    let share = Draw {
        of_limit: 0.5,
        debt: Amount::default(),
        needed: amount(1.0, -3.0),
    };
    assert_eq!(draw(share, 3_600).await, amount(30.0, 0.0));
}

async fn a_project_s_own_limit_replaces_the_default(db: Db) {
    let project = sample::project(&db.store).await;
    let rates = db.store.rate_limits();
    let mut own = of_model("m");
    let change = |requests_per_minute, tokens_per_minute| RateLimitChange {
        requests_per_minute,
        tokens_per_minute,
    };
    // What is not named stays, and was the default's at first.
    let modify = async |wanted| modify(&db.store, &project, "m", wanted).await;
    let tokens_alone = RateLimit {
        tokens_per_minute: 9,
        ..DEFAULT
    };
    assert_eq!(modify(change(None, Some(9))).await, tokens_alone);
    own.limit.requests_per_minute = 3;
    assert_eq!(modify(change(Some(3), None)).await, own.limit);
    assert_eq!(
        rates.list(&project.id).await.unwrap(),
        std::slice::from_ref(&own)
    );
    let drawn = async |model| {
        let drawn = draw_all(&db.store, &project.id, model).await;
        (drawn.given, drawn.limit)
    };
    assert_eq!(drawn("m").await, (amount(3.0, 9.0), own.limit));
    assert_eq!(drawn("n").await, (amount(60.0, 600.0), DEFAULT));
}

async fn changes_of_one_limit_at_once_are_both_kept(db: Db) {
    let project = sample::project(&db.store).await;
    set(&db.store, &project, &of_model("m")).await;
    let wanted = |requests_per_minute, tokens_per_minute| RateLimitChange {
        requests_per_minute,
        tokens_per_minute,
    };
    let mut beside = db.other_program().await;
    beside.hold("rate_limits").await;
    let changes = [wanted(Some(1), None), wanted(None, Some(2))].map(|wanted| {
        let (store, project) = (db.store.clone(), project.clone());
        tokio::spawn(async move { modify(&store, &project, "m", wanted).await })
    });
    beside.let_go().await;
    for change in changes {
        change.await.unwrap();
    }
    let limits = db.store.rate_limits().list(&project.id).await.unwrap();
    let both = RateLimit {
        requests_per_minute: 1,
        tokens_per_minute: 2,
    };
    assert_eq!(limits[0].limit, both);
}
