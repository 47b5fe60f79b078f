//! Adapters by their folders in the bucket: in memory ready to multiply with, on this host's disk, or fetched; verified when they are
//! fetched, checked against the base's shapes, and dropped in the order of last use. Two folders may hold the same weights under
//! configurations that make them two adapters. The base model never answers in place of one that cannot be had.

mod disk;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use domain::adapter_file::{CONFIG_FILE, WEIGHTS_FILE};
use domain::model::AdapterRef;
use engine::config::ModelConfig;
use engine::lora::Adapter;
use engine::{OutOfMemory, Precision};
use platform::objects::{Objects, ObjectsError};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};

use self::disk::Disk;
use crate::base_models::Base;
use crate::lru::Lru;

/// Conversations that wait for a place while their adapters' files come to the disk: those that came first. However many wait, no more
/// adapters than these push others out.
const AHEAD: usize = 4;
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
    #[error("its files on this host cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("{0}")]
    OutOfMemory(#[from] OutOfMemory),
    #[error("it is still being loaded")]
    StillLoading,
}

/// How much is kept. Bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budgets {
    /// Of adapters as they multiply. Those in use, and those being loaded, may exceed it for as long as they are.
    pub memory_bytes: u64,
    /// Of files.
    pub disk_bytes: u64,
}

/// Both tiers, and the way to the bucket.
pub(crate) struct Adapters {
    objects: Objects,
    /// By their folders in the bucket.
    memory: Mutex<Lru<Entry>>,
    disk: Disk,
    loading: Loading,
    ahead: Semaphore,
    /// Whether the CPU multiplies with them.
    for_cpu: bool,
}

struct Entry {
    adapter: Arc<Adapter>,
    /// Of its weights.
    sha256: String,
    /// The base its shapes were checked against.
    base_sha256: String,
}

impl Adapters {
    /// `dir` is where the files are kept; `for_cpu`: they are made ready for it before their first step.
    pub(crate) fn new(objects: Objects, dir: PathBuf, budgets: Budgets, for_cpu: bool) -> Self {
        Self {
            objects,
            memory: Mutex::new(Lru::new(budgets.memory_bytes)),
            disk: Disk::open(dir, budgets.disk_bytes),
            loading: Loading::default(),
            ahead: Semaphore::new(AHEAD),
            for_cpu,
        }
    }

    /// The hashes of the adapters in memory, latest use first.
    pub(crate) fn list(&self) -> Vec<String> {
        let memory = self.memory();
        let entries = memory.values().into_iter();
        entries.map(|entry| entry.sha256.clone()).collect()
    }

    /// What is kept in memory and on the disk. Bytes.
    pub(crate) fn sizes_bytes(&self) -> (u64, u64) {
        (self.memory().size(), self.disk.size_bytes())
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
        let turn = self.loading.queue_up(&reference.object_prefix);
        let _held = tokio::time::timeout(LOAD_WAIT, turn.lock.lock())
            .await
            .map_err(|_| AdapterError::StillLoading)?;
        match self.find(reference, base) {
            Some(adapter) => Ok(adapter),
            None => self.load(reference, base).await,
        }
    }

