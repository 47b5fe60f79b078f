//! The secrets of an installation: required in production, made on first start on one machine.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::{Config, ConfigError, Secret, env_name};

/// HS256 and HMAC-SHA-256 want a key no shorter than their digest. Bytes.
const MIN_SECRET_BYTES: usize = 32;

impl Config {
    /// The HMAC key under which API keys are stored. Errors: `Missing`.
    pub fn key_pepper(&self) -> Result<&Secret<String>, ConfigError> {
        present("secrets.key_pepper", &self.secrets.key_pepper)
    }

    /// The key of the tokens between processes. Errors: `Missing`.
    pub fn service_key(&self) -> Result<&Secret<String>, ConfigError> {
        present("secrets.service_key", &self.secrets.service_key)
    }

    /// Fills secrets that are not set from `data_dir/secrets`, where they are made on first use
    /// (mode 0600), when rows and objects live on this machine. Elsewhere they stay unset: two
    /// hosts that each made their own would not recognise each other.
    pub fn ensure_secrets(&mut self) -> Result<(), ConfigError> {
        if !self.is_embedded() || !self.objects.url.starts_with("file:") {
            return Ok(());
        }
        let dir = self.data_dir.join("secrets");
        for (slot, name) in [
            (&mut self.secrets.key_pepper, "key_pepper"),
            (&mut self.secrets.service_key, "service_key"),
            (&mut self.secrets.encryption_key, "encryption_key"),
        ] {
            if slot.is_none() {
                let path = dir.join(name);
                let secret = read_or_make(&dir, &path)
                    .map_err(|source| ConfigError::SecretNotWritten { path, source })?;
                *slot = Some(secret);
            }
        }
        self.check_secrets()
    }

    pub(super) fn check_secrets(&self) -> Result<(), ConfigError> {
        let pairs = [
            ("secrets.key_pepper", &self.secrets.key_pepper),
            ("secrets.service_key", &self.secrets.service_key),
            ("secrets.encryption_key", &self.secrets.encryption_key),
            (
                "secrets.encryption_key_previous",
                &self.secrets.encryption_key_previous,
            ),
        ];
        for (key, secret) in pairs {
            let Some(secret) = secret else { continue };
            let size = secret.expose().len();
            if size < MIN_SECRET_BYTES {
                let reason = format!(
                    "{size} bytes are too few, at least {MIN_SECRET_BYTES} are needed; \
                     `openssl rand -hex 32` prints a good one"
                );
                return Err(ConfigError::Unusable { key, reason });
            }
        }
        Ok(())
    }
}

fn present<'a>(
    key: &'static str,
    secret: &'a Option<Secret<String>>,
) -> Result<&'a Secret<String>, ConfigError> {
    secret.as_ref().ok_or_else(|| ConfigError::Missing {
        key,
        env: env_name(key),
    })
}

/// Reads the secret at `path`; makes it first where it is absent. Two processes that start
/// together agree: the file appears complete, under its name, once.
fn read_or_make(dir: &Path, path: &Path) -> io::Result<Secret<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => return Ok(Secret::from(text.trim_end())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let text: String = rand::random::<[u8; 32]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let temporary = path.with_extension(format!("{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    // A link, unlike a rename, fails where the other process was first.
    let linked = std::fs::hard_link(&temporary, path);
    std::fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => std::fs::File::open(dir)?.sync_all()?,
    }
    std::fs::read_to_string(path).map(|text| Secret::from(text.trim_end()))
}
