//! What most commands need open: the configuration, the database at the right schema, the bucket.

use std::path::Path;

use anyhow::{Context, Result};
use domain::id::Entropy;
use domain::time::Timestamp;
use platform::config::Config;
use platform::objects::Objects;
use store::{SecondWall, Store, StoreConfig};

use crate::cli::Place;

/// An installation, ready to be used.
pub struct Opened {
    pub config: Config,
    pub store: Store,
    pub objects: Objects,
}

/// The configuration that `--config` or `--data-dir` names; neither: the default data directory.
pub fn config_of(place: &Place) -> Result<Config> {
    Ok(match (&place.config, &place.data_dir) {
        (Some(file), _) => Config::load(Some(file), &[])?,
        (None, dir) => {
            let dir = dir.clone().unwrap_or_else(crate::cli::default_data_dir);
            Config::load_embedded(&dir, None, &[])?
        }
    })
}

/// Opens an installation. The embedded form is brought to the current schema; in production that is the
/// operator's decision (`luthier migrate`), so there a schema that is behind is refused by name.
pub async fn open(mut config: Config) -> Result<Opened> {
    if config.is_embedded() {
        make_private_dir(&config.data_dir)?;
    }
    config.ensure_secrets()?;
    let store = Store::connect(&store_config(&config))
        .await
        .context("cannot open the database")?;
    if config.is_embedded() {
        store
            .migrate()
            .await
            .context("cannot bring the database to the current schema")?;
    } else {
        store
            .check_schema()
            .await
            .context("the database is not ready; run `luthier migrate`")?;
    }
    let objects = Objects::open(&config.objects).context("cannot open the bucket")?;
    Ok(Opened {
        config,
        store,
        objects,
    })
}

impl Opened {
    /// Says in the log how requests of projects are kept apart by PostgreSQL itself.
    pub async fn log_second_wall(&self) -> Result<()> {
        let wall = self.store.second_wall().await;
        match wall.context("cannot tell whether row-level security binds requests")? {
            SecondWall::OwnRole => {
                tracing::info!("row-level security binds requests as the role luthier_app");
            }
            SecondWall::OperatorIsBound => tracing::info!(
                "row-level security binds requests as the role of database.url: it cannot act as luthier_app"
            ),
            SecondWall::Missing => tracing::warn!(
                "row-level security does not bind requests: the role of database.url passes by it and cannot act as \
                 luthier_app; as a superuser run `CREATE ROLE luthier_app; GRANT luthier_app TO …`, then `luthier migrate`"
            ),
            SecondWall::NotOffered => {}
        }
        Ok(())
    }
}

pub fn store_config(config: &Config) -> StoreConfig {
    StoreConfig {
        url: config.database.url.expose().clone(),
        max_connections: config.database.max_connections,
        acquire_timeout_s: config.database.acquire_timeout_s,
    }
}

/// Makes `dir` readable by its owner alone: it will hold training data, weights and secrets.
pub fn make_private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let cannot = || format!("cannot make the data directory {}", dir.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(cannot)
}

/// The wall clock, read at the edge only.
pub fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since_epoch = since_epoch.unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

/// Randomness for one identifier.
pub fn entropy() -> Entropy {
    rand::random()
}
