//! Owns the threads that compute. Work is cut into numbered tasks that write disjoint memory; which thread takes a task, and what else
//! runs between two of them, never changes a result, so every number is the same for any thread count.

mod turn;

use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;

use turn::{Taken, Turn};

/// How often an idle thread looks for the next region before it sleeps: regions follow each other within microseconds,
/// and waking a sleeping thread costs tens of them.
const SPINS_BEFORE_SLEEP: u32 = 4_000;

/// A persistent set of threads; cloning shares it. The calling thread is one of them. Callers on several threads take turns,
/// region by region; one who holds the threads gets them between two tasks of another's region, which goes on afterwards. One whose
/// regions are too small for all threads computes beside the others instead, who do without some.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
    /// Whether the turn is taken already: see [`Pool::hold`].
    is_held: bool,
}

/// A pool that its holder alone uses until this is dropped.
pub(crate) struct Held<'a> {
    pool: Pool,
    _turn: Taken<'a>,
}

impl Deref for Held<'_> {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

/// Threads of its holder's own, while the pool that they belong to does without as many, until this is dropped.
pub(crate) struct Beside<'a> {
    own: &'a Pool,
    pool: &'a Shared,
}

impl Deref for Beside<'_> {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        self.own
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        let n_threads = self.own.n_threads();
        self.pool.n_resting.fetch_sub(n_threads, Ordering::Relaxed);
    }
}

struct Inner {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// What each thread begins with.
    start: fn(),
    /// Those that compute beside the others, once they are asked for.
    beside: OnceLock<Pool>,
}

/// The region being run. The pointer is valid while `Shared::active` is not zero.
#[derive(Clone, Copy)]
struct Region {
    task: *const (dyn Fn(usize) + Sync),
    n_tasks: usize,
    /// Those that run it beside the caller: the first so many.
    n_threads: usize,
    /// Whether it makes way for who wants to hold the pool.
    makes_way: bool,
}

// SAFETY: the task behind the pointer is `Sync`, and `Pool::run` keeps it alive until every thread has left it.
unsafe impl Send for Region {}

struct Shared {
    /// One region at a time.
    turn: Turn,
    region: Mutex<Option<Region>>,
    started: Condvar,
    finished: Condvar,
    /// Counts regions; a change tells the threads that there is a new one.
    epoch: AtomicU64,
    next_task: AtomicUsize,
    /// Threads that have not yet left the region.
    active: AtomicUsize,
    /// Threads that regions which make way do without.
    n_resting: AtomicUsize,
    panicked: AtomicBool,
    closing: AtomicBool,
}

impl Pool {
    /// Starts `n_threads - 1` threads beside the caller's; 0 counts as 1.
    pub fn new(n_threads: usize) -> Self {
        Self::with_start(n_threads, || ())
    }

    /// The same; each of its own threads begins with `start`.
    pub fn with_start(n_threads: usize, start: fn()) -> Self {
        let shared = Arc::new(Shared {
            turn: Turn::default(),
            region: Mutex::new(None),
            started: Condvar::new(),
            finished: Condvar::new(),
            epoch: AtomicU64::new(0),
            next_task: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            n_resting: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        });
        let threads = (0..n_threads.saturating_sub(1))
            .map(|i| {
                let shared = shared.clone();
                let builder = std::thread::Builder::new().name(format!("engine-{}", i + 1));
                builder
                    .spawn(move || {
                        start();
                        shared.serve(i);
                    })
                    .expect("the system can start a thread")
            })
            .collect();
        Self {
            inner: Arc::new(Inner {
                shared,
                threads,
                start,
                beside: OnceLock::new(),
            }),
            is_held: false,
        }
    }

    /// The number of threads that compute, the caller's included.
    pub fn n_threads(&self) -> usize {
        self.inner.threads.len() + 1
    }

    /// Runs `task(0)` … `task(n_tasks - 1)`, in any order on any thread, and returns when all are done.
    /// A task must not call `run` on the same pool. A panic in a task is raised again here.
    pub fn run(&self, n_tasks: usize, task: impl Fn(usize) + Sync) {
        let Inner {
            shared, threads, ..
        } = &*self.inner;
        let mut n_done = 0;
        while n_done < n_tasks {
            let _turn = (!self.is_held).then(|| shared.turn.take());
            let n_threads = match n_tasks - n_done {
                1 => 0,
                _ if self.is_held => threads.len(),
                _ => threads
                    .len()
                    .saturating_sub(shared.n_resting.load(Ordering::Relaxed)),
            };
            n_done = shared.run(n_done, n_tasks, !self.is_held, &task, n_threads);
        }
    }

