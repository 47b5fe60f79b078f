use std::sync::atomic::{AtomicUsize, Ordering};

use ::tests::receiver::{Answer, Receiver};

use super::*;

/// Everything at once; tests do not wait for ten seconds.
const SHORT: Duration = Duration::from_millis(300);

fn rules(allowed: &[&str], allow_http: bool) -> OutboundRules {
    OutboundRules {
        allowed: allowed.iter().map(|host| host.parse().unwrap()).collect(),
        allow_http,
    }
}

fn guard(allowed: &[&str], allow_http: bool) -> Guard {
    Guard {
        rules: rules(allowed, allow_http),
        lookup: Lookup::System,
    }
}

/// A client for which the n-th look-up of any name, from 0, gives these addresses.
fn client(rules: OutboundRules, addresses: fn(usize) -> Vec<&'static str>) -> Outbound {
    let n = AtomicUsize::new(0);
    let lookup = move |_: &str| {
        let found = addresses(n.fetch_add(1, Ordering::SeqCst));
        found.into_iter().map(|a| a.parse().unwrap()).collect()
    };
    Outbound::within(SHORT, rules, Lookup::Given(Arc::new(lookup))).unwrap()
}

async fn post(outbound: &Outbound, url: &str) -> Result<u16, CallError> {
    outbound.post(url, HeaderMap::new(), "{}".to_owned()).await
}

#[test]
fn what_is_not_public_is_refused_in_every_spelling() {
    let guard = guard(&[], true);
    for host in [
        "127.0.0.1",
        "[::1]",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "[fd00::1]",
        "[fe80::1]",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "127.1",
        "127。0。0。1",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "a.localhost",
        "intranet",
        "printer.local",
        "metadata.google.internal",
    ] {
        let refused = guard.check_url(&format!("http://{host}/x"));
        assert!(
            matches!(refused, Err(UrlRefusal::NotPublic { .. })),
            "{host}: {refused:?}"
        );
    }
    for url in [
        "http://1.1.1.1/",
        "http://example.com/x?y=z",
        "https://example.com",
    ] {
        assert!(guard.check_url(url).is_ok(), "{url}");
    }
}

#[test]
fn other_schemes_credentials_and_ports_are_refused() {
    let (strict, lax) = (guard(&[], false), guard(&[], true));
    let https = UrlRefusal::Scheme { expected: "https" };
    let cases = [
        ("gopher://example.com/", https.clone()),
        ("file:///etc/passwd", https.clone()),
        ("ftp://example.com/", https.clone()),
        ("http://example.com/", https),
        ("https://good@example.com/", UrlRefusal::Credentials),
        ("https://:x@example.com/", UrlRefusal::Credentials),
        (
            "https://example.com:5432/",
            UrlRefusal::Port { expected: 443 },
        ),
        (
            "https://example.com:80/",
            UrlRefusal::Port { expected: 443 },
        ),
        ("https://", UrlRefusal::NotAUrl),
        ("example.com", UrlRefusal::NotAUrl),
    ];
    for (url, refusal) in cases {
        assert_eq!(strict.check_url(url), Err(refusal), "{url}");
    }
    let port = UrlRefusal::Port { expected: 80 };
    assert_eq!(lax.check_url("http://example.com:22/"), Err(port));
    let long = format!("https://example.com/{}", "x".repeat(MAX_URL));
    assert_eq!(strict.check_url(&long), Err(UrlRefusal::TooLong));
}

#[test]
fn an_operator_allows_hosts_and_networks_on_any_port() {
    let guard = guard(&["hooks.local", "10.1.0.0/16"], true);
    for url in [
        "http://hooks.local:8080/",
        "https://HOOKS.local.:9/",
        "http://10.1.2.3:81/",
    ] {
        assert!(guard.check_url(url).is_ok(), "{url}");
    }
    for url in ["http://x.hooks.local/", "http://10.2.0.1/", "http://[::1]/"] {
        assert!(guard.check_url(url).is_err(), "{url}");
    }
}

#[tokio::test]
async fn the_address_that_is_judged_is_the_one_that_is_called() {
    let receiver = Receiver::start([]).await.unwrap();
    // The name is allowed, so its address is not judged: the call arrives where the look-up said.
    let allowed = client(rules(&["hooks.example"], true), |_| vec!["127.0.0.1"]);
    let url = format!("http://hooks.example:{}/", receiver.address.port());
    assert_eq!(post(&allowed, &url).await, Ok(200));
    assert_eq!(receiver.received().len(), 1);

    // Public when it is kept, private when it is called.
    let moved = client(rules(&[], true), |n| match n {
        0 => vec!["1.1.1.1"],
        _ => vec!["127.0.0.1"],
    });
    assert_eq!(moved.check("http://rebind.example/").await, Ok(()));
    let refused = UrlRefusal::NotPublic {
        host: "rebind.example".to_owned(),
    };
    let called = post(&moved, "http://rebind.example/").await;
    assert_eq!(called, Err(CallError::Refused(refused.clone())));
    assert_eq!(moved.check("http://rebind.example/").await, Err(refused));

    let one_of_two = client(rules(&[], true), |_| vec!["1.1.1.1", "10.0.0.1"]);
    let called = post(&one_of_two, "http://two.example/").await;
    assert!(matches!(called, Err(CallError::Refused(_))), "{called:?}");

    let unknown = client(rules(&[], true), |_| Vec::new());
    assert_eq!(unknown.check("http://later.example/").await, Ok(()));
    let called = post(&unknown, "http://later.example/").await;
    assert!(
        matches!(called, Err(CallError::Unreachable(_))),
        "{called:?}"
    );
}

#[tokio::test]
async fn redirections_are_answers_and_nobody_follows_them() {
    let statuses = [302, 307, 308].map(Answer::Status);
    let receiver = Receiver::start(statuses).await.unwrap();
    let outbound = client(rules(&["127.0.0.1"], true), |_| Vec::new());
    for status in [302, 307, 308] {
        assert_eq!(post(&outbound, &receiver.url()).await, Ok(status));
    }
    assert_eq!(receiver.received().len(), 3);
}

#[tokio::test]
async fn receivers_that_do_not_end_hold_nobody() {
    let head = |more: &str| Answer::Endless(format!("HTTP/1.1 200 OK\r\n{more}"));
    let receiver = Receiver::start([
        head("\r\n"),
        head("content-encoding: gzip\r\ncontent-length: 1000000000\r\n\r\n"),
        head("x-endless: "),
        Answer::Stall,
    ]);
    let receiver = receiver.await.unwrap();
    let outbound = client(rules(&["127.0.0.1"], true), |_| Vec::new());
    assert_eq!(post(&outbound, &receiver.url()).await, Ok(200));
    assert_eq!(post(&outbound, &receiver.url()).await, Ok(200));
    assert!(
        post(&outbound, &receiver.url()).await.is_err(),
        "a head without end"
    );
    assert_eq!(
        post(&outbound, &receiver.url()).await,
        Err(CallError::TimedOut)
    );
}

#[tokio::test]
async fn tls_is_not_negotiable() {
    // Speaks, but not TLS.
    let receiver = Receiver::start([]).await.unwrap();
    let outbound = client(rules(&["127.0.0.1"], false), |_| Vec::new());
    let url = receiver.url().replace("http:", "https:");
    let called = post(&outbound, &url).await;
    assert!(
        matches!(called, Err(CallError::Unreachable(_) | CallError::TimedOut)),
        "{called:?}"
    );
    assert_eq!(receiver.received(), []);
}
