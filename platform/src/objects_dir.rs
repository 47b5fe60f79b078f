//! Objects as files below one directory: the key is the path. A write goes to a hidden file in
//! `.tmp` of the same file system, is synced, renamed and its directory synced.

use std::io::{self, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::beside::Beside;
use crate::objects::fetch::{self, Temporary, sync_dir};
use crate::objects::{ByteStream, Hashing, ObjectMeta, ObjectsError};

/// One hop to the blocking pool moves this much. Bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// A directory that holds objects.
#[derive(Clone, Debug)]
pub(crate) struct DirObjects {
    root: PathBuf,
}

/// Small chunks are gathered, large ones are written as they came.
fn write(
    file: std::fs::File,
    chunks: &mut dyn Iterator<Item = Bytes>,
) -> io::Result<std::fs::File> {
    let mut writer = io::BufWriter::with_capacity(BUFFER_BYTES / 16, file);
    for chunk in chunks {
        writer.write_all(&chunk)?;
    }
    Ok(writer.into_inner()?)
}

impl DirObjects {
    pub(crate) fn open(root: &Path) -> Result<Self, ObjectsError> {
        if !root.is_absolute() {
            let reason = format!(
                "{} is not an absolute directory (file:///…)",
                root.display()
            );
            return Err(ObjectsError::Invalid { reason });
        }
        let objects = Self {
            root: root.to_owned(),
        };
        std::fs::create_dir_all(objects.temporary_dir()).map_err(|e| failed("open", &e))?;
        Ok(objects)
    }

    fn temporary_dir(&self) -> PathBuf {
        self.root.join(".tmp")
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    pub(crate) async fn check(&self) -> Result<(), ObjectsError> {
        let probe = Temporary(self.temporary_dir().join(Temporary::name()));
        fs::write(&probe.0, b"")
            .await
            .map_err(|e| failed("check", &e))
    }

    pub(crate) async fn put(
        &self,
        key: &str,
        mut body: Pin<&mut (impl Stream<Item = io::Result<Bytes>> + Send)>,
    ) -> Result<(), ObjectsError> {
        let write_error = |error: io::Error| failed("put", &error);
        let temporary = Temporary(self.temporary_dir().join(Temporary::name()));
        let file = fs::File::create(&temporary.0).await.map_err(write_error)?;
        let file = file.into_std().await;
        let writing = Beside::start(move |chunks| write(file, chunks));
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(ObjectsError::Body)?;
            if !writing.take(chunk).await {
                // It failed, and says how.
                break;
            }
        }
        let written = writing.finish().await.map_err(io::Error::other);
        let file = written.flatten().map_err(write_error)?;
        fs::File::from_std(file)
            .sync_all()
            .await
            .map_err(write_error)?;
        let path = self.path(key);
        self.make_parents(key).await?;
        temporary
            .rename(&path)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::IsADirectory => taken(key),
                _ => failed("put", &error),
            })
    }

    /// Creates the directories of `key`, each made durable in its parent.
    async fn make_parents(&self, key: &str) -> Result<(), ObjectsError> {
        let mut dir = self.root.clone();
        let parts: Vec<&str> = key.split('/').collect();
        for part in &parts[..parts.len() - 1] {
            let child = dir.join(part);
            match fs::create_dir(&child).await {
                Ok(()) => sync_dir(&dir).await.map_err(|e| failed("put", &e))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    return Err(taken(key));
                }
                Err(error) => return Err(failed("put", &error)),
            }
            dir = child;
        }
        if parts.len() > 1 && !dir.is_dir() {
            Err(taken(key))
        } else {
            Ok(())
        }
    }

    pub(crate) async fn get(
        &self,
        key: &str,
        range: Option<(u64, u64)>,
    ) -> Result<ByteStream, ObjectsError> {
        let read_error = |error: io::Error| missing_or_failed(key, "get", &error);
        let mut file = fs::File::open(self.path(key)).await.map_err(read_error)?;
        let metadata = file.metadata().await.map_err(read_error)?;
        if metadata.is_dir() {
            return Err(ObjectsError::NotFound {
                key: key.to_owned(),
            });
        }
        let size = metadata.len();
        let (start, end) = range.unwrap_or((0, size));
        if range.is_some() && start >= size {
            let reason = format!("range of {key} starts at {start}, beyond its {size} bytes");
            return Err(ObjectsError::Invalid { reason });
        }
        file.seek(SeekFrom::Start(start))
            .await
            .map_err(read_error)?;
        let limited = file.take(end.min(size) - start);
        Ok(Box::pin(ReaderStream::with_capacity(limited, BUFFER_BYTES)))
    }

    pub(crate) async fn size(&self, key: &str) -> Result<Option<u64>, ObjectsError> {
        match fs::metadata(self.path(key)).await {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("size", &error)),
        }
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<(), ObjectsError> {
        let path = self.path(key);
        match fs::remove_file(&path).await {
            Ok(()) => {}
            // A directory is the prefix of other keys, not an object.
            Err(error) if is_missing(&error) || error.kind() == io::ErrorKind::IsADirectory => {
                return Ok(());
            }
            Err(error) => return Err(failed("delete", &error)),
        }
        let parent = path
            .parent()
            .expect("a key lies below the root — a bug in objects_dir");
        sync_dir(parent)
            .await
            .map_err(|error| failed("delete", &error))
    }

    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectsError> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        let walk = move || {
            let mut found = Vec::new();
            let start = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
            walk(&root, start, &prefix, &mut found)?;
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        };
        let found = tokio::task::spawn_blocking(walk)
            .await
            .expect("the walk panicked — a bug in objects_dir");
        found.map_err(|error: io::Error| failed("list", &error))
    }

    /// Links `dest` to the object after checking its hash. `false`: the file systems differ, or
    /// cannot link; copy instead.
    pub(crate) async fn link_file(
        &self,
        key: &str,
        dest: &Path,
        sha256: Option<&str>,
    ) -> Result<bool, ObjectsError> {
        let local = |error: io::Error| fetch::local(dest, &error);
        let temporary = Temporary::beside(dest).await.map_err(local)?;
        match fs::hard_link(self.path(key), &temporary.0).await {
            Ok(()) => {}
            Err(error) if is_missing(&error) => {
                return Err(ObjectsError::NotFound {
                    key: key.to_owned(),
                });
            }
            Err(_) => return Ok(false),
        }
        // The link is hashed, not the key: the key may be replaced in between.
        if sha256.is_some() {
            let mut file = fs::File::open(&temporary.0).await.map_err(local)?;
            let mut hashing = Hashing::default();
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                let n = file.read(&mut buffer).await.map_err(local)?;
                if n == 0 {
                    break;
                }
                hashing.update(&buffer[..n]);
            }
            fetch::check_hash(key, sha256, &hashing.finish())?;
        }
        temporary.rename(dest).await.map_err(local)?;
        Ok(true)
    }
}

