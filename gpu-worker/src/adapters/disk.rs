//! Adapter files on this host, a folder each below the cache directory, so that one that has left the memory need not come from
//! the bucket again. From a bucket that is a directory they are links, which take no room and count all the same. It never looks into
//! a file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use domain::adapter_file::{CONFIG_FILE, WEIGHTS_FILE};
use domain::model::AdapterRef;
use platform::objects::{Objects, ObjectsError};

use super::sha256_hex;
use crate::lru::Lru;

/// The folders, by name. A folder's time of modification is its last use, so that a restart forgets nothing.
pub(super) struct Disk {
    dir: PathBuf,
    folders: Mutex<Lru<()>>,
}

impl Disk {
    /// Takes over what an earlier process left in `dir`, as far as the budget goes.
    pub(super) fn open(dir: PathBuf, budget_bytes: u64) -> Self {
        let disk = Self {
            dir,
            folders: Mutex::new(Lru::new(budget_bytes)),
        };
        for (_, folder) in found(&disk.dir) {
            let name = folder.file_name().and_then(|name| name.to_str());
            match (name, whole_size(&folder)) {
                (Some(name), Some(size_bytes)) => disk.insert(name, size_bytes),
                // A fetch that broke off.
                _ => delete(&folder),
            }
        }
        disk
    }

    /// The folder with the files of `reference`, if they are here: one without weights, or with fewer bytes of them than there should
    /// be, is not.
    pub(super) fn find(&self, reference: &AdapterRef) -> Option<PathBuf> {
        let name = name_of(reference);
        self.folders().touch(&name)?;
        let folder = self.dir.join(&name);
        let weights = std::fs::metadata(folder.join(WEIGHTS_FILE));
        if !weights.is_ok_and(|weights| weights.len() == reference.size_bytes) {
            return None;
        }
        // Without it the folder is only forgotten earlier after a restart.
        let _ = std::fs::File::open(&folder).and_then(|f| f.set_modified(SystemTime::now()));
        Some(folder)
    }

    /// Brings the files of `reference` here, the weights verified and last: where they are, the folder is whole.
    /// Errors: as `Objects::fetch_file`. The folder counts from [`Self::keep`] on.
    pub(super) async fn fetch(
        &self,
        reference: &AdapterRef,
        objects: &Objects,
    ) -> Result<PathBuf, ObjectsError> {
        let folder = self.dir.join(name_of(reference));
        for (file, sha256) in [
            (CONFIG_FILE, None),
            (WEIGHTS_FILE, Some(reference.sha256.as_str())),
        ] {
            let key = format!("{}/{file}", reference.object_prefix);
            objects.fetch_file(&key, &folder.join(file), sha256).await?;
        }
        Ok(folder)
    }

    /// The folder of `reference` is whole; others go where there are too many bytes now.
    pub(super) fn keep(&self, reference: &AdapterRef) {
        let name = name_of(reference);
        if let Some(size_bytes) = whole_size(&self.dir.join(&name)) {
            self.insert(&name, size_bytes);
        }
    }

    /// The folder of `reference` is not to be used again.
    pub(super) fn forget(&self, reference: &AdapterRef) {
        let name = name_of(reference);
        self.folders().remove(&name);
        delete(&self.dir.join(name));
    }

    /// Whether the files of `reference` can be kept at all.
    pub(super) fn takes(&self, reference: &AdapterRef) -> bool {
        self.folders().takes(reference.size_bytes)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.folders().size()
    }

    fn insert(&self, name: &str, size_bytes: u64) {
        let gone = self.folders().insert(name, (), size_bytes);
        gone.iter()
            .for_each(|(name, ())| delete(&self.dir.join(name)));
    }

    fn folders(&self) -> MutexGuard<'_, Lru<()>> {
        self.folders
            .lock()
            .expect("no panic while locked — a bug in disk")
    }
}

/// Of the folder in the bucket and of the weights in it: whatever else should come to lie there is another adapter.
fn name_of(reference: &AdapterRef) -> String {
    sha256_hex(format!("{}\n{}", reference.object_prefix, reference.sha256).as_bytes())
}

/// The folders in `dir`, last used ones last.
fn found(dir: &Path) -> Vec<(SystemTime, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    folders.sort();
    folders
}

/// Of both files together; `None` where one is missing. Bytes.
fn whole_size(folder: &Path) -> Option<u64> {
    let size = |file| std::fs::metadata(folder.join(file)).map(|file| file.len());
    Some(size(CONFIG_FILE).ok()? + size(WEIGHTS_FILE).ok()?)
}

