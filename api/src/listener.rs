//! Where connections come in: TCP, with TLS when there is a certificate, and nothing public without it.
//!
//! Connections are driven by hyper itself, not by poem's server: that one goes on with a connection after it failed,
//! so an answer nobody waits for is computed to its end, and a body that breaks off looks whole to the client.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming as IncomingBody;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use platform::config::ApiConfig;
use poem::http::uri::Scheme;
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Endpoint, Response, http};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A client that has not finished its handshake by then has no intention to.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client that has not sent its next request's headers by then is let go.
const HEADERS: Duration = Duration::from_secs(60);
/// Room for the head of a request; the keys and cookies of real ones take a few KiB. Bytes.
const MAX_HEAD: usize = 64 * 1024;
/// How long answers that are on their way may still take when the service stops.
const DRAIN: Duration = Duration::from_secs(20);
/// Pause after a failed accept: the cause (no file descriptor left) does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a listener does not open.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{address} can be reached from elsewhere and would carry API keys in the clear: set api.tls_certificate and \
         api.tls_key, or api.insecure (--insecure) when TLS ends in front"
    )]
    PublicWithoutTls { address: SocketAddr },
    #[error("api.tls_certificate and api.tls_key go together: {missing} is not set")]
    HalfOfTls { missing: &'static str },
    #[error("cannot listen on {address}")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot use {}: {reason}", path.display())]
    Pem { path: PathBuf, reason: String },
    #[error("the certificate and the key do not fit together: {0}")]
    Tls(#[from] rustls::Error),
}

/// An open socket, with what is needed to speak TLS on it.
pub struct Incoming {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl Incoming {
    /// Opens the public listener of `config`.
    pub async fn public(config: &ApiConfig) -> Result<Self, ListenError> {
        let tls = match (&config.tls_certificate, &config.tls_key) {
            (Some(certificate), Some(key)) => Some(tls_acceptor(certificate, key)?),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(ListenError::HalfOfTls {
                    missing: "api.tls_certificate",
                });
            }
            (Some(_), None) => {
                return Err(ListenError::HalfOfTls {
                    missing: "api.tls_key",
                });
            }
        };
        let address = config.listen;
        if tls.is_none() && !config.insecure && !address.ip().is_loopback() {
            return Err(ListenError::PublicWithoutTls { address });
        }
        Self::bind(address, tls).await
    }

    /// Opens a listener without TLS: the operational one.
    pub async fn plain(address: SocketAddr) -> Result<Self, ListenError> {
        Self::bind(address, None).await
    }

    async fn bind(address: SocketAddr, tls: Option<TlsAcceptor>) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind { address, source };
        let listener = platform::listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            tls,
        })
    }

    /// Where it listens; with port 0 in the configuration, on which port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn tls_acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, ListenError> {
    let failed = |path: &Path, reason: String| ListenError::Pem {
        path: path.to_owned(),
        reason,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| failed(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(failed(certificate, "it holds no certificate".to_owned()));
    }
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, secret)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Incoming {
    /// Answers every connection with `endpoint` until `shutdown`, then finishes what is on its way.
    pub async fn serve<E>(self, endpoint: E, shutdown: impl Future<Output = ()>)
    where
        E: Endpoint<Output = Response> + 'static,
    {
        let graceful = GracefulShutdown::new();
        let server = Server {
            endpoint: Arc::new(endpoint),
            builder: builder(),
            tls: self.tls,
            local: LocalAddr(self.address.into()),
        };
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, remote)) => {
                    let connection = server.clone().converse(tcp, remote, graceful.watcher());
                    tokio::spawn(connection);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        if tokio::time::timeout(DRAIN, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("some answers were cut off: they took too long to end");
        }
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEADERS)
        .max_concurrent_streams(200);
    builder
}

/// What every connection is answered with.
struct Server<E> {
    endpoint: Arc<E>,
    builder: Builder<TokioExecutor>,
    tls: Option<TlsAcceptor>,
    local: LocalAddr,
}

impl<E> Clone for Server<E> {
    fn clone(&self) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            builder: self.builder.clone(),
            tls: self.tls.clone(),
            local: self.local.clone(),
        }
    }
}

impl<E: Endpoint<Output = Response> + 'static> Server<E> {
    async fn converse(self, tcp: TcpStream, remote: SocketAddr, watcher: Watcher) {
        let ended = match self.tls.clone() {
            None => self.answer(tcp, remote, Scheme::HTTP, watcher).await,
            Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(tcp)).await {
                Ok(Ok(stream)) => self.answer(stream, remote, Scheme::HTTPS, watcher).await,
                Ok(Err(error)) => Err(error.into()),
                Err(_elapsed) => Err("the handshake took too long".into()),
            },
        };
        if let Err(error) = ended {
            tracing::debug!(%remote, %error, "a connection ended early");
        }
    }

    async fn answer(
        self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        remote: SocketAddr,
        scheme: Scheme,
        watcher: Watcher,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (endpoint, local) = (self.endpoint, self.local);
        let service = service_fn(move |request: http::Request<IncomingBody>| {
            let remote = RemoteAddr(remote.into());
            let request = poem::Request::from((request, local.clone(), remote, scheme.clone()));
            let endpoint = endpoint.clone();
            // In a box of its own: hyper keeps room for what answers until the connection ends, and streams may last for days.
            Box::pin(async move {
                Ok::<http::Response<_>, Infallible>(endpoint.get_response(request).await.into())
            })
        });
        let connection = self.builder.serve_connection(TokioIo::new(io), service);
        watcher.watch(connection).await
    }
}
