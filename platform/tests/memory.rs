//! What a large upload costs in memory. One test, so that its process is measured and nothing else.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use platform::config::{ObjectsConfig, Secret};
use platform::objects::Objects;
use tests::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY};

const MIB: usize = 1024 * 1024;
const LARGE_MIB: usize = 96;
/// A part of 8 MiB, its copies on the way to the server, and the server, which is in this process.
const LIMIT_MIB: usize = 48;

#[tokio::test]
async fn a_large_body_needs_little_memory() {
    let root = tempfile::tempdir().unwrap();
    let url = format!("file://{}", root.path().display());
    let dir = Objects::open(&ObjectsConfig {
        url,
        ..Default::default()
    })
    .unwrap();
    check(&dir).await;

    let server = S3Server::start().await.unwrap();
    let s3 = Objects::open(&ObjectsConfig {
        url: format!("s3://{}", server.bucket),
        endpoint: Some(server.endpoint.clone()),
        access_key_id: Some(ACCESS_KEY_ID.to_owned()),
        secret_access_key: Some(Secret::from(SECRET_ACCESS_KEY)),
        ..Default::default()
    });
    check(&s3.unwrap()).await;
}

async fn check(objects: &Objects) {
    objects.put("warm", body(9)).await.unwrap();
    let before = peak_memory_bytes();
    let stored = objects.put("large", body(LARGE_MIB)).await.unwrap();
    let mut content = objects.get("large").await.unwrap();
    let mut n = 0;
    while let Some(chunk) = content.next().await {
        n += chunk.unwrap().len();
    }
    assert_eq!(
        (stored.size_bytes, n),
        ((LARGE_MIB * MIB) as u64, LARGE_MIB * MIB)
    );
    let grown_mib = (peak_memory_bytes() - before) / MIB;
    assert!(
        grown_mib < LIMIT_MIB,
        "{grown_mib} MiB more for {LARGE_MIB} MiB"
    );
}

/// Chunks of 64 KiB, made as they are asked for.
fn body(size_mib: usize) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::iter((0..size_mib * 16).map(|i| Ok(Bytes::from(vec![i as u8; MIB / 16]))))
}

/// The most memory this process has held so far, as the kernel counts it.
fn peak_memory_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}
