//! The layers over the defaults (file, environment, command line) and the names of all keys.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::sections::{Raw, Section, SectionKey, SetError};
use super::value::ConfigValue;
use super::{
    ApiConfig, AuthConfig, Config, ConfigError, DatabaseConfig, LimitsConfig, LogConfig,
    ObjectsConfig, PricesConfig, QueueConfig, SchedulerConfig, SecretsConfig, WebhooksConfig,
    WorkerConfig,
};

/// Variables that start with these belong to the tests and the build, not to the configuration;
/// `cargo run` passes on what a build script has set.
const FOREIGN_ENV_PREFIXES: [&str; 3] = ["LUTHIER_TEST_", "LUTHIER_BUILD_", "LUTHIER_COMMIT"];

/// One key of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `section.key`, or `data_dir`.
    pub name: String,
    /// Holds a credential; `<name>_file` then names a file to read it from.
    pub secret: bool,
}

/// The environment variable of a dotted key: `api.listen` is `LUTHIER_API_LISTEN`.
pub fn env_name(key: &str) -> String {
    format!("LUTHIER_{}", key.replace('.', "_").to_uppercase())
}

pub(super) fn keys() -> Vec<Key> {
    fn of(section: &'static str, keys: Vec<SectionKey>) -> impl Iterator<Item = Key> {
        keys.into_iter().map(move |key| Key {
            name: format!("{section}.{}", key.name),
            secret: key.secret,
        })
    }
    std::iter::once(Key {
        name: "data_dir".to_owned(),
        secret: false,
    })
    .chain(of("database", DatabaseConfig::keys()))
    .chain(of("objects", ObjectsConfig::keys()))
    .chain(of("queue", QueueConfig::keys()))
    .chain(of("api", ApiConfig::keys()))
    .chain(of("limits", LimitsConfig::keys()))
    .chain(of("auth", AuthConfig::keys()))
    .chain(of("scheduler", SchedulerConfig::keys()))
    .chain(of("worker", WorkerConfig::keys()))
    .chain(of("webhooks", WebhooksConfig::keys()))
    .chain(of("prices", PricesConfig::keys()))
    .chain(of("secrets", SecretsConfig::keys()))
    .chain(of("log", LogConfig::keys()))
    .collect()
}

pub(super) fn apply_file(config: &mut Config, path: &Path) -> Result<(), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own display quotes the line, which may hold a password.
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        let reason = format!("line {line}: {}", error.message());
        ConfigError::NotToml {
            path: path.to_owned(),
            reason,
        }
    })?;
    let place = path.display().to_string();
    for (name, value) in &table {
        match value {
            toml::Value::Table(section) => {
                refuse_doubles(&place, name, section)?;
                for (key, value) in section {
                    set(config, &place, &format!("{name}.{key}"), Raw::Toml(value))?;
                }
            }
            value => set(config, &place, name, Raw::Toml(value))?,
        }
    }
    Ok(())
}

fn refuse_doubles(place: &str, name: &str, section: &toml::Table) -> Result<(), ConfigError> {
    match section
        .keys()
        .find(|key| section.contains_key(&format!("{key}_file")))
    {
        None => Ok(()),
        Some(key) => {
            let key = format!("{name}.{key}");
            Err(ConfigError::GivenTwice {
                place: place.to_owned(),
                key,
            })
        }
    }
}

pub(super) fn apply_env(
    config: &mut Config,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), ConfigError> {
    let names: Vec<(String, String)> = settable()
        .into_iter()
        .map(|key| (env_name(&key), key))
        .collect();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with("LUTHIER_")) else {
            continue;
        };
        if FOREIGN_ENV_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            continue;
        }
        let Some((_, key)) = names.iter().find(|(env, _)| env == name) else {
            let nearest = nearest(name, names.iter().map(|(env, _)| env.as_str()));
            let key = name.to_owned();
            return Err(ConfigError::UnknownKey {
                place: "environment".to_owned(),
                key,
                nearest,
            });
        };
        let value = value.to_str().ok_or_else(|| ConfigError::BadValue {
            place: name.to_owned(),
            found: "the value".to_owned(),
            expected: "UTF-8 text",
        })?;
        set(config, name, key, Raw::Text(value))?;
    }
    Ok(())
}

