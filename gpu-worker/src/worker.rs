//! What every part of a worker shares: who it is, what it holds, and whom it talks to.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::id::{JobId, WorkerId};
use domain::worker::WorkerStatus;
use platform::objects::Objects;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::adapters::Adapters;
use crate::base_models::BaseModels;
use crate::device::Device;
use crate::door_client::DoorClient;
use crate::generate::{Grammars, Places};
use crate::heart::Heart;

/// A worker. Nothing here changes after the start but what the parts own themselves.
pub(crate) struct Worker {
    pub id: WorkerId,
    /// How the API reaches us.
    pub address: String,
    pub beat_interval: Duration,
    pub checkpoint_interval: Duration,
    /// Where an attempt keeps files while it runs.
    pub work_dir: PathBuf,
    pub objects: Objects,
    pub door: DoorClient,
    pub device: Device,
    pub bases: BaseModels,
    pub adapters: Adapters,
    pub grammars: Grammars,
    pub places: Places,
    /// A place for each export that may run.
    pub exports: Arc<Semaphore>,
    /// Set when the process is asked to end: nothing new is begun.
    pub draining: CancellationToken,
    /// The attempt that runs now.
    pub current: Mutex<Option<(JobId, Arc<Heart>)>>,
}

impl Worker {
    /// What we say of ourselves.
    pub(crate) fn status(&self) -> WorkerStatus {
        WorkerStatus {
            worker_id: self.id.clone(),
            address: self.address.clone(),
            base_models: self.bases.names(),
            adapters: self.adapters.list(),
            n_live: self.device.n_live() + self.places.n_waiting(),
            max_live: u32::try_from(self.device.limits.max_sequences).unwrap_or(u32::MAX),
            device: self.device.name.clone(),
        }
    }

    /// Something about `job` changed: if it runs here, it beats at once.
    pub(crate) fn wake(&self, job: &JobId) {
        let current = self
            .current
            .lock()
            .expect("no panic while locked — a bug in worker");
        if let Some((_, heart)) = current.as_ref().filter(|(id, _)| id == job) {
            heart.wake();
        }
    }
}
