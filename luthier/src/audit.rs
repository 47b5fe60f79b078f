//! `luthier audit verify`: whether the audit log is as it was written.

use anyhow::{Result, bail};
use store::AuditVerdict;

use crate::cli::{InOrganization, Place};
use crate::opened::{config_of, open};
use crate::organization;

/// Follows the log's chain of hashes; what it found, for people. Errors: an entry is missing or was changed.
pub async fn verify(of: &InOrganization, place: &Place) -> Result<String> {
    let opened = open(config_of(place)?).await?;
    let organization = organization::find(&opened.store, of).await?.id;
    match opened.store.audit().verify(&organization).await? {
        AuditVerdict::Whole { n_entries: 0, .. } => Ok("the audit log is empty".to_owned()),
        AuditVerdict::Whole { n_entries, hash } => Ok(format!(
            "the audit log is whole: {n_entries} entries, the last one's hash is {hash}"
        )),
        AuditVerdict::Broken { seq } => {
            bail!("the audit log is broken: entry {seq} is missing or was changed")
        }
    }
}
