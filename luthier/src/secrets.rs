//! What tenants' kept secrets are sealed with, when the operator changes it.

use anyhow::{Context, Result};
use platform::webhook::SigningSecret;

use crate::cli::Place;
use crate::opened::{config_of, open};

/// `luthier secrets reseal`: seals with the newest key whatever an older one sealed. Works beside a running service.
pub async fn reseal_command(place: &Place) -> Result<()> {
    let opened = open(config_of(place)?).await?;
    let vault = opened.config.vault()?;
    let webhooks = opened.store.webhooks();
    let (mut n_resealed, mut n_all) = (0, 0);
    for kept in webhooks.all_secrets().await? {
        n_all += 1;
        if vault.is_current(&kept.sealed) {
            continue;
        }
        let secret = SigningSecret::open(&vault, &kept.id, &kept.sealed)
            .with_context(|| format!("the webhook secret {} cannot be opened", kept.id))?;
        // Whoever was faster deleted it or did the same.
        if webhooks
            .reseal(&kept, &secret.seal(&vault, &kept.id))
            .await?
        {
            n_resealed += 1;
        }
    }
    println!("{n_resealed} of {n_all} secrets were sealed anew");
    Ok(())
}
