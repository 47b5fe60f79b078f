//! The configuration of every process: one struct, read from defaults, a TOML file, the
//! environment and the command line, in this order; a later layer wins.

mod error;
mod issuers;
mod layers;
mod prices;
mod secret;
mod secrets;
mod sections;
mod value;
mod webhooks;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use error::ConfigError;
pub use issuers::{Issuer, KeysAt, Signature};
pub use layers::{Key, env_name};
pub use prices::ModelPrice;
pub use secret::Secret;
pub use sections::{
    ApiConfig, AuthConfig, DatabaseConfig, LimitsConfig, LogConfig, ObjectsConfig, PricesConfig,
    QueueConfig, SchedulerConfig, SecretsConfig, WebhooksConfig, WorkerConfig,
};

use value::ConfigValue;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl ConfigValue for LogFormat {
    const EXPECTED: &'static str = "\"text\" or \"json\"";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What a worker trains on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerDevice {
    /// The first GPU, if there is one that can be used.
    Auto,
    Cpu,
    /// An NVIDIA GPU, counted from 0 as the driver does; without it no worker starts.
    Cuda {
        ordinal: usize,
    },
}

impl ConfigValue for WorkerDevice {
    const EXPECTED: &'static str = "\"auto\", \"cpu\", \"cuda\" or \"cuda:N\"";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda { ordinal: 0 }),
            _ => {
                let ordinal = text.strip_prefix("cuda:")?.parse().ok()?;
                Some(Self::Cuda { ordinal })
            }
        }
    }
}

