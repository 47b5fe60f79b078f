//! Members of a project as administrators see and order them.

use domain::project_user::{ProjectRole, ProjectUser};
use domain::user::MAX_EMAIL;
use poem_openapi::Object;

use super::decode::Fields;
use super::list::Listed;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Longest identifier that is looked up. Characters.
const MAX_ID: usize = 128;

reply! {
    /// A member of a project.
    ProjectUserObject as "ProjectUser" {
        /// `organization.project.user`.
        object: &'static str,
        id: String,
        name: String,
        email: String,
        /// `owner` or `member`.
        role: &'static str,
        /// Unix seconds.
        added_at: i64,
    }
}

impl From<ProjectUser> for ProjectUserObject {
    fn from(member: ProjectUser) -> Self {
        Self {
            object: "organization.project.user",
            id: member.user.id.to_string(),
            name: member.user.name,
            email: member.user.email,
            role: member.role.as_str(),
            added_at: member.added_at.unix_s(),
        }
    }
}

impl Listed for ProjectUserObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body that makes a user of the organization a member of a project.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ProjectUserRequest {
    /// This or `email`.
    pub user_id: Option<String>,
    /// This or `user_id`.
    pub email: Option<String>,
    /// `owner` or `member`.
    pub role: String,
}

/// Who is meant, as the client named it.
pub enum NamedUser {
    Id(String),
    Email(String),
}

impl NamedUser {
    pub fn param(&self) -> &'static str {
        match self {
            NamedUser::Id(_) => "user_id",
            NamedUser::Email(_) => "email",
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            NamedUser::Id(text) | NamedUser::Email(text) => text,
        }
    }
}

/// What was ordered.
pub struct ProjectUserOrder {
    pub user: NamedUser,
    pub role: ProjectRole,
}

impl Decode for ProjectUserOrder {
    type Schema = ProjectUserRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let user = match (body.take("user_id"), body.take("email")) {
            (Some(id), None) => NamedUser::Id(id.string_up_to(MAX_ID)?),
            (None, Some(email)) => NamedUser::Email(email.string_up_to(MAX_EMAIL)?),
            (Some(_), Some(_)) => {
                let message =
                    "Invalid parameters: 'user_id' and 'email' name one user; send one of them.";
                let code = "invalid_parameter_combination";
                return Err(ApiError::invalid("email", code, message));
            }
            (None, None) => {
                let message = "Missing required parameter: 'user_id' or 'email'.";
                let code = "missing_required_parameter";
                return Err(ApiError::invalid("user_id", code, message));
            }
        };
        let role = body.require("role")?;
        let role = role.word(ProjectRole::WORDS, ProjectRole::parse)?;
        body.finish()?;
        Ok(Self { user, role })
    }
}

/// The body that changes a member's role.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ProjectUserChangeRequest {
    /// `owner` or `member`.
    pub role: String,
}

/// What was ordered.
pub struct ProjectUserChange {
    pub role: ProjectRole,
}

impl Decode for ProjectUserChange {
    type Schema = ProjectUserChangeRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let role = body.require("role")?;
        let role = role.word(ProjectRole::WORDS, ProjectRole::parse)?;
        body.finish()?;
        Ok(Self { role })
    }
}
