//! Answers that are kept: a POST that comes twice, by its `Idempotency-Key` or because an SDK lost the answer, does its work
//! once and is told the same both times. docs/decisions/0019 says why answers, and for which routes.

use domain::id::KeyId;
use platform::vault::Place;
use poem::http::{Method, StatusCode};
use poem::{Request, Response};
use sha2::{Digest, Sha256};
use store::{Claim, KeptRequest, Memory};

use crate::app::repeat::{REMEMBERED_S, RETRY_S, Repeat, check_key, hex, key_reused};
use crate::app::store_error;
use crate::auth::Principal;
use crate::body::{self, MAX_JSON_BYTES};
use crate::error::{ApiError, Kind};
use crate::routes::reply::say_replayed;
use crate::state::State;

/// Longer than any of these requests takes. Seconds.
const UNDER_WAY_S: i64 = 120;

/// Of these nothing is kept: their objects remember their request, or nothing is made.
const ELSEWHERE: &[&str] = &[
    "/v1/batches",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/fine_tuning/jobs",
    "/v1/moderations",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/uploads",
    "/v1/x/adapters",
];

/// The same of an upload: what makes a file, and parts, which are nothing until they are named.
const ELSEWHERE_OF_UPLOADS: &[&str] = &["/complete", "/parts"];

/// What these make would be there twice; a change that is asked for twice is one, and between the two there may have been
/// another. So a repetition without a key is looked for here alone. `*` is any one segment.
const MAKERS: &[&str] = &[
    "/v1/fine_tuning/checkpoints/*/permissions",
    "/v1/organization/admin_api_keys",
    "/v1/organization/invites",
    "/v1/organization/projects",
    "/v1/organization/projects/*/service_accounts",
    "/v1/organization/projects/*/service_accounts/*/api_keys",
    "/v1/organization/projects/*/users",
    "/v1/webhook_endpoints",
    "/v1/webhook_endpoints/*/rotate_secret",
    "/v1/x/files/*/validate",
    "/v1/x/model_aliases",
];

/// What is to be done with a request.
pub enum Kept {
    /// Nothing is kept of its kind.
    No,
    /// Its answer is.
    First(Keeper),
    /// It came before, and this is what it was told.
    Told(Response),
}

/// Keeps the answer to one request.
pub struct Keeper {
    request: KeptRequest,
    row: i64,
}

/// Whether the answer to a POST is kept.
fn is_kept(path: &str, key: Option<&str>) -> bool {
    if key.is_none() {
        return MAKERS.iter().any(|maker| fits(maker, path));
    }
    let of_upload = path.starts_with("/v1/uploads/");
    let is_elsewhere = ELSEWHERE.contains(&path)
        || of_upload && ELSEWHERE_OF_UPLOADS.iter().any(|end| path.ends_with(end));
    !is_elsewhere
}

fn fits(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut segments) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), segments.next()) {
            (None, None) => return true,
            (Some(want), Some(segment)) if want == "*" || want == segment => {}
            _ => return false,
        }
    }
}

/// Finds what the same request was told. Reads the body, which is there again afterwards.
/// Errors: 400 for a key that came with another request; 409 while the first one is under way.
pub async fn find(
    state: &State,
    caller: &Principal,
    request: &mut Request,
) -> Result<Kept, ApiError> {
    let repeat = Repeat::of(request);
    if *request.method() != Method::POST || !is_kept(request.uri().path(), repeat.key.as_deref()) {
        return Ok(Kept::No);
    }
    if let Some(key) = &repeat.key {
        check_key(key)?;
    }
    let bytes = body::read(request.take_body().into_bytes_stream(), MAX_JSON_BYTES).await?;
    let target = request
        .uri()
        .path_and_query()
        .map_or("", |target| target.as_str());
    let digest = Sha256::new()
        .chain_update(target)
        .chain_update([0])
        .chain_update(&bytes)
        .finalize();
    let asked = KeptRequest {
        project_id: caller.project().map(|project| project.id.clone()),
        api_key_id: caller.key_id().clone(),
        endpoint: request.uri().path().to_owned(),
        is_repetition: repeat.retry_count > 0,
        fingerprint: hex(&digest),
        key: repeat.key,
    };
    request.set_body(bytes);
    let now = state.now();
    let memory = Memory {
        now,
        repeated_since: now.plus_s(-RETRY_S),
        under_way_since: now.plus_s(-UNDER_WAY_S),
        expires_at: now.plus_s(if asked.key.is_some() {
            REMEMBERED_S
        } else {
            RETRY_S
        }),
    };
    let claim = state.store.kept_replies().claim(&asked, &memory).await;
    match claim.map_err(store_error)? {
        Claim::First { row } => Ok(Kept::First(Keeper {
            request: asked,
            row,
        })),
        Claim::UnderWay => Err(under_way()),
        Claim::OtherRequest => Err(key_reused()),
        Claim::Answered { row, reply } => {
            told(state, &asked.api_key_id, row, &reply).map(Kept::Told)
        }
    }
}

