//! Dry runs: one report each, and a bound on those without.

use domain::dry_run::{DryRun, MAX_UNFINISHED, Report};
use domain::error::JobError;
use domain::id::{DryRunId, FileId};
use domain::project::Project;

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_dry_run_waits_for_its_report_and_reads_back_whole,
    a_project_has_so_many_unfinished_ones_at_most,
    old_ones_are_forgotten,
);

fn dry_run(project: &Project, seconds: i64) -> DryRun {
    DryRun {
        id: DryRunId::mint(sample::entropy()),
        project_id: project.id.clone(),
        spec: sample::spec(&FileId::mint(sample::entropy())),
        created_at: at(seconds),
        report: None,
    }
}

async fn a_dry_run_waits_for_its_report_and_reads_back_whole(db: Db) {
    let project = sample::project(&db.store).await;
    let dry_runs = db.store.dry_runs();
    let (first, second) = (dry_run(&project, 1), dry_run(&project, 2));
    for dry_run in [&second, &first] {
        assert_eq!(dry_runs.insert(dry_run).await, Ok(true));
    }
    let unfinished = dry_runs.unfinished(10).await.unwrap();
    assert_eq!(unfinished, [first.clone(), second.clone()]);
    let report = Report {
        error: Some(JobError {
            code: "invalid_training_file".into(),
            message: "a NUL: \0, a quote: '".into(),
            param: None,
        }),
        ..Report::default()
    };
    assert_eq!(dry_runs.finish(&first.id, &report).await, Ok(true));
    let other = Report::default();
    assert_eq!(dry_runs.finish(&first.id, &other).await, Ok(false));
    let report = Some(report);
    let found = dry_runs.find(&project.id, &first.id).await.unwrap();
    assert_eq!(found, Some(DryRun { report, ..first }));
    assert_eq!(dry_runs.unfinished(10).await.unwrap(), [second]);
}

async fn a_project_has_so_many_unfinished_ones_at_most(db: Db) {
    let project = sample::project(&db.store).await;
    let dry_runs = db.store.dry_runs();
    let mut ids = Vec::new();
    for i in 0..MAX_UNFINISHED {
        let dry_run = dry_run(&project, i as i64);
        assert_eq!(dry_runs.insert(&dry_run).await, Ok(true));
        ids.push(dry_run.id);
    }
    assert_eq!(dry_runs.insert(&dry_run(&project, 9)).await, Ok(false));
    let other = sample::project(&db.store).await;
    assert_eq!(dry_runs.insert(&dry_run(&other, 9)).await, Ok(true));
    dry_runs.finish(&ids[0], &Report::default()).await.unwrap();
    assert_eq!(dry_runs.insert(&dry_run(&project, 9)).await, Ok(true));
}

async fn old_ones_are_forgotten(db: Db) {
    let project = sample::project(&db.store).await;
    let dry_runs = db.store.dry_runs();
    let (old, new) = (dry_run(&project, 1), dry_run(&project, 2));
    for dry_run in [&old, &new] {
        dry_runs.insert(dry_run).await.unwrap();
    }
    assert_eq!(dry_runs.purge(at(1)).await, Ok(1));
    assert_eq!(dry_runs.find(&project.id, &old.id).await, Ok(None));
    assert!(dry_runs.find(&project.id, &new.id).await.unwrap().is_some());
}
