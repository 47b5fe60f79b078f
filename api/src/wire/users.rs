//! Users as administrators see and change them.

use domain::user::{OrganizationRole, User};
use poem_openapi::Object;

use super::decode::Fields;
use super::list::Listed;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

reply! {
    /// A user of the organization.
    UserObject as "User" {
        /// `organization.user`.
        object: &'static str,
        id: String,
        name: String,
        email: String,
        /// `owner` or `reader`; only owners administer the organization.
        role: &'static str,
        /// Unix seconds.
        added_at: i64,
    }
}

impl From<User> for UserObject {
    fn from(user: User) -> Self {
        Self {
            object: "organization.user",
            id: user.id.to_string(),
            name: user.name,
            email: user.email,
            role: user.role.as_str(),
            added_at: user.added_at.unix_s(),
        }
    }
}

impl Listed for UserObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body that changes a user's role.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct UserChangeRequest {
    /// `owner` or `reader`.
    pub role: String,
}

/// What was ordered.
pub struct UserChange {
    pub role: OrganizationRole,
}

impl Decode for UserChange {
    type Schema = UserChangeRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let role = body.require("role")?;
        let role = role.word(OrganizationRole::WORDS, OrganizationRole::parse)?;
        let reason = "Users have a name, an address and a role here.";
        body.refuse(&["role_id", "technical_level", "developer_persona"], reason)?;
        body.finish()?;
        Ok(Self { role })
    }
}
