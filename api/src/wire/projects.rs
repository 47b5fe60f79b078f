//! Projects as administrators see and order them.

use domain::project::Project;
use poem_openapi::Object;

use super::decode::Fields;
use super::list::Listed;
use super::nullable::Nullable;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

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
        }
    }
}

impl Listed for ProjectObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body that makes or renames a project.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ProjectRequest {
    /// 1–256 characters; no other project that is not archived has it.
    pub name: String,
}

impl Decode for ProjectRequest {
    type Schema = Self;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.require("name")?.name(MAX_NAME)?;
        let reason = "This service keeps everything in one place, under its own keys.";
        body.refuse(&["residency", "external_key_id"], reason)?;
        body.finish()?;
        Ok(Self { name })
    }
}
