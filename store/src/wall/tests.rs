//! What queries find that forget to ask for their project; no other test can write such queries.

// Shared with the suite, which uses all of them.
#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../../tests/suite/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../../tests/suite/sample.rs"]
mod sample;

use domain::project::Project;
use sea_orm::{ActiveValue, EntityTrait, IntoActiveModel};

use self::harness::{Db, on_postgres_of, run_on_postgres};
use self::sample::at;
use super::*;
use crate::StoreConfig;
use crate::entity::file;
use crate::files::to_row;

/// Of one connection, which every call reuses, and of two, of which reads keep one.
const WIDTHS: [u32; 2] = [1, 2];

async fn narrow(db: &Db, max_connections: u32) -> Store {
    let config = StoreConfig {
        max_connections,
        ..StoreConfig::new(&db.url)
    };
    Store::connect(&config).await.unwrap()
}

/// Two projects with a file each.
async fn two_projects(store: &Store) -> [Project; 2] {
    let projects = [sample::project(store).await, sample::project(store).await];
    for project in &projects {
        let file = sample::file(&project.id, at(0));
        store.files().insert(&file, None).await.unwrap();
    }
    projects
}

/// Whose files a query finds that names no project.
async fn owners_of_files(store: &Store) -> Vec<String> {
    let mut files = store.all(file::Entity::find()).await.unwrap();
    files.sort_by(|a, b| a.project_id.cmp(&b.project_id));
    files.into_iter().map(|file| file.project_id).collect()
}

/// A project sees its own, an operator both, in any order of calls on one connection.
async fn each_sees_its_own(db: &Db) {
    let [a, b] = two_projects(&db.store).await;
    let both = vec![a.id.to_string(), b.id.to_string()];
    for width in WIDTHS {
        let store = narrow(db, width).await;
        for project in [&a, &b, &a] {
            let seen = owners_of_files(&store.of(&project.id)).await;
            assert_eq!(seen, [project.id.as_str()]);
            assert_eq!(owners_of_files(&store).await, both);
        }
        // The first use of a connection has no earlier one that could have set anything.
        let fresh = narrow(db, width).await;
        let seen = owners_of_files(&fresh.of(&b.id)).await;
        assert_eq!(seen, [b.id.as_str()]);
    }
}

#[tokio::test]
async fn a_query_that_forgets_its_project_finds_that_one_s_rows_alone() {
    run_on_postgres(|db: Db| async move {
        let wall = db.store.second_wall().await.unwrap();
        assert_eq!(wall, SecondWall::OwnRole);
        each_sees_its_own(&db).await;
    })
    .await;
}

#[tokio::test]
async fn an_owner_without_the_role_of_requests_is_bound_itself() {
    on_postgres_of("", "", |db: Db| async move {
        let wall = db.store.second_wall().await.unwrap();
        assert_eq!(wall, SecondWall::OperatorIsBound);
        each_sees_its_own(&db).await;
        sees_nothing_outside_of_a_call(&db).await;
    })
    .await;
}

#[tokio::test]
async fn an_owner_that_is_no_superuser_acts_as_the_role_of_requests() {
    on_postgres_of("", "GRANT luthier_app TO {}", |db: Db| async move {
        let wall = db.store.second_wall().await.unwrap();
        assert_eq!(wall, SecondWall::OwnRole);
        each_sees_its_own(&db).await;
        sees_nothing_outside_of_a_call(&db).await;
    })
    .await;
}

#[tokio::test]
async fn an_owner_that_may_make_roles_gives_itself_that_of_requests() {
    on_postgres_of("CREATEROLE", "", |db: Db| async move {
        let pool = db.store.write.get_postgres_connection_pool();
        let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
            .fetch_one(pool)
            .await
            .unwrap();
        // Since PostgreSQL 16 only a role that it made itself, and here another one made it.
        let expected = match version < 160_000 {
            true => SecondWall::OwnRole,
            false => SecondWall::OperatorIsBound,
        };
        assert_eq!(db.store.second_wall().await, Ok(expected));
        each_sees_its_own(&db).await;
    })
    .await;
}

#[tokio::test]
async fn a_role_that_passes_by_policies_is_told_of() {
    on_postgres_of("BYPASSRLS", "", |db: Db| async move {
        let wall = db.store.second_wall().await.unwrap();
        assert_eq!(wall, SecondWall::Missing);
    })
    .await;
}

#[tokio::test]
async fn outside_of_a_call_a_connection_sees_nothing() {
    run_on_postgres(|db: Db| async move { sees_nothing_outside_of_a_call(&db).await }).await;
}

async fn sees_nothing_outside_of_a_call(db: &Db) {
    for width in WIDTHS {
        let store = narrow(db, width).await;
        let [a, _] = two_projects(&store).await;
        let none = || async { file::Entity::find().all(&store.read).await.unwrap() };
        assert!(owners_of_files(&store).await.len() > 1);
        assert_eq!(none().await, []);
        assert_eq!(owners_of_files(&store.of(&a.id)).await.len(), 1);
        assert_eq!(none().await, []);
    }
}

