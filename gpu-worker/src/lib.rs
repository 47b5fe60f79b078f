//! The one that computes: a worker trains and generates on one device. It owns what runs on this host; it decides
//! nothing about a job and never sees the database.

mod adapters;
mod base_models;
mod control;
mod device;
mod door_client;
mod export;
mod generate;
mod heart;
mod lru;
mod operational;
mod plan;
mod request;
mod train;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domain::id::WorkerId;
use engine::generate::Limits;
use platform::config::{Config, WorkerConfig};
use platform::objects::Objects;
use platform::queue::Queue;
use platform::service_token::ServiceKey;
use platform::shutdown::Shutdown;
use poem::listener::TcpAcceptor;
use poem::{EndpointExt, Route};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::adapters::{Adapters, Budgets};
use crate::device::{Device, DeviceError};
use crate::worker::Worker;

/// How long a job may take to save itself when the process is asked to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);
/// How long answers that are being streamed may go on when the process is asked to end.
const CHAT_LIMIT: Duration = Duration::from_secs(30);
/// How long a job may take to tell the door when the device broke.
const BROKEN_LIMIT: Duration = Duration::from_secs(10);

/// What a worker is started with.
pub struct WorkerOptions {
    pub config: WorkerConfig,
    /// Where base models are kept on this host.
    pub cache_dir: PathBuf,
    /// Base URL of the scheduler's door.
    pub door_url: String,
    /// Signs what this worker says to the door, and proves who asks it to generate.
    pub service_key: ServiceKey,
    pub objects: Objects,
    pub queue: Queue,
}

impl WorkerOptions {
    /// As `config` says. Errors: a door's URL or a service key is missing.
    pub fn from_config(
        config: &Config,
        objects: Objects,
        queue: Queue,
    ) -> Result<Self, WorkerError> {
        let unusable = |reason: String| WorkerError::Config(reason);
        let key = config
            .service_key()
            .map_err(|error| unusable(error.to_string()))?;
        let door_url = config.door_url();
        Ok(Self {
            config: config.worker.clone(),
            cache_dir: config.cache_dir(),
            door_url: door_url
                .ok_or_else(|| unusable("scheduler.door_url is not set".to_owned()))?,
            service_key: ServiceKey::new(key),
            objects,
            queue,
        })
    }
}

/// Why a worker ends other than by being asked to; whoever supervises it starts another.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("the configuration cannot be used: {0}")]
    Config(String),
    #[error("cannot listen on {listen}: {error}")]
    Listen {
        listen: std::net::SocketAddr,
        error: std::io::Error,
    },
    #[error("cannot start the device's thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot make an HTTP client: {0}")]
    HttpClient(String),
    #[error("the worker's door stopped: {0}")]
    Door(std::io::Error),
    /// What the device computes can no longer be trusted.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Runs a worker until `shutdown`: claims jobs and trains them, answers generation requests. Then it drains: a job is
/// saved and handed back, answers go on for a while.
/// Errors: what makes this process unfit; it should exit non-zero.
pub async fn run(options: WorkerOptions, shutdown: Shutdown) -> Result<(), WorkerError> {
    let listen = options.config.listen;
    let listener =
        platform::listen(listen).map_err(|error| WorkerError::Listen { listen, error })?;
    let bound = listener
        .local_addr()
        .map_err(|error| WorkerError::Listen { listen, error })?;
    let draining = CancellationToken::new();
    let WorkerOptions {
        queue, service_key, ..
    } = &options;
    let (queue, service_key) = (queue.clone(), service_key.clone());
    let (worker, device_ended) = assemble(options, bound, draining.clone())?;
    tracing::info!(id = %worker.id, address = worker.address, device = worker.device.name, "worker starts");

    let (greeted, mut first_hello) = watch::channel(false);
    let hello = AbortOnDropHandle::new(tokio::spawn(control::say_hello(
        Arc::clone(&worker),
        greeted,
    )));
    let _listening = AbortOnDropHandle::new(tokio::spawn(control::listen(
        Arc::clone(&worker),
        queue.clone(),
    )));
    let _preload = AbortOnDropHandle::new(tokio::spawn(preload(
        Arc::clone(&worker),
        first_hello.clone(),
    )));
    let door = AbortOnDropHandle::new(tokio::spawn(serve(
        listener,
        Arc::clone(&worker),
        service_key,
    )));
    let at_work = Arc::clone(&worker);
    let mut work = AbortOnDropHandle::new(tokio::spawn(async move {
        // Without a hello there is no base model to claim for.
        let _ = first_hello.wait_for(|greeted| *greeted).await;
        control::work(at_work, queue).await;
    }));

    tokio::select! {
        () = shutdown.begun() => {}
        error = broken(device_ended) => {
            draining.cancel();
            // The job hears of it too, and says so at the door.
            let _ = tokio::time::timeout(BROKEN_LIMIT, &mut work).await;
            return Err(WorkerError::Device(error.to_string()));
        }
    }
    tracing::info!("worker drains");
    draining.cancel();
    drop(hello);
    if tokio::time::timeout(DRAIN_LIMIT, &mut work).await.is_err() {
        tracing::warn!("the job could not be saved in time; its lease will run out");
    }
    match door.await {
        Ok(served) => served.map_err(WorkerError::Door),
        Err(panic) => Err(WorkerError::Door(std::io::Error::other(panic))),
    }
}

