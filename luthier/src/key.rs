//! Making keys and users on the command line: a secret is printed once, the database keeps its HMAC. The audit log tells
//! of all of it, without an actor.

use anyhow::{Context, Result, bail};
use api::auth::NewSecret;
use domain::api_key::{AdminKey, ApiKey, KeyKind, KeyOwner};
use domain::audit::{AuditEntry, AuditEvent, AuditKind, AuditProject};
use domain::id::{AuditLogId, KeyId, OrganizationId, UserId};
use domain::project::{Organization, Project};
use domain::scope::Scopes;
use domain::time::Timestamp;
use domain::user::{OrganizationRole, User, normal_email};
use platform::config::Config;
use serde_json::json;
use store::{Store, StoreError};

use crate::cli::{AdminKeyOrder, KeyOrder, Lifetime, UserOrder};
use crate::opened::{config_of, entropy, now, open};
use crate::organization;

/// `luthier key create`: works beside a running service.
pub async fn create(order: &KeyOrder) -> Result<String> {
    let opened = open(config_of(&order.place)?).await?;
    let (store, config) = (&opened.store, &opened.config);
    let organization = organization::find(store, &order.organization).await?;
    let project = find_project(store, &organization, &order.project).await?;
    let owner = match &order.user {
        None => KeyOwner::Installation,
        Some(email) => KeyOwner::User(member(store, &project, email).await?),
    };
    let key = NewKey {
        name: &order.name,
        owner,
        scopes: Scopes::parse(&order.scopes)?,
        expires_at: order.lifetime.expires_at(),
    };
    key.insert(store, config, project).await
}

/// Makes a key that may do everything in the default project.
pub async fn create_default(store: &Store, config: &Config, name: &str) -> Result<String> {
    let key = NewKey {
        name,
        owner: KeyOwner::Installation,
        scopes: Scopes::All,
        expires_at: None,
    };
    key.insert(store, config, default_project(store).await?)
        .await
}

/// `luthier admin-key create`: a key that administers an organisation.
pub async fn create_admin(order: &AdminKeyOrder) -> Result<String> {
    let opened = open(config_of(&order.place)?).await?;
    let store = &opened.store;
    let organization_id = organization::find(store, &order.organization).await?.id;
    let owner = match &order.user {
        None => None,
        Some(email) => Some(owner(store, &organization_id, email).await?),
    };
    let secret = NewSecret::mint(opened.config.key_pepper()?, KeyKind::Admin);
    let key = AdminKey {
        id: KeyId::mint(entropy()),
        organization_id: organization_id.clone(),
        name: order.name.clone(),
        hmac: secret.hmac,
        redacted: secret.redacted,
        owner,
        created_at: now(),
        expires_at: order.lifetime.expires_at(),
        last_used_at: None,
        revoked_at: None,
    };
    let details = json!({"data": {"name": key.name, "scopes": ["api.management.write"]}});
    let entry = entry(
        organization_id,
        None,
        AuditKind::ApiKeyCreated,
        &key.id.to_string(),
        details,
    );
    let inserted = store.admin_keys().insert(&key, &entry).await;
    inserted.context("cannot store the new key")?;
    Ok(secret.value)
}

/// `luthier user add`: somebody whom keys and memberships can belong to; its id.
pub async fn add_user(order: &UserOrder) -> Result<UserId> {
    let opened = open(config_of(&order.place)?).await?;
    let store = &opened.store;
    let Some(email) = normal_email(&order.email) else {
        bail!("{:?} is no e-mail address", order.email);
    };
    let Some(role) = OrganizationRole::parse(&order.role) else {
        let known = OrganizationRole::WORDS.join(" or ");
        bail!("there is no role {:?}: say {known}", order.role);
    };
    let user = User {
        id: UserId::mint(entropy()),
        organization_id: organization::find(store, &order.organization).await?.id,
        name: order.name.clone().unwrap_or_else(|| email.clone()),
        email,
        role,
        added_at: now(),
    };
    let details = json!({"data": {"role": user.role}});
    let organization = user.organization_id.clone();
    let entry = entry(
        organization,
        None,
        AuditKind::UserAdded,
        &user.id.to_string(),
        details,
    );
    match store.users().insert(&user, &entry).await {
        Ok(()) => Ok(user.id),
        Err(StoreError::Conflict(_)) => bail!("{} is a user already", user.email),
        Err(error) => Err(error).context("cannot store the new user"),
    }
}

