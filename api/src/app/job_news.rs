//! Jobs followed as they go on. One look a second tells all that is followed in this process whether its job has news, and
//! one in five who may no longer read them, so that thousands of followers ask the database as little as one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::event::Event;
use domain::id::{JobId, KeyId, ProjectId};
use domain::job::FineTuningJob;
use domain::time::Timestamp;
use futures::stream::{self, BoxStream, StreamExt};
use platform::shutdown::Shutdown;
use store::{Store, StoreError};
use tokio::sync::watch;

use super::{fine_tuning, store_error};
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::State;

/// How often news are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Looks from one check of passes to the next: so long a key that is taken away reads on.
const LOOKS_A_CHECK: u32 = 5;
/// After so long without news a follower is told that there are none: proxies close what is silent.
const QUIET: Duration = Duration::from_secs(15);
/// Events read at once.
const PAGE: u64 = 100;
/// Jobs, keys or projects asked about in one query.
const AT_ONCE: usize = 500;

/// What a follower is told.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    Event(Event),
    /// Nothing happened for a while.
    Quiet,
    /// The last one.
    Ended(Box<FineTuningJob>),
}

/// The jobs that are followed in this process.
#[derive(Default)]
pub struct Newsroom {
    jobs: Mutex<HashMap<JobId, Followed>>,
}

struct Followed {
    project: ProjectId,
    latest: Latest,
    /// Followers hear of it until theirs is dropped.
    readers: HashMap<Pass, watch::Sender<Latest>>,
}

/// What lets a follower read.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Pass {
    key_id: KeyId,
    expires_at: Option<Timestamp>,
}

/// What came last of a job, for those who knew all before it.
#[derive(Clone)]
struct Latest {
    /// The sequence number before `events`.
    after: u64,
    events: Arc<[Event]>,
    ended: Option<Arc<FineTuningJob>>,
}

impl Latest {
    fn last_seq(&self) -> u64 {
        self.events.last().map_or(self.after, |event| event.seq)
    }
}