/// Collects the objects below `root/dir` whose key starts with `prefix`.
fn walk(root: &Path, dir: &str, prefix: &str, found: &mut Vec<ObjectMeta>) -> io::Result<()> {
    let entries = match std::fs::read_dir(root.join(dir)) {
        Err(error) if is_missing(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let key = if dir.is_empty() {
            name.to_owned()
        } else {
            format!("{dir}/{name}")
        };
        let metadata = match entry.metadata() {
            Err(error) if is_missing(&error) => continue, // deleted meanwhile
            metadata => metadata?,
        };
        if metadata.is_dir() {
            if key.starts_with(prefix) || prefix.starts_with(&format!("{key}/")) {
                walk(root, &key, prefix, found)?;
            }
        } else if key.starts_with(prefix) {
            let modified = metadata
                .modified()?
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let modified_at = modified.as_secs() as i64;
            found.push(ObjectMeta {
                key,
                size_bytes: metadata.len(),
                modified_at,
            });
        }
    }
    Ok(())
}

/// Also where a part of the path is a file: below an object there is nothing.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn missing_or_failed(key: &str, operation: &'static str, error: &io::Error) -> ObjectsError {
    if is_missing(error) {
        ObjectsError::NotFound {
            key: key.to_owned(),
        }
    } else {
        failed(operation, error)
    }
}

fn taken(key: &str) -> ObjectsError {
    let reason = format!("object key {key:?} would be both an object and a directory");
    ObjectsError::Invalid { reason }
}

fn failed(operation: &'static str, error: &io::Error) -> ObjectsError {
    ObjectsError::Unavailable {
        operation,
        reason: error.to_string(),
    }
}