fn delete(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, folder = %folder.display(), "files of an adapter stay on the disk: delete the folder");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use platform::config::ObjectsConfig;

    use super::*;

    /// A bucket with an adapter of 100 bytes for each of `names`, and a place for a disk beside it.
    async fn bucket(dir: &Path, names: &[&str]) -> (Objects, Vec<AdapterRef>) {
        let config = ObjectsConfig {
            url: format!("file://{}", dir.join("objects").display()),
            ..ObjectsConfig::default()
        };
        let objects = Objects::open(&config).unwrap();
        let mut references = Vec::new();
        for name in names {
            let put = |file, bytes: Vec<u8>| {
                let (key, objects) = (format!("{name}/{file}"), objects.clone());
                async move { objects.put_bytes(&key, bytes.into()).await.unwrap() }
            };
            put(CONFIG_FILE, vec![b'{'; 10]).await;
            let weights = put(WEIGHTS_FILE, name.repeat(90).into_bytes()).await;
            references.push(AdapterRef {
                object_prefix: (*name).to_owned(),
                sha256: weights.sha256,
                size_bytes: weights.size_bytes,
                frozen_weights: Default::default(),
            });
        }
        (objects, references)
    }

    fn found_of(disk: &Disk, references: &[AdapterRef]) -> Vec<bool> {
        let found = references.iter().map(|reference| disk.find(reference));
        found.map(|folder| folder.is_some()).collect()
    }

    fn n_folders(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn the_folder_that_was_not_used_for_longest_is_deleted_also_after_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let (objects, adapters) = bucket(scratch.path(), &["a", "b", "c", "d"]).await;
        let dir = scratch.path().join("cache");
        let disk = Disk::open(dir.clone(), 300);
        for reference in &adapters[..3] {
            disk.fetch(reference, &objects).await.unwrap();
            disk.keep(reference);
        }
        // File systems tell times of a few milliseconds apart.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(found_of(&disk, &adapters[..1]), [true]);
        let disk = Disk::open(dir.clone(), 300);
        disk.fetch(&adapters[3], &objects).await.unwrap();
        disk.keep(&adapters[3]);
        assert_eq!(found_of(&disk, &adapters), [true, false, true, true]);
        assert_eq!((disk.size_bytes(), n_folders(&dir)), (300, 3));
        let smaller = Disk::open(dir.clone(), 100);
        assert_eq!(found_of(&smaller, &adapters), [false, false, false, true]);
        assert_eq!(n_folders(&dir), 1);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_whole_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let (objects, adapters) = bucket(scratch.path(), &["a", "b"]).await;
        let dir = scratch.path().join("cache");
        let disk = Disk::open(dir.clone(), 300);
        let folder = disk.fetch(&adapters[0], &objects).await.unwrap();
        assert_eq!(
            found_of(&disk, &adapters[..1]),
            [false],
            "it was not read yet"
        );
        disk.keep(&adapters[0]);
        std::fs::remove_file(folder.join(WEIGHTS_FILE)).unwrap();
        std::fs::write(folder.join(WEIGHTS_FILE), [b'a'; 89]).unwrap();
        assert_eq!(
            found_of(&disk, &adapters[..1]),
            [false],
            "a byte is missing"
        );
        std::fs::remove_file(folder.join(WEIGHTS_FILE)).unwrap();
        Disk::open(dir.clone(), 300);
        assert_eq!(n_folders(&dir), 0, "a fetch that broke off is cleared away");
        let other = AdapterRef {
            sha256: "0".repeat(64),
            ..adapters[1].clone()
        };
        let refused = disk.fetch(&other, &objects).await;
        assert!(matches!(refused, Err(ObjectsError::Corrupt { .. })));
        assert_eq!(found_of(&disk, &[other]), [false]);
    }

    #[tokio::test]
    async fn one_that_exceeds_the_budget_alone_leaves_nothing_behind() {
        let scratch = tempfile::tempdir().unwrap();
        let (objects, adapters) = bucket(scratch.path(), &["a"]).await;
        let dir = scratch.path().join("cache");
        let disk = Disk::open(dir.clone(), 99);
        disk.fetch(&adapters[0], &objects).await.unwrap();
        disk.keep(&adapters[0]);
        assert_eq!((disk.size_bytes(), n_folders(&dir)), (0, 0));
        let larger = AdapterRef {
            size_bytes: 100,
            ..adapters[0].clone()
        };
        assert!(disk.takes(&adapters[0]) && !disk.takes(&larger));
    }
}
