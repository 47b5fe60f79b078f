//! Calls to where tenants say: only to public addresses and to what the operator allows, and bounded in time and size.
//!
//! The client resolves names itself, so the address that is judged is the one that is connected to, whatever the name
//! resolves to a moment later.

mod address;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use url::{Host, Url};

pub use address::{AllowedHost, is_public};

/// For everything: finding the address, connecting, sending, and the head of the answer.
const LIMIT: Duration = Duration::from_secs(10);
const MAX_URL: usize = 2_048;

/// Whom an operator allows to be called beside what is public.
#[derive(Debug, Clone, Default)]
pub struct OutboundRules {
    /// On any port, whatever their addresses.
    pub allowed: Vec<AllowedHost>,
    /// `http://` too, on port 80.
    pub allow_http: bool,
}

/// The addresses of a name.
pub type LookupFn = dyn Fn(&str) -> Vec<IpAddr> + Send + Sync;

/// Where names become addresses.
#[derive(Clone)]
pub enum Lookup {
    System,
    /// For tests: what the name resolves to now; nothing: it is unknown.
    Given(Arc<LookupFn>),
}

/// Why a URL is not called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefusal {
    #[error("it is not a URL")]
    NotAUrl,
    #[error("it is longer than {MAX_URL} characters")]
    TooLong,
    #[error("its scheme must be {expected}")]
    Scheme { expected: &'static str },
    #[error("it must not hold a user name or a password")]
    Credentials,
    #[error("its port must be {expected}")]
    Port { expected: u16 },
    #[error("'{host}' is not a public host")]
    NotPublic { host: String },
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("the URL is refused: {0}")]
    Refused(#[from] UrlRefusal),
    #[error("no answer within {} s", LIMIT.as_secs())]
    TimedOut,
    #[error("no connection: {0}")]
    Unreachable(String),
}

/// A client for calls to where tenants say.
#[derive(Clone)]
pub struct Outbound {
    http: reqwest::Client,
    guard: Guard,
}

/// Judges hosts; the client resolves by it.
#[derive(Clone)]
struct Guard {
    rules: OutboundRules,
    lookup: Lookup,
}

impl Outbound {
    /// Errors: the system's certificates cannot be read.
    pub fn new(rules: OutboundRules, lookup: Lookup) -> Result<Self, reqwest::Error> {
        Self::within(LIMIT, rules, lookup)
    }

