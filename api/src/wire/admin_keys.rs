//! Admin keys as administrators see and order them.

use domain::user::User;
use poem_openapi::Object;
use store::OwnedAdminKey;

use super::decode::Fields;
use super::list::Listed;
use super::nullable::Nullable;
use super::projects::MAX_NAME;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Longest life of a key that ends. Seconds.
const MAX_LIFETIME_S: i64 = 31_536_000;

reply! {
    /// A key that administers the organization.
    AdminKeyObject as "AdminApiKey" {
        /// `organization.admin_api_key`.
        object: &'static str,
        id: String,
        name: String,
        /// What it begins and ends with.
        redacted_value: String,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds; null: never.
        expires_at: Nullable<i64>,
        /// Unix seconds, to the minute; null: not yet.
        last_used_at: Nullable<i64>,
        owner: AdminKeyOwner,
        /// The key; shown when it is made, and never again.
        value: Option<String>,
    }

    /// Whose key it is; without an id: made on the command line for nobody.
    AdminKeyOwner as "AdminApiKeyOwner" {
        /// `user`.
        r#type: &'static str,
        /// `organization.user`.
        object: &'static str,
        id: Option<String>,
        name: Option<String>,
        /// Unix seconds.
        created_at: Option<i64>,
        /// `owner`, or the key opens nothing.
        role: Option<&'static str>,
    }
}

impl From<Option<User>> for AdminKeyOwner {
    fn from(user: Option<User>) -> Self {
        let user = user.as_ref();
        Self {
            r#type: "user",
            object: "organization.user",
            id: user.map(|user| user.id.to_string()),
            name: user.map(|user| user.name.clone()),
            created_at: user.map(|user| user.added_at.unix_s()),
            role: user.map(|user| user.role.as_str()),
        }
    }
}

impl From<OwnedAdminKey> for AdminKeyObject {
    fn from(OwnedAdminKey { key, owner }: OwnedAdminKey) -> Self {
        Self {
            object: "organization.admin_api_key",
            id: key.id.to_string(),
            name: key.name,
            redacted_value: key.redacted,
            created_at: key.created_at.unix_s(),
            expires_at: Nullable(key.expires_at.map(|at| at.unix_s())),
            last_used_at: Nullable(key.last_used_at.map(|at| at.unix_s())),
            owner: owner.into(),
            value: None,
        }
    }
}

impl Listed for AdminKeyObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body that makes an admin key.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct AdminKeyRequest {
    /// 1–256 characters.
    pub name: String,
    /// 1 to 31536000; absent: the key does not expire.
    pub expires_in_seconds: Option<i64>,
}

/// What was ordered.
pub struct AdminKeyOrder {
    pub name: String,
    pub expires_in_s: Option<i64>,
}

impl Decode for AdminKeyOrder {
    type Schema = AdminKeyRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let order = Self {
            name: body.require("name")?.name(MAX_NAME)?,
            expires_in_s: lifetime(&mut body)?,
        };
        body.finish()?;
        Ok(order)
    }
}

/// How long a new key opens: `expires_in_seconds`. `None`: for ever.
pub fn lifetime(body: &mut Fields) -> Result<Option<i64>, ApiError> {
    let at = body.take("expires_in_seconds");
    at.map(|at| at.integer(1..=MAX_LIFETIME_S)).transpose()
}
