//! A tuned model as a PEFT folder in one zip, streamed from the bucket.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;

use bytes::Bytes;
use domain::model::TunedModel;
use domain::project::Project;
use futures::{Stream, StreamExt};
use platform::objects::ByteStream;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::models::find_tuned;
use super::objects_error;
use crate::error::ApiError;
use crate::state::State;

/// Pieces that wait for a slow client: at most so many chunks are in memory.
const CHUNKS_AHEAD: usize = 4;
/// Size of a piece. Bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// From this size on an entry needs zip64. Bytes.
const ZIP64_FROM: u64 = 0xffff_ffff;

/// A file name and its bytes.
pub struct Archive {
    pub filename: String,
    /// Of the whole archive, so that a client sees when it is cut off. `None` when zip64 makes it hard to foretell.
    pub size_bytes: Option<u64>,
    pub bytes: ByteStream,
}

/// `adapter_config.json`, `adapter_model.safetensors` and `README.md`. Errors: 404; 400 for a base model.
pub async fn peft(state: &State, project: &Project, name: &str) -> Result<Archive, ApiError> {
    let Some(model) = find_tuned(state, project, name).await? else {
        super::models::get(state, project, name).await?;
        let message = "A base model has no adapter: only tuned models can be exported.";
        return Err(ApiError::unsupported("model", message));
    };
    let prefix = &model.adapter.object_prefix;
    let config = state
        .objects
        .get_bytes(&format!("{prefix}/adapter_config.json"))
        .await
        .map_err(objects_error)?;
    let weights = state
        .objects
        .get(&format!("{prefix}/adapter_model.safetensors"))
        .await
        .map_err(objects_error)?;
    Ok(Archive {
        filename: format!("{}.zip", name.replace(':', "-")),
        size_bytes: archive_size(&model, &config),
        bytes: zipped(model, config, weights).boxed(),
    })
}

/// Zips on a thread of its own, as fast as the client reads. A failure cuts the archive off before its end, so that
/// the client never holds a whole zip with wrong content.
fn zipped(
    model: TunedModel,
    config: Bytes,
    mut weights: ByteStream,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let is_broken = Rc::new(Cell::new(false));
        let mut out = Sender {
            pending: Vec::with_capacity(CHUNK_BYTES),
            sender: sender.clone(),
            is_broken: is_broken.clone(),
        };
        let written = archive(&mut out, &model, &config, |entry| {
            let copied = copy_weights(entry, &model, || runtime.block_on(weights.next()));
            is_broken.set(copied.is_err());
            copied
        });
        if let Err(error) = written.and_then(|()| out.flush()) {
            tracing::warn!(model = model.name, %error, "an export broke off");
            // The client may be gone already.
            let _ = sender.blocking_send(Err(error));
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    })
}

/// The archive's size is that of one without weights, and the weights. Bytes; `None` from zip64 on.
fn archive_size(model: &TunedModel, config: &[u8]) -> Option<u64> {
    if is_large(model) {
        return None;
    }
    let mut frame = Vec::new();
    archive(&mut frame, model, config, |_entry| Ok(())).ok()?;
    Some(frame.len() as u64 + model.adapter.size_bytes)
}

fn is_large(model: &TunedModel) -> bool {
    model.adapter.size_bytes >= ZIP64_FROM
}

fn archive(
    out: &mut impl Write,
    model: &TunedModel,
    config: &[u8],
    weights: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut zip = ZipWriter::new_stream(out);
    // Weights hardly compress.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("adapter_config.json", options)?;
    zip.write_all(config)?;
    zip.start_file("README.md", options)?;
    zip.write_all(readme(model).as_bytes())?;
    zip.start_file(
        "adapter_model.safetensors",
        options.large_file(is_large(model)),
    )?;
    weights(&mut zip)?;
    zip.finish()?;
    Ok(())
}

/// Errors: the object is not the one the model names.
fn copy_weights(
    out: &mut dyn Write,
    model: &TunedModel,
    mut next: impl FnMut() -> Option<io::Result<Bytes>>,
) -> io::Result<()> {
    let (mut hash, mut n) = (Sha256::new(), 0);
    let damaged = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    while let Some(chunk) = next() {
        let chunk = chunk?;
        n += chunk.len() as u64;
        if n > model.adapter.size_bytes {
            return damaged(format!(
                "the stored adapter is longer than {} bytes",
                model.adapter.size_bytes
            ));
        }
        hash.update(&chunk);
        out.write_all(&chunk)?;
    }
    let sha256: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if sha256 != model.adapter.sha256 {
        return damaged(format!(
            "the stored adapter has the hash {sha256}, not {}",
            model.adapter.sha256
        ));
    }
    Ok(())
}

/// The end of a channel as a writer.
struct Sender {
    pending: Vec<u8>,
    sender: mpsc::Sender<io::Result<Bytes>>,
    /// Set when the archive must not be finished: the zip writer would do so when it is dropped.
    is_broken: Rc<Cell<bool>>,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_broken.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK_BYTES));
        let sent = self.sender.blocking_send(Ok(chunk.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn readme(model: &TunedModel) -> String {
    let origin = model.job_id.as_ref().map_or(String::new(), |job| {
        format!(", trained by the fine-tuning job `{job}`")
    });
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: text-generation\n---\n\n# {name}\n\nA LoRA adapter \
         for `{base}`{origin}.\n\n```python\nfrom peft import PeftModel\nfrom \
         transformers import AutoModelForCausalLM\n\nbase = AutoModelForCausalLM.from_pretrained(\"{base}\")  # or the \
         folder that holds it\nmodel = PeftModel.from_pretrained(base, \".\")  # this folder\n```\n",
        base = model.base_model,
        name = model.name,
    )
}
