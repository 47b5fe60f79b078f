//! What is left of a limit is drawn by all processes from one row.

use domain::audit::AuditKind;
use domain::id::ProjectId;
use domain::rate_limit::{Amount, ModelRateLimit, RateLimit};
use store::Store;
use store::rate_limits::{Draw, Drawn};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    processes_together_draw_no_more_than_the_limit,
    a_bucket_refills_with_time,
    a_project_s_own_limit_replaces_the_default,
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
    let entry = sample::entry(
        &project.organization_id,
        AuditKind::RateLimitUpdated,
        "rl-m",
    );
    rates.upsert(&project.id, &own, &entry).await.unwrap();
    own.limit.requests_per_minute = 3;
    let again = sample::entry(
        &project.organization_id,
        AuditKind::RateLimitUpdated,
        "rl-m",
    );
    rates.upsert(&project.id, &own, &again).await.unwrap();
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
