//! The files of a batch that is not asked any more: written in one stream each, of what was kept and of what was left.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;
use domain::batch::{Batch, BatchFile, BatchStatus};
use domain::file::{File, Purpose};
use domain::id::{BatchId, BatchRequestId, Entropy, FileId};
use domain::object_key;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use store::Store;

use super::hold::{Held, HoldError};
use crate::wire::batches::{RequestLine, expired_line};

/// Outcomes in memory at a time; a long one has megabytes.
const AT_A_TIME: u64 = 16;

type FileLines = BoxStream<'static, io::Result<String>>;

impl Held {
    /// Writes the files, then the batch is over. A second process that does the same writes the same.
    pub(super) async fn finish(&self, batch: &Batch) -> Result<Batch, HoldError> {
        let output = self.outcomes(batch, BatchFile::Output);
        let output = self.write(batch, "output", output).await?;
        let mut failed = self.outcomes(batch, BatchFile::Error);
        // A client that cancels knows what it did not wait for.
        if batch.status() == BatchStatus::Finalizing {
            let answered = self.batches().answered_lines(&batch.id).await?;
            failed = failed.chain(self.expired(batch, answered)).boxed();
        }
        let failed = self.write(batch, "error", failed).await?;
        let now = self.runner.state.now();
        let finish = self
            .batches()
            .finish(&self.lease, output.as_ref(), failed.as_ref(), now);
        Ok(finish.await?)
    }

    fn outcomes(&self, batch: &Batch, file: BatchFile) -> FileLines {
        let start = (self.runner.state.store.clone(), batch.id.clone(), 0_u32);
        let pages = stream::try_unfold(start, move |(store, id, after)| async move {
            let page = next_page(&store, &id, file, after).await?;
            let Some((last, _)) = page.last() else {
                return Ok::<_, io::Error>(None);
            };
            let last = *last;
            Ok(Some((page, (store, id, last))))
        });
        let lines = pages.map_ok(|page| stream::iter(page.into_iter().map(|(_, line)| Ok(line))));
        lines.try_flatten().boxed()
    }

    /// A line for each request that was not answered.
    fn expired(&self, batch: &Batch, answered: HashSet<u32>) -> FileLines {
        let endpoint = batch.spec.endpoint;
        let start = (self.input.lines(), batch.id.clone(), answered);
        let lines = stream::try_unfold(start, move |(mut lines, id, answered)| async move {
            loop {
                let next = lines.next().await.map_err(io::Error::other)?;
                let Some((span, line)) = next else {
                    return Ok(None);
                };
                if answered.contains(&span.number) {
                    continue;
                }
                let request = RequestLine::decode(&line, endpoint).map_err(io::Error::other)?;
                let request_id = BatchRequestId::mint(drawn(&id, &span.number.to_string()));
                let line = expired_line(&request_id, &request.custom_id);
                return Ok(Some((line, (lines, id, answered))));
            }
        });
        lines.boxed()
    }

    /// `None`: there is nothing to write.
    async fn write(
        &self,
        batch: &Batch,
        name: &str,
        lines: FileLines,
    ) -> Result<Option<File>, HoldError> {
        let mut lines = Box::pin(lines.peekable());
        if lines.as_mut().peek().await.is_none() {
            return Ok(None);
        }
        let state = &self.runner.state;
        // Of this run: one that was thought dead writes no file but its own, which no row ever names.
        let id = FileId::mint(drawn(
            &batch.id,
            &format!("{name} of run {}", self.lease.run),
        ));
        let object_key = object_key::file(&batch.project_id, &id);
        let bytes = lines.map_ok(|line| Bytes::from(line + "\n"));
        let stored = state.objects.put(&object_key, bytes).await?;
        let now = state.now();
        let kept_s = batch.spec.output_expires_after_s;
        Ok(Some(File {
            id,
            project_id: batch.project_id.clone(),
            filename: format!("{}_{name}.jsonl", batch.id),
            purpose: Purpose::BatchOutput,
            size_bytes: stored.size_bytes,
            sha256: stored.sha256,
            object_key,
            created_at: now,
            expires_at: kept_s.map(|seconds| now.plus_s(seconds)),
        }))
    }
}

async fn next_page(
    store: &Store,
    id: &BatchId,
    file: BatchFile,
    after: u32,
) -> io::Result<Vec<(u32, String)>> {
    let page = store.batches().results(id, file, after, AT_A_TIME).await;
    page.map_err(io::Error::other)
}

/// The same for the same part of a batch, so that whoever writes it again replaces it.
fn drawn(batch: &BatchId, part: &str) -> Entropy {
    let digest = Sha256::digest(format!("{part} of {batch}"));
    let mut entropy = [0; 24];
    entropy.copy_from_slice(&digest[..24]);
    entropy
}
