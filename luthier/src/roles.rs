//! The production roles: one process each, all from one configuration file.

use std::path::Path;

use anyhow::{Context, Result};
use platform::config::Config;
use platform::queue::Queue;
use platform::shutdown::Shutdown;
use store::Store;

use crate::cli::{ApiRole, Place, WorkerOptions};
use crate::opened::{config_of, open, store_config};
use crate::{logging, up, worker_process};

fn place_of(config: &Path) -> Place {
    Place {
        data_dir: None,
        config: Some(config.to_owned()),
    }
}

/// `luthier api`.
pub async fn api(options: &ApiRole) -> Result<()> {
    let overrides = up::insecure(options.insecure);
    let opened = open(Config::load(Some(&options.role.config), &overrides)?).await?;
    logging::to_stderr(&opened.config)?;
    opened.log_second_wall().await?;
    let running = up::start_api(&opened, Shutdown::on_signals()?).await?;
    running.finished().await
}

/// `luthier scheduler`.
pub async fn scheduler(config: &Path) -> Result<()> {
    let opened = open(config_of(&place_of(config))?).await?;
    logging::to_stderr(&opened.config)?;
    opened.log_second_wall().await?;
    let queue = Queue::open(&opened.config.queue).context("cannot open the queue")?;
    let running = up::start_scheduler(&opened, queue, Shutdown::on_signals()?).await?;
    running.finished().await
}

/// `luthier worker`, on its own or as the child of an `up`.
pub async fn worker(options: &WorkerOptions) -> Result<()> {
    let mut config = match &options.data_dir {
        Some(dir) => Config::load_embedded(dir, options.config.as_deref(), &[])?,
        None => Config::load(options.config.as_deref(), &[])?,
    };
    config.ensure_secrets()?;
    logging::to_stderr(&config)?;
    if options.stop_with_parent {
        worker_process::exit_when_stdin_ends()?;
    }
    let objects =
        platform::objects::Objects::open(&config.objects).context("cannot open the bucket")?;
    let queue = Queue::open(&config.queue).context("cannot open the queue")?;
    let options = gpu_worker::WorkerOptions::from_config(&config, objects, queue)?;
    gpu_worker::run(options, Shutdown::on_signals()?)
        .await
        .context("the worker stopped")
}

/// `luthier migrate`.
pub async fn migrate(config: &Path) -> Result<()> {
    let config = config_of(&place_of(config))?;
    let store = Store::connect(&store_config(&config))
        .await
        .context("cannot open the database")?;
    store
        .migrate()
        .await
        .context("the database was not migrated")?;
    eprintln!("the database has the current schema");
    Ok(())
}