#[tokio::test]
async fn a_transaction_that_is_given_up_leaves_nothing_to_the_next() {
    run_on_postgres(|db: Db| async move {
        let store = narrow(&db, 1).await;
        let [a, b] = two_projects(&store).await;
        let of_a = store.of(&a.id);
        let given_up = async {
            let tx = of_a.begin().await?;
            let seen = file::Entity::find().all(&tx).await?;
            assert_eq!(seen.len(), 1);
            // The next one finds the connection in the middle of a statement that nobody waits for.
            let sleep = sea_orm::Statement::from_string(DbBackend::Postgres, "SELECT pg_sleep(1)");
            let slow = sea_orm::ConnectionTrait::query_one_raw(&tx, sleep);
            let brief = std::time::Duration::from_millis(50);
            let late = tokio::time::timeout(brief, slow).await;
            assert!(late.is_err(), "the statement ended before it was given up");
            Ok::<_, StoreError>(())
        };
        of_a.bounded(given_up).await.unwrap();
        let seen = owners_of_files(&store.of(&b.id)).await;
        assert_eq!(seen, [b.id.as_str()]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_at_the_same_time_see_their_own() {
    run_on_postgres(|db: Db| async move {
        let [a, b] = two_projects(&db.store).await;
        let both = vec![a.id.to_string(), b.id.to_string()];
        let store = narrow(&db, 8).await;
        let readers = (0..90).map(|i| {
            let (store, expected) = match i % 3 {
                0 => (store.of(&a.id), vec![a.id.to_string()]),
                1 => (store.of(&b.id), vec![b.id.to_string()]),
                _ => (store.clone(), both.clone()),
            };
            tokio::spawn(async move {
                for _ in 0..5 {
                    assert_eq!(owners_of_files(&store).await, expected);
                }
            })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_reads_takes_no_other_statement() {
    run_on_postgres(|db: Db| async move {
        let delete = file::Entity::delete_many().exec(&db.store.read).await;
        let refused = delete.unwrap_err().to_string();
        assert!(refused.contains("a reader changes nothing"), "{refused}");
    })
    .await;
}

#[tokio::test]
async fn a_read_that_is_given_up_leaves_nothing_to_the_next() {
    run_on_postgres(|db: Db| async move {
        let [a, b] = two_projects(&db.store).await;
        for width in WIDTHS {
            let store = narrow(&db, width).await;
            let of_a = store.of(&a.id);
            assert_eq!(owners_of_files(&of_a).await, [a.id.as_str()]);
            let sleep = sea_orm::Statement::from_string(DbBackend::Postgres, "SELECT pg_sleep(1)");
            let brief = std::time::Duration::from_millis(50);
            let given_up = async {
                let slow = sea_orm::ConnectionTrait::query_one_raw(&of_a.read, sleep);
                Ok::<_, StoreError>(tokio::time::timeout(brief, slow).await.is_err())
            };
            let is_late = of_a.bounded(given_up).await.unwrap();
            assert!(is_late, "the statement ended before it was given up");
            for project in [&b, &a] {
                let seen = owners_of_files(&store.of(&project.id)).await;
                assert_eq!(seen, [project.id.as_str()]);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_died_is_made_anew_for_the_same_project() {
    run_on_postgres(|db: Db| async move {
        for width in WIDTHS {
            let store = narrow(&db, width).await;
            let [a, _] = two_projects(&store).await;
            let of_a = store.of(&a.id);
            assert_eq!(owners_of_files(&of_a).await, [a.id.as_str()]);
            db.other_program().await.end_all_others().await;
            assert_eq!(owners_of_files(&of_a).await, [a.id.as_str()]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_changes_no_row_of_another_project() {
    run_on_postgres(|db: Db| async move {
        let store = narrow(&db, 1).await;
        let [a, b] = two_projects(&store).await;
        let of_a = store.of(&a.id);
        let planted = to_row(&sample::file(&b.id, at(1))).unwrap();
        let insert = file::Entity::insert(planted.into_active_model());
        let refused = of_a.insert(insert).await.unwrap_err();
        assert!(
            refused.to_string().contains("row-level security"),
            "{refused}"
        );

        let given_away = file::ActiveModel {
            project_id: ActiveValue::Set(b.id.to_string()),
            ..Default::default()
        };
        let update = file::Entity::update_many().set(given_away);
        let refused = of_a.update(update).await.unwrap_err();
        assert!(
            refused.to_string().contains("row-level security"),
            "{refused}"
        );

        let renamed = file::ActiveModel {
            filename: ActiveValue::Set("mine.jsonl".into()),
            ..Default::default()
        };
        let n = of_a.update(file::Entity::update_many().set(renamed)).await;
        assert_eq!(n, Ok(1));
    })
    .await;
}

#[tokio::test]
async fn what_requests_have_no_business_with_is_refused() {
    run_on_postgres(|db: Db| async move {
        let store = narrow(&db, 1).await;
        let [a, _] = two_projects(&store).await;
        let of_a = store.of(&a.id);
        let log = of_a.all(crate::entity::audit_log::Entity::find()).await;
        let refused = log.unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{refused}");
        let delete = crate::entity::project::Entity::delete_many();
        let refused = of_a.delete(delete).await.unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{refused}");
    })
    .await;
}