fn assemble(
    options: WorkerOptions,
    bound: std::net::SocketAddr,
    draining: CancellationToken,
) -> Result<(Arc<Worker>, oneshot::Receiver<DeviceError>), WorkerError> {
    let WorkerOptions {
        config,
        cache_dir,
        door_url,
        service_key,
        objects,
        ..
    } = options;
    let door = door_client::DoorClient::new(&door_url, service_key);
    let limits = Limits {
        max_sequences: config.max_sequences,
        max_cached_tokens: config.max_cached_tokens,
    };
    let budgets = Budgets {
        memory_bytes: config.adapter_memory_bytes,
        disk_bytes: config.adapter_disk_bytes,
    };
    let n_threads = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let gpu = device::choose_gpu(config.device).map_err(WorkerError::Config)?;
    let (device, ended) = Device::start(n_threads, gpu, limits).map_err(WorkerError::Thread)?;
    let worker = Worker {
        id: WorkerId::mint(rand::random()),
        address: config
            .advertise_url
            .unwrap_or_else(|| format!("http://{bound}")),
        beat_interval: Duration::from_secs(config.beat_interval_s),
        checkpoint_interval: Duration::from_secs(config.checkpoint_interval_s),
        work_dir: cache_dir.join("work"),
        door: door.map_err(|error| WorkerError::HttpClient(error.to_string()))?,
        adapters: Adapters::new(
            objects.clone(),
            cache_dir.join("adapters"),
            budgets,
            !device.has_gpu,
        ),
        device,
        bases: base_models::BaseModels::new(objects.clone(), cache_dir, config.models),
        objects,
        draining,
        grammars: generate::Grammars::default(),
        places: generate::Places::new(limits.max_sequences),
        exports: Arc::new(Semaphore::new(export::MAX_EXPORTS)),
        current: std::sync::Mutex::default(),
    };
    Ok((Arc::new(worker), ended))
}

/// The error with which the device's thread ended; never returns while it lives or when it ended well.
async fn broken(ended: oneshot::Receiver<DeviceError>) -> DeviceError {
    match ended.await {
        Ok(error) => error,
        Err(_) => std::future::pending().await,
    }
}

/// Puts the first base model onto the device, so that the first chat need not wait for it.
async fn preload(worker: Arc<Worker>, mut greeted: watch::Receiver<bool>) {
    if greeted.wait_for(|greeted| *greeted).await.is_err() {
        return;
    }
    let Some(model) = worker.bases.first() else {
        return;
    };
    let loaded = match worker.bases.prepare(&model).await {
        Ok(base) => worker
            .device
            .load(base.folder.clone())
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = loaded {
        tracing::warn!(error, "the first base model cannot be loaded yet");
    }
}

/// The worker's HTTP door, until it drained.
async fn serve(listener: TcpListener, worker: Arc<Worker>, key: ServiceKey) -> std::io::Result<()> {
    let acceptor = TcpAcceptor::from_tokio(listener)?;
    let draining = worker.draining.clone();
    let mut routes = Route::new();
    if let Some(recorded) = operational::record_metrics() {
        let show = poem::get(operational::show).data(recorded);
        routes = routes.at("/metrics", show.data(Arc::clone(&worker)));
    }
    let routes = routes.nest_no_strip("/", generate::routes(worker, key));
    let drained = async move { draining.cancelled().await };
    poem::Server::new_with_acceptor(acceptor)
        .run_with_graceful_shutdown(routes, drained, Some(CHAT_LIMIT))
        .await
}
