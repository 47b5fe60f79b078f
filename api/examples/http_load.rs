//! The other side of `bench/api`: requests at a rate or as many as go, streams that are only held open, and a worker that
//! answers at once. Plain HTTP/1.1 over tokio, so that it takes few of the processors it shares with the service.
//!
//! `http_load get|post ADDRESS PATH KEY BODY CONNECTIONS SECONDS RATE` prints one line of JSON (rate 0: as many as go).
//! `http_load watch ADDRESS PATH KEY N` says `open` once N streams have begun, and holds them until its input ends.
//! `http_load worker ADDRESS` answers every request to generate with one token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["worker", address] => worker(address).await,
        ["watch", address, path, key, n] => watch(address, path, key, n.parse()?).await,
        [
            method @ ("get" | "post"),
            address,
            path,
            key,
            body,
            connections,
            seconds,
            rate,
        ] => {
            let request = request(method, path, key, body);
            let load = Load {
                address: address.to_owned(),
                request,
                seconds: seconds.parse()?,
                rate: rate.parse()?,
            };
            println!("{}", load.run(connections.parse()?).await?);
            Ok(())
        }
        _ => Err("see the first lines of this program for what it takes".into()),
    }
}

fn request(method: &str, path: &str, key: &str, body: &str) -> Vec<u8> {
    let method = method.to_uppercase();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The same request again and again.
struct Load {
    address: String,
    request: Vec<u8>,
    seconds: f64,
    /// Requests a second over all connections; 0: as many as go.
    rate: f64,
}

impl Load {
    /// Latencies are counted from when a request was due, so that a server that falls behind cannot hide it.
    async fn run(self, n_connections: u32) -> Result<serde_json::Value, Failure> {
        let load = Arc::new(self);
        let turn = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..n_connections {
            senders.spawn(Arc::clone(&load).send(begun, Arc::clone(&turn)));
        }
        let mut latencies_s = Vec::new();
        while let Some(sent) = senders.join_next().await {
            latencies_s.extend(sent??);
        }
        let seconds = begun.elapsed().as_secs_f64();
        latencies_s.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| latencies_s[((latencies_s.len() - 1) as f64 * share) as usize] * 1e3;
        Ok(json!({
            "requests": latencies_s.len(), "seconds": seconds, "p50_ms": at(0.5), "p99_ms": at(0.99),
        }))
    }

    async fn send(
        self: Arc<Self>,
        begun: Instant,
        turn: Arc<AtomicU64>,
    ) -> Result<Vec<f64>, Failure> {
        let mut connection = Connection::open(&self.address).await?;
        let mut latencies_s = Vec::new();
        loop {
            let due = match self.rate {
                0.0 => Instant::now(),
                rate => {
                    let n = turn.fetch_add(1, Ordering::Relaxed);
                    begun + Duration::from_secs_f64(n as f64 / rate)
                }
            };
            if due.duration_since(begun).as_secs_f64() >= self.seconds {
                return Ok(latencies_s);
            }
            tokio::time::sleep_until(due.into()).await;
            connection.ask(&self.request).await?;
            latencies_s.push(due.elapsed().as_secs_f64());
        }
    }
}

/// One connection that is kept alive.
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn open(address: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Errors: any status but 200.
    async fn ask(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.0.write_all(request).await?;
        let head = read_head(&mut self.0).await?;
        let length = content_length(&head).ok_or("a reply without a length")?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        if head.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        Err(format!("{head}{}", String::from_utf8_lossy(&body)).into())
    }
}

/// Up to the empty line.
async fn read_head(stream: &mut BufReader<TcpStream>) -> Result<String, Failure> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?
        .to_ascii_lowercase()
        .replacen("http/", "HTTP/", 1))
}

fn content_length(head: &str) -> Option<usize> {
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?;
    line.trim().parse().ok()
}

async fn watch(address: &str, path: &str, key: &str, n: usize) -> Result<(), Failure> {
    let request = request("get", path, key, "");
    let mut held = Vec::new();
    for _ in 0..n {
        let mut stream = BufReader::with_capacity(512, TcpStream::connect(address).await?);
        stream.write_all(&request).await?;
        let head = read_head(&mut stream).await?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(head.into());
        }
        held.push(stream);
    }
    println!("open");
    let until_closed = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(until_closed).await??;
    drop(held);
    Ok(())
}

/// A worker's door: the answer to every conversation is one token, at once.
async fn worker(address: &str) -> Result<(), Failure> {
    let listener = TcpListener::bind(address).await?;
    let lines = [
        json!({"type": "started", "prompt_tokens": 9}),
        json!({"type": "delta", "index": 0, "text": "Hi"}),
        json!({"type": "finished", "index": 0, "finish_reason": "stop"}),
        json!({"type": "done", "usage": {"prompt_tokens": 9, "completion_tokens": 1}}),
    ];
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let length = body.len();
    let reply = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let reply: Arc<[u8]> = reply.into_bytes().into();
    println!("open");
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(answer(BufReader::new(stream), Arc::clone(&reply)));
    }
}

async fn answer(mut stream: BufReader<TcpStream>, reply: Arc<[u8]>) -> Result<(), Failure> {
    loop {
        let head = read_head(&mut stream).await?;
        let mut body = vec![0; content_length(&head).unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        stream.write_all(&reply).await?;
    }
}
