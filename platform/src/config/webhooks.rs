//! What the configuration says of webhooks and of the secrets that are kept for them.

use super::value::ConfigValue;
use super::{Config, ConfigError};
use crate::outbound::{AllowedHost, OutboundRules};
use crate::vault::Vault;

impl Config {
    /// Seals with `secrets.encryption_key`, and opens what was sealed with the previous one, or before there was one.
    /// Errors: `Missing`, where the installation's secrets are not known to this process.
    pub fn vault(&self) -> Result<Vault, ConfigError> {
        let given = [
            &self.secrets.encryption_key,
            &self.secrets.encryption_key_previous,
        ];
        // An installation without a key of its own for this derives one from the pepper.
        let pepper = self.key_pepper()?;
        let mut keys = given.into_iter().flatten().chain([pepper]);
        let newest = keys.next().unwrap_or(pepper);
        Ok(Vault::new(newest, keys))
    }

    /// Whom webhooks may go to.
    pub fn webhook_rules(&self) -> OutboundRules {
        OutboundRules {
            allowed: self.webhooks.allowed_hosts.clone(),
            allow_http: self.webhooks.allow_http,
        }
    }
}

impl ConfigValue for Vec<AllowedHost> {
    const EXPECTED: &'static str = "a list of host names, addresses and networks, such as [\"hooks.internal\", \"10.1.0.0/16\"]";

    fn from_text(text: &str) -> Option<Self> {
        parse(&Vec::<String>::from_text(text)?)
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        parse(&Vec::<String>::from_toml(value)?)
    }
}

fn parse(names: &[String]) -> Option<Vec<AllowedHost>> {
    names.iter().map(|name| name.parse().ok()).collect()
}