    fn within(
        limit: Duration,
        rules: OutboundRules,
        lookup: Lookup,
    ) -> Result<Self, reqwest::Error> {
        let guard = Guard { rules, lookup };
        let http = reqwest::Client::builder()
            .user_agent(concat!("Luthier/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(guard.clone()))
            .https_only(!guard.rules.allow_http)
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            // A connection kept open would outlive the judgement of its address.
            .pool_max_idle_per_host(0)
            .timeout(limit)
            .build()?;
        Ok(Self { http, guard })
    }

    /// Judges a URL before it is kept. A name that resolves to nothing now may do so later and is accepted.
    pub async fn check(&self, url: &str) -> Result<(), UrlRefusal> {
        let url = self.guard.check_url(url)?;
        let Some(Host::Domain(name)) = url.host() else {
            return Ok(());
        };
        match tokio::time::timeout(LIMIT, self.guard.resolve_name(name)).await {
            Ok(Err(Unresolved::NotPublic(refusal))) => Err(refusal),
            _ => Ok(()),
        }
    }

    /// Posts and answers with the status. Of the answer only the head is read, so that its body may be as long as it
    /// likes, and redirections are statuses like others.
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: String,
    ) -> Result<u16, CallError> {
        let url = self.guard.check_url(url)?;
        let sent = self.http.post(url).headers(headers).body(body).send().await;
        sent.map(|response| response.status().as_u16())
            .map_err(call_error)
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Outbound").field(&self.guard.rules).finish()
    }
}

/// The innermost reason: the others only say that there was one.
fn call_error(error: reqwest::Error) -> CallError {
    let mut inner: &dyn Error = &error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    match inner.downcast_ref::<Unresolved>() {
        Some(Unresolved::NotPublic(refusal)) => CallError::Refused(refusal.clone()),
        _ if error.is_timeout() => CallError::TimedOut,
        _ => CallError::Unreachable(inner.to_string()),
    }
}

/// Why a name has no address to call.
#[derive(Debug, thiserror::Error)]
enum Unresolved {
    #[error(transparent)]
    NotPublic(UrlRefusal),
    #[error("the host name cannot be resolved")]
    Unknown,
}

impl Guard {
    /// All that can be judged without resolving a name. The parser has made IPv4 addresses of every spelling of one.
    fn check_url(&self, text: &str) -> Result<Url, UrlRefusal> {
        if text.len() > MAX_URL {
            return Err(UrlRefusal::TooLong);
        }
        let url = Url::parse(text).map_err(|_| UrlRefusal::NotAUrl)?;
        let port = match (url.scheme(), self.rules.allow_http) {
            ("https", _) => 443,
            ("http", true) => 80,
            (_, true) => {
                return Err(UrlRefusal::Scheme {
                    expected: "https or http",
                });
            }
            (_, false) => return Err(UrlRefusal::Scheme { expected: "https" }),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlRefusal::Credentials);
        }
        let is_allowed = match url.host() {
            Some(Host::Domain(name)) if self.allows_name(name) => true,
            Some(Host::Domain(name)) => {
                expect_public_name(name)?;
                false
            }
            Some(Host::Ipv4(address)) => self.judge(address.into())?,
            Some(Host::Ipv6(address)) => self.judge(address.into())?,
            None => return Err(UrlRefusal::NotAUrl),
        };
        if !is_allowed && url.port_or_known_default() != Some(port) {
            return Err(UrlRefusal::Port { expected: port });
        }
        Ok(url)
    }

    fn allows_name(&self, name: &str) -> bool {
        self.rules.allowed.iter().any(|host| host.has_name(name))
    }

    /// True: the operator allows it. False: everyone may reach it.
    fn judge(&self, address: IpAddr) -> Result<bool, UrlRefusal> {
        let is_allowed = self
            .rules
            .allowed
            .iter()
            .any(|host| host.has_address(address));
        if is_allowed || is_public(address) {
            return Ok(is_allowed);
        }
        Err(UrlRefusal::NotPublic {
            host: address.to_string(),
        })
    }

    /// Every address of the name; one that may not be called spoils them all.
    async fn resolve_name(&self, name: &str) -> Result<Vec<SocketAddr>, Unresolved> {
        let found: Vec<IpAddr> = match &self.lookup {
            Lookup::System => tokio::net::lookup_host((name, 0))
                .await
                .map_err(|_| Unresolved::Unknown)?
                .map(|address| address.ip())
                .collect(),
            Lookup::Given(lookup) => lookup(name),
        };
        if found.is_empty() {
            return Err(Unresolved::Unknown);
        }
        if !self.allows_name(name) {
            for address in &found {
                self.judge(*address).map_err(|_| {
                    Unresolved::NotPublic(UrlRefusal::NotPublic {
                        host: name.to_owned(),
                    })
                })?;
            }
        }
        // The client puts the URL's port in the place of 0.
        Ok(found.into_iter().map(|ip| (ip, 0).into()).collect())
    }
}

/// Refuses names that never mean a host of everyone's. Source: RFC 6761, RFC 6762.
fn expect_public_name(name: &str) -> Result<(), UrlRefusal> {
    let plain = address::host_name(name);
    let is_local = |(_, last): (&str, &str)| matches!(last, "localhost" | "local" | "internal");
    match plain.rsplit_once('.') {
        Some(parts) if !is_local(parts) => Ok(()),
        _ => Err(UrlRefusal::NotPublic {
            host: name.to_owned(),
        }),
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let addresses = guard.resolve_name(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
