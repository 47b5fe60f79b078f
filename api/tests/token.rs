//! Bearer tokens of trusted issuers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use platform::config::{Issuer, KeysAt, Signature};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{App, Reply, now};

const ISSUER: &str = "https://id.example.org/realm";
const AUDIENCE: &str = "luthier";
const KEY_ID: &str = "one";

fn private_key(name: &str) -> EncodingKey {
    let pem = match name {
        "issuer" => include_bytes!("fixtures/jwt/issuer.pem").as_slice(),
        _ => include_bytes!("fixtures/jwt/stranger.pem").as_slice(),
    };
    EncodingKey::from_rsa_pem(pem).unwrap()
}

/// A server that answers everything with this body, and counts.
struct Site {
    address: SocketAddr,
    n_asked: Arc<AtomicUsize>,
}

impl Site {
    async fn start(body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let n_asked = Arc::new(AtomicUsize::new(0));
        let counter = n_asked.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        Self { address, n_asked }
    }

    /// With the issuer's public key.
    async fn of_issuer() -> Self {
        let mut key = Jwk::from_encoding_key(&private_key("issuer"), Algorithm::RS256).unwrap();
        key.common.key_id = Some(KEY_ID.to_owned());
        Self::start(json!({"keys": [key]}).to_string()).await
    }

    fn n_asked(&self) -> usize {
        self.n_asked.load(Ordering::SeqCst)
    }
}

async fn app(site: &Site, scopes_claim: Option<&str>) -> App {
    let issuer = Issuer {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        keys: KeysAt::Url(format!("http://{}/keys", site.address)),
        algorithms: vec![Signature::RS256],
        project_claim: "project_id".to_owned(),
        scopes_claim: scopes_claim.map(str::to_owned),
    };
    App::start_with(|config| config.auth.issuers = vec![issuer]).await
}

fn claims(app: &App) -> Value {
    let exp = now().unix_s() + 600;
    json!({"iss": ISSUER, "aud": AUDIENCE, "exp": exp, "sub": "billing", "project_id": app.project.id.as_str()})
}

fn header() -> Header {
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(KEY_ID.to_owned());
    header
}

fn token(claims: &Value) -> String {
    encode(&header(), claims, &private_key("issuer")).unwrap()
}

async fn ask(app: &App, token: &str) -> Reply {
    app.with_key(token, Method::GET, "/v1/files").await
}

#[tokio::test]
async fn a_token_stands_for_the_project_that_it_names() {
    let site = Site::of_issuer().await;
    let app = app(&site, None).await;
    let file = app.upload(b"{}\n").await;
    let token = token(&claims(&app));
    for _ in 0..3 {
        let listed = ask(&app, &token).await;
        assert_eq!(listed.status, 200, "{listed:?}");
        assert_eq!(listed.json()["data"][0]["id"], json!(file));
    }
    assert_eq!(site.n_asked(), 1, "its keys are fetched once");
    let keys = app.get("/v1/files").await;
    assert_eq!(keys.status, 200, "keys open as ever");
}

#[tokio::test]
async fn a_token_may_what_its_scopes_say() {
    let site = Site::of_issuer().await;
    let app = app(&site, Some("scope")).await;
    for (scope, reads, deletes) in [
        (json!("openid api.files.read"), 200, 403),
        (json!(["api.files.write"]), 200, 404),
        (json!("api.all"), 200, 404),
        (json!("openid profile"), 403, 403),
        (Value::Null, 403, 403),
    ] {
        let mut claims = claims(&app);
        claims["scope"] = scope.clone();
        let token = token(&claims);
        assert_eq!(ask(&app, &token).await.status, reads, "{scope}");
        let deleted = app
            .with_key(&token, Method::DELETE, "/v1/files/file-x")
            .await;
        assert_eq!(deleted.status, deletes, "{scope}");
    }
}

