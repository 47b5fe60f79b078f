//! The public listener with a certificate.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{App, Reply};

fn pem(name: &str) -> Option<PathBuf> {
    Some(
        [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/tls", name]
            .iter()
            .collect(),
    )
}

#[tokio::test]
async fn with_a_certificate_the_api_speaks_tls_and_nothing_else() {
    let app = App::start_with(|config| {
        config.api.tls_certificate = pem("certificate.pem");
        config.api.tls_key = pem("key.pem");
    })
    .await;
    let address = app.base.strip_prefix("http://").unwrap();
    // One that says nothing at all holds up nobody.
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true) // it signs itself
        .build()
        .unwrap();
    let request = http
        .get(format!("https://{address}/v1/models"))
        .bearer_auth(&app.key);
    let reply = Reply::of(request.send().await.unwrap()).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("strict-transport-security"),
        "max-age=31536000"
    );

    let mut plain = tokio::net::TcpStream::connect(address).await.unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await; // an alert or a reset
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn a_certificate_and_its_key_go_together() {
    for (certificate, key, reason) in [
        (pem("certificate.pem"), None, "api.tls_key is not set"),
        (None, pem("key.pem"), "api.tls_certificate is not set"),
        (pem("key.pem"), pem("key.pem"), "it holds no certificate"),
        (pem("missing.pem"), pem("key.pem"), "missing.pem"),
    ] {
        let refused = App::try_bind(|config| {
            config.api.tls_certificate = certificate;
            config.api.tls_key = key;
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}
