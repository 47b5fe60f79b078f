//! How one configuration value is read, from TOML and from text (environment, command line).

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Secret;

/// A type that a configuration key may have.
pub trait ConfigValue: Sized {
    /// What a good value looks like, for the error message.
    const EXPECTED: &'static str;
    /// Whether a bad value must not be repeated in the error message, and `<key>_file` exists.
    const SECRET: bool = false;

    /// Reads an environment variable or a command line override.
    fn from_text(text: &str) -> Option<Self>;

    /// Reads a TOML value; text types take strings only.
    fn from_toml(value: &toml::Value) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }
}

impl ConfigValue for String {
    const EXPECTED: &'static str = "text";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl ConfigValue for Secret<String> {
    const EXPECTED: &'static str = "text";
    const SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        Some(Secret::from(text))
    }
}

impl ConfigValue for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| PathBuf::from(text))
    }
}

impl ConfigValue for SocketAddr {
    const EXPECTED: &'static str = "an address and a port, such as \"127.0.0.1:8080\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl ConfigValue for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_bool()
    }
}

/// Whole numbers: TOML integers, or digits as text.
macro_rules! whole_number {
    ($($type:ty)*) => {$(
        impl ConfigValue for $type {
            const EXPECTED: &'static str = "a whole number that is not negative";

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn from_toml(value: &toml::Value) -> Option<Self> {
                value.as_integer()?.try_into().ok()
            }
        }
    )*};
}

whole_number!(u32 u64 usize);

/// Empty text means "not set", so that an environment variable can unset a key of the file.
impl<T: ConfigValue> ConfigValue for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const SECRET: bool = T::SECRET;

    fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() {
            Some(None)
        } else {
            T::from_text(text).map(Some)
        }
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        if value.as_str() == Some("") {
            Some(None)
        } else {
            T::from_toml(value).map(Some)
        }
    }
}

impl ConfigValue for Vec<String> {
    const EXPECTED: &'static str = "a list of names, such as [\"a\", \"b\"], or \"a,b\" as text";

    fn from_text(text: &str) -> Option<Self> {
        let names = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        Some(names.map(str::to_owned).collect())
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        value
            .as_array()?
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect()
    }
}
