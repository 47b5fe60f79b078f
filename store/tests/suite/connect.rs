//! Opening, migrating and losing the database.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Connection, PgConnection, Row};
use store::{Store, StoreConfig, StoreError};

use crate::harness::{self, Db, on_both};
use crate::sample::{self, at};

on_both!(
    migrating_again_changes_nothing,
    the_clock_is_the_database_s,
    several_processes_write_at_once,
);

async fn migrating_again_changes_nothing(db: Db) {
    let project = sample::project(&db.store).await;
    db.store.migrate().await.unwrap();
    db.store.check_schema().await.unwrap();
    db.store.ping().await.unwrap();
    assert!(
        db.store
            .projects()
            .find(&project.id)
            .await
            .unwrap()
            .is_some()
    );
}

async fn the_clock_is_the_database_s(db: Db) {
    let here = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let there = db.store.now().await.unwrap();
    // Both databases of these tests run on this machine; a statement takes far less than this.
    assert!(
        (there.0 as f64 / 1e6 - here).abs() < 5.0,
        "{here} here, {there:?} there"
    );
}

async fn several_processes_write_at_once(db: Db) {
    let project = sample::project(&db.store).await;
    let mut writers = Vec::new();
    for _ in 0..3 {
        let (store, project) = (db.open_again().await, project.id.clone());
        writers.push(tokio::spawn(async move {
            for n in 0..15 {
                store
                    .files()
                    .insert(&sample::file(&project, at(n)), None)
                    .await?;
            }
            Ok::<_, StoreError>(())
        }));
    }
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(
        db.store
            .files()
            .stored_bytes(&project.id, at(0))
            .await
            .unwrap(),
        45 * 1_234
    );
}

async fn three_migrate_at_once(url: String) {
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(Store::connect(&StoreConfig::new(&url)).await.unwrap());
    }
    let pending = stores[0].check_schema().await.unwrap_err();
    let named =
        matches!(&pending, StoreError::Schema(text) if text.contains("m20261123_000001_first"));
    assert!(named, "{pending}");
    let migrators: Vec<_> = stores
        .iter()
        .cloned()
        .map(|store| tokio::spawn(async move { store.migrate().await }))
        .collect();
    for migrator in migrators {
        migrator.await.unwrap().unwrap();
    }
    stores[0].check_schema().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_migrators_at_once_all_succeed_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    three_migrate_at_once(format!("sqlite://{}/test.db", folder.path().display())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_migrators_at_once_all_succeed_on_postgresql() {
    harness::on_empty_postgres(three_migrate_at_once).await;
}

#[tokio::test]
async fn every_column_is_commented() {
    harness::run_on_postgres(|db: Db| async move {
        let mut connection = PgConnection::connect(&db.url).await.unwrap();
        let sql = "SELECT c.table_name || '.' || c.column_name AS name, \
                     col_description(c.table_name::regclass, c.ordinal_position::int) AS meaning \
                   FROM information_schema.columns c \
                   WHERE c.table_schema = 'public' AND c.table_name <> 'seaql_migrations'";
        let columns = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        assert!(columns.len() > 130, "{} columns", columns.len());
        for column in columns {
            let meaning: Option<String> = column.get("meaning");
            assert!(
                meaning.is_some(),
                "{} has no comment",
                column.get::<String, _>("name")
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    harness::run_on_postgres(|db: Db| async move {
        let project = sample::project(&db.store).await;
        db.other_program().await.end_all_others().await;
        // The pool may hand out one of the dead ones, which must not be taken for anything else.
        let first = db.store.projects().find(&project.id).await;
        assert!(
            matches!(first, Ok(Some(_)) | Err(StoreError::Unavailable(_))),
            "{first:?}"
        );
        assert_eq!(
            db.store.projects().find(&project.id).await.unwrap(),
            Some(project)
        );
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_not_there_is_unavailable_in_time() {
    let config = StoreConfig {
        url: "postgres://root:hunter2@127.0.0.1:1/none".into(),
        max_connections: 1,
        acquire_timeout_s: 1,
    };
    let began = std::time::Instant::now();
    let refused = Store::connect(&config).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!format!("{config:?} {refused:?} {refused}").contains("hunter2"));
}

#[tokio::test]
async fn a_url_of_another_database_is_refused() {
    let refused = Store::connect(&StoreConfig::new("mysql://user:hunter2@host/x"))
        .await
        .unwrap_err();
    let expected = "database URL begins with \"mysql\", not postgres: or sqlite:";
    assert_eq!(refused, StoreError::Invalid(expected.into()));
}
