//! Log lines: on standard error, or in a file while progress bars own the terminal.

use std::path::Path;

use anyhow::{Context, Result};
use platform::config::Config;

/// A role's log goes to standard error.
pub fn to_stderr(config: &Config) -> Result<()> {
    platform::telemetry::init(&config.log).context("cannot start logging")
}

/// The quickstart's log goes to a file, so that the screen stays readable.
pub fn to_file(config: &Config, path: &Path) -> Result<()> {
    let cannot = || format!("cannot log to {}", path.display());
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(cannot)?;
    let subscriber = platform::telemetry::subscriber(&config.log, file)?;
    tracing::subscriber::set_global_default(subscriber).with_context(cannot)
}