    /// The turn of a conversation that waits for its place to have its adapter's files brought here, in the order they came; it keeps
    /// the turn until it has its place.
    pub(crate) async fn turn_ahead(&self) -> SemaphorePermit<'_> {
        let turn = self.ahead.acquire().await;
        turn.expect("it is never closed — a bug in adapters")
    }

    /// Brings an adapter's files to the disk, where it is nowhere here yet. What fails is told to whoever then wants the adapter.
    pub(crate) async fn fetch_ahead(&self, reference: &AdapterRef, base: &Base) {
        let is_here =
            || self.find(reference, base).is_some() || self.disk.find(reference).is_some();
        if is_here() || !self.disk.takes(reference) {
            return;
        }
        let turn = self.loading.queue_up(&reference.object_prefix);
        let _held = turn.lock.lock().await;
        if is_here() {
            return;
        }
        match self.disk.fetch(reference, &self.objects).await {
            Ok(_) => self.disk.keep(reference),
            Err(error) => {
                tracing::debug!(prefix = reference.object_prefix, %error, "an adapter was not fetched ahead");
            }
        }
    }

    /// Reads an adapter from bytes and keeps it: how a fresh one gets here without the bucket.
    pub(crate) fn read(
        &self,
        reference: &AdapterRef,
        config_json: &str,
        weights: &[u8],
        base: &Base,
    ) -> Result<Arc<Adapter>, AdapterError> {
        let adapter = parsed(config_json, weights, &base.config)?;
        Ok(self.keep(reference, base, adapter))
    }

    async fn load(
        &self,
        reference: &AdapterRef,
        base: &Base,
    ) -> Result<Arc<Adapter>, AdapterError> {
        let began = Instant::now();
        let (adapter, from) = match self.on_disk(reference, base).await {
            Some(adapter) => (adapter, "disk"),
            None => (self.fetch(reference, base).await?, "bucket"),
        };
        metrics::histogram!("luthier_worker_adapter_load_seconds", "from" => from)
            .record(began.elapsed().as_secs_f64());
        Ok(self.keep(reference, base, adapter))
    }

    /// The adapter of a folder.
    async fn read_folder(&self, folder: PathBuf, base: &Base) -> Result<Adapter, AdapterError> {
        let read = move |model: &ModelConfig| {
            let config_json = std::fs::read_to_string(folder.join(CONFIG_FILE))?;
            let weights = File::open(folder.join(WEIGHTS_FILE))?;
            Adapter::from_peft_file(&config_json, &weights, model).map_err(unfit)
        };
        ready(base, self.for_cpu, read).await
    }

    /// From the files on this host. Damaged ones are deleted.
    async fn on_disk(&self, reference: &AdapterRef, base: &Base) -> Option<Adapter> {
        let folder = self.disk.find(reference)?;
        match self.read_folder(folder, base).await {
            Ok(adapter) => Some(adapter),
            Err(error) => {
                tracing::warn!(prefix = reference.object_prefix, %error, "an adapter's files on this host are damaged and fetched again");
                self.disk.forget(reference);
                None
            }
        }
    }

    /// From the bucket, by way of the disk; straight into memory where the disk cannot take it.
    async fn fetch(&self, reference: &AdapterRef, base: &Base) -> Result<Adapter, AdapterError> {
        let fetched = match self.disk.fetch(reference, &self.objects).await {
            Ok(folder) => self.read_folder(folder, base).await,
            Err(error) => Err(error.into()),
        };
        match fetched {
            Ok(adapter) => {
                self.disk.keep(reference);
                Ok(adapter)
            }
            // Or the bucket cannot be reached, and says so again.
            Err(
                AdapterError::Unreadable(_)
                | AdapterError::Objects(ObjectsError::Unavailable { .. }),
            ) => self.fetch_into_memory(reference, base).await,
            Err(error) => {
                self.disk.forget(reference);
                Err(error)
            }
        }
    }

    async fn fetch_into_memory(
        &self,
        reference: &AdapterRef,
        base: &Base,
    ) -> Result<Adapter, AdapterError> {
        let key = |file| format!("{}/{file}", reference.object_prefix);
        let config_json = self.objects.get_bytes(&key(CONFIG_FILE)).await?;
        let weights = self.objects.get_bytes(&key(WEIGHTS_FILE)).await?;
        let found = sha256_hex(&weights);
        if found != reference.sha256 {
            return Err(AdapterError::Damaged {
                expected: reference.sha256.clone(),
                found,
            });
        }
        let config_json = String::from_utf8_lossy(&config_json).into_owned();
        let read = move |model: &ModelConfig| parsed(&config_json, &weights, model);
        ready(base, self.for_cpu, read).await
    }

    fn keep(&self, reference: &AdapterRef, base: &Base, adapter: Adapter) -> Arc<Adapter> {
        let size_bytes = adapter.size_bytes(Precision::of_bf16_weights());
        let adapter = Arc::new(adapter);
        let entry = Entry {
            adapter: Arc::clone(&adapter),
            sha256: reference.sha256.clone(),
            base_sha256: base.model.sha256.clone(),
        };
        // What is in use lives on through its Arc; here it only stops being found. The rest is freed once nobody waits for us.
        let gone = self
            .memory()
            .insert(&reference.object_prefix, entry, size_bytes);
        drop(gone);
        adapter
    }

    fn find(&self, reference: &AdapterRef, base: &Base) -> Option<Arc<Adapter>> {
        let mut memory = self.memory();
        let entry = memory.touch(&reference.object_prefix)?;
        let is_same = entry.base_sha256 == base.model.sha256 && entry.sha256 == reference.sha256;
        is_same.then(|| Arc::clone(&entry.adapter))
    }

    fn memory(&self) -> MutexGuard<'_, Lru<Entry>> {
        self.memory
            .lock()
            .expect("no panic while locked — a bug in adapters")
    }
}

