//! A TCP proxy on a loopback port whose connections can be cut, as a failing network would.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Forwards to one server; it ends, with its connections, when this is dropped.
pub struct Proxy {
    /// Where to connect instead of the server.
    pub address: SocketAddr,
    connections: Arc<Mutex<JoinSet<()>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts to forward to `server`, such as `127.0.0.1:5672`.
    pub async fn start(server: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let (server, accepted) = (server.to_owned(), connections.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = listener.accept().await else {
                    continue;
                };
                let server = server.clone();
                accepted
                    .lock()
                    .expect("no panic while it is held")
                    .spawn(async move {
                        if let Ok(mut server) = TcpStream::connect(&server).await {
                            // Whichever side ends it, the other one sees the end.
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                        }
                    });
            }
        });
        Ok(Self {
            address,
            connections,
            task,
        })
    }

    /// Cuts every connection; new ones are forwarded as before.
    pub fn cut(&self) {
        self.connections
            .lock()
            .expect("no panic while it is held")
            .abort_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}