impl Keeper {
    /// Keeps what the request was told; where it made nothing, the next one may try.
    pub async fn keep(
        self,
        state: &State,
        answered: Result<Response, ApiError>,
    ) -> Result<Response, ApiError> {
        let replies = state.store.kept_replies();
        let project = self.request.project_id.as_ref();
        let (kept, answered) = match answered {
            Ok(response) if response.status() == StatusCode::OK => {
                let (parts, body) = response.into_parts();
                let body = body
                    .into_bytes()
                    .await
                    .map_err(|error| ApiError::internal(error.to_string()))?;
                let row = Row::new(&self.request.api_key_id, self.row);
                let sealed = state.vault.seal(&row.place(), &body);
                let kept = replies.keep(project, self.row, &sealed).await;
                (kept, Ok(Response::from_parts(parts, body.into())))
            }
            answered => (replies.release(project, self.row).await, answered),
        };
        if let Err(error) = kept {
            // What was made is made: the client is told so, and a repetition waits until the claim is old.
            tracing::warn!(%error, endpoint = self.request.endpoint, "an answer was not kept");
        }
        answered
    }
}

/// Where a kept answer stands: in no other key's row does it open.
struct Row(String);

impl Row {
    fn new(api_key_id: &KeyId, row: i64) -> Self {
        Self(format!("{api_key_id}.{row}"))
    }

    fn place(&self) -> Place<'_> {
        Place {
            table: "kept_replies",
            row: &self.0,
            column: "reply",
        }
    }
}

fn told(state: &State, api_key_id: &KeyId, row: i64, reply: &str) -> Result<Response, ApiError> {
    let opened = state.vault.open(&Row::new(api_key_id, row).place(), reply);
    let body = opened.map_err(|error| ApiError::internal(error.to_string()))?;
    let mut response = Response::builder()
        .content_type("application/json; charset=utf-8")
        .body(body.expose().clone());
    say_replayed(&mut response);
    Ok(response)
}

fn under_way() -> ApiError {
    let message =
        "The same request is under way: it has not been answered yet. Send it again in a moment.";
    ApiError::new(Kind::Conflict, message)
        .code("idempotency_key_in_use")
        .retry_after(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;

    #[test]
    fn the_lists_name_routes_that_there_are() {
        let methods = document::methods();
        for path in ELSEWHERE.iter().chain(MAKERS) {
            let known = methods.get(*path).and_then(|known| known.to_str().ok());
            assert!(known.is_some_and(|known| known.contains("POST")), "{path}");
        }
    }

    #[test]
    fn answers_are_kept_with_a_key_and_where_something_is_made() {
        for (path, with, without) in [
            ("/v1/organization/projects", true, true),
            ("/v1/organization/projects/proj_1", true, false),
            (
                "/v1/organization/projects/proj_1/service_accounts",
                true,
                true,
            ),
            ("/v1/organization/projects/proj_1/archive", true, false),
            ("/v1/fine_tuning/jobs/ftjob-1/cancel", true, false),
            ("/v1/uploads/upload_1/cancel", true, false),
            ("/v1/uploads/upload_1/parts", false, false),
            ("/v1/fine_tuning/jobs", false, false),
            ("/v1/chat/completions", false, false),
        ] {
            let kept = (is_kept(path, Some("k")), is_kept(path, None));
            assert_eq!(kept, (with, without), "{path}");
        }
    }
}
