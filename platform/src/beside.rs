//! Work on bytes beside whoever brings them: a thread takes what comes, in its order, while more is on its way.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

/// Chunks on their way; the server's are of up to 64 KiB.
const CHUNKS: usize = 16;

/// Such work, which ends with a `T`.
pub(crate) struct Beside<T> {
    chunks: mpsc::Sender<Bytes>,
    done: JoinHandle<T>,
}

impl<T: Send + 'static> Beside<T> {
    /// `work` sees all chunks; where whoever brings them leaves early, those that came.
    pub fn start(work: impl FnOnce(&mut dyn Iterator<Item = Bytes>) -> T + Send + 'static) -> Self {
        let (chunks, mut coming) = mpsc::channel(CHUNKS);
        let mut coming = std::iter::from_fn(move || coming.blocking_recv());
        let done = tokio::task::spawn_blocking(move || work(&mut coming));
        Self { chunks, done }
    }

    /// Whether the work goes on; where not, it has ended by itself.
    pub async fn take(&self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// Nothing follows. Errors: the work panicked, or the process is about to end.
    pub async fn finish(self) -> Result<T, JoinError> {
        drop(self.chunks);
        self.done.await
    }
}
