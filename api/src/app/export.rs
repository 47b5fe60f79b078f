//! A tuned model to take away: its adapter as a PEFT folder, streamed from the bucket, or the whole model as one, streamed
//! from a worker, which has the base's weights.

use std::io::{self, Write};

use bytes::Bytes;
use domain::message::{ExportFormat, ExportRequest};
use domain::model::{ServedModel, TunedModel};
use domain::project::Project;
use futures::StreamExt;
use platform::archive::{self, Archive, Entry};
use platform::objects::ByteStream;
use sha2::{Digest, Sha256};

use super::models::{check_allowed, find_tuned};
use super::{objects_error, workers};
use crate::error::{ApiError, Kind};
use crate::state::State;

/// `adapter_config.json`, `adapter_model.safetensors` and `README.md` in a zip. Errors: 404; 400 for a base model.
pub async fn peft(state: &State, project: &Project, name: &str) -> Result<Archive, ApiError> {
    let model = tuned(state, project, name).await?;
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
    Ok(archive::zip(vec![
        Entry::of_bytes("adapter_config.json", config),
        Entry::of_bytes("README.md", readme(&model)),
        weights_entry(model, weights),
    ]))
}

/// The base with the adapter in its weights. Errors: as [`peft`]; 400 where the format cannot hold the model; 503 where
/// no worker can make it.
pub async fn whole(
    state: &State,
    project: &Project,
    name: &str,
    format: ExportFormat,
) -> Result<Archive, ApiError> {
    let model = tuned(state, project, name).await?;
    let request = ExportRequest {
        model: ServedModel {
            base_model: model.base_model,
            adapter: Some(model.adapter),
        },
        name: model.name,
        format,
    };
    workers::export(state, &request).await
}

/// Errors: 404; 400 for a base model; 403 for a model of another project that may be used here.
async fn tuned(state: &State, project: &Project, name: &str) -> Result<TunedModel, ApiError> {
    match find_tuned(state, project, name).await? {
        Some(model) if model.project_id == project.id => {
            check_allowed(project, name)?;
            return Ok(model);
        }
        Some(_) => {
            let message = "The model belongs to another project: it can be used here, but only its own project exports it.";
            return Err(ApiError::new(Kind::Forbidden, message));
        }
        None => {}
    }
    super::models::get(state, project, name).await?;
    let message = "A base model has no adapter: only tuned models can be exported.";
    Err(ApiError::unsupported("model", message))
}

/// Pulls the weights from the bucket as fast as the client reads.
fn weights_entry(model: TunedModel, mut weights: ByteStream) -> Entry {
    let runtime = tokio::runtime::Handle::current();
    Entry {
        name: "adapter_model.safetensors".to_owned(),
        size_bytes: model.adapter.size_bytes,
        content: Box::new(move |out| {
            copy_weights(out, &model, || runtime.block_on(weights.next()))
        }),
    }
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
