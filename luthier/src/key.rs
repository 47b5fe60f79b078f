//! Making API keys: the secret is printed once, the database keeps its HMAC.

use anyhow::{Context, Result, bail};
use domain::api_key::{AdminKey, ApiKey, KeyKind, KeyOwner, redact, spell};
use domain::id::KeyId;
use domain::project::Project;
use domain::scope::Scopes;
use domain::time::Timestamp;
use platform::config::Config;
use store::Store;

use crate::cli::{AdminKeyOrder, KeyOrder, Lifetime};
use crate::opened::{config_of, entropy, now, open};

/// `luthier key create`: works beside a running service.
pub async fn create(order: &KeyOrder) -> Result<String> {
    let opened = open(config_of(&order.place)?).await?;
    let scopes = Scopes::parse(&order.scopes)?;
    let expires_at = order.lifetime.expires_at();
    let (store, config) = (&opened.store, &opened.config);
    let project = find_project(store, &order.project).await?;
    insert(store, config, project, &order.name, scopes, expires_at).await
}

/// Makes a key that may do everything in the default project.
pub async fn create_default(store: &Store, config: &Config, name: &str) -> Result<String> {
    let project = default_project(store).await?;
    insert(store, config, project, name, Scopes::All, None).await
}

/// `luthier admin-key create`: a key that administers the installation's organisation.
pub async fn create_admin(order: &AdminKeyOrder) -> Result<String> {
    let opened = open(config_of(&order.place)?).await?;
    let project = default_project(&opened.store).await?;
    let secret = spell(KeyKind::Admin, &rand::random());
    let key = AdminKey {
        id: KeyId::mint(entropy()),
        organization_id: project.organization_id,
        name: order.name.clone(),
        hmac: api::auth::key_hmac(opened.config.key_pepper()?, &secret),
        redacted: redact(&secret),
        owner: None,
        created_at: now(),
        expires_at: order.lifetime.expires_at(),
        last_used_at: None,
        revoked_at: None,
    };
    let inserted = opened.store.admin_keys().insert(&key).await;
    inserted.context("cannot store the new key")?;
    Ok(secret)
}

async fn insert(
    store: &Store,
    config: &Config,
    project: Project,
    name: &str,
    scopes: Scopes,
    expires_at: Option<Timestamp>,
) -> Result<String> {
    let secret = spell(KeyKind::Project, &rand::random());
    let key = ApiKey {
        id: KeyId::mint(entropy()),
        project_id: project.id,
        name: name.to_owned(),
        hmac: api::auth::key_hmac(config.key_pepper()?, &secret),
        redacted: redact(&secret),
        scopes,
        owner: KeyOwner::Installation,
        created_at: now(),
        expires_at,
        last_used_at: None,
        revoked_at: None,
    };
    let inserted = store.api_keys().insert(&key).await;
    inserted.context("cannot store the new key")?;
    Ok(secret)
}

async fn default_project(store: &Store) -> Result<Project> {
    let made = store
        .projects()
        .ensure_default([entropy(), entropy()], now());
    Ok(made.await?)
}

async fn find_project(store: &Store, name: &str) -> Result<Project> {
    default_project(store).await?;
    match store.projects().find_by_name(name).await? {
        Some(found) => Ok(found),
        None => bail!("there is no project named {name:?}; `default` exists from the start"),
    }
}

impl Lifetime {
    fn expires_at(&self) -> Option<Timestamp> {
        const DAY_S: i64 = 86_400;
        let days = self.expires_in_days?;
        Some(now().plus_s(i64::from(days) * DAY_S))
    }
}