struct NewKey<'a> {
    name: &'a str,
    owner: KeyOwner,
    scopes: Scopes,
    expires_at: Option<Timestamp>,
}

impl NewKey<'_> {
    async fn insert(self, store: &Store, config: &Config, project: Project) -> Result<String> {
        let secret = NewSecret::mint(config.key_pepper()?, KeyKind::Project);
        let key = ApiKey {
            id: KeyId::mint(entropy()),
            project_id: project.id.clone(),
            name: self.name.to_owned(),
            hmac: secret.hmac,
            redacted: secret.redacted,
            scopes: self.scopes,
            owner: self.owner,
            created_at: now(),
            expires_at: self.expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        let details = json!({"data": {"name": key.name, "scopes": key.scopes.to_names()}});
        let organization = project.organization_id.clone();
        let (kind, id) = (AuditKind::ApiKeyCreated, key.id.to_string());
        let entry = entry(organization, Some(project), kind, &id, details);
        let inserted = store.api_keys().insert(&key, &entry).await;
        inserted.context("cannot store the new key")?;
        Ok(secret.value)
    }
}

fn entry(
    organization_id: OrganizationId,
    project: Option<Project>,
    kind: AuditKind,
    resource: &str,
    details: serde_json::Value,
) -> AuditEntry {
    AuditEntry {
        id: AuditLogId::mint(entropy()),
        organization_id,
        effective_at: now(),
        actor: None,
        project: project.map(|project| AuditProject {
            id: project.id,
            name: project.name,
        }),
        event: AuditEvent {
            kind,
            resource_id: resource.to_owned(),
            details,
        },
    }
}

/// The project every installation starts with.
pub async fn default_project(store: &Store) -> Result<Project> {
    let made = store
        .projects()
        .ensure_default([entropy(), entropy()], now());
    Ok(made.await?)
}

async fn find_project(store: &Store, of: &Organization, name: &str) -> Result<Project> {
    match store.projects().find_by_name(&of.id, name).await? {
        Some(found) => Ok(found),
        None => bail!(
            "the organization {:?} has no project named {name:?}; an administrator makes one at /v1/organization/projects",
            of.slug
        ),
    }
}

async fn find_user(store: &Store, organization: &OrganizationId, email: &str) -> Result<User> {
    let users = store.users();
    match users
        .find_by_email(organization, &email.to_lowercase())
        .await?
    {
        Some(found) => Ok(found),
        None => bail!("there is no user {email:?}; `luthier user add` makes one"),
    }
}

async fn member(store: &Store, project: &Project, email: &str) -> Result<UserId> {
    let user = find_user(store, &project.organization_id, email).await?;
    if store
        .project_users()
        .find(&project.id, &user.id)
        .await?
        .is_none()
    {
        bail!(
            "{email} is not a member of the project {:?}; an administrator adds it at \
             /v1/organization/projects/{}/users",
            project.name,
            project.id
        );
    }
    Ok(user.id)
}

async fn owner(store: &Store, organization: &OrganizationId, email: &str) -> Result<UserId> {
    let user = find_user(store, organization, email).await?;
    if user.role != OrganizationRole::Owner {
        bail!("{email} is no owner of the organization: only an owner's admin key opens anything");
    }
    Ok(user.id)
}

impl Lifetime {
    fn expires_at(&self) -> Option<Timestamp> {
        const DAY_S: i64 = 86_400;
        let days = self.expires_in_days?;
        Some(now().plus_s(i64::from(days) * DAY_S))
    }
}
