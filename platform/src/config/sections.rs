//! The sections of the configuration: every key once, with its type, default and meaning.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::value::ConfigValue;
use super::{Issuer, LogFormat, ModelPrice, Secret, WorkerDevice};
use crate::outbound::AllowedHost;

/// Why a value could not be stored in a section.
pub(super) enum SetError {
    UnknownKey,
    BadValue { expected: &'static str },
}

/// A value as it came: typed from a file, or as text from elsewhere.
pub(super) enum Raw<'a> {
    Toml(&'a toml::Value),
    Text(&'a str),
}

/// A key's name inside its section, and whether it holds a credential.
pub(super) struct SectionKey {
    pub name: &'static str,
    pub secret: bool,
}

pub(super) trait Section {
    fn keys() -> Vec<SectionKey>;
    fn set(&mut self, key: &str, value: Raw<'_>) -> Result<(), SetError>;
}

/// Declares a section: a struct with defaults, the list of its keys and a setter by name, so that
/// a key cannot exist in one of the three and be missing in another.
macro_rules! section {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $key:ident: $type:ty = $default:expr,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[$doc])* pub $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl Section for $name {
            fn keys() -> Vec<SectionKey> {
                vec![$(SectionKey {
                    name: stringify!($key),
                    secret: <$type as ConfigValue>::SECRET,
                },)*]
            }

            fn set(&mut self, key: &str, value: Raw<'_>) -> Result<(), SetError> {
                match key {
                    $(stringify!($key) => store(&mut self.$key, value),)*
                    _ => Err(SetError::UnknownKey),
                }
            }
        }
    };
}

fn store<T: ConfigValue>(slot: &mut T, value: Raw<'_>) -> Result<(), SetError> {
    let read = match value {
        Raw::Toml(value) => T::from_toml(value),
        Raw::Text(text) => T::from_text(text),
    };
    *slot = read.ok_or(SetError::BadValue {
        expected: T::EXPECTED,
    })?;
    Ok(())
}

section! {
    /// `[database]`: where rows live.
    DatabaseConfig {
        /// `postgres://user:password@host:port/name` or `sqlite:///path`; empty: a SQLite file
        /// in `data_dir`.
        url: Secret<String> = Secret::from(""),
        /// Most connections that one process opens; single reads use half of them at most, if there are two.
        max_connections: u32 = 10,
        /// How long a request waits for a free connection before it is answered 503. Seconds.
        acquire_timeout_s: u64 = 2,
    }
}

section! {
    /// `[objects]`: where files, datasets, weights and adapters live.
    ObjectsConfig {
        /// `s3://bucket/prefix` or `file:///directory`; empty: a directory in `data_dir`.
        url: String = String::new(),
        /// The S3 server, such as `http://127.0.0.1:3900`; unset: AWS.
        endpoint: Option<String> = None,
        /// The S3 region; some servers refuse any but their own name.
        region: String = "us-east-1".to_owned(),
        /// The S3 access key id.
        access_key_id: Option<String> = None,
        /// The S3 secret access key.
        secret_access_key: Option<Secret<String>> = None,
        /// Bucket in the path (`true`) or in the host name (`false`, AWS's newer form).
        path_style: bool = true,
    }
}

section! {
    /// `[queue]`: how a worker hears of work early.
    QueueConfig {
        /// `amqp://user:password@host:port/vhost`, or `memory:` for no broker: workers then ask
        /// the door.
        url: Secret<String> = Secret::from("memory:"),
        /// Put before every queue and exchange name, so that installations can share a broker.
        prefix: String = "luthier".to_owned(),
    }
}

section! {
    /// `[api]`: the public HTTP surface.
    ApiConfig {
        /// Where the API listens.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)),
        /// Where `/metrics` listens; keep it on loopback or a private network.
        operational_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9464)),
        /// PEM file with the certificate chain; with `tls_key` it turns TLS on.
        tls_certificate: Option<PathBuf> = None,
        /// PEM file with the private key of `tls_certificate`.
        tls_key: Option<PathBuf> = None,
        /// Allows a listener that is not loopback without TLS, for TLS that ends in front.
        insecure: bool = false,
        /// The base URL that clients use, where it differs from `listen`.
        public_url: Option<String> = None,
        /// Largest file that may be uploaded whole. Bytes.
        max_file_bytes: u64 = 512 * 1024 * 1024,
        /// Largest file that may be uploaded in parts. Bytes.
        max_upload_bytes: u64 = 8 << 30,
        /// Requests of batches that this process has under way at the same time; 0: it runs no batches.
        batch_requests: u32 = 16,
        /// How long a process may be silent before a batch that it runs is given to another. Seconds.
        batch_lease_ttl_s: u64 = 30,
    }
}

section! {
    /// `[limits]`: what one project may ask for, store and train where it has no limits of its own.
    LimitsConfig {
        /// Requests a minute to one base model and what is tuned from it, over all API processes.
        requests_per_minute: u64 = 10_000,
        /// Tokens a minute, read and written, likewise.
        tokens_per_minute: u64 = 10_000_000,
        /// Requests of one project that one API process answers at the same time.
        concurrent_requests: usize = 512,
        /// Fine-tuning jobs of one project that have not ended.
        unfinished_jobs: u64 = 100,
        /// Fine-tuning jobs of one project that run at the same time; 0: as many as there are workers.
        running_jobs: u64 = 0,
        /// Files of one project, with the parts of uploads that are not over. Bytes.
        stored_bytes: u64 = 2_500_000_000_000,
    }
}

