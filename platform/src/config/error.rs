//! Why a configuration cannot be used: what is wrong, where it stands, what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A configuration that no process starts with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },

    #[error("{} is not valid TOML: {reason}", path.display())]
    NotToml { path: PathBuf, reason: String },

    #[error("{place}: unknown key `{key}`; {}", advice(nearest))]
    UnknownKey {
        place: String,
        key: String,
        nearest: Option<String>,
    },

    #[error("{place}: {found} is not {expected}")]
    BadValue {
        place: String,
        found: String,
        expected: &'static str,
    },

    #[error("{place}: `{key}` and `{key}_file` are both given; keep one of them")]
    GivenTwice { place: String, key: String },

    #[error("{key} is not set; set it in the file or as {env}")]
    Missing { key: &'static str, env: String },

    #[error("{key}: {reason}")]
    Unusable { key: &'static str, reason: String },

    #[error(
        "api.listen is {listen}, which others can reach, without TLS: set api.tls_certificate and \
         api.tls_key, or listen on 127.0.0.1 behind a proxy that ends TLS, or set \
         api.insecure = true (--insecure) if you accept that API keys travel in the clear"
    )]
    PublicWithoutTls { listen: SocketAddr },

    #[error("cannot write the secret {}: {source}; check the data directory", path.display())]
    SecretNotWritten {
        path: PathBuf,
        source: std::io::Error,
    },
}

fn advice(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("did you mean `{name}`?"),
        None => "config.example.toml lists every key".to_owned(),
    }
}
