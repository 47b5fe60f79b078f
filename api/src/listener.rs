//! Where connections come in: TCP, with TLS when there is a certificate, and nothing public without it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use platform::config::ApiConfig;
use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A client that has not finished its handshake by then has no intention to.
const HANDSHAKE: Duration = Duration::from_secs(10);
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
    #[error("cannot listen on {address}: {source}")]
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
        let listener = TcpListener::bind(address).await.map_err(failed)?;
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

impl Acceptor for Incoming {
    type Io = Stream;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Stream, LocalAddr, RemoteAddr, Scheme)> {
        let (tcp, remote) = match self.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return Err(error);
            }
        };
        // Tokens are small and each is waited for.
        tcp.set_nodelay(true)?;
        let (stream, scheme) = match &self.tls {
            None => (Stream::Plain(tcp), Scheme::HTTP),
            Some(tls) => (
                Stream::Handshake(Box::pin(handshake(tls.clone(), tcp))),
                Scheme::HTTPS,
            ),
        };
        Ok((
            stream,
            LocalAddr(self.address.into()),
            RemoteAddr(remote.into()),
            scheme,
        ))
    }
}

async fn handshake(tls: TlsAcceptor, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE, tls.accept(tcp)).await {
        Ok(done) => done,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A connection. The handshake happens at the first read, so that a slow one holds up nobody else.
pub enum Stream {
    Plain(TcpStream),
    Handshake(Pin<Box<dyn Future<Output = io::Result<TlsStream<TcpStream>>> + Send>>),
    Tls(Box<TlsStream<TcpStream>>),
    Failed,
}

impl Stream {
    /// The connection once it can be read and written.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Both>>> {
        if let Stream::Handshake(handshake) = self {
            *self = match ready!(handshake.as_mut().poll(cx)) {
                Ok(tls) => Stream::Tls(Box::new(tls)),
                Err(error) => {
                    *self = Stream::Failed;
                    return Poll::Ready(Err(error));
                }
            };
        }
        match self {
            Stream::Plain(tcp) => Poll::Ready(Ok(Pin::new(tcp))),
            Stream::Tls(tls) => Poll::Ready(Ok(Pin::new(tls.as_mut()))),
            Stream::Handshake(_) | Stream::Failed => {
                Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
            }
        }
    }
}

/// Something to read from and to write to.
trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx))?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            // Nothing was said yet: there is nothing to end in good order.
            Stream::Handshake(_) | Stream::Failed => Poll::Ready(Ok(())),
            _ => ready!(self.poll_ready(cx))?.poll_shutdown(cx),
        }
    }
}
