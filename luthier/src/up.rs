//! `luthier up`: api and scheduler in this process, the worker its child.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use platform::config::Config;
use platform::data_dir::DataDirLock;
use platform::queue::Queue;
use platform::shutdown::Shutdown;
use tokio::task::JoinHandle;

use crate::cli::{UpOptions, default_data_dir};
use crate::logging;
use crate::opened::{Opened, entropy, make_private_dir, now, open};
use crate::worker_process::{ChildOptions, supervise};

/// A role that runs beside us until shutdown.
pub struct Running {
    pub address: SocketAddr,
    task: JoinHandle<Result<()>>,
}

impl Running {
    pub async fn finished(self) -> Result<()> {
        self.task.await.context("the role panicked")?
    }
}

/// `luthier up`.
pub async fn run(options: UpOptions) -> Result<()> {
    let data_dir = data_dir_of(&options)?;
    let mut overrides = insecure(options.insecure);
    overrides.extend(listen(options.listen));
    let config = Config::load_embedded(&data_dir, options.config.as_deref(), &overrides)?;
    make_private_dir(&config.data_dir)?;
    logging::to_stderr(&config)?;
    let service = Service::start(config, options.config, None, Shutdown::on_signals()?).await?;
    eprintln!("Luthier is up at {}", service.base_url());
    if service.opened.store.base_models().list().await?.is_empty() {
        eprintln!(
            "No base model is installed yet: luthier model pull {}",
            crate::model::QUICKSTART_MODEL
        );
    }
    eprintln!(
        "Make a key with: luthier key create --project default --data-dir {}",
        data_dir.display()
    );
    service.finished().await
}

/// `--data-dir`, else what the file says, else the user's own directory.
fn data_dir_of(options: &UpOptions) -> Result<PathBuf> {
    match (&options.data_dir, &options.config) {
        (Some(dir), _) => Ok(dir.clone()),
        (None, Some(file)) => Ok(Config::load(Some(file), &[])?.data_dir),
        (None, None) => Ok(default_data_dir()),
    }
}

/// What `--listen` changes in the configuration.
pub fn listen(address: Option<SocketAddr>) -> Vec<(&'static str, String)> {
    address
        .map(|a| ("api.listen", a.to_string()))
        .into_iter()
        .collect()
}

/// What `--insecure` changes in the configuration.
pub fn insecure(given: bool) -> Vec<(&'static str, String)> {
    given
        .then(|| ("api.insecure", true.to_string()))
        .into_iter()
        .collect()
}

/// The whole service in its embedded form.
pub struct Service {
    pub opened: Opened,
    api: Running,
    scheduler: Running,
    worker: JoinHandle<Result<()>>,
    shutdown: Shutdown,
    /// Requested once the worker has drained: until then it needs the door.
    roles_shutdown: Shutdown,
    /// Held as long as we run: two services on one directory would each believe they own the workers.
    _lock: DataDirLock,
}

impl Service {
    /// Starts the roles; the worker's log goes to `worker_log`, or beside ours.
    pub async fn start(
        config: Config,
        config_file: Option<PathBuf>,
        worker_log: Option<PathBuf>,
        shutdown: Shutdown,
    ) -> Result<Self> {
        let lock = DataDirLock::acquire(&config.data_dir)?;
        let opened = open(config).await?;
        opened
            .store
            .projects()
            .ensure_default([entropy(), entropy()], now())
            .await?;
        // Whoever held a lease ran under the service before this one and ended with it.
        opened.store.jobs().void_leases(now()).await?;
        opened.store.batches().void_leases().await?;
        let queue = Queue::open(&opened.config.queue).context("cannot open the queue")?;
        let roles_shutdown = Shutdown::new();
        let scheduler = start_scheduler(&opened, queue, roles_shutdown.clone()).await?;
        let api = start_api(&opened, roles_shutdown.clone()).await?;
        let child = ChildOptions {
            data_dir: opened.config.data_dir.clone(),
            config: config_file,
            door_url: format!("http://{}", scheduler.address),
            log_file: worker_log,
        };
        let worker = tokio::spawn(supervise(child, shutdown.clone()));
        Ok(Self {
            opened,
            api,
            scheduler,
            worker,
            shutdown,
            roles_shutdown,
            _lock: lock,
        })
    }

    /// What a client's `base_url` must be.
    pub fn base_url(&self) -> String {
        base_url(&self.opened.config, self.api.address)
    }

    /// Runs until a signal or [`Service::stop`]; the worker drains first, while the door still answers.
    pub async fn finished(self) -> Result<()> {
        self.shutdown.begun().await;
        eprintln!("Stopping: the worker saves its work …");
        let worker = self
            .worker
            .await
            .context("the worker's supervisor panicked")?;
        self.roles_shutdown.begin();
        let scheduler = self.scheduler.finished().await;
        let api = self.api.finished().await;
        worker.and(scheduler).and(api)
    }

    /// Asks everything to drain.
    pub fn stop(&self) {
        self.shutdown.begin();
    }
}

pub fn base_url(config: &Config, address: SocketAddr) -> String {
    let scheme = if config.api.tls_certificate.is_some() {
        "https"
    } else {
        "http"
    };
    let own = format!("{scheme}://{address}/v1");
    config.api.public_url.as_ref().map_or(own, |url| {
        format!("{}/v1", url.trim_end_matches('/').trim_end_matches("/v1"))
    })
}

/// Starts the HTTP API of an installation.
pub async fn start_api(opened: &Opened, shutdown: Shutdown) -> Result<Running> {
    let options = api::ApiOptions {
        config: opened.config.clone(),
        store: opened.store.clone(),
        objects: opened.objects.clone(),
    };
    let server = api::bind(options).await.context("the API cannot start")?;
    let address = server.address();
    let task = tokio::spawn(async move { server.serve(shutdown).await.context("the API stopped") });
    Ok(Running { address, task })
}

/// Starts the scheduler of an installation.
pub async fn start_scheduler(opened: &Opened, queue: Queue, shutdown: Shutdown) -> Result<Running> {
    let options = scheduler::SchedulerOptions {
        config: opened.config.clone(),
        store: opened.store.clone(),
        objects: opened.objects.clone(),
        queue: queue.into(),
        clock: scheduler::Clock::Database,
    };
    let server = scheduler::bind(options)
        .await
        .context("the scheduler cannot start")?;
    let address = server.address();
    let task = tokio::spawn(async move {
        server
            .serve(shutdown)
            .await
            .context("the scheduler stopped")
    });
    Ok(Running { address, task })
}
