//! The object store: bytes under keys, in an S3 bucket or in a directory. It owns how bytes get
//! there whole and come back unharmed; it must never know what they mean.

use std::io;
use std::path::Path;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};

use crate::beside::Beside;
use crate::config::ObjectsConfig;
use crate::objects_dir::DirObjects;
use crate::objects_s3::S3Objects;

/// S3's limit. Bytes.
const MAX_KEY_BYTES: usize = 1024;
/// Room for a suffix below the 255 bytes that file systems allow. Bytes.
const MAX_KEY_PART_BYTES: usize = 240;

/// The content of an object, in order; an error ends it.
pub type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// An open object store; clones share it.
#[derive(Clone, Debug)]
pub struct Objects {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    S3(S3Objects),
    Dir(DirObjects),
}

/// What `put` wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub size_bytes: u64,
    /// Lower-case hexadecimal, of the whole content.
    pub sha256: String,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    pub key: String,
    pub size_bytes: u64,
    /// When the object was last written, by the store's clock. Unix seconds.
    pub modified_at: i64,
}

/// Why an object operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    #[error("object {key} does not exist")]
    NotFound { key: String },

    /// The store cannot be reached or refuses us; the same call may work later.
    #[error("object store unavailable during {operation}: {reason}")]
    Unavailable {
        operation: &'static str,
        reason: String,
    },

    /// What came back is not what was stored.
    #[error("object {key} is corrupt: {reason}")]
    Corrupt { key: String, reason: String },

    /// The caller asked for what cannot be.
    #[error("invalid object request: {reason}")]
    Invalid { reason: String },

    /// The body given to `put` ended with an error; nothing was stored.
    #[error("the body could not be read: {0}")]
    Body(io::Error),
}

impl Objects {
    /// Opens the store at `config.url`: `s3://bucket/prefix` or `file:///directory`. The directory
    /// is created; a bucket is not, and is not contacted (see [`Objects::check`]).
    pub fn open(config: &ObjectsConfig) -> Result<Self, ObjectsError> {
        let backend = if let Some(path) = config.url.strip_prefix("file://") {
            Backend::Dir(DirObjects::open(Path::new(path))?)
        } else if let Some(place) = config.url.strip_prefix("s3://") {
            Backend::S3(S3Objects::open(place, config)?)
        } else {
            let reason = format!("objects.url {:?} is neither s3:// nor file://", config.url);
            return Err(ObjectsError::Invalid { reason });
        };
        Ok(Self { backend })
    }

    /// Answers whether the store can be reached and used; for readiness.
    pub async fn check(&self) -> Result<(), ObjectsError> {
        match &self.backend {
            Backend::S3(s3) => s3.check().await,
            Backend::Dir(dir) => dir.check().await,
        }
    }

    /// Stores `body` under `key`, with constant memory. The object is visible only when complete;
    /// if the body fails, or the future is dropped, nothing is. An object that exists is replaced.
    /// Errors: `Body` where the body failed, `Unavailable`, `Invalid`.
    pub async fn put(
        &self,
        key: &str,
        body: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<Stored, ObjectsError> {
        check_key(key)?;
        let hashing = Beside::start(|chunks| {
            let mut hashing = Hashing::default();
            chunks.for_each(|chunk| hashing.update(&chunk));
            hashing.finish()
        });
        {
            let body = std::pin::pin!(body.then(async |chunk| {
                if let Ok(chunk) = &chunk {
                    hashing.take(chunk.clone()).await;
                }
                chunk
            }));
            match &self.backend {
                Backend::S3(s3) => s3.put(key, body).await?,
                Backend::Dir(dir) => dir.put(key, body).await?,
            }
        }
        let hashed = hashing.finish().await;
        hashed.map_err(|error| ObjectsError::Unavailable {
            operation: "put",
            reason: error.to_string(),
        })
    }

    /// As [`Objects::put`], for content that is in memory already.
    pub async fn put_bytes(&self, key: &str, body: Bytes) -> Result<Stored, ObjectsError> {
        self.put(key, futures::stream::iter([Ok(body)])).await
    }

    /// The content of `key`. Errors: `NotFound`, `Unavailable`.
    pub async fn get(&self, key: &str) -> Result<ByteStream, ObjectsError> {
        check_key(key)?;
        match &self.backend {
            Backend::S3(s3) => s3.get(key, None).await,
            Backend::Dir(dir) => dir.get(key, None).await,
        }
    }

    /// Bytes `start..end` of `key`, `end` excluded and cut to the object's size.
    /// Errors: as `get`; `Invalid` where the range is empty or starts at or beyond the end.
    pub async fn get_range(
        &self,
        key: &str,
        start: u64,
        end: u64,
    ) -> Result<ByteStream, ObjectsError> {
        check_key(key)?;
        if start >= end {
            return Err(ObjectsError::Invalid {
                reason: format!("empty range {start}..{end}"),
            });
        }
        match &self.backend {
            Backend::S3(s3) => s3.get(key, Some((start, end))).await,
            Backend::Dir(dir) => dir.get(key, Some((start, end))).await,
        }
    }

    /// The whole content of `key` in memory; for manifests and other small objects.
    pub async fn get_bytes(&self, key: &str) -> Result<Bytes, ObjectsError> {
        let mut body = self.get(key).await?;
        let mut content = BytesMut::new();
        while let Some(chunk) = body.next().await {
            content.extend_from_slice(&chunk.map_err(|error| broken_read(&error))?);
        }
        Ok(content.freeze())
    }

    /// The size of `key` in bytes, or `None` where there is no such object.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, ObjectsError> {
        check_key(key)?;
        match &self.backend {
            Backend::S3(s3) => s3.size(key).await,
            Backend::Dir(dir) => dir.size(key).await,
        }
    }

