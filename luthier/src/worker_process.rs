//! The worker as a child process: a crash of the device takes the worker, never the service.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use platform::shutdown::Shutdown;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// How long a worker may take to save its checkpoint and leave.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);
/// A worker that lived this long was healthy: the next restart is immediate again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What a worker child needs to know.
#[derive(Clone)]
pub struct ChildOptions {
    pub data_dir: PathBuf,
    pub config: Option<PathBuf>,
    pub door_url: String,
    /// Where its log lines go; `None`: to our standard error.
    pub log_file: Option<PathBuf>,
}

/// Keeps one worker running until shutdown; then lets it drain. Restarts wait 1 s, 2 s, … 30 s.
pub async fn supervise(options: ChildOptions, shutdown: Shutdown) -> Result<()> {
    let mut wait = Duration::from_secs(1);
    loop {
        let born = Instant::now();
        let mut child = spawn(&options).context("cannot start the worker process")?;
        // Held open as long as the child may live: its end tells the child that we are gone. (`wait` would close it.)
        let _our_end = child.stdin.take();
        tokio::select! {
            status = child.wait() => {
                if shutdown.has_begun() {
                    return Ok(());
                }
                tracing::error!(status = ?status?, "the worker process ended, starting another");
            }
            () = shutdown.begun() => return drain(child).await,
        }
        if born.elapsed() > HEALTHY_AFTER {
            wait = Duration::from_secs(1);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.begun() => return Ok(()),
        }
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}

fn spawn(options: &ChildOptions) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("worker")
        .arg("--data-dir")
        .arg(&options.data_dir)
        .arg("--stop-with-parent");
    if let Some(config) = &options.config {
        command.arg("--config").arg(config);
    }
    command.env("LUTHIER_SCHEDULER_DOOR_URL", &options.door_url);
    // A group of its own: Ctrl-C reaches us alone, and we decide when the worker drains.
    command
        .stdin(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(path) = &options.log_file {
        command.stdout(open_log(path)?).stderr(open_log(path)?);
    }
    Ok(command.spawn()?)
}

fn open_log(path: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path);
    file.with_context(|| format!("cannot log to {}", path.display()))
}

/// SIGTERM, then patience, then SIGKILL. A killed worker loses at most the steps since its last checkpoint.
async fn drain(mut child: Child) -> Result<()> {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        rustix::process::kill_process(pid, Signal::TERM)
            .context("cannot signal the worker process")?;
    }
    if tokio::time::timeout(DRAIN_LIMIT, child.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            limit_s = DRAIN_LIMIT.as_secs(),
            "the worker did not drain in time, killing it"
        );
        child.kill().await?;
    }
    Ok(())
}

/// Ends this process when the parent, which holds the other end of our standard input, is gone: however it went.
pub fn exit_when_stdin_ends() -> Result<()> {
    let watch = || {
        let mut sink = [0; 64];
        while matches!(std::io::Read::read(&mut std::io::stdin(), &mut sink), Ok(n) if n > 0) {}
        std::process::exit(1);
    };
    std::thread::Builder::new()
        .name("parent-watch".into())
        .spawn(watch)?;
    Ok(())
}
