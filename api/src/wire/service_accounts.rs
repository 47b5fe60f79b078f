//! Service accounts as administrators see and order them.

use domain::scope::Scopes;
use domain::service_account::{ServiceAccount, ServiceAccountRole};
use poem_openapi::Object;
use store::ServiceAccountChange;

use super::admin_keys::lifetime;
use super::decode::{At, Fields, echo};
use super::list::Listed;
use super::nullable::Nullable;
use super::projects::MAX_NAME;
use super::reply::reply;
use crate::app::service_accounts::NewKey;
use crate::body::Decode;
use crate::error::ApiError;

/// More names of scopes than there are.
const MAX_SCOPES: usize = 64;
/// What a client may make of an account; without a role it can only be made.
const ROLES: [&str; 2] = ["member", "owner"];

reply! {
    /// A program that has keys of its own in a project.
    ServiceAccountObject as "ProjectServiceAccount" {
        /// `organization.project.service_account`.
        object: &'static str,
        id: String,
        name: String,
        /// `owner`, `member`, or `none`: its keys open nothing.
        role: &'static str,
        /// Unix seconds.
        created_at: i64,
    }

    /// A service account that was made, perhaps with a key.
    NewServiceAccount as "NewProjectServiceAccount" {
        /// `organization.project.service_account`.
        object: &'static str,
        id: String,
        name: String,
        /// `member`, or `none` where no key was made.
        role: &'static str,
        /// Unix seconds.
        created_at: i64,
        api_key: Nullable<NewKeyObject>,
    }

    /// A key of a service account that was made.
    NewKeyObject as "NewProjectServiceAccountApiKey" {
        /// `organization.project.service_account.api_key`.
        object: &'static str,
        id: String,
        name: String,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds; null: never.
        expires_at: Nullable<i64>,
        /// The key; shown this once.
        value: String,
    }
}

impl From<ServiceAccount> for ServiceAccountObject {
    fn from(account: ServiceAccount) -> Self {
        Self {
            object: "organization.project.service_account",
            id: account.id.to_string(),
            name: account.name,
            role: account.role.as_str(),
            created_at: account.created_at.unix_s(),
        }
    }
}

impl Listed for ServiceAccountObject {
    fn id(&self) -> &str {
        &self.id
    }
}

impl From<NewKey> for NewKeyObject {
    fn from(NewKey { key, secret }: NewKey) -> Self {
        Self {
            object: "organization.project.service_account.api_key",
            id: key.id.to_string(),
            name: key.name,
            created_at: key.created_at.unix_s(),
            expires_at: Nullable(key.expires_at.map(|at| at.unix_s())),
            value: secret,
        }
    }
}

impl NewServiceAccount {
    pub fn new(account: ServiceAccount, key: Option<NewKey>) -> Self {
        let account = ServiceAccountObject::from(account);
        Self {
            object: account.object,
            id: account.id,
            name: account.name,
            role: account.role,
            created_at: account.created_at,
            api_key: Nullable(key.map(Into::into)),
        }
    }
}

/// The body that makes a service account.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ServiceAccountRequest {
    /// 1–256 characters.
    pub name: String,
    /// True: without a key and without a role.
    pub create_service_account_only: Option<bool>,
    /// Of the key: 1 to 31536000; absent: it does not expire.
    pub expires_in_seconds: Option<i64>,
}

/// What was ordered.
pub enum ServiceAccountOrder {
    WithKey {
        name: String,
        expires_in_s: Option<i64>,
    },
    Alone {
        name: String,
    },
}

impl Decode for ServiceAccountOrder {
    type Schema = ServiceAccountRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.require("name")?.name(MAX_NAME)?;
        let alone = body.take("create_service_account_only");
        let is_alone = alone.map_or(Ok(false), At::boolean)?;
        let expires_in_s = lifetime(&mut body)?;
        body.finish()?;
        Ok(if is_alone {
            Self::Alone { name }
        } else {
            Self::WithKey { name, expires_in_s }
        })
    }
}

/// The body that changes a service account.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ServiceAccountChangeRequest {
    /// 1–256 characters.
    pub name: Option<String>,
    /// `member` or `owner`.
    pub role: Option<String>,
}

impl Decode for ServiceAccountChange {
    type Schema = ServiceAccountChangeRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.take("name").map(|at| at.name(MAX_NAME));
        let role = body.take("role").map(|at| at.one_of(&ROLES));
        let change = Self {
            name: name.transpose()?,
            role: role.transpose()?.and_then(ServiceAccountRole::parse),
        };
        body.finish()?;
        Ok(change)
    }
}

/// The body that makes a further key of a service account.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ServiceAccountKeyRequest {
    /// 1–256 characters.
    pub name: Option<String>,
    /// Such as `api.files.read`; absent: everything.
    pub scopes: Option<Vec<String>>,
    /// 1 to 31536000; absent: the key does not expire.
    pub expires_in_seconds: Option<i64>,
}

/// What was ordered.
pub struct ServiceAccountKeyOrder {
    pub name: Option<String>,
    pub scopes: Scopes,
    pub expires_in_s: Option<i64>,
}

impl Decode for ServiceAccountKeyOrder {
    type Schema = ServiceAccountKeyRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.take("name").map(|at| at.name(MAX_NAME));
        let order = Self {
            name: name.transpose()?,
            scopes: body.take("scopes").map_or(Ok(Scopes::All), scopes)?,
            expires_in_s: lifetime(&mut body)?,
        };
        body.finish()?;
        Ok(order)
    }
}

fn scopes(at: At) -> Result<Scopes, ApiError> {
    let path = at.path.clone();
    let names = at.items(1, MAX_SCOPES)?.into_iter().map(At::string);
    let names: Vec<String> = names.collect::<Result<_, _>>()?;
    Scopes::parse(&names).map_err(|unknown| {
        let message = format!(
            "Invalid value: '{}'. Supported values are: {}.",
            echo(&unknown.0),
            Scopes::names().join(", ")
        );
        ApiError::invalid(path, "invalid_value", message)
    })
}
