//! How the base models read text: their tokenizers and chat templates, without their weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::base_model::{BaseModel, ManifestFile};
use platform::objects::{Objects, ObjectsError};
use text::chat_model::ChatModel;
use tokio::sync::Mutex;

/// Loaded tokenizers kept: some 50 MB each, and few bases are in use at a time.
const KEPT: usize = 4;
/// Weights; never needed here.
const WEIGHTS_SUFFIX: &str = ".safetensors";

/// Why a base model's text side cannot be had. None of it is the client's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaseTextError {
    #[error("{0}")]
    Objects(#[from] ObjectsError),
    #[error("base model {name}: file name {file:?} leaves the model's folder")]
    FileName { name: String, file: String },
    #[error("base model {name} does not load: {reason}")]
    Load { name: String, reason: String },
}

/// Loads and keeps what validation needs of the base models; a local copy stays on disk.
pub(crate) struct BaseTexts {
    objects: Objects,
    cache_dir: PathBuf,
    /// By hash, the last used one last. The lock is held while one loads, so that none loads twice.
    loaded: Mutex<Vec<(String, Arc<ChatModel>)>>,
}

impl BaseTexts {
    pub fn new(objects: Objects, cache_dir: PathBuf) -> Self {
        Self {
            objects,
            cache_dir,
            loaded: Mutex::new(Vec::new()),
        }
    }

    pub async fn get(&self, base: &BaseModel) -> Result<Arc<ChatModel>, BaseTextError> {
        let mut loaded = self.loaded.lock().await;
        if let Some(place) = loaded.iter().position(|(sha256, _)| *sha256 == base.sha256) {
            let found = loaded.remove(place);
            let model = found.1.clone();
            loaded.push(found);
            return Ok(model);
        }
        let model = Arc::new(self.load(base).await?);
        if loaded.len() >= KEPT {
            loaded.remove(0);
        }
        loaded.push((base.sha256.clone(), model.clone()));
        Ok(model)
    }

    async fn load(&self, base: &BaseModel) -> Result<ChatModel, BaseTextError> {
        let dir = self
            .cache_dir
            .join("base-models")
            .join(&base.name)
            .join(&base.sha256);
        for file in base
            .files
            .iter()
            .filter(|file| !file.name.ends_with(WEIGHTS_SUFFIX))
        {
            self.fetch(base, file, &dir).await?;
        }
        let failed = |reason: String| BaseTextError::Load {
            name: base.name.clone(),
            reason,
        };
        let loading = tokio::task::spawn_blocking(move || ChatModel::load(&dir));
        let model = loading.await.map_err(|error| failed(error.to_string()))?;
        model.map_err(|error| failed(error.to_string()))
    }

    async fn fetch(
        &self,
        base: &BaseModel,
        file: &ManifestFile,
        dir: &Path,
    ) -> Result<(), BaseTextError> {
        if Path::new(&file.name).file_name() != Some(file.name.as_ref()) {
            let (name, file) = (base.name.clone(), file.name.clone());
            return Err(BaseTextError::FileName { name, file });
        }
        let dest = dir.join(&file.name);
        // Files appear complete and verified or not at all, so the size tells enough.
        let there = tokio::fs::metadata(&dest)
            .await
            .is_ok_and(|meta| meta.len() == file.size_bytes);
        if there {
            return Ok(());
        }
        let key = format!("{}/{}", base.object_prefix, file.name);
        Ok(self
            .objects
            .fetch_file(&key, &dest, Some(&file.sha256))
            .await?)
    }
}
