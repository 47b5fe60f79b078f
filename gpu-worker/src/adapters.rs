//! Adapters in memory, by their folders in the bucket: fetched, verified, checked against the base's shapes, and dropped
//! in the order of last use. Two folders may hold the same weights under configurations that make them two adapters. The base model never answers in place of one that cannot be had.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use domain::adapter_file::{CONFIG_FILE, WEIGHTS_FILE};
use domain::model::AdapterRef;
use engine::lora::Adapter;
use platform::objects::{Objects, ObjectsError};
use sha2::{Digest, Sha256};

use crate::base_models::Base;

/// Weights kept in memory, over all adapters. Bytes: two hundred of rank 16 on a model of 135 M parameters.
const CAPACITY_BYTES: u64 = 4 << 30;
/// How long a request waits for another one's load of the same adapter.
const LOAD_WAIT: Duration = Duration::from_secs(10);

/// Why an adapter cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterError {
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error("its weights hash to {found}, not {expected}")]
    Damaged { expected: String, found: String },
    #[error("it does not fit the base model: {0}")]
    Unfit(String),
    #[error("it is still being loaded")]
    StillLoading,
}

/// The cache. Invariant: `size_bytes` is the sum over `entries`.
pub(crate) struct Adapters {
    objects: Objects,
    cache: Mutex<Cache>,
    /// One load per adapter at a time.
    loading: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Cache {
    entries: HashMap<String, Entry>,
    size_bytes: u64,
    /// Rises with every use.
    uses: u64,
}

struct Entry {
    adapter: Arc<Adapter>,
    /// Of its weights.
    sha256: String,
    /// The base its shapes were checked against.
    base_sha256: String,
    size_bytes: u64,
    last_use: u64,
}

impl Adapters {
    pub(crate) fn new(objects: Objects) -> Self {
        Self {
            objects,
            cache: Mutex::default(),
            loading: Mutex::default(),
        }
    }

    /// The hashes of the adapters in memory, latest use first.
    pub(crate) fn list(&self) -> Vec<String> {
        let cache = self.cache();
        let mut entries: Vec<_> = cache.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.last_use));
        entries
            .into_iter()
            .map(|(_, entry)| entry.sha256.clone())
            .collect()
    }

    /// The adapter `reference` names, for `base`.
    pub(crate) async fn get(
        &self,
        reference: &AdapterRef,
        base: &Base,
    ) -> Result<Arc<Adapter>, AdapterError> {
        if let Some(adapter) = self.find(reference, base) {
            return Ok(adapter);
        }
        let lock = Arc::clone(
            self.loading()
                .entry(reference.object_prefix.clone())
                .or_default(),
        );
        let turn = tokio::time::timeout(LOAD_WAIT, lock.lock())
            .await
            .map_err(|_| AdapterError::StillLoading)?;
        let loaded = match self.find(reference, base) {
            Some(adapter) => Ok(adapter),
            None => self.load(reference, base).await,
        };
        drop(turn);
        // Whoever still waits holds the lock's Arc; a newcomer finds the adapter or starts over.
        self.loading().remove(&reference.object_prefix);
        loaded
    }

    /// Reads an adapter from bytes and keeps it: how a fresh one gets here without the bucket.
    pub(crate) fn read(
        &self,
        reference: &AdapterRef,
        config_json: &str,
        weights: &[u8],
        base: &Base,
    ) -> Result<Arc<Adapter>, AdapterError> {
        let adapter = Adapter::from_peft(config_json, weights, &base.config);
        let adapter = Arc::new(adapter.map_err(|error| AdapterError::Unfit(error.to_string()))?);
        self.cache()
            .insert(reference, &adapter, &base.model.sha256, CAPACITY_BYTES);
        Ok(adapter)
    }

    async fn load(
        &self,
        reference: &AdapterRef,
        base: &Base,
    ) -> Result<Arc<Adapter>, AdapterError> {
        let config = self
            .objects
            .get_bytes(&format!("{}/{CONFIG_FILE}", reference.object_prefix))
            .await?;
        let key = format!("{}/{WEIGHTS_FILE}", reference.object_prefix);
        let size_bytes = self.objects.size(&key).await?;
        if size_bytes.is_some_and(|found| found != reference.size_bytes) {
            let reason = format!("it has {size_bytes:?} bytes, not {}", reference.size_bytes);
            return Err(ObjectsError::Corrupt { key, reason }.into());
        }
        let weights = self.objects.get_bytes(&key).await?;
        let found = sha256_hex(&weights);
        if found != reference.sha256 {
            return Err(AdapterError::Damaged {
                expected: reference.sha256.clone(),
                found,
            });
        }
        self.read(reference, &String::from_utf8_lossy(&config), &weights, base)
    }

    fn find(&self, reference: &AdapterRef, base: &Base) -> Option<Arc<Adapter>> {
        self.cache().touch(reference, &base.model.sha256)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache
            .lock()
            .expect("no panic while locked — a bug in adapters")
    }

    fn loading(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.loading
            .lock()
            .expect("no panic while locked — a bug in adapters")
    }
}