pub(super) fn apply_overrides(
    config: &mut Config,
    overrides: &[(&str, String)],
) -> Result<(), ConfigError> {
    for (key, value) in overrides {
        set(config, "command line", key, Raw::Text(value))?;
    }
    Ok(())
}

/// Every name that may be given: all keys, and `<key>_file` for credentials.
fn settable() -> Vec<String> {
    let with_file = |key: Key| {
        let file = key.secret.then(|| format!("{}_file", key.name));
        std::iter::once(key.name).chain(file)
    };
    keys().into_iter().flat_map(with_file).collect()
}

fn set(config: &mut Config, place: &str, key: &str, value: Raw<'_>) -> Result<(), ConfigError> {
    let known = keys();
    let base = key.strip_suffix("_file").filter(|base| {
        known
            .iter()
            .any(|known| known.secret && known.name == *base)
    });
    if let Some(base) = base {
        let text = read_secret(place, key, value)?;
        return store(config, place, base, Raw::Text(&text), true);
    }
    let secret = known.iter().any(|known| known.secret && known.name == key);
    store(config, place, key, value, secret)
}

/// The content of the file that `<key>_file` names, without the line end that editors add.
fn read_secret(place: &str, key: &str, value: Raw<'_>) -> Result<String, ConfigError> {
    let path = match value {
        Raw::Toml(value) => PathBuf::from_toml(value),
        Raw::Text(text) => PathBuf::from_text(text),
    };
    let path = path.ok_or_else(|| ConfigError::BadValue {
        place: format!("{place}: {key}"),
        found: "the value".to_owned(),
        expected: PathBuf::EXPECTED,
    })?;
    let text = std::fs::read_to_string(&path)
        .map_err(|source| ConfigError::Unreadable { path, source })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn store(
    config: &mut Config,
    place: &str,
    key: &str,
    value: Raw<'_>,
    secret: bool,
) -> Result<(), ConfigError> {
    let found = match &value {
        _ if secret => "the value".to_owned(),
        Raw::Toml(value) => value.to_string(),
        Raw::Text(text) => format!("{text:?}"),
    };
    let result = match key.split_once('.') {
        None if key == "data_dir" => store_data_dir(config, value),
        None => Err(SetError::UnknownKey),
        Some(("database", key)) => config.database.set(key, value),
        Some(("objects", key)) => config.objects.set(key, value),
        Some(("queue", key)) => config.queue.set(key, value),
        Some(("api", key)) => config.api.set(key, value),
        Some(("limits", key)) => config.limits.set(key, value),
        Some(("auth", key)) => config.auth.set(key, value),
        Some(("scheduler", key)) => config.scheduler.set(key, value),
        Some(("worker", key)) => config.worker.set(key, value),
        Some(("webhooks", key)) => config.webhooks.set(key, value),
        Some(("prices", key)) => config.prices.set(key, value),
        Some(("secrets", key)) => config.secrets.set(key, value),
        Some(("log", key)) => config.log.set(key, value),
        Some(_) => Err(SetError::UnknownKey),
    };
    result.map_err(|error| match error {
        SetError::UnknownKey => {
            let nearest = nearest(key, settable().iter().map(String::as_str));
            ConfigError::UnknownKey {
                place: place.to_owned(),
                key: key.to_owned(),
                nearest,
            }
        }
        SetError::BadValue { expected } => {
            // An environment variable is its own place; in a file the key says where.
            let place = if place == env_name(key) {
                place.to_owned()
            } else {
                format!("{place}: {key}")
            };
            ConfigError::BadValue {
                place,
                found,
                expected,
            }
        }
    })
}

fn store_data_dir(config: &mut Config, value: Raw<'_>) -> Result<(), SetError> {
    let path = match value {
        Raw::Toml(value) => PathBuf::from_toml(value),
        Raw::Text(text) => PathBuf::from_text(text),
    };
    config.data_dir = path.ok_or(SetError::BadValue {
        expected: PathBuf::EXPECTED,
    })?;
    Ok(())
}

/// The name most like `wrong`: the same last part in another section, or few letters away.
fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let distance = |name: &str| {
        if wrong.contains('.') && last(name) == last(wrong) {
            1
        } else {
            edits(wrong, name)
        }
    };
    names
        .map(|name| (distance(name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= wrong.len() / 3)
        .map(|(_, name)| name.to_owned())
}

/// The Levenshtein distance of two short ASCII names.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
