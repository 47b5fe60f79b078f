//! An HTTP receiver on a loopback port: it answers as it is told and keeps what it was sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How a request is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// This status and no body.
    Status(u16),
    /// These bytes, and then a body without end.
    Endless(String),
    /// One byte of the head, and no more.
    Stall,
}

/// A request, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Method, path and headers, as they came.
    pub head: String,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

/// Ends when it is dropped.
pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

struct Shared {
    answers: VecDeque<Answer>,
    received: Vec<Received>,
}

impl Receiver {
    /// Answers with these, one a request, and then with 200.
    pub async fn start(answers: impl IntoIterator<Item = Answer>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared {
            answers: answers.into_iter().collect(),
            received: Vec::new(),
        }));
        let accepted = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, accepted.clone()));
            }
        });
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Everything so far.
    pub fn received(&self) -> Vec<Received> {
        let shared = self.shared.lock().expect("no panic while it is held");
        shared.received.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request a connection. Whoever breaks off has broken off.
async fn serve(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) -> Option<()> {
    let request = read(&mut stream).await?;
    let answer = {
        let mut shared = shared.lock().expect("no panic while it is held");
        shared.received.push(request);
        shared.answers.pop_front().unwrap_or(Answer::Status(200))
    };
    match answer {
        Answer::Status(status) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.ok()
        }
        Answer::Endless(head) => {
            stream.write_all(head.as_bytes()).await.ok()?;
            loop {
                stream.write_all(&[b'x'; 4096]).await.ok()?;
            }
        }
        Answer::Stall => {
            stream.write_all(b"H").await.ok()?;
            stream.read(&mut [0]).await.ok().map(drop)
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let request = Received {
            head: head.to_owned(),
            body: body.to_owned(),
        };
        let length = request.header("content-length").parse().unwrap_or(0);
        if request.body.len() >= length {
            return Some(request);
        }
    }
}
