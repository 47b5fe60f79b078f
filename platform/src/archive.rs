//! Files that are made while they are sent: one alone, or several in a zip. What is in them is their maker's business.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;

use ::zip::write::SimpleFileOptions;
use ::zip::{CompressionMethod, ZipWriter};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::objects::ByteStream;

/// Pieces that wait for a slow reader: at most so many are in memory.
const CHUNKS_AHEAD: usize = 4;
/// Size of a piece. Bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// From this size on an entry needs zip64. Bytes.
const ZIP64_FROM: u64 = 0xffff_ffff;

/// Writes an entry's bytes; may block.
pub type Content = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A file to be made.
pub struct Entry {
    pub name: String,
    pub size_bytes: u64,
    pub content: Content,
}

impl Entry {
    /// A small file that is there already.
    pub fn of_bytes(name: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            name: name.to_owned(),
            size_bytes: bytes.len() as u64,
            content: Box::new(move |out| out.write_all(&bytes)),
        }
    }
}

/// Bytes on their way.
pub struct Archive {
    /// Of all of it, so that a reader sees when it is cut off. `None` where zip64 makes it hard to foretell.
    pub size_bytes: Option<u64>,
    pub bytes: ByteStream,
}

/// All entries in one zip. A content that fails, or has another size than was said, cuts the archive off before its
/// end, so that a reader never holds a whole zip with wrong content. Must be called within a runtime.
pub fn zip(entries: Vec<Entry>) -> Archive {
    Archive {
        size_bytes: zip_size(&entries),
        bytes: streamed(move |out, is_broken| write_zip(out, entries, is_broken)),
    }
}

/// One entry as it is. Must be called within a runtime.
pub fn plain(entry: Entry) -> Archive {
    Archive {
        size_bytes: Some(entry.size_bytes),
        bytes: streamed(move |out, _| write_entry(out, entry)),
    }
}

/// The size is that of the same zip with empty files, and the files. Bytes; `None` from zip64 on.
fn zip_size(entries: &[Entry]) -> Option<u64> {
    let content: u64 = entries.iter().map(|entry| entry.size_bytes).sum();
    if content >= ZIP64_FROM {
        return None;
    }
    let empty = entries
        .iter()
        .map(|entry| Entry::of_bytes(&entry.name, Bytes::new()));
    let mut frame = Vec::new();
    write_zip(&mut frame, empty.collect(), &Cell::new(false)).ok()?;
    Some(frame.len() as u64 + content)
}

fn write_zip(out: &mut impl Write, entries: Vec<Entry>, is_broken: &Cell<bool>) -> io::Result<()> {
    let mut zip = ZipWriter::new_stream(out);
    // Weights hardly compress.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for entry in entries {
        let is_large = entry.size_bytes >= ZIP64_FROM;
        zip.start_file(&entry.name, options.large_file(is_large))?;
        let written = write_entry(&mut zip, entry);
        is_broken.set(written.is_err());
        written?;
    }
    zip.finish()?;
    Ok(())
}

/// Errors: the content's own, and `InvalidData` if its size is not the one that was said.
fn write_entry(out: &mut dyn Write, entry: Entry) -> io::Result<()> {
    let mut counted = Counted { out, n_bytes: 0 };
    (entry.content)(&mut counted)?;
    if counted.n_bytes == entry.size_bytes {
        return Ok(());
    }
    let (name, n, expected) = (entry.name, counted.n_bytes, entry.size_bytes);
    let reason = format!("{name} has {n} bytes, not {expected}");
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    n_bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.n_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes on a thread of its own, as fast as the reader reads; a reader that leaves ends it.
fn streamed(
    write: impl FnOnce(&mut Sender, &Cell<bool>) -> io::Result<()> + Send + 'static,
) -> ByteStream {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let is_broken = Rc::new(Cell::new(false));
        let mut out = Sender {
            pending: Vec::with_capacity(CHUNK_BYTES),
            sender: sender.clone(),
            is_broken: Rc::clone(&is_broken),
        };
        if let Err(error) = write(&mut out, &is_broken).and_then(|()| out.flush()) {
            match error.kind() {
                io::ErrorKind::BrokenPipe => tracing::debug!("the reader of an export left"),
                _ => tracing::warn!(%error, "an export broke off"),
            }
            // The reader may be gone already.
            let _ = sender.blocking_send(Err(error));
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    })
    .boxed()
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
        // No more than a piece at once: a tensor may come as a whole.
        let n = bytes.len().min(CHUNK_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..n]);
        if self.pending.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(n)
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

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn entry(
        name: &str,
        size_bytes: u64,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Entry {
        Entry {
            name: name.to_owned(),
            size_bytes,
            content: Box::new(content),
        }
    }

    /// Everything until the end or the first error.
    async fn read(mut archive: Archive) -> (Vec<u8>, Option<io::Error>) {
        let mut all = Vec::new();
        while let Some(chunk) = archive.bytes.next().await {
            match chunk {
                Ok(chunk) => all.extend_from_slice(&chunk),
                Err(error) => return (all, Some(error)),
            }
        }
        (all, None)
    }

    #[tokio::test]
    async fn a_zip_has_the_size_that_was_foretold_and_every_file() {
        let large: Vec<u8> = (0..3 * CHUNK_BYTES + 7).map(|i| (i % 251) as u8).collect();
        let copy = large.clone();
        let archive = zip(vec![
            Entry::of_bytes("a.json", "{}"),
            entry("b.bin", large.len() as u64, move |out| out.write_all(&copy)),
        ]);
        let size_bytes = archive.size_bytes;
        let (bytes, error) = read(archive).await;
        assert!(error.is_none());
        assert_eq!(size_bytes, Some(bytes.len() as u64));
        let mut zip = ::zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        let mut found = Vec::new();
        zip.by_name("b.bin")
            .unwrap()
            .read_to_end(&mut found)
            .unwrap();
        assert_eq!((zip.len(), found == large), (2, true));
    }

    #[tokio::test]
    async fn a_content_that_fails_or_has_another_size_never_makes_a_whole_zip() {
        type Make = fn() -> Entry;
        let cases: [Make; 3] = [
            || entry("a", 4, |_| Err(io::Error::other("the disk is gone"))),
            || entry("a", 4, |out| out.write_all(b"abc")),
            || entry("a", 2, |out| out.write_all(b"abc")),
        ];
        for make in cases {
            let (bytes, error) = read(zip(vec![make(), Entry::of_bytes("b", "x")])).await;
            assert!(error.is_some());
            assert!(::zip::ZipArchive::new(Cursor::new(bytes)).is_err());
            assert!(read(plain(make())).await.1.is_some());
        }
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_writing() {
        let written = Arc::new(AtomicUsize::new(0));
        let (counter, (ended, end)) = (Arc::clone(&written), tokio::sync::oneshot::channel());
        let mut archive = plain(entry("endless", u64::MAX, move |out| {
            let result = loop {
                if let Err(error) = out.write_all(&[0; CHUNK_BYTES]) {
                    break Err(error);
                }
                counter.fetch_add(1, Ordering::Relaxed);
            };
            ended.send(()).unwrap();
            result
        }));
        archive.bytes.next().await.unwrap().unwrap();
        drop(archive);
        end.await.unwrap();
        let n = written.load(Ordering::Relaxed);
        assert!(n <= CHUNKS_AHEAD + 2, "{n} pieces were made ahead");
    }
}
