//! Organisations on the command line: those who share an installation and see nothing of each other.

use anyhow::{Context, Result, bail};
use domain::id::OrganizationId;
use domain::project::{Organization, is_valid_slug};
use store::{Store, StoreError};

use crate::cli::{InOrganization, Place};
use crate::opened::{config_of, entropy, now, open};

/// `luthier organization create SLUG`: prints its id.
pub async fn create_command(place: &Place, slug: &str, name: Option<&str>) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    if !is_valid_slug(slug) {
        bail!(
            "{slug:?} cannot stand in the names of tuned models: use 1 to 40 small letters, digits and -, beginning with a letter"
        );
    }
    let organization = Organization {
        id: OrganizationId::mint(entropy()),
        name: name.unwrap_or(slug).to_owned(),
        slug: slug.to_owned(),
        created_at: now(),
    };
    let inserted = opened.store.projects().insert_organization(&organization);
    match inserted.await {
        Ok(()) => println!("{}", organization.id),
        Err(StoreError::Conflict(_)) => {
            bail!(
                "there is an organization {slug:?} already; `luthier organization list` shows them"
            )
        }
        Err(error) => return Err(error).context("cannot store the new organization"),
    }
    Ok(())
}

/// `luthier organization list`.
pub async fn list_command(place: &Place) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    crate::key::default_project(&opened.store).await?;
    for Organization { id, slug, name, .. } in opened.store.projects().list_organizations().await? {
        println!("{slug}\t{id}\t{name}");
    }
    Ok(())
}

/// The organisation that a command is about.
pub async fn find(store: &Store, of: &InOrganization) -> Result<Organization> {
    let slug = &of.organization;
    crate::key::default_project(store).await?;
    match store.projects().find_organization(slug).await? {
        Some(found) => Ok(found),
        None => bail!(
            "there is no organization {slug:?}; `luthier organization list` shows them, `luthier organization create` makes one"
        ),
    }
}
