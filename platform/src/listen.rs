//! Owns how doors between our own processes are opened.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A listener whose connections send small pieces at once: tokens are small, and each is waited for. Otherwise a piece waits until the one before
/// it is acknowledged, which the other side may put off for 40 ms.
/// Errors: what binding says.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As `TcpListener::bind` does: a process that starts again finds its port.
    socket.set_reuseaddr(cfg!(unix))?;
    // What is accepted inherits it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn what_is_accepted_sends_at_once() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match listen(address.parse().unwrap()) {
                Ok(listener) => listener,
                Err(error) if address.starts_with('[') => {
                    println!("skipped: this machine has no IPv6: {error}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let to = listener.local_addr().unwrap();
            let (client, accepted) = tokio::join!(TcpStream::connect(to), listener.accept());
            let (_client, (accepted, _)) = (client.unwrap(), accepted.unwrap());
            assert!(accepted.nodelay().unwrap());
        }
    }
}