/// Everything that an operator can decide.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory for what this host keeps: SQLite file, objects, secrets, cache.
    pub data_dir: PathBuf,
    pub database: DatabaseConfig,
    pub objects: ObjectsConfig,
    pub queue: QueueConfig,
    pub api: ApiConfig,
    pub limits: LimitsConfig,
    pub auth: AuthConfig,
    pub scheduler: SchedulerConfig,
    pub worker: WorkerConfig,
    pub webhooks: WebhooksConfig,
    pub prices: PricesConfig,
    pub secrets: SecretsConfig,
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/luthier"),
            database: DatabaseConfig::default(),
            objects: ObjectsConfig::default(),
            queue: QueueConfig::default(),
            api: ApiConfig::default(),
            limits: LimitsConfig::default(),
            auth: AuthConfig::default(),
            scheduler: SchedulerConfig::default(),
            worker: WorkerConfig::default(),
            webhooks: WebhooksConfig::default(),
            prices: PricesConfig::default(),
            secrets: SecretsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// Reads the defaults, then `path`, then `LUTHIER_…` of this process's environment, then
    /// `overrides` (dotted key, value as text) of the command line.
    pub fn load(path: Option<&Path>, overrides: &[(&str, String)]) -> Result<Self, ConfigError> {
        Self::default().layered(path, std::env::vars_os(), overrides)
    }

    /// As [`Config::load`], over [`Config::embedded`] in place of the plain defaults. `data_dir` is
    /// what the command line says, so it wins over the file and the environment.
    pub fn load_embedded(
        data_dir: &Path,
        path: Option<&Path>,
        overrides: &[(&str, String)],
    ) -> Result<Self, ConfigError> {
        let mut config = Self::embedded(data_dir).layered(path, std::env::vars_os(), overrides)?;
        config.clear_default_places();
        config.data_dir = data_dir.to_owned();
        config.fill_places();
        Ok(config)
    }

    /// One machine, one process tree: SQLite and objects in `data_dir`, no broker, the door and
    /// the worker on loopback ports that the system picks.
    pub fn embedded(data_dir: &Path) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Self {
            data_dir: data_dir.to_owned(),
            ..Self::default()
        };
        config.api.operational_listen = any_port;
        config.scheduler.door_listen = any_port;
        config.worker.listen = any_port;
        config.fill_places();
        config
    }

    /// As [`Config::load`], on `self` as the first layer and with the environment as an argument.
    pub fn layered(
        mut self,
        path: Option<&Path>,
        env: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
        overrides: &[(&str, String)],
    ) -> Result<Self, ConfigError> {
        // The embedded form is already filled in for its data_dir; a layer may move data_dir.
        self.clear_default_places();
        if let Some(path) = path {
            layers::apply_file(&mut self, path)?;
        }
        layers::apply_env(&mut self, env)?;
        layers::apply_overrides(&mut self, overrides)?;
        self.fill_places();
        self.check()?;
        Ok(self)
    }

    /// Every key, in the order of the example file.
    pub fn keys() -> Vec<Key> {
        layers::keys()
    }

    /// The door's URL: as configured, or from a `door_listen` with a fixed port.
    pub fn door_url(&self) -> Option<String> {
        let SchedulerConfig {
            door_url,
            door_listen,
            ..
        } = &self.scheduler;
        door_url.clone().or_else(|| url_of(door_listen))
    }

    /// The worker's URL: as configured, or from a `listen` with a fixed port.
    pub fn advertise_url(&self) -> Option<String> {
        let WorkerConfig {
            advertise_url,
            listen,
            ..
        } = &self.worker;
        advertise_url.clone().or_else(|| url_of(listen))
    }

    /// Where this host keeps weights and adapters.
    pub fn cache_dir(&self) -> PathBuf {
        self.worker
            .cache_dir
            .clone()
            .unwrap_or_else(|| self.data_dir.join("cache"))
    }

    /// Whether rows live in a SQLite file, that is on this machine alone.
    pub fn is_embedded(&self) -> bool {
        self.database.url.expose().starts_with("sqlite:")
    }

    fn sqlite_url(&self) -> String {
        format!(
            "sqlite://{}?mode=rwc",
            self.data_dir.join("luthier.db").display()
        )
    }

    fn objects_url(&self) -> String {
        format!("file://{}", self.data_dir.join("objects").display())
    }

    fn clear_default_places(&mut self) {
        if *self.database.url.expose() == self.sqlite_url() {
            self.database.url = Secret::from("");
        }
        if self.objects.url == self.objects_url() {
            self.objects.url.clear();
        }
    }

    fn fill_places(&mut self) {
        // A file URL is absolute, and a process that changes its directory must not lose its data.
        if let Ok(absolute) = std::path::absolute(&self.data_dir) {
            self.data_dir = absolute;
        }
        if self.database.url.expose().is_empty() {
            self.database.url = Secret::from(self.sqlite_url());
        }
        if self.objects.url.is_empty() {
            self.objects.url = self.objects_url();
        }
    }

    /// Judges what no single key can: combinations that would not work or would not be safe.
    fn check(&self) -> Result<(), ConfigError> {
        one_of(
            "database.url",
            self.database.url.expose(),
            &["postgres:", "postgresql:", "sqlite:"],
        )?;
        one_of("objects.url", &self.objects.url, &["s3://", "file:///"])?;
        one_of(
            "queue.url",
            self.queue.url.expose(),
            &["amqp://", "amqps://", "memory:"],
        )?;
        if self.objects.url.starts_with("s3://") {
            require(
                "objects.access_key_id",
                self.objects.access_key_id.is_some(),
            )?;
            require(
                "objects.secret_access_key",
                self.objects.secret_access_key.is_some(),
            )?;
        }
        self.check_secrets()?;
        self.check_listeners()?;
        self.check_intervals()
    }

    fn check_listeners(&self) -> Result<(), ConfigError> {
        let ApiConfig {
            listen,
            tls_certificate,
            tls_key,
            insecure,
            ..
        } = &self.api;
        match (tls_certificate, tls_key) {
            (Some(_), None) => require("api.tls_key", false),
            (None, Some(_)) => require("api.tls_certificate", false),
            (None, None) if !listen.ip().is_loopback() && !insecure => {
                Err(ConfigError::PublicWithoutTls { listen: *listen })
            }
            _ => Ok(()),
        }
    }

    fn check_intervals(&self) -> Result<(), ConfigError> {
        let (ttl, beat) = (self.scheduler.lease_ttl_s, self.worker.beat_interval_s);
        at_least_one(
            "scheduler.reaper_interval_s",
            self.scheduler.reaper_interval_s,
        )?;
        at_least_one(
            "scheduler.sweep_interval_s",
            self.scheduler.sweep_interval_s,
        )?;
        at_least_one("worker.beat_interval_s", beat)?;
        at_least_one(
            "limits.requests_per_minute",
            self.limits.requests_per_minute,
        )?;
        at_least_one("limits.tokens_per_minute", self.limits.tokens_per_minute)?;
        at_least_one("limits.unfinished_jobs", self.limits.unfinished_jobs)?;
        at_least_one(
            "limits.concurrent_requests",
            self.limits.concurrent_requests as u64,
        )?;
        at_least_one("worker.max_sequences", self.worker.max_sequences as u64)?;
        at_least_one(
            "database.max_connections",
            self.database.max_connections.into(),
        )?;
        if ttl < 3 * beat {
            return Err(ConfigError::Unusable {
                key: "scheduler.lease_ttl_s",
                reason: format!(
                    "{ttl} s leaves no room for a lost report: it must be at least three times \
                     worker.beat_interval_s ({beat} s)"
                ),
            });
        }
        Ok(())
    }
}

fn url_of(listen: &SocketAddr) -> Option<String> {
    (listen.port() != 0 && !listen.ip().is_unspecified()).then(|| format!("http://{listen}"))
}

fn one_of(key: &'static str, url: &str, schemes: &[&str]) -> Result<(), ConfigError> {
    if schemes.iter().any(|scheme| url.starts_with(scheme)) {
        return Ok(());
    }
    // The text before the first colon cannot hold a password; the rest may.
    let scheme = url
        .split_once(':')
        .map_or("no scheme", |(scheme, _)| scheme);
    let reason = format!("`{scheme}` is not one of {}", schemes.join(", "));
    Err(ConfigError::Unusable { key, reason })
}

fn require(key: &'static str, present: bool) -> Result<(), ConfigError> {
    if present {
        Ok(())
    } else {
        Err(ConfigError::Missing {
            key,
            env: env_name(key),
        })
    }
}

fn at_least_one(key: &'static str, value: u64) -> Result<(), ConfigError> {
    if value > 0 {
        return Ok(());
    }
    Err(ConfigError::Unusable {
        key,
        reason: "0 is not allowed: use at least 1".to_owned(),
    })
}