    /// Deletes `key`; an object that does not exist is deleted already.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectsError> {
        check_key(key)?;
        match &self.backend {
            Backend::S3(s3) => s3.delete(key).await,
            Backend::Dir(dir) => dir.delete(key).await,
        }
    }

    /// Every object whose key starts with `prefix`, in the order of their keys.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectsError> {
        if !prefix.is_empty() {
            check_key(prefix.strip_suffix('/').unwrap_or(prefix))?;
        }
        match &self.backend {
            Backend::S3(s3) => s3.list(prefix).await,
            Backend::Dir(dir) => dir.list(prefix).await,
        }
    }

    /// Brings `key` to the local file `dest`, which appears complete or not at all and replaces
    /// what was there. With `sha256` (hexadecimal) the content is verified first. From a directory
    /// store the file may be a hard link to the object, so it must never be written to.
    /// Errors: `NotFound`, `Unavailable` (also where the local disk fails), `Corrupt`.
    pub async fn fetch_file(
        &self,
        key: &str,
        dest: &Path,
        sha256: Option<&str>,
    ) -> Result<(), ObjectsError> {
        check_key(key)?;
        if let Backend::Dir(dir) = &self.backend
            && dir.link_file(key, dest, sha256).await?
        {
            return Ok(());
        }
        let body = self.get(key).await?;
        fetch::write_file(key, body, dest, sha256).await
    }
}

/// The SHA-256 and the size of what passes by.
#[derive(Default)]
pub(crate) struct Hashing {
    hasher: Sha256,
    size_bytes: u64,
}

impl Hashing {
    pub(crate) fn update(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        self.size_bytes += chunk.len() as u64;
    }

    pub(crate) fn finish(self) -> Stored {
        let sha256 = self
            .hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Stored {
            size_bytes: self.size_bytes,
            sha256,
        }
    }
}

/// Keys are plain relative paths, so that one key means the same object in every store.
fn check_key(key: &str) -> Result<(), ObjectsError> {
    let invalid = |why: &str| {
        Err(ObjectsError::Invalid {
            reason: format!("object key {key:?} {why}"),
        })
    };
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return invalid("must have 1 to 1024 bytes");
    }
    if key.contains('\\') || key.contains(|c: char| c.is_control()) {
        return invalid("contains a backslash or a control character");
    }
    for part in key.split('/') {
        match part {
            "" => return invalid("has an empty part"),
            // Hidden names are the directory store's own.
            _ if part.starts_with('.') => return invalid("has a part that starts with a dot"),
            _ if part.len() > MAX_KEY_PART_BYTES => {
                return invalid("has a part of more than 240 bytes");
            }
            _ => {}
        }
    }
    Ok(())
}

fn broken_read(error: &io::Error) -> ObjectsError {
    ObjectsError::Unavailable {
        operation: "get",
        reason: error.to_string(),
    }
}

pub(crate) mod fetch {
    //! Local files that appear whole: a temporary file beside the destination, then a rename.

    use std::path::PathBuf;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Writes `body` to `dest`. Errors: `Corrupt` where the hash differs, else `Unavailable`.
    pub(super) async fn write_file(
        key: &str,
        mut body: ByteStream,
        dest: &Path,
        sha256: Option<&str>,
    ) -> Result<(), ObjectsError> {
        let temporary = Temporary::beside(dest)
            .await
            .map_err(|error| local(dest, &error))?;
        let mut hashing = Hashing::default();
        let mut file = tokio::fs::File::create(&temporary.0)
            .await
            .map_err(|error| local(dest, &error))?;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| broken_read(&error))?;
            hashing.update(&chunk);
            file.write_all(&chunk)
                .await
                .map_err(|error| local(dest, &error))?;
        }
        check_hash(key, sha256, &hashing.finish())?;
        file.sync_all().await.map_err(|error| local(dest, &error))?;
        temporary
            .rename(dest)
            .await
            .map_err(|error| local(dest, &error))
    }

    pub(crate) fn check_hash(
        key: &str,
        expected: Option<&str>,
        found: &Stored,
    ) -> Result<(), ObjectsError> {
        match expected {
            Some(expected) if !expected.eq_ignore_ascii_case(&found.sha256) => {
                let reason = format!("its SHA-256 is {}, not {expected}", found.sha256);
                Err(ObjectsError::Corrupt {
                    key: key.to_owned(),
                    reason,
                })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn local(path: &Path, error: &io::Error) -> ObjectsError {
        let reason = format!("local file {}: {error}", path.display());
        ObjectsError::Unavailable {
            operation: "fetch",
            reason,
        }
    }

    /// A file with a name of its own, removed on drop unless it was renamed.
    pub(crate) struct Temporary(pub(crate) PathBuf);

    impl Temporary {
        /// A name beside `dest`, whose directory is created.
        pub(crate) async fn beside(dest: &Path) -> io::Result<Self> {
            let parent = dest.parent().unwrap_or(Path::new("."));
            tokio::fs::create_dir_all(parent).await?;
            Ok(Self(parent.join(Self::name())))
        }

        /// A hidden name that no other call uses.
        pub(crate) fn name() -> String {
            format!(".tmp-{:032x}", rand::random::<u128>())
        }

        /// Moves the file to `dest` and makes the new name durable.
        pub(crate) async fn rename(self, dest: &Path) -> io::Result<()> {
            tokio::fs::rename(&self.0, dest).await?;
            sync_dir(dest.parent().unwrap_or(Path::new("."))).await
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            // After a rename there is nothing to remove; after a failure, trying is all one can do.
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Makes the names in `dir` survive a power cut.
    pub(crate) async fn sync_dir(dir: &Path) -> io::Result<()> {
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        tokio::fs::File::open(dir).await?.sync_all().await
    }
}
