//! Making API keys: the secret is printed once, the database keeps its HMAC.

use anyhow::{Context, Result, bail};
use domain::api_key::{ApiKey, redact, spell_project_key};
use domain::id::KeyId;
use platform::config::Config;
use store::Store;

use crate::cli::Place;
use crate::opened::{config_of, entropy, now, open};

/// `luthier key create`: works beside a running service.
pub async fn create(place: &Place, project: &str, name: &str) -> Result<String> {
    let opened = open(config_of(place)?).await?;
    create_in(&opened.store, &opened.config, project, name).await
}

/// Makes a key of the project with this name.
pub async fn create_in(
    store: &Store,
    config: &Config,
    project: &str,
    name: &str,
) -> Result<String> {
    store
        .projects()
        .ensure_default([entropy(), entropy()], now())
        .await?;
    let Some(found) = store.projects().find_by_name(project).await? else {
        bail!("there is no project named {project:?}; `default` exists from the start");
    };
    let secret = spell_project_key(entropy(), entropy());
    let key = ApiKey {
        id: KeyId::mint(entropy()),
        project_id: found.id,
        name: name.to_owned(),
        hmac: api::auth::key_hmac(config.key_pepper()?, &secret),
        redacted: redact(&secret),
        created_at: now(),
        last_used_at: None,
        revoked_at: None,
    };
    store
        .api_keys()
        .insert(&key)
        .await
        .context("cannot store the new key")?;
    Ok(secret)
}