    /// Keeps the threads for many regions that belong together. Whoever holds goes before callers that run one region at a time,
    /// and waits for no more than the tasks of theirs that are being computed.
    /// The holder must not run regions of the same pool by another handle.
    pub(crate) fn hold(&self) -> Held<'_> {
        let pool = Pool {
            inner: Arc::clone(&self.inner),
            is_held: true,
        };
        Held {
            pool,
            _turn: self.inner.shared.turn.hold(),
        }
    }

    /// Half of the threads, for regions that are too small for all, while callers that run one region at a time go on with the other
    /// half. `None` for a pool of one thread.
    pub(crate) fn beside(&self) -> Option<Beside<'_>> {
        let Inner { shared, start, .. } = &*self.inner;
        let n_threads = self.n_threads() / 2;
        if n_threads == 0 {
            return None;
        }
        let own = self
            .inner
            .beside
            .get_or_init(|| Pool::with_start(n_threads, *start));
        shared.n_resting.fetch_add(n_threads, Ordering::Relaxed);
        Some(Beside { own, pool: shared })
    }

    /// Cuts `n_rows` rows into ranges and gives each, with the same rows of the output, to `body`.
    /// The output is (values, row length); it must hold `n_rows` rows.
    pub fn for_rows<T: Send>(
        &self,
        n_rows: usize,
        output: (&mut [T], usize),
        body: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) {
        self.for_rows_of_two(
            n_rows,
            output,
            (&mut [] as &mut [()], 0),
            |rows, values, _| body(rows, values),
        );
    }

    /// As [`Self::for_rows`], for two outputs.
    pub fn for_rows_of_two<T: Send, U: Send>(
        &self,
        n_rows: usize,
        first: (&mut [T], usize),
        second: (&mut [U], usize),
        body: impl Fn(Range<usize>, &mut [T], &mut [U]) + Sync,
    ) {
        assert!(
            first.0.len() >= n_rows * first.1 && second.0.len() >= n_rows * second.1,
            "an output is shorter than its rows — a bug in the caller"
        );
        let (first, first_width) = (SharedMut::new(first.0), first.1);
        let (second, second_width) = (SharedMut::new(second.0), second.1);
        let rows_per_task = n_rows.div_ceil(self.n_threads() * 8).max(4);
        self.run(n_rows.div_ceil(rows_per_task), |i| {
            let rows = i * rows_per_task..n_rows.min((i + 1) * rows_per_task);
            // SAFETY: tasks have disjoint row ranges, each within the length asserted above.
            let (a, b) = unsafe {
                (
                    first.slice(rows.start * first_width..rows.end * first_width),
                    second.slice(rows.start * second_width..rows.end * second_width),
                )
            };
            body(rows, a, b);
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        {
            let _region = lock(&self.shared.region);
            self.shared.closing.store(true, Ordering::Release);
            self.shared.epoch.fetch_add(1, Ordering::Release);
            self.shared.started.notify_all();
        }
        for thread in self.threads.drain(..) {
            thread
                .join()
                .expect("a thread catches its tasks' panics — a bug in the pool");
        }
    }
}

impl Shared {
    /// Runs tasks from `first` on, with `n_threads` beside the caller. Returns the first that is left.
    fn run(
        &self,
        first: usize,
        n_tasks: usize,
        makes_way: bool,
        task: &(dyn Fn(usize) + Sync),
        n_threads: usize,
    ) -> usize {
        // SAFETY: only the lifetime changes; `wait` below outlives every use of the pointer.
        let task_for_ever: *const (dyn Fn(usize) + Sync + 'static) =
            unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        let new = Region {
            task: task_for_ever,
            n_tasks,
            n_threads,
            makes_way,
        };
        self.next_task.store(first, Ordering::Relaxed);
        if n_threads > 0 {
            let mut region = lock(&self.region);
            *region = Some(new);
            self.active.store(n_threads, Ordering::Relaxed);
            self.epoch.fetch_add(1, Ordering::Release);
            self.started.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| self.work(task, new)));
        self.wait();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(
            !self.panicked.swap(false, Ordering::Relaxed),
            "a task panicked on another thread"
        );
        // Every task that was taken has been run.
        self.next_task.load(Ordering::Relaxed).min(n_tasks)
    }

    /// Takes tasks until none is left or, after at least one, until somebody else wants the threads.
    fn work(&self, task: &(dyn Fn(usize) + Sync), region: Region) {
        loop {
            let i = self.next_task.fetch_add(1, Ordering::Relaxed);
            if i >= region.n_tasks {
                return;
            }
            task(i);
            if region.makes_way && self.turn.is_wanted() {
                return;
            }
        }
    }

    fn wait(&self) {
        for _ in 0..SPINS_BEFORE_SLEEP {
            if self.active.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut region = lock(&self.region);
        while self.active.load(Ordering::Acquire) != 0 {
            region = self
                .finished
                .wait(region)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Runs what there is to run, as thread `i` beside the caller's.
    fn serve(&self, i: usize) {
        let mut seen = 0;
        while let Some(region) = self.next_region(&mut seen) {
            if i >= region.n_threads {
                continue;
            }
            // SAFETY: `Pool::run` waits until `active` is zero before the task goes away.
            let task = unsafe { &*region.task };
            if catch_unwind(AssertUnwindSafe(|| self.work(task, region))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            if self.active.fetch_sub(1, Ordering::AcqRel) == 1 {
                let _region = lock(&self.region);
                self.finished.notify_all();
            }
        }
    }

    fn next_region(&self, seen: &mut u64) -> Option<Region> {
        for _ in 0..SPINS_BEFORE_SLEEP {
            if self.epoch.load(Ordering::Acquire) != *seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut region = lock(&self.region);
        while self.epoch.load(Ordering::Acquire) == *seen {
            region = self
                .started
                .wait(region)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *seen = self.epoch.load(Ordering::Acquire);
        if self.closing.load(Ordering::Acquire) {
            None
        } else {
            *region
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The start of memory that tasks write in disjoint pieces.
pub(crate) struct SharedMut<T = f32>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: a bare address; every use states why its piece is written by one task only.
unsafe impl<T: Send> Send for SharedMut<T> {}
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(memory: &mut [T]) -> Self {
        Self(memory.as_mut_ptr())
    }

    /// The address `offset` values further on.
    pub(crate) fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }

    /// The memory from `offset` on.
    pub(crate) fn skip(self, offset: usize) -> Self {
        Self(self.at(offset))
    }

    /// # Safety
    /// `range` must lie within the memory and overlap no piece that is in use elsewhere.
    pub(crate) unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [T] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.at(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_for_any_thread_count() {
        for n_threads in [0, 1, 2, 5] {
            let pool = Pool::new(n_threads);
            for n_tasks in [0, 1, 2, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn rows_are_handed_out_whole_and_disjoint() {
        let pool = Pool::new(3);
        let (mut a, mut b) = (vec![0.0; 101 * 2], vec![0.0; 101]);
        pool.for_rows_of_two(101, (&mut a, 2), (&mut b, 1), |rows, a, b| {
            for (i, row) in rows.enumerate() {
                a[2 * i] += row as f32;
                a[2 * i + 1] -= row as f32;
                b[i] += 1.0;
            }
        });
        assert!(
            (0..101).all(|i| a[2 * i] == i as f32 && a[2 * i + 1] == -(i as f32) && b[i] == 1.0)
        );
    }

    #[test]
    fn a_hold_waits_for_one_region_and_keeps_all_others_out() {
        for n_threads in [1, 2] {
            let pool = Pool::new(n_threads);
            let (n_done, is_done) = (AtomicUsize::new(0), AtomicBool::new(false));
            let done = || n_done.load(Ordering::SeqCst);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::SeqCst) {
                        pool.run(2, |_| {
                            std::thread::sleep(std::time::Duration::from_millis(2))
                        });
                        n_done.fetch_add(1, Ordering::SeqCst);
                    }
                });
                while done() < 3 {
                    std::thread::yield_now();
                }
                for _ in 0..5 {
                    let before = done();
                    let held = pool.hold();
                    // The region that ran, and its count, which comes after it.
                    assert!(done() <= before + 2);
                    let sum = AtomicUsize::new(0);
                    let during = done();
                    for i in 0..20 {
                        held.run(3, |task| {
                            sum.fetch_add(i * task, Ordering::SeqCst);
                        });
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    assert_eq!(sum.load(Ordering::SeqCst), 190 * 3);
                    assert!(done() <= during + 1, "a region ran beside a hold");
                    drop(held);
                    while done() < during + 3 {
                        std::thread::yield_now();
                    }
                }
                is_done.store(true, Ordering::SeqCst);
            });
        }
    }

    #[test]
    fn a_hold_waits_for_the_tasks_that_run_and_the_region_goes_on_after_it() {
        for n_threads in [1, 2] {
            let pool = Pool::new(n_threads);
            let counts: Vec<AtomicUsize> = (0..200).map(|_| AtomicUsize::new(0)).collect();
            let n_late = AtomicUsize::new(0);
            let n_run = || -> usize { counts.iter().map(|c| c.load(Ordering::SeqCst)).sum() };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    pool.run(counts.len(), |i| {
                        let late = usize::from(pool.inner.shared.turn.is_wanted());
                        n_late.fetch_add(late, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        counts[i].fetch_add(1, Ordering::SeqCst);
                    });
                });
                for n_holds in 1..=3 {
                    let before = n_run();
                    while n_run() < before + 5 {
                        std::thread::yield_now();
                    }
                    let held = pool.hold();
                    // Each thread may have begun a task at the very moment.
                    assert!(n_late.load(Ordering::SeqCst) <= n_holds * n_threads);
                    let during = n_run();
                    held.run(3, |_| {
                        std::thread::sleep(std::time::Duration::from_millis(2))
                    });
                    assert_eq!(n_run(), during, "a task ran beside a hold");
                }
            });
            assert!(counts.iter().all(|c| c.load(Ordering::SeqCst) == 1));
        }
    }

    #[test]
    fn regions_run_beside_those_of_others_and_all_do_their_own_tasks() {
        assert!(Pool::new(1).beside().is_none());
        for n_threads in [2, 3, 4] {
            let pool = Pool::new(n_threads);
            let (n_regions, is_done) = (AtomicUsize::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::SeqCst) {
                        let ran = Mutex::new(Vec::new());
                        pool.run(50, |i| lock(&ran).push((i, std::thread::current().id())));
                        let mut ran = ran.into_inner().unwrap();
                        ran.sort_by_key(|&(i, _)| i);
                        assert!(ran.iter().map(|&(i, _)| i).eq(0..50));
                        n_regions.fetch_add(1, Ordering::SeqCst);
                    }
                });
                for _ in 0..20 {
                    let beside = pool.beside().unwrap();
                    assert_eq!(beside.n_threads(), n_threads / 2);
                    let before = n_regions.load(Ordering::SeqCst);
                    let sum = AtomicUsize::new(0);
                    beside.run(30, |i| {
                        sum.fetch_add(i, Ordering::SeqCst);
                    });
                    assert_eq!(sum.load(Ordering::SeqCst), 435);
                    // The others go on meanwhile.
                    while n_regions.load(Ordering::SeqCst) < before + 3 {
                        std::thread::yield_now();
                    }
                }
                assert_eq!(pool.inner.shared.n_resting.load(Ordering::SeqCst), 0);
                is_done.store(true, Ordering::SeqCst);
            });
        }
    }

    #[test]
    fn a_region_beside_another_has_threads_of_its_own() {
        let pool = Pool::new(4);
        let threads_of = |pool: &Pool| {
            let ran = Mutex::new(std::collections::HashSet::new());
            pool.run(64, |_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                lock(&ran).insert(std::thread::current().id());
            });
            ran.into_inner().unwrap()
        };
        let all = threads_of(&pool);
        let beside = pool.beside().unwrap();
        let (rest, own) = (threads_of(&pool), threads_of(&beside));
        assert_eq!((all.len(), rest.len(), own.len()), (4, 2, 2));
        let here = std::thread::current().id();
        assert!(rest.is_subset(&all) && own.intersection(&rest).all(|&id| id == here));
        drop(beside);
        assert_eq!(threads_of(&pool), all);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for bad in 0..20 {
            let raised = catch_unwind(AssertUnwindSafe(|| pool.run(20, |i| assert_ne!(i, bad))));
            assert!(raised.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(20, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 20);
    }
}
