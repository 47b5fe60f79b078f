//! An object's bytes for a thread that may wait.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use platform::objects::ByteStream;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// One chunk is held at a time. Ends with an error once `stop` is cancelled.
pub(super) struct Blocking {
    body: ByteStream,
    handle: Handle,
    chunk: Bytes,
    stop: CancellationToken,
}

impl Blocking {
    /// For a thread of this runtime. Panics outside of one.
    pub(super) fn new(body: ByteStream, stop: CancellationToken) -> Self {
        Self {
            body,
            handle: Handle::current(),
            chunk: Bytes::new(),
            stop,
        }
    }
}

impl BufRead for Blocking {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the scheduler is shutting down"));
        }
        while self.chunk.is_empty() {
            match self.handle.block_on(self.body.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => break,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, n_bytes: usize) {
        self.chunk.advance(n_bytes);
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_bytes = self.fill_buf()?.read(buffer)?;
        self.consume(n_bytes);
        Ok(n_bytes)
    }
}