impl Newsroom {
    /// Looks for news until `shutdown`.
    pub async fn run(&self, state: &State, shutdown: Shutdown) {
        let mut n_looks: u32 = 0;
        while !shutdown.has_begun() {
            n_looks += 1;
            if let Err(error) = self.look(&state.store).await {
                tracing::warn!(%error, "no news of jobs can be read");
            }
            if n_looks.is_multiple_of(LOOKS_A_CHECK)
                && let Err(error) = self.check_passes(&state.store, state.now()).await
            {
                tracing::warn!(%error, "who may read news of jobs is not known");
            }
            tokio::select! {
                () = shutdown.begun() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        // Ends the streams: their clients go on with another process.
        self.jobs().clear();
    }

    async fn look(&self, store: &Store) -> Result<(), StoreError> {
        let known: HashMap<JobId, (ProjectId, u64)> = {
            let mut jobs = self.jobs();
            jobs.retain(|_, followed| {
                let readers = &mut followed.readers;
                readers.retain(|_, latest| latest.receiver_count() > 0);
                !readers.is_empty()
            });
            let known = |followed: &Followed| followed.latest.last_seq();
            jobs.iter()
                .map(|(id, followed)| (id.clone(), (followed.project.clone(), known(followed))))
                .collect()
        };
        let ids: Vec<JobId> = known.keys().cloned().collect();
        for ids in ids.chunks(AT_ONCE) {
            for (id, seq) in store.events().last_seqs(ids).await? {
                let (project, known) = &known[&id];
                if seq > *known {
                    let latest = read(store, project, &id, *known).await?;
                    if let Some(followed) = self.jobs().get_mut(&id) {
                        for reader in followed.readers.values() {
                            reader.send_replace(latest.clone());
                        }
                        followed.latest = latest;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the streams of all whose key or token opens the project no more.
    async fn check_passes(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        let (projects, keys) = {
            let jobs = self.jobs();
            let projects: HashSet<ProjectId> = jobs.values().map(|f| f.project.clone()).collect();
            let passes = jobs.values().flat_map(|followed| followed.readers.keys());
            let keys: HashSet<KeyId> = passes.map(|pass| pass.key_id.clone()).collect();
            (Vec::from_iter(projects), Vec::from_iter(keys))
        };
        let (mut archived, mut closed) = (HashSet::new(), HashSet::new());
        for ids in projects.chunks(AT_ONCE) {
            archived.extend(store.projects().archived_among(ids).await?);
        }
        for ids in keys.chunks(AT_ONCE) {
            closed.extend(store.api_keys().closed_among(ids).await?);
        }
        for followed in self.jobs().values_mut() {
            let is_archived = archived.contains(&followed.project);
            followed.readers.retain(|pass, _| {
                let has_expired = pass.expires_at.is_some_and(|at| at <= now);
                !is_archived && !has_expired && !closed.contains(&pass.key_id)
            });
        }
        Ok(())
    }

    fn follow(&self, caller: &Caller, job: &JobId, seq: u64) -> watch::Receiver<Latest> {
        let mut jobs = self.jobs();
        let followed = jobs.entry(job.clone()).or_insert_with(|| Followed {
            project: caller.project.id.clone(),
            latest: Latest {
                after: seq,
                events: Arc::default(),
                ended: None,
            },
            readers: HashMap::new(),
        });
        let pass = Pass {
            key_id: caller.key_id.clone(),
            expires_at: caller.expires_at,
        };
        let latest = &followed.latest;
        let reader = followed.readers.entry(pass);
        let reader = reader.or_insert_with(|| watch::Sender::new(latest.clone()));
        reader.subscribe()
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Followed>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a page of events after `seq` holds, and how the job ended, if they are the last ones.
async fn read(
    store: &Store,
    project: &ProjectId,
    id: &JobId,
    seq: u64,
) -> Result<Latest, StoreError> {
    // What ends a job is written with its last event: a job that goes on after these were read has one to come, and of one
    // that has ended since, the rest is read.
    let mut events = page(store, project, id, seq).await?;
    let job = store.jobs().find(project, id).await?;
    let job = job.ok_or(StoreError::NotFound)?;
    let is_whole = |events: &[Event]| events.len() as u64 <= PAGE;
    if job.state().is_terminal() && is_whole(&events) {
        let last = events.last().map_or(seq, |event| event.seq);
        events.extend(page(store, project, id, last).await?);
    }
    let is_last = job.state().is_terminal() && is_whole(&events);
    events.truncate(PAGE as usize);
    Ok(Latest {
        after: seq,
        events: events.into(),
        ended: is_last.then(|| Arc::new(job)),
    })
}

/// The events after `seq`, and one more than a page where there are more.
async fn page(
    store: &Store,
    project: &ProjectId,
    id: &JobId,
    seq: u64,
) -> Result<Vec<Event>, StoreError> {
    let events = store.events();
    events.list_after_seq(project, id, seq, PAGE + 1).await
}

/// Everything after `seq` that there is by now.
async fn catch_up(
    store: &Store,
    project: &ProjectId,
    id: &JobId,
    seq: u64,
) -> Result<Unread, StoreError> {
    let mut unread = Unread::default();
    let mut latest = read(store, project, id, seq).await?;
    loop {
        unread.events.extend(latest.events.iter().cloned());
        if latest.ended.is_some() || (latest.events.len() as u64) < PAGE {
            unread.ended = latest.ended;
            return Ok(unread);
        }
        latest = read(store, project, id, latest.last_seq()).await?;
    }
}

/// What a follower has not been told yet.
#[derive(Default)]
struct Unread {
    events: VecDeque<Event>,
    ended: Option<Arc<FineTuningJob>>,
}

struct Follower {
    store: Store,
    project: ProjectId,
    job: JobId,
    /// Of the last event that was told.
    seq: u64,
    unread: Unread,
    latest: watch::Receiver<Latest>,
}

/// The job's events, those that are there and those to come; behind event `after`, where one is named.
/// Errors: 404 for the job, and for `after`. The stream ends with [`News::Ended`], or early where this process is to end or the
/// caller may no longer read.
pub async fn follow(
    state: &State,
    caller: &Caller,
    id: &str,
    after: Option<&str>,
) -> Result<BoxStream<'static, Result<News, ApiError>>, ApiError> {
    let project = &caller.project;
    let job = fine_tuning::get(state, project, id).await?;
    let events = state.store.events();
    let seq = match after {
        Some(after) => events.seq_of(&job.id, after).await.map_err(store_error)?,
        None => 0,
    };
    let unread = catch_up(&state.store, &project.id, &job.id, seq).await;
    let unread = unread.map_err(store_error)?;
    let told = unread.events.back().map_or(seq, |event| event.seq);
    let mut latest = state.newsroom.follow(caller, &job.id, told);
    // Others may have been told of something since.
    latest.mark_changed();
    let follower = Follower {
        store: state.store.clone(),
        project: project.id.clone(),
        job: job.id,
        seq,
        unread,
        latest,
    };
    Ok(stream::unfold(Some(follower), next).boxed())
}

async fn next(follower: Option<Follower>) -> Option<(Result<News, ApiError>, Option<Follower>)> {
    let mut follower = follower?;
    match follower.next().await {
        Ok(Some(news @ News::Ended(_))) => Some((Ok(news), None)),
        Ok(news) => Some((Ok(news?), Some(follower))),
        Err(error) => Some((Err(store_error(error)), None)),
    }
}

impl Follower {
    /// `None`: nobody looks for news any more, or not for this follower.
    async fn next(&mut self) -> Result<Option<News>, StoreError> {
        loop {
            if let Some(event) = self.unread.events.pop_front() {
                self.seq = event.seq;
                if self.unread.events.is_empty() {
                    // The room that a job's whole past took: this follower may wait for hours.
                    self.unread.events = VecDeque::new();
                }
                return Ok(Some(News::Event(event)));
            }
            if let Some(job) = self.unread.ended.take() {
                return Ok(Some(News::Ended(Box::new((*job).clone()))));
            }
            match tokio::time::timeout(QUIET, self.latest.changed()).await {
                Err(_elapsed) => return Ok(Some(News::Quiet)),
                Ok(Err(_gone)) => return Ok(None),
                Ok(Ok(())) => self.take_latest().await?,
            }
        }
    }

    async fn take_latest(&mut self) -> Result<(), StoreError> {
        let latest = self.latest.borrow_and_update().clone();
        if latest.last_seq() <= self.seq && latest.ended.is_none() {
            return Ok(());
        }
        self.unread = if latest.after == self.seq {
            Unread {
                events: latest.events.iter().cloned().collect(),
                ended: latest.ended,
            }
        } else {
            // In a box that is there while it is needed: thousands of followers wait.
            Box::pin(catch_up(&self.store, &self.project, &self.job, self.seq)).await?
        };
        Ok(())
    }
}
