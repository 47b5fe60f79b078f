//! Installing a model: a folder is judged, its files go to the bucket, then the row makes it exist.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use domain::base_model::{BaseModel, ManifestFile};
use domain::object_key;
use engine::export::{MAX_SHARD_BYTES, Merged};
use engine::pool::Pool;
use sha2::{Digest, Sha256};

use crate::opened::{Opened, now};
use crate::progress;

/// A directory for half-done work that disappears with the value.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(data_dir: &Path) -> Result<Self> {
        let unique: u64 = rand::random();
        let path = data_dir.join("tmp").join(format!("model-{unique:016x}"));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), error = %e, "a scratch directory stays behind");
        }
    }
}

/// Makes a folder in Hugging Face's layout around a GGUF file, which stays as it is: its configuration, tokenizer and chat
/// template beside it.
pub async fn folder_around(gguf: &Path, folder: &Path) -> Result<()> {
    let (gguf, folder) = (gguf.to_owned(), folder.to_owned());
    let done = tokio::task::spawn_blocking(move || -> Result<()> {
        engine::gguf::as_folder(&gguf, &folder).context("cannot use its weights")?;
        text::gguf::write_tokenizer(&gguf, &folder).context("cannot build the tokenizer")?;
        Ok(())
    });
    done.await?
}

/// Writes the folder of a GGUF file out in bf16, for a model whose own weights are such.
pub async fn in_bf16(folder: &Path, out: &Path) -> Result<()> {
    let spinner = progress::spinner("converting the weights");
    let (folder, out) = (folder.to_owned(), out.to_owned());
    let done = tokio::task::spawn_blocking(move || -> Result<()> {
        Merged::new(&folder, None, MAX_SHARD_BYTES)?.write_all(&out)?;
        Ok(())
    });
    let outcome = done.await?;
    spinner.finish_and_clear();
    outcome.context("cannot convert the weights")
}

/// Puts a model folder into the bucket and makes its row. Judged first: the architecture, every weight's name and
/// shape, the tokenizer, and that the chat template renders; so that no job finds out later.
pub async fn install(opened: &Opened, name: &str, folder: &Path) -> Result<BaseModel> {
    let judged = judge(folder)
        .await
        .with_context(|| format!("{} cannot be used as a model", folder.display()))?;
    let files = manifest(folder).await?;
    let sha256 = manifest_sha256(&files);
    let object_prefix = object_key::base_model(name, &sha256);
    for file in &files {
        let bar = progress::bytes(&format!("storing {}", file.name), Some(file.size_bytes));
        let source = tokio::fs::File::open(folder.join(&file.name)).await?;
        let stored = opened
            .objects
            .put(
                &format!("{object_prefix}/{}", file.name),
                bar.watch(tokio_util::io::ReaderStream::new(source)),
            )
            .await?;
        bar.finish_and_clear();
        if stored.sha256 != file.sha256 {
            bail!(
                "{} changed while it was being stored; nothing was installed",
                file.name
            );
        }
    }
    let model = BaseModel {
        name: name.to_owned(),
        sha256,
        object_prefix,
        files,
        architecture: judged.architecture,
        hidden_size: judged.hidden_size,
        n_parameters: judged.n_parameters,
        context_length: judged.context_length,
        created_at: now(),
    };
    opened.store.base_models().upsert(&model).await?;
    Ok(model)
}

struct Judged {
    architecture: String,
    hidden_size: u32,
    n_parameters: u64,
    context_length: u32,
}

async fn judge(folder: &Path) -> Result<Judged> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || {
        let config = engine::config::ModelConfig::from_dir(&folder)?;
        // The loader is the judge: a model that a worker could not load is not installed.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let n_parameters =
            engine::weights::BaseModel::load(&folder, &Pool::new(threads))?.n_parameters();
        let chat = text::chat_model::ChatModel::load(&folder)?;
        chat.prompt(&[greeting()], None)
            .context("its chat template does not render a plain message")?;
        Ok(Judged {
            architecture: config.architecture.name().to_owned(),
            hidden_size: u32::try_from(config.hidden_size)?,
            n_parameters,
            context_length: u32::try_from(chat.context_length())?,
        })
    })
    .await?
}

fn greeting() -> domain::generation::ChatMessage {
    domain::generation::ChatMessage {
        role: domain::generation::Role::User,
        content: Some("Hello.".to_owned()),
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
    }
}

/// Every plain file of the folder that serves a model, in the order of names.
async fn manifest(folder: &Path) -> Result<Vec<ManifestFile>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && is_model_file(&name) {
            names.push(name);
        }
    }
    names.sort();
    let mut files = Vec::new();
    for name in names {
        let path = folder.join(&name);
        let size_bytes = std::fs::metadata(&path)?.len();
        files.push(ManifestFile {
            sha256: sha256_of(&path).await?,
            size_bytes,
            name,
        });
    }
    Ok(files)
}

fn is_model_file(name: &str) -> bool {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    let kind = [".json", ".safetensors", ".jinja"]
        .iter()
        .any(|end| name.ends_with(end))
        || ["LICENSE", "model.gguf"].contains(&name);
    plain && kind && !name.starts_with('.')
}

/// One hash for the whole folder: over `name`, size and hash of every file.
fn manifest_sha256(files: &[ManifestFile]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(format!(
            "{}\n{}\n{}\n",
            file.name, file.size_bytes, file.sha256
        ));
    }
    hex(&hash.finalize())
}

/// Hex SHA-256 of a file.
pub async fn sha256_of(path: &Path) -> Result<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut hash = Sha256::new();
        let mut file = std::fs::File::open(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = std::io::Read::read(&mut file, &mut buffer)?;
            if n == 0 {
                return Ok(hex(&hash.finalize()));
            }
            hash.update(&buffer[..n]);
        }
    })
    .await?
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
