//! What an API key may do: how much of which resource.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// What a route works on, as keys are restricted to it.
    Resource {
        Models = "models",
        /// Text that a model writes: chat, completions, responses, embeddings, moderations.
        Answers = "answers",
        /// Files and uploads.
        Files = "files",
        /// Jobs, their events and checkpoints.
        FineTuning = "fine_tuning",
        Batches = "batches",
        /// Evals and graders.
        Evals = "evals",
        Webhooks = "webhooks",
    }
    /// How much; to write is to read, too.
    Level {
        Read = "read",
        Write = "write",
    }
}

/// One permission: this much of this resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    pub resource: Resource,
    pub level: Level,
}

/// The names of all scopes. Those that OpenAI names are spelled as there.
const NAMES: [(&str, Resource, Level); 14] = {
    use Level::{Read, Write};
    use Resource::{Answers, Batches, Evals, Files, FineTuning, Models, Webhooks};
    [
        ("api.model.read", Models, Read),
        ("api.model.write", Models, Write),
        ("api.responses.read", Answers, Read),
        ("api.model.request", Answers, Write),
        ("api.files.read", Files, Read),
        ("api.files.write", Files, Write),
        ("api.fine_tuning.jobs.read", FineTuning, Read),
        ("api.fine_tuning.jobs.write", FineTuning, Write),
        ("api.batches.read", Batches, Read),
        ("api.batches.write", Batches, Write),
        ("api.evals.read", Evals, Read),
        ("api.evals.write", Evals, Write),
        ("api.webhooks.read", Webhooks, Read),
        ("api.webhooks.write", Webhooks, Write),
    ]
};
/// The name of everything.
const ALL: &str = "api.all";
/// The name of reading everything.
const READ_ONLY: &str = "api.read";

impl Scope {
    pub fn new(resource: Resource, level: Level) -> Self {
        Self { resource, level }
    }

    /// e.g. `api.files.read`.
    pub fn as_str(self) -> &'static str {
        let named = NAMES
            .iter()
            .find(|(_, resource, level)| (*resource, *level) == (self.resource, self.level));
        named.map_or(ALL, |(name, ..)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        let (_, resource, level) = NAMES.iter().find(|(known, ..)| *known == name)?;
        Some(Self::new(*resource, *level))
    }
}

/// Everything that a key may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scopes {
    All,
    /// Reading, whatever it is.
    ReadOnly,
    /// What is not named is closed.
    Restricted(BTreeMap<Resource, Level>),
}

/// A text that names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no scope {0:?}; scopes are {known}", known = Scopes::names().join(", "))]
pub struct UnknownScope(pub String);

impl Scopes {
    pub fn allow(&self, need: Scope) -> bool {
        match self {
            Scopes::All => true,
            Scopes::ReadOnly => need.level == Level::Read,
            Scopes::Restricted(granted) => granted
                .get(&need.resource)
                .is_some_and(|level| *level >= need.level),
        }
    }

    /// From names such as `api.files.read`; `api.all` and `api.read` (reading everything) stand alone or win.
    /// No name: everything. Errors: a name that is none.
    pub fn parse<T: AsRef<str>>(names: &[T]) -> Result<Self, UnknownScope> {
        let mut granted = BTreeMap::new();
        let (mut is_all, mut is_read_only) = (names.is_empty(), false);
        for name in names.iter().map(AsRef::as_ref) {
            match Scope::parse(name) {
                Some(scope) => {
                    let level = granted.entry(scope.resource).or_insert(scope.level);
                    *level = scope.level.max(*level);
                }
                None if name == ALL => is_all = true,
                None if name == READ_ONLY => is_read_only = true,
                None => return Err(UnknownScope(name.to_owned())),
            }
        }
        Ok(match (is_all, is_read_only) {
            (true, _) => Scopes::All,
            (false, true) if granted.is_empty() => Scopes::ReadOnly,
            (false, true) => {
                let read = Resource::WORDS
                    .iter()
                    .filter_map(|word| Resource::parse(word));
                for resource in read {
                    granted.entry(resource).or_insert(Level::Read);
                }
                Scopes::Restricted(granted)
            }
            (false, false) => Scopes::Restricted(granted),
        })
    }

    /// As [`Scopes::parse`] reads them.
    pub fn to_names(&self) -> Vec<&'static str> {
        match self {
            Scopes::All => vec![ALL],
            Scopes::ReadOnly => vec![READ_ONLY],
            Scopes::Restricted(granted) => granted
                .iter()
                .map(|(resource, level)| Scope::new(*resource, *level).as_str())
                .collect(),
        }
    }

    /// Every name there is.
    pub fn names() -> Vec<&'static str> {
        [ALL, READ_ONLY]
            .into_iter()
            .chain(NAMES.iter().map(|(name, ..)| *name))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_a_name_for_reading_and_for_writing() {
        for resource in Resource::WORDS.iter().filter_map(|w| Resource::parse(w)) {
            for level in [Level::Read, Level::Write] {
                let scope = Scope::new(resource, level);
                assert_eq!(Scope::parse(scope.as_str()), Some(scope));
            }
        }
    }

    #[test]
    fn a_key_may_what_it_was_given_and_nothing_else() {
        let read_files = Scope::new(Resource::Files, Level::Read);
        let write_files = Scope::new(Resource::Files, Level::Write);
        let read_jobs = Scope::new(Resource::FineTuning, Level::Read);
        let none: [&str; 0] = [];
        for (names, allowed) in [
            (&none[..], [true, true, true]),
            (&["api.all"], [true, true, true]),
            (&["api.read"], [true, false, true]),
            (&["api.files.read"], [true, false, false]),
            (&["api.files.write", "api.files.read"], [true, true, false]),
            (&["api.read", "api.files.write"], [true, true, true]),
            (&["api.model.request"], [false, false, false]),
        ] {
            let scopes = Scopes::parse(names).unwrap();
            let found = [read_files, write_files, read_jobs].map(|need| scopes.allow(need));
            assert_eq!(found, allowed, "{names:?}");
            assert_eq!(Scopes::parse(&scopes.to_names()), Ok(scopes));
        }
        let unknown = UnknownScope("api.file.read".to_owned());
        assert_eq!(Scopes::parse(&["api.file.read"]), Err(unknown));
    }
}
