//! Base models on this host: which are installed, and their folders, fetched from the bucket and verified once. It
//! never holds weights; those are the device's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use domain::base_model::BaseModel;
use domain::x_training::FrozenWeights;
use engine::config::ModelConfig;
use engine::quant::Kind;
use engine::weights::{self, BaseWeights};
use platform::objects::{Objects, ObjectsError};
use text::chat_model::ChatModel;
use tokio::sync::OnceCell;

use crate::device::BaseFolder;

/// Written into a folder once every file in it was verified, so that the next start need not hash it again.
const VERIFIED: &str = ".verified";

/// Why a base model cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum BaseError {
    #[error("the model {0} is not installed")]
    NotInstalled(String),
    #[error("the base model {name} cannot be fetched: {reason}")]
    Unfetched { name: String, reason: String },
    #[error("the base model {name} cannot be read: {reason}")]
    Unreadable { name: String, reason: String },
}

/// A base model whose folder is here: all but its weights, ready for use.
pub(crate) struct Base {
    pub model: BaseModel,
    /// With weights as stored.
    pub folder: BaseFolder,
    is_stored_in_bf16: bool,
    pub config: ModelConfig,
    pub chat: ChatModel,
}

impl Base {
    /// Tokens of prompt and answer together: the smaller of what the registry and the model say.
    pub(crate) fn context_length(&self) -> usize {
        self.chat
            .context_length()
            .min(self.model.context_length as usize)
    }

    /// How its weights are held when `wanted` is asked for: bf16 weights that are stored as such are not held twice.
    pub(crate) fn held(&self, wanted: FrozenWeights) -> FrozenWeights {
        match wanted {
            FrozenWeights::Bf16 if self.is_stored_in_bf16 => FrozenWeights::Stored,
            other => other,
        }
    }

    /// Its folder, for weights held so.
    pub(crate) fn folder_as(&self, held: FrozenWeights) -> BaseFolder {
        BaseFolder {
            weights: match held {
                FrozenWeights::Stored => BaseWeights::AsStored,
                FrozenWeights::Bf16 => BaseWeights::Bf16,
                FrozenWeights::Int8 => BaseWeights::Quantized(Kind::Int8),
                FrozenWeights::Fp8 => BaseWeights::Quantized(Kind::Fp8),
                FrozenWeights::Nf4 => BaseWeights::Quantized(Kind::Nf4),
                FrozenWeights::Nf4DoubleQuant => BaseWeights::Quantized(Kind::Nf4DoubleQuant),
            },
            ..self.folder.clone()
        }
    }
}

type Slot = Arc<OnceCell<Arc<Base>>>;

/// Every base model this worker may be asked for.
pub(crate) struct BaseModels {
    objects: Objects,
    cache_dir: PathBuf,
    /// The names this worker serves; empty: all.
    wanted: Vec<String>,
    installed: RwLock<Vec<BaseModel>>,
    /// By the hash of the manifest.
    prepared: Mutex<HashMap<String, Slot>>,
}

impl BaseModels {
    pub(crate) fn new(objects: Objects, cache_dir: PathBuf, wanted: Vec<String>) -> Self {
        Self {
            objects,
            cache_dir,
            wanted,
            installed: RwLock::default(),
            prepared: Mutex::default(),
        }
    }

    /// Takes over what the door says is installed. Returns whether that changed nothing.
    pub(crate) fn set_installed(&self, mut models: Vec<BaseModel>) -> bool {
        models.retain(|model| self.wanted.is_empty() || self.wanted.contains(&model.name));
        let mut installed = self
            .installed
            .write()
            .expect("no panic while locked — a bug in base_models");
        let same = *installed == models;
        *installed = models;
        same
    }

    /// The names of the models this worker trains and serves, in the door's order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.installed()
            .iter()
            .map(|model| model.name.clone())
            .collect()
    }

    pub(crate) fn first(&self) -> Option<BaseModel> {
        self.installed().first().cloned()
    }

    /// The installed model `name`, ready for use.
    pub(crate) async fn find(&self, name: &str) -> Result<Arc<Base>, BaseError> {
        let model = self
            .installed()
            .into_iter()
            .find(|model| model.name == name);
        let model = model.ok_or_else(|| BaseError::NotInstalled(name.to_owned()))?;
        self.prepare(&model).await
    }

    /// `model`, ready for use: fetched and verified where that was not done yet; one fetch at a time.
    pub(crate) async fn prepare(&self, model: &BaseModel) -> Result<Arc<Base>, BaseError> {
        let slot = {
            let mut prepared = self
                .prepared
                .lock()
                .expect("no panic while locked — a bug in base_models");
            Arc::clone(prepared.entry(model.sha256.clone()).or_default())
        };
        slot.get_or_try_init(|| self.open(model)).await.cloned()
    }

    fn installed(&self) -> Vec<BaseModel> {
        self.installed
            .read()
            .expect("no panic while locked — a bug in base_models")
            .clone()
    }

    async fn open(&self, model: &BaseModel) -> Result<Arc<Base>, BaseError> {
        let dir = self
            .cache_dir
            .join("base-models")
            .join(&model.name)
            .join(&model.sha256);
        self.fetch(model, &dir)
            .await
            .map_err(|error| BaseError::Unfetched {
                name: model.name.clone(),
                reason: error.to_string(),
            })?;
        let model = model.clone();
        let read = tokio::task::spawn_blocking(move || Base::read(model, dir)).await;
        read.expect("reading a model's folder does not panic — a bug in text or engine")
            .map(Arc::new)
    }

    async fn fetch(&self, model: &BaseModel, dir: &Path) -> Result<(), ObjectsError> {
        let verified = dir.join(VERIFIED);
        if verified.exists()
            && model
                .files
                .iter()
                .all(|file| has_size(&dir.join(&file.name), file.size_bytes))
        {
            return Ok(());
        }
        for file in &model.files {
            if file.name.starts_with('.') || file.name.contains(['/', '\\']) {
                let reason = format!("{:?} is no file name", file.name);
                return Err(ObjectsError::Invalid { reason });
            }
            let key = format!("{}/{}", model.object_prefix, file.name);
            self.objects
                .fetch_file(&key, &dir.join(&file.name), Some(&file.sha256))
                .await?;
        }
        // Without the mark the next start verifies again: a lost mark costs time, not correctness.
        if let Err(error) = std::fs::write(&verified, &model.sha256) {
            tracing::warn!(%error, file = %verified.display(), "cannot mark a base model as verified");
        }
        Ok(())
    }
}

impl Base {
    fn read(model: BaseModel, dir: PathBuf) -> Result<Self, BaseError> {
        let unreadable = |reason: String| BaseError::Unreadable {
            name: model.name.clone(),
            reason,
        };
        let config = ModelConfig::from_dir(&dir).map_err(|error| unreadable(error.to_string()))?;
        let is_stored_in_bf16 = weights::is_stored_in_bf16(&dir);
        let is_stored_in_bf16 = is_stored_in_bf16.map_err(|error| unreadable(error.to_string()))?;
        let chat = ChatModel::load(&dir).map_err(|error| unreadable(error.to_string()))?;
        let folder = BaseFolder {
            sha256: model.sha256.clone(),
            dir,
            weights: BaseWeights::AsStored,
        };
        Ok(Self {
            model,
            folder,
            is_stored_in_bf16,
            config,
            chat,
        })
    }
}

fn has_size(path: &Path, size_bytes: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.len() == size_bytes)
}
