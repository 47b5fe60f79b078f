//! Invitations as administrators see and order them.

use domain::id::ProjectId;
use domain::invite::{Invite, InvitedProject};
use domain::project_user::ProjectRole;
use domain::time::Timestamp;
use domain::user::{MAX_EMAIL, OrganizationRole, normal_email};
use poem_openapi::Object;

use super::decode::{At, Fields, echo};
use super::list::Listed;
use super::nullable::Nullable;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Most projects that one invitation opens.
const MAX_PROJECTS: usize = 100;

reply! {
    /// Somebody was asked to join the organization.
    InviteObject as "Invite" {
        /// `organization.invite`.
        object: &'static str,
        id: String,
        email: String,
        /// `owner` or `reader`.
        role: &'static str,
        /// `pending` or `expired`.
        status: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds.
        expires_at: i64,
        /// Null: nobody can accept an invitation yet.
        accepted_at: Nullable<i64>,
        /// Memberships that come with accepting.
        projects: Vec<InvitedProjectObject>,
    }

    /// A membership that comes with accepting.
    InvitedProjectObject as "InviteProject" {
        id: String,
        /// `owner` or `member`.
        role: &'static str,
    }
}

impl InviteObject {
    /// As it stands at this instant.
    pub fn at(now: Timestamp, invite: Invite) -> Self {
        let project = |project: InvitedProject| InvitedProjectObject {
            id: project.id.to_string(),
            role: project.role.as_str(),
        };
        Self {
            object: "organization.invite",
            id: invite.id.to_string(),
            role: invite.role.as_str(),
            status: invite.status(now).as_str(),
            created_at: invite.created_at.unix_s(),
            expires_at: invite.expires_at.unix_s(),
            accepted_at: Nullable(None),
            projects: invite.projects.into_iter().map(project).collect(),
            email: invite.email,
        }
    }
}

impl Listed for InviteObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body that invites somebody.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct InviteRequest {
    pub email: String,
    /// `owner` or `reader`.
    pub role: String,
    /// At most 100.
    pub projects: Option<Vec<InvitedProjectRequest>>,
}

#[derive(Debug, Clone, PartialEq, Object)]
pub struct InvitedProjectRequest {
    pub id: String,
    /// `owner` or `member`.
    pub role: String,
}

/// What was ordered.
pub struct InviteOrder {
    pub email: String,
    pub role: OrganizationRole,
    pub projects: Vec<InvitedProject>,
}

impl Decode for InviteOrder {
    type Schema = InviteRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let role = body.require("role")?;
        let projects = body.take("projects");
        let order = Self {
            email: email(body.require("email")?)?,
            role: role.word(OrganizationRole::WORDS, OrganizationRole::parse)?,
            projects: projects.map_or(Ok(Vec::new()), invited_projects)?,
        };
        body.finish()?;
        Ok(order)
    }
}

fn email(at: At) -> Result<String, ApiError> {
    let path = at.path.clone();
    let text = at.string_up_to(MAX_EMAIL)?;
    normal_email(&text).ok_or_else(|| {
        let message = format!("Invalid '{path}': '{}' is no e-mail address.", echo(&text));
        ApiError::invalid(path, "invalid_value", message)
    })
}

fn invited_projects(at: At) -> Result<Vec<InvitedProject>, ApiError> {
    at.items(0, MAX_PROJECTS)?
        .into_iter()
        .map(invited_project)
        .collect()
}

fn invited_project(at: At) -> Result<InvitedProject, ApiError> {
    let mut fields = at.object()?;
    let id = fields.require("id")?;
    let path = id.path.clone();
    let text = id.string()?;
    let role = fields.require("role")?;
    let project = InvitedProject {
        id: ProjectId::parse(&text).map_err(|_| {
            let message = format!("Invalid '{path}': '{}' is no project.", echo(&text));
            ApiError::invalid(path, "invalid_value", message)
        })?,
        role: role.word(ProjectRole::WORDS, ProjectRole::parse)?,
    };
    fields.finish()?;
    Ok(project)
}