impl LimitsConfig {
    /// `None`: as many as there are workers.
    pub fn running_jobs(&self) -> Option<u64> {
        (self.running_jobs > 0).then_some(self.running_jobs)
    }
}

section! {
    /// `[auth]`: who is let in beside keys.
    AuthConfig {
        /// Whose bearer tokens (JWTs) stand for a project.
        issuers: Vec<Issuer> = Vec::new(),
    }
}

section! {
    /// `[scheduler]`: the one that decides, and its door for workers.
    SchedulerConfig {
        /// Where the door listens for workers and for the API.
        door_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7070)),
        /// How the other processes reach the door; unset: `http://` and `door_listen`.
        door_url: Option<String> = None,
        /// How long a worker may be silent before its attempt is given to another. Seconds.
        lease_ttl_s: u64 = 30,
        /// How often leases that ran out are looked for. Seconds.
        reaper_interval_s: u64 = 2,
        /// How long an offer may stay unclaimed before it is made again. Seconds.
        dispatch_timeout_s: u64 = 30,
        /// Jobs offered beyond the free slots, so that a slot never waits.
        dispatch_buffer: u32 = 2,
        /// Longest wait before a failed attempt is tried again. Seconds.
        retry_backoff_max_s: u64 = 300,
        /// How often objects that no row names are looked for. Seconds.
        sweep_interval_s: u64 = 3600,
        /// How long chat completions and responses are kept that clients asked to keep; 0: until they
        /// are deleted. Seconds.
        stored_answer_ttl_s: u64 = 30 * 24 * 3600,
    }
}

section! {
    /// `[worker]`: trains and generates on one device.
    WorkerConfig {
        /// Where the worker listens for generation requests of the API.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7071)),
        /// How the API reaches this worker; unset: `http://` and `listen`.
        advertise_url: Option<String> = None,
        /// `auto`: an NVIDIA GPU where there is one, else the CPU; `cpu`; `cuda` or `cuda:N`: that GPU, or the worker does not
        /// start. What a GPU cannot compute, or has no room for, is trained or answered on the CPU whatever stands here, and a warning
        /// says why.
        device: WorkerDevice = WorkerDevice::Auto,
        /// Threads that compute; 0: one per core.
        threads: usize = 0,
        /// Where weights and adapters are kept on this host; unset: `cache` in `data_dir`.
        cache_dir: Option<PathBuf> = None,
        /// How often the worker reports to the door and renews its lease. Seconds.
        beat_interval_s: u64 = 5,
        /// Most sequences generated at the same time.
        max_sequences: usize = 16,
        /// Most tokens kept in the key-value cache: of answers being written, and of beginnings that may be asked for again.
        max_cached_tokens: usize = 32768,
        /// Memory for adapters that are ready to answer, over all base models. Bytes.
        adapter_memory_bytes: u64 = 4 << 30,
        /// Room on the disk for adapters that are not in memory. Bytes.
        adapter_disk_bytes: u64 = 16 << 30,
        /// Longest training time between two checkpoints. Seconds.
        checkpoint_interval_s: u64 = 300,
        /// Base models that this worker takes work for; empty: all that are installed.
        models: Vec<String> = Vec::new(),
    }
}

section! {
    /// `[webhooks]`: where tenants may have themselves told of what happened.
    WebhooksConfig {
        /// Receivers that are not public and may be told all the same, on any port: host names, addresses, networks.
        allowed_hosts: Vec<AllowedHost> = Vec::new(),
        /// Allows `http://` beside `https://`; of public receivers on port 80.
        allow_http: bool = false,
    }
}

section! {
    /// `[prices]`: what `/v1/organization/costs` reckons with.
    PricesConfig {
        /// `NAME input=P cached=P output=P trained=P`: US dollars per million tokens of a model and of its tuned models.
        models: Vec<ModelPrice> = Vec::new(),
    }
}

section! {
    /// `[secrets]`: what the processes of one installation share.
    SecretsConfig {
        /// HMAC key under which API keys are stored; at least 32 bytes. Losing it voids every key.
        key_pepper: Option<Secret<String>> = None,
        /// Signs the tokens with which the processes recognise each other; at least 32 bytes.
        service_key: Option<Secret<String>> = None,
        /// Seals the secrets of tenants that are kept, such as those that sign webhooks; at least 32 bytes. Unset: a key
        /// is derived from `key_pepper`.
        encryption_key: Option<Secret<String>> = None,
        /// The one before `encryption_key`, until `luthier secrets reseal` is done.
        encryption_key_previous: Option<Secret<String>> = None,
    }
}

section! {
    /// `[log]`: what is written to standard error.
    LogConfig {
        /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,lapin=warn`.
        level: String = "info".to_owned(),
        /// `text` for people, `json` for machines.
        format: LogFormat = LogFormat::Text,
    }
}
