//! What each route asks of a key: the one table. `api/tests/access.rs` holds it against the OpenAPI document, so that
//! no route can be without a row; what has none opens to unrestricted keys of projects only, and answers 404 to them.

use domain::scope::{Level, Resource, Scope, Scopes};
use poem::http::Method;

use crate::auth::Principal;
use crate::error::{ApiError, Kind};

/// Whose ground a path is.
#[derive(Debug, Clone, Copy)]
enum Ground {
    /// An organisation's: for admin keys alone.
    Organization,
    /// A project's: for its keys that may read or write this.
    Project(Resource),
}

use Ground::{Organization, Project};

/// A path, and everything below it. The first row that fits counts.
const TABLE: &[(&str, Ground)] = &[
    ("/v1/organization", Organization),
    ("/v1/fine_tuning/checkpoints", Organization),
    ("/v1/fine_tuning/alpha/graders", Project(Resource::Evals)),
    ("/v1/fine_tuning", Project(Resource::FineTuning)),
    ("/v1/x/fine_tuning", Project(Resource::FineTuning)),
    ("/v1/files", Project(Resource::Files)),
    ("/v1/uploads", Project(Resource::Files)),
    ("/v1/models", Project(Resource::Models)),
    ("/v1/x/models", Project(Resource::Models)),
    ("/v1/x/model_aliases", Project(Resource::Models)),
    ("/v1/x/adapters", Project(Resource::Models)),
    // A dry run is a job but for its training.
    ("/v1/x/files", Project(Resource::FineTuning)),
    ("/v1/x/dry_runs", Project(Resource::FineTuning)),
    ("/v1/chat", Project(Resource::Answers)),
    ("/v1/completions", Project(Resource::Answers)),
    ("/v1/responses", Project(Resource::Answers)),
    ("/v1/embeddings", Project(Resource::Answers)),
    ("/v1/moderations", Project(Resource::Answers)),
    ("/v1/batches", Project(Resource::Batches)),
    ("/v1/webhook_endpoints", Project(Resource::Webhooks)),
    ("/v1/webhook_event_types", Project(Resource::Webhooks)),
];

/// Whether the table has a row for `path`.
pub fn is_listed(path: &str) -> bool {
    ground(path).is_some()
}

fn ground(path: &str) -> Option<Ground> {
    let is_within = |prefix: &str| {
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let row = TABLE.iter().find(|(prefix, _)| is_within(prefix))?;
    Some(row.1)
}

/// Reading is what changes nothing.
fn level(method: &Method) -> Level {
    if matches!(*method, Method::GET | Method::HEAD) {
        Level::Read
    } else {
        Level::Write
    }
}

/// Whether the caller's key opens the route. Errors: 403 that names what is missing.
pub fn check(
    principal: &Principal,
    scopes: &Scopes,
    method: &Method,
    path: &str,
) -> Result<(), ApiError> {
    let level = level(method);
    match (principal, ground(path)) {
        (Principal::Admin(_), Some(Organization)) => Ok(()),
        (Principal::Admin(_), _) => Err(admin_elsewhere()),
        (Principal::Project(_), Some(Organization)) => Err(needs_admin_key(level)),
        (Principal::Project(_), Some(Project(resource))) => {
            let need = Scope::new(resource, level);
            let lacking = || insufficient(need.as_str());
            scopes.allow(need).then_some(()).ok_or_else(lacking)
        }
        (Principal::Project(_), None) if *scopes == Scopes::All => Ok(()),
        (Principal::Project(_), None) => Err(insufficient("api.all")),
    }
}

/// 403: a project's key where an admin key is needed.
pub fn needs_admin_key(level: Level) -> ApiError {
    insufficient(match level {
        Level::Read => "api.management.read",
        Level::Write => "api.management.write",
    })
}

/// 403: an admin key where a project's is needed.
pub fn admin_elsewhere() -> ApiError {
    ApiError::new(
        Kind::Forbidden,
        "You have insufficient permissions for this operation. An admin key opens /v1/organization and the permissions \
         of checkpoints only; use an API key of a project here.",
    )
    .code("insufficient_permissions")
}

/// 403 in OpenAI's words.
fn insufficient(scope: &str) -> ApiError {
    let message = format!(
        "You have insufficient permissions for this operation. Missing scopes: {scope}. Check that you have the correct \
         role in your organization (Reader, Owner) and project (Member, Owner), and if you're using a restricted API \
         key, that it has the necessary scopes."
    );
    ApiError::new(Kind::Forbidden, message).code("insufficient_permissions")
}

/// 403: a service account without a role.
pub fn no_role() -> ApiError {
    let message = "You have insufficient permissions for this operation. The service account of this API key has no \
                   role in its project: give it one at /v1/organization/projects/{project_id}/service_accounts.";
    ApiError::new(Kind::Forbidden, message).code("insufficient_permissions")
}

/// 403: the owner of an admin key is no owner of the organisation any more.
pub fn not_an_owner() -> ApiError {
    let message = "You have insufficient permissions for this operation. The user of this admin key is not an owner of \
                   the organization.";
    ApiError::new(Kind::Forbidden, message).code("insufficient_permissions")
}
