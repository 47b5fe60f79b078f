//! Who may knock: processes of this installation, by a short-lived token.

use platform::service_token::{self, ServiceKey};
use poem::http::header;
use poem::{Endpoint, Middleware, Request, Response, Result};

use super::DoorError;

/// Whom a token for this door is made out to.
const AUDIENCE: &str = "door";

/// Refuses every request without a valid token.
pub(super) struct ServiceTokens(pub ServiceKey);

impl<E: Endpoint<Output = Response>> Middleware<E> for ServiceTokens {
    type Output = Guarded<E>;

    fn transform(&self, inner: E) -> Guarded<E> {
        Guarded {
            inner,
            key: self.0.clone(),
        }
    }
}

pub(super) struct Guarded<E> {
    inner: E,
    key: ServiceKey,
}

impl<E: Endpoint<Output = Response>> Endpoint for Guarded<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let token = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match token.map(|token| service_token::verify(&self.key, AUDIENCE, token)) {
            Some(Ok(_)) => self.inner.call(request).await,
            _ => Ok(DoorError::Unauthorized.answer()),
        }
    }
}
