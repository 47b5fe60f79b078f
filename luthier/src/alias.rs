//! Names that the operator lends to base models, for every project.

use anyhow::{Result, bail};
use domain::model_alias::{ModelAlias, is_valid_alias};
use store::StoreError;

use crate::cli::Place;
use crate::opened::{config_of, now, open};

/// `luthier alias add NAME MODEL`.
pub async fn add_command(place: &Place, name: &str, model: &str) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    let bases = opened.store.base_models();
    if !is_valid_alias(name) {
        bail!(
            "{name:?} is no name for a model: use 1 to 256 letters, digits and characters of ._:/-"
        );
    }
    if bases.find(name).await?.is_some() {
        bail!("there is a base model named {name}, and an alias cannot stand before it");
    }
    if bases.find(model).await?.is_none() {
        bail!("there is no base model named {model:?}; `luthier model list` shows them");
    }
    let alias = ModelAlias {
        name: name.to_owned(),
        project_id: None,
        model: model.to_owned(),
        created_at: now(),
    };
    match opened.store.model_aliases().insert(&alias).await {
        Ok(_) => println!("{name} stands for {model}"),
        Err(StoreError::Conflict(_)) => {
            bail!("{name} stands for a model already; `luthier alias remove {name}` first")
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// `luthier alias list`.
pub async fn list_command(place: &Place) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    for alias in opened.store.model_aliases().operators().await? {
        println!("{}\t{}", alias.name, alias.model);
    }
    Ok(())
}

/// `luthier alias remove NAME`.
pub async fn remove_command(place: &Place, name: &str) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    if !opened.store.model_aliases().delete_operators(name).await? {
        bail!("there is no alias named {name:?}; `luthier alias list` shows them");
    }
    println!("{name} stands for nothing any more");
    Ok(())
}