#[tokio::test]
async fn what_is_not_a_good_token_of_the_issuer_opens_nothing() {
    let site = Site::of_issuer().await;
    let app = app(&site, None).await;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims(&app);
        change(&mut claims);
        token(&claims)
    };
    let signed = |header: Header, key: &EncodingKey| encode(&header, &claims(&app), key).unwrap();
    let unnamed = Header {
        kid: None,
        ..header()
    };
    let other = |alg| Header { alg, ..header() };
    let public_pem = EncodingKey::from_secret(include_bytes!("fixtures/jwt/issuer.pub.pem"));
    let second = now().unix_s();
    let cases = [
        (
            "a stranger's key",
            signed(header(), &private_key("stranger")),
        ),
        ("no kid", signed(unnamed, &private_key("issuer"))),
        (
            "another algorithm",
            signed(other(Algorithm::RS512), &private_key("issuer")),
        ),
        (
            "HMAC with the public key",
            signed(other(Algorithm::HS256), &public_pem),
        ),
        (
            "exp as text",
            with(&|claims| claims["exp"] = "9999999999".into()),
        ),
        ("nbf as text", with(&|claims| claims["nbf"] = "0".into())),
        (
            "exp absent",
            with(&|claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
        ),
        (
            "expired",
            with(&|claims| claims["exp"] = (second - 60).into()),
        ),
        (
            "not yet",
            with(&|claims| claims["nbf"] = (second + 60).into()),
        ),
        (
            "aud absent",
            with(&|claims| drop(claims.as_object_mut().unwrap().remove("aud"))),
        ),
        (
            "another audience",
            with(&|claims| claims["aud"] = "other".into()),
        ),
        (
            "a list of others",
            with(&|claims| claims["aud"] = json!(["a", "luthier2"])),
        ),
        (
            "another issuer",
            with(&|claims| claims["iss"] = "https://evil.example".into()),
        ),
        (
            "a slash too many",
            with(&|claims| claims["iss"] = format!("{ISSUER}/").into()),
        ),
        ("issuers", with(&|claims| claims["iss"] = json!([ISSUER]))),
        (
            "no project",
            with(&|claims| drop(claims.as_object_mut().unwrap().remove("project_id"))),
        ),
        (
            "an unknown project",
            with(&|claims| claims["project_id"] = "proj_unknown".into()),
        ),
        ("no token", "eyJ.eyJ.x".to_owned()),
    ];
    for (name, token) in cases {
        let reply = ask(&app, &token).await;
        assert_eq!(reply.status, 401, "{name}");
        assert_eq!(reply.json()["error"]["code"], "invalid_token", "{name}");
        assert_eq!(reply.header("www-authenticate"), "Bearer");
        assert!(
            !String::from_utf8_lossy(&reply.bytes).contains(&token),
            "{name}"
        );
    }
    assert_eq!(site.n_asked(), 1);
}

#[tokio::test]
async fn keys_that_a_token_brings_along_are_not_looked_at() {
    let (site, evil) = (Site::of_issuer().await, Site::of_issuer().await);
    let app = app(&site, None).await;
    let at = format!("http://{}/keys", evil.address);
    let own = Jwk::from_encoding_key(&private_key("stranger"), Algorithm::RS256).unwrap();
    for change in [
        (|header, at, _| header.jku = Some(at)) as fn(&mut Header, String, Jwk),
        |header, at, _| header.x5u = Some(at),
        |header, _, own| header.jwk = Some(own),
    ] {
        let mut header = header();
        change(&mut header, at.clone(), own.clone());
        let token = encode(&header, &claims(&app), &private_key("stranger")).unwrap();
        assert_eq!(ask(&app, &token).await.status, 401);
    }
    assert_eq!(evil.n_asked(), 0);
}

#[tokio::test]
async fn keys_that_nobody_has_are_asked_for_once_a_minute() {
    let site = Site::of_issuer().await;
    let app = app(&site, None).await;
    assert_eq!(ask(&app, &token(&claims(&app))).await.status, 200);
    for i in 0..20 {
        let unknown = Header {
            kid: Some(format!("../../etc/passwd' or {i}")),
            ..header()
        };
        let token = encode(&unknown, &claims(&app), &private_key("issuer")).unwrap();
        assert_eq!(ask(&app, &token).await.status, 401);
    }
    assert_eq!(site.n_asked(), 1);
}

#[tokio::test]
async fn without_the_issuers_keys_nobody_can_tell() {
    for body in ["no keys".to_owned(), " ".repeat(300 * 1024)] {
        let site = Site::start(body).await;
        let app = app(&site, None).await;
        let reply = ask(&app, &token(&claims(&app))).await;
        assert_eq!(reply.status, 503);
        assert_eq!(app.get("/v1/files").await.status, 200, "keys open as ever");
    }
}

#[tokio::test]
async fn where_no_issuer_is_trusted_a_token_is_a_wrong_key() {
    let app = App::start().await;
    let reply = ask(&app, &token(&claims(&app))).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (401, &json!("invalid_api_key"))
    );
}
