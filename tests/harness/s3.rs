//! A real S3 server on a loopback port, over files in a directory of its own.

mod files;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, anyhow};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The key pair that every test server accepts.
pub const ACCESS_KEY_ID: &str = "luthier-test";
/// The secret half of [`ACCESS_KEY_ID`].
pub const SECRET_ACCESS_KEY: &str = "luthier-test-secret";

/// A running server with one empty bucket; it and its files are gone when this is dropped.
pub struct S3Server {
    /// `http://127.0.0.1:port`
    pub endpoint: String,
    /// The bucket that exists.
    pub bucket: String,
    root: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl S3Server {
    /// Starts a server on a free loopback port.
    pub async fn start() -> anyhow::Result<Self> {
        let root = tempfile::tempdir()?;
        let bucket = "luthier".to_owned();
        std::fs::create_dir(root.path().join(&bucket))?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let task = serve(listener, root.path())?;
        Ok(Self {
            endpoint,
            bucket,
            root,
            task,
        })
    }

    /// Where the server keeps its files; a bucket is a directory in it.
    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Binds `listen` and serves the files below `root` until the process ends; calls `ready` with the
/// address once requests are accepted.
pub async fn run(
    listen: SocketAddr,
    root: &Path,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let address = listener.local_addr()?;
    let task = serve(listener, root)?;
    ready(address);
    Ok(task.await?)
}

fn serve(listener: TcpListener, root: &Path) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let files = FileSystem::new(root).map_err(|error| anyhow!("{}: {error:?}", root.display()))?;
    let mut service = S3ServiceBuilder::new(files::Files(files));
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let service = service.build();
    Ok(tokio::spawn(async move {
        // The connections end with the server: a dropped server is a dead one.
        let mut connections = JoinSet::new();
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                continue;
            };
            let service = service.clone();
            connections.spawn(async move {
                let server = Builder::new(TokioExecutor::new());
                // A client that hangs up is its own affair.
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }))
}
