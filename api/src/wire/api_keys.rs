//! A project's keys as administrators see them.

use domain::api_key::OwnerAccess;
use domain::service_account::ServiceAccount;
use domain::user::User;
use store::{KeyOwnerShown, OwnedKey};

use super::list::Listed;
use super::nullable::Nullable;
use super::reply::reply;

reply! {
    /// A key of a project.
    ApiKeyObject as "ProjectApiKey" {
        /// `organization.project.api_key`.
        object: &'static str,
        id: String,
        name: String,
        /// What it begins and ends with.
        redacted_value: String,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds, to the minute; null: not yet.
        last_used_at: Nullable<i64>,
        /// `active`, or `inactive`: it opens nothing, because its owner may not use the project.
        owner_project_access: &'static str,
        owner: ApiKeyOwner,
        /// Unix seconds; null: never.
        expires_at: Nullable<i64>,
        /// What the key may do.
        x_scopes: Vec<String>,
    }

    /// Whose key it is; empty: made on the command line for nobody.
    ApiKeyOwner as "ProjectApiKeyOwner" {
        /// `user` or `service_account`.
        r#type: Option<&'static str>,
        user: Option<ApiKeyUser>,
        service_account: Option<ApiKeyServiceAccount>,
    }

    /// The user whose key it is.
    ApiKeyUser as "ProjectApiKeyOwnerUser" {
        id: String,
        email: String,
        name: String,
        /// Unix seconds.
        created_at: i64,
        /// In the project: `owner`, `member`, or `none` for one who is not a member any more.
        role: &'static str,
    }

    /// The service account whose key it is.
    ApiKeyServiceAccount as "ProjectApiKeyOwnerServiceAccount" {
        id: String,
        name: String,
        /// Unix seconds.
        created_at: i64,
        /// `owner`, `member` or `none`.
        role: &'static str,
    }
}

impl ApiKeyUser {
    fn new(user: User, role: &'static str) -> Self {
        Self {
            id: user.id.to_string(),
            email: user.email,
            name: user.name,
            created_at: user.added_at.unix_s(),
            role,
        }
    }
}

impl From<ServiceAccount> for ApiKeyServiceAccount {
    fn from(account: ServiceAccount) -> Self {
        Self {
            id: account.id.to_string(),
            name: account.name,
            created_at: account.created_at.unix_s(),
            role: account.role.as_str(),
        }
    }
}

impl From<Option<KeyOwnerShown>> for ApiKeyOwner {
    fn from(owner: Option<KeyOwnerShown>) -> Self {
        let (r#type, user, service_account) = match owner {
            None => (None, None, None),
            Some(KeyOwnerShown::User(user, role)) => {
                let role = role.map_or("none", |role| role.as_str());
                (Some("user"), Some(ApiKeyUser::new(user, role)), None)
            }
            Some(KeyOwnerShown::ServiceAccount(account)) => {
                (Some("service_account"), None, Some(account.into()))
            }
        };
        Self {
            r#type,
            user,
            service_account,
        }
    }
}

impl From<OwnedKey> for ApiKeyObject {
    fn from(owned: OwnedKey) -> Self {
        let access = match owned.access() {
            OwnerAccess::Active => "active",
            OwnerAccess::Removed | OwnerAccess::NoRole => "inactive",
        };
        let OwnedKey { key, owner } = owned;
        let scopes = key.scopes.to_names();
        Self {
            object: "organization.project.api_key",
            id: key.id.to_string(),
            name: key.name,
            redacted_value: key.redacted,
            created_at: key.created_at.unix_s(),
            last_used_at: Nullable(key.last_used_at.map(|at| at.unix_s())),
            owner_project_access: access,
            owner: owner.into(),
            expires_at: Nullable(key.expires_at.map(|at| at.unix_s())),
            x_scopes: scopes.into_iter().map(str::to_owned).collect(),
        }
    }
}

impl Listed for ApiKeyObject {
    fn id(&self) -> &str {
        &self.id
    }
}