/// The requests that want an adapter which is not in memory, by its folder in the bucket: one of them loads it at a time.
#[derive(Default)]
struct Loading(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// A request's turn to load an adapter.
struct Turn<'a> {
    loading: &'a Loading,
    folder: &'a str,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Loading {
    fn queue_up<'a>(&'a self, folder: &'a str) -> Turn<'a> {
        Turn {
            loading: self,
            folder,
            lock: Arc::clone(self.queues().entry(folder.to_owned()).or_default()),
        }
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.0
            .lock()
            .expect("no panic while locked — a bug in adapters")
    }
}

/// Whoever leaves last, with an adapter, an error or out of patience, takes the queue along.
impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queues = self.loading.queues();
        // Ours and the map's. Nobody can join in between, as that takes the map.
        if Arc::strong_count(&self.lock) == 2 {
            queues.remove(self.folder);
        }
    }
}

/// The adapter that `read` gives for a model, `for_cpu` ready to multiply with there: on a thread of its own, as neither other
/// requests nor a step should wait.
async fn ready(
    base: &Base,
    for_cpu: bool,
    read: impl FnOnce(&ModelConfig) -> Result<Adapter, AdapterError> + Send + 'static,
) -> Result<Adapter, AdapterError> {
    let model = base.config.clone();
    let make = move || {
        let adapter = read(&model)?;
        // Most bases are bf16. An adapter of another one is made ready by its first step, as one is that a GPU leaves to the CPU.
        if for_cpu {
            adapter.prepare(Precision::of_bf16_weights())?;
        }
        Ok(adapter)
    };
    let made = tokio::task::spawn_blocking(make).await;
    made.expect("reading an adapter does not panic — a bug in the engine")
}

fn parsed(config_json: &str, weights: &[u8], model: &ModelConfig) -> Result<Adapter, AdapterError> {
    Adapter::from_peft(config_json, weights, model).map_err(unfit)
}

fn unfit(error: engine::lora::AdapterError) -> AdapterError {
    match error {
        engine::lora::AdapterError::Unreadable(error) => AdapterError::Unreadable(error),
        error => AdapterError::Unfit(error.to_string()),
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
    use super::*;

    #[tokio::test]
    async fn one_request_loads_at_a_time_whatever_became_of_those_before() {
        let loading = Loading::default();
        let (first, second) = (loading.queue_up("a"), loading.queue_up("a"));
        let turn = first.lock.lock().await;
        assert!(second.lock.try_lock().is_err());
        // It failed: nothing is in memory.
        drop(turn);
        drop(first);
        let turn = second.lock.lock().await;
        let newcomer = loading.queue_up("a");
        assert!(newcomer.lock.try_lock().is_err(), "a second load");
        assert!(loading.queue_up("b").lock.try_lock().is_ok());
        drop(turn);
        drop((second, newcomer));
        assert!(loading.queues().is_empty());
    }
}
