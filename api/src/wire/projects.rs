//! Projects as administrators see and order them.

use domain::project::Project;
use poem_openapi::Object;
use serde_json::Value;
use store::ProjectChange;

use super::decode::Fields;
use super::list::Listed;
use super::nullable::Nullable;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

pub const X_MAX_STORED_BYTES: &str = "x_max_stored_bytes";
pub const X_MAX_UNFINISHED_JOBS: &str = "x_max_unfinished_jobs";
pub const X_MAX_RUNNING_JOBS: &str = "x_max_running_jobs";

/// More than anybody has, of bytes and of jobs.
const MOST: i64 = 1_000_000_000_000_000_000;

/// Longest name of something that administrators name. Characters.
pub const MAX_NAME: usize = 256;

reply! {
    /// A project of the organization.
    ProjectObject as "Project" {
        id: String,
        /// `organization.project`.
        object: &'static str,
        name: String,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds; null: it is in use.
        archived_at: Nullable<i64>,
        /// `active` or `archived`.
        status: &'static str,
        /// Bytes of its files and of parts of pending uploads; null: the installation's limit.
        x_max_stored_bytes: Nullable<u64>,
        /// Fine-tuning jobs that have not ended; null: the installation's limit.
        x_max_unfinished_jobs: Nullable<u64>,
        /// Fine-tuning jobs that run at the same time; null: the installation's limit.
        x_max_running_jobs: Nullable<u64>,
    }
}

impl From<Project> for ProjectObject {
    fn from(project: Project) -> Self {
        let status = match project.archived_at {
            None => "active",
            Some(_) => "archived",
        };
        Self {
            id: project.id.to_string(),
            object: "organization.project",
            name: project.name,
            created_at: project.created_at.unix_s(),
            archived_at: Nullable(project.archived_at.map(|at| at.unix_s())),
            status,
            x_max_stored_bytes: Nullable(project.caps.stored_bytes),
            x_max_unfinished_jobs: Nullable(project.caps.unfinished_jobs),
            x_max_running_jobs: Nullable(project.caps.running_jobs),
        }
    }
}

impl Listed for ProjectObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body that makes a project.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ProjectRequest {
    /// 1–256 characters; no other project that is not archived has it.
    pub name: String,
}

impl Decode for ProjectRequest {
    type Schema = Self;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.require("name")?.name(MAX_NAME)?;
        refuse_others(&mut body)?;
        body.finish()?;
        Ok(Self { name })
    }
}

fn refuse_others(body: &mut Fields) -> Result<(), ApiError> {
    let reason = "This service keeps everything in one place, under its own keys.";
    body.refuse(&["residency", "geography", "external_key_id"], reason)
}

/// The body that changes a project; what is left out stays.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ProjectUpdateRequest {
    /// 1–256 characters; no other project that is not archived has it.
    pub name: Option<String>,
    /// Bytes of its files and of parts of pending uploads; null: the installation's limit.
    pub x_max_stored_bytes: Option<u64>,
    /// Fine-tuning jobs that have not ended, at least 1; null: the installation's limit.
    pub x_max_unfinished_jobs: Option<u64>,
    /// Fine-tuning jobs that run at the same time, at least 1; null: the installation's limit.
    pub x_max_running_jobs: Option<u64>,
}

/// A change, judged.
pub struct ProjectUpdate(pub ProjectChange);

impl Decode for ProjectUpdate {
    type Schema = ProjectUpdateRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.take("name");
        let change = ProjectChange {
            name: name.map(|at| at.name(MAX_NAME)).transpose()?,
            stored_bytes: cap(&mut body, X_MAX_STORED_BYTES, 0)?,
            unfinished_jobs: cap(&mut body, X_MAX_UNFINISHED_JOBS, 1)?,
            running_jobs: cap(&mut body, X_MAX_RUNNING_JOBS, 1)?,
        };
        refuse_others(&mut body)?;
        body.finish()?;
        Ok(Self(change))
    }
}

/// `Some(None)`: null was asked for, and is the installation's.
fn cap(body: &mut Fields, key: &str, least: i64) -> Result<Option<Option<u64>>, ApiError> {
    let is_null = body.get(key).is_some_and(Value::is_null);
    match body.take(key) {
        Some(at) => Ok(Some(Some(at.integer(least..=MOST)?.unsigned_abs()))),
        None => Ok(is_null.then_some(None)),
    }
}
