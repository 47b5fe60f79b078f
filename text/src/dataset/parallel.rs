//! Rows read on several threads, in their order and in bounded memory.

use std::io::{self, BufRead};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use super::lines::{Lines, Place};
use super::{Row, read_line};
use crate::formats::{Expected, LineError};

/// Lines that go to a thread together: enough to outweigh the handover, few enough that all threads end at about the same time.
/// Bytes; a longer line goes alone.
const BATCH_BYTES: usize = 128 << 10;
/// What is made of a line may be larger than the line.
const BATCH_LINES: usize = 1024;
/// Batches on their way to a thread, at it, and back.
const BATCHES_PER_THREAD: usize = 3;

/// Reads rows and gives `see`, in their order, what `work` makes of each; `work` runs on `n_threads` threads, `see` on this one.
/// At most three batches of lines for each thread are held at a time.
/// Errors: the reader's; then `see` has had only some of the rows.
pub fn read_rows<T: Send>(
    mut reader: impl BufRead,
    expected: Expected,
    n_threads: NonZeroUsize,
    work: impl Fn(Row) -> T + Sync,
    mut see: impl FnMut(T),
) -> io::Result<()> {
    thread::scope(|scope| {
        let mut pool = Pool::start(scope, expected, n_threads, &work);
        let (mut lines, mut batch) = (Lines::default(), Batch::default());
        loop {
            let chunk = match reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            let n_bytes = chunk.len();
            // A chunk may be the whole file.
            for piece in chunk.chunks(BATCH_BYTES) {
                lines.push(piece, &mut |found| {
                    batch.add(found);
                    if batch.is_full() {
                        pool.give(std::mem::take(&mut batch), &mut see);
                    }
                });
            }
            if n_bytes == 0 {
                lines.finish(&mut |found| batch.add(found));
                pool.give(batch, &mut see);
                pool.end(&mut see);
                return Ok(());
            }
            reader.consume(n_bytes);
        }
    })
}

/// Lines, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: Vec<Result<(Place, Range<usize>), LineError>>,
}

impl Batch {
    fn add(&mut self, found: super::lines::Found) {
        self.lines.push(found.map(|line| {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(line.bytes);
            (line.place, start..self.bytes.len())
        }));
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.lines.len() >= BATCH_LINES
    }

    fn rows(self, expected: Expected) -> impl Iterator<Item = Row> {
        let Self { bytes, lines } = self;
        let read =
            move |(place, range): (Place, Range<usize>)| read_line(place, &bytes[range], expected);
        lines.into_iter().map(move |line| line.and_then(&read))
    }
}

/// Threads that take turns, so that results come back in order.
struct Pool<T> {
    threads: Vec<(SyncSender<Batch>, Receiver<Vec<T>>)>,
    n_given: usize,
    n_seen: usize,
}

impl<T: Send> Pool<T> {
    fn start<'scope, 'env, W: Fn(Row) -> T + Sync>(
        scope: &'scope Scope<'scope, 'env>,
        expected: Expected,
        n_threads: NonZeroUsize,
        work: &'env W,
    ) -> Self
    where
        T: 'scope,
    {
        let start = |_| {
            let (to, batches) = sync_channel::<Batch>(BATCHES_PER_THREAD);
            let (done, from) = sync_channel(BATCHES_PER_THREAD);
            scope.spawn(move || {
                for batch in batches {
                    let worked: Vec<T> = batch.rows(expected).map(work).collect();
                    if done.send(worked).is_err() {
                        return;
                    }
                }
            });
            (to, from)
        };
        Self {
            threads: (0..n_threads.get()).map(start).collect(),
            n_given: 0,
            n_seen: 0,
        }
    }

    fn give(&mut self, batch: Batch, see: &mut impl FnMut(T)) {
        if self.n_given - self.n_seen == BATCHES_PER_THREAD * self.threads.len() {
            self.take(see);
        }
        let (to, _) = &self.threads[self.n_given % self.threads.len()];
        to.send(batch).expect("the thread lives — a bug in `work`");
        self.n_given += 1;
    }

    fn take(&mut self, see: &mut impl FnMut(T)) {
        let (_, from) = &self.threads[self.n_seen % self.threads.len()];
        let worked = from.recv().expect("the thread lives — a bug in `work`");
        worked.into_iter().for_each(see);
        self.n_seen += 1;
    }

    fn end(mut self, see: &mut impl FnMut(T)) {
        while self.n_seen < self.n_given {
            self.take(see);
        }
    }
}