impl Cache {
    fn touch(&mut self, reference: &AdapterRef, base_sha256: &str) -> Option<Arc<Adapter>> {
        let is_same = |entry: &&mut Entry| {
            entry.base_sha256 == base_sha256 && entry.sha256 == reference.sha256
        };
        let entry = self
            .entries
            .get_mut(&reference.object_prefix)
            .filter(is_same)?;
        self.uses += 1;
        entry.last_use = self.uses;
        Some(Arc::clone(&entry.adapter))
    }

    fn insert(
        &mut self,
        reference: &AdapterRef,
        adapter: &Arc<Adapter>,
        base_sha256: &str,
        capacity_bytes: u64,
    ) {
        let size_bytes = reference.size_bytes;
        self.remove(&reference.object_prefix);
        // What is in use lives on through its Arc; here it only stops being found.
        while self.size_bytes + size_bytes > capacity_bytes {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use);
            let Some(oldest) = oldest.map(|(prefix, _)| prefix.clone()) else {
                break;
            };
            self.remove(&oldest);
        }
        self.uses += 1;
        self.size_bytes += size_bytes;
        let entry = Entry {
            adapter: Arc::clone(adapter),
            sha256: reference.sha256.clone(),
            base_sha256: base_sha256.to_owned(),
            size_bytes,
            last_use: self.uses,
        };
        self.entries.insert(reference.object_prefix.clone(), entry);
    }

    fn remove(&mut self, object_prefix: &str) {
        if let Some(entry) = self.entries.remove(object_prefix) {
            self.size_bytes -= entry.size_bytes;
        }
    }
}

/// The SHA-256 of `bytes` in lower-case hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use engine::config::ModelConfig;
    use engine::lora::LoraConfig;

    use super::*;

    fn adapter() -> Arc<Adapter> {
        let config = ModelConfig::from_json(
            r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "max_position_embeddings": 8,
                "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"}"#,
        );
        Arc::new(Adapter::init(&config.unwrap(), &LoraConfig::all_linear(2, 4.0), 1).unwrap())
    }

    fn reference(name: &str, size_bytes: u64) -> AdapterRef {
        AdapterRef {
            object_prefix: name.to_owned(),
            sha256: format!("hash of {name}"),
            size_bytes,
            frozen_weights: Default::default(),
        }
    }

    #[test]
    fn the_adapter_that_was_not_used_for_longest_makes_room() {
        let (mut cache, adapter) = (Cache::default(), adapter());
        for name in ["a", "b", "c"] {
            cache.insert(&reference(name, 30), &adapter, "base", 100);
        }
        assert!(cache.touch(&reference("a", 30), "base").is_some());
        cache.insert(&reference("d", 40), &adapter, "base", 100);
        let held =
            ["a", "b", "c", "d"].map(|name| cache.touch(&reference(name, 30), "base").is_some());
        assert_eq!((held, cache.size_bytes), ([true, false, true, true], 100));
        assert!(
            cache.touch(&reference("a", 30), "other base").is_none(),
            "shapes were checked against one base"
        );
        let other_weights = AdapterRef {
            sha256: "other".to_owned(),
            ..reference("a", 30)
        };
        assert!(cache.touch(&other_weights, "base").is_none());
        cache.insert(&reference("a", 10), &adapter, "base", 100);
        assert_eq!(
            cache.size_bytes, 80,
            "an adapter that comes again counts once"
        );
    }
}
