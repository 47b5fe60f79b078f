//! A checkpoint's objects: the trainer's state, the adapter as a PEFT folder, and last a manifest over them. What is
//! not named by a row afterwards is an orphan that the scheduler's sweep removes.

use std::time::Duration;

use bytes::Bytes;
use domain::adapter_file::{CONFIG_FILE, WEIGHTS_FILE};
use domain::checkpoint::StateRef;
use domain::message::Assignment;
use domain::model::AdapterRef;
use domain::object_key;
use domain::x_training::FrozenWeights;
use platform::objects::{ObjectsError, Stored};
use serde::Serialize;

use super::failure::Failure;
use crate::device::Snapshot;
use crate::worker::Worker;

/// Tries to put one object, with pauses of 1, 2, 4, 8 and 16 s between them.
const PUT_TRIES: u32 = 6;

/// Where in a training a checkpoint stands.
pub(super) struct At {
    pub step: u64,
    pub epoch: Option<u32>,
    /// What the adapter is trained on.
    pub frozen_weights: FrozenWeights,
}

/// A checkpoint whose objects are durable.
pub(super) struct Saved {
    pub step: u64,
    pub state: StateRef,
    pub adapter: AdapterRef,
    /// The very bytes in the bucket, so that serving starts without reading them back.
    pub adapter_config: String,
    pub adapter_weights: Bytes,
}

/// `manifest.json`: what belongs to a checkpoint, for whoever reads the bucket without the database.
#[derive(Serialize)]
struct Manifest<'a> {
    version: u32,
    job_id: &'a str,
    attempt: u32,
    step: u64,
    epoch: Option<u32>,
    base_model: &'a str,
    base_model_sha256: &'a str,
    files: [ManifestFile<'a>; 3],
}

#[derive(Serialize)]
struct ManifestFile<'a> {
    key: &'a str,
    size_bytes: u64,
    sha256: &'a str,
}

/// Puts everything under the attempt's own prefix. Safe to repeat: same keys, same bytes.
pub(super) async fn save(
    worker: &Worker,
    assignment: &Assignment,
    at: At,
    snapshot: Snapshot,
) -> Result<Saved, Failure> {
    let At {
        step,
        epoch,
        frozen_weights,
    } = at;
    let prefix = &assignment.object_prefix;
    let base = &assignment.base_model;
    let folder = object_key::checkpoint_adapter(prefix, step);
    let adapter_config = snapshot.adapter.config_json(&base.name);
    let adapter_weights = Bytes::from(snapshot.adapter.to_safetensors());
    let (config_key, weights_key) = (
        format!("{folder}/{CONFIG_FILE}"),
        format!("{folder}/{WEIGHTS_FILE}"),
    );
    let state_key = object_key::checkpoint_state(prefix, step);

    let state = put(worker, &state_key, snapshot.state.into()).await?;
    let weights = put(worker, &weights_key, adapter_weights.clone()).await?;
    let config = put(worker, &config_key, Bytes::from(adapter_config.clone())).await?;
    let manifest = Manifest {
        version: 1,
        job_id: assignment.job_id.as_str(),
        attempt: assignment.attempt,
        step,
        epoch,
        base_model: &base.name,
        base_model_sha256: &base.sha256,
        files: [
            file(&state_key, &state),
            file(&weights_key, &weights),
            file(&config_key, &config),
        ],
    };
    let manifest =
        serde_json::to_vec_pretty(&manifest).expect("a manifest is JSON — a bug in checkpoint");
    put(
        worker,
        &format!("{prefix}/step-{step}/manifest.json"),
        manifest.into(),
    )
    .await?;

    Ok(Saved {
        step,
        state: StateRef {
            object_key: state_key,
            sha256: state.sha256,
            size_bytes: state.size_bytes,
        },
        adapter: AdapterRef {
            object_prefix: folder,
            sha256: weights.sha256,
            size_bytes: weights.size_bytes,
            frozen_weights,
        },
        adapter_config,
        adapter_weights,
    })
}

fn file<'a>(key: &'a str, stored: &'a Stored) -> ManifestFile<'a> {
    ManifestFile {
        key,
        size_bytes: stored.size_bytes,
        sha256: &stored.sha256,
    }
}

async fn put(worker: &Worker, key: &str, bytes: Bytes) -> Result<Stored, ObjectsError> {
    let mut pause = Duration::from_secs(1);
    for _ in 1..PUT_TRIES {
        match worker.objects.put_bytes(key, bytes.clone()).await {
            Err(ObjectsError::Unavailable { reason, .. }) => {
                tracing::warn!(
                    key,
                    reason,
                    "the object store does not take a checkpoint, trying again"
                );
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return answer,
        }
    }
    worker.objects.put_bytes(key, bytes).await
}
