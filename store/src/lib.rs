//! Where rows live: the only crate with queries, on PostgreSQL and SQLite alike.
//!
//! Every function on tenant data takes the project first; another project's row is as absent as one that never was.
//! Every change of several rows is one transaction, every call is bounded in time. Knows no HTTP and no message.

// The harness and the samples of the suite name this crate as its other users do.
#[cfg(test)]
extern crate self as store;

mod connect;
mod convert;
mod entity;
mod metadata;
mod reads;
mod run;
mod wall;

pub mod admin_keys;
pub mod api_keys;
pub mod audit;
pub mod base_models;
pub mod batches;
pub mod chat_completions;
pub mod checkpoint_permissions;
pub mod checkpoints;
pub mod dry_runs;
pub mod error;
pub mod events;
pub mod files;
pub mod idempotency;
pub mod invites;
pub mod jobs;
pub mod kept_replies;
pub mod leader;
pub mod metrics;
pub mod model_aliases;
pub mod models;
pub mod outbox;
pub mod page;
pub mod project_users;
pub mod projects;
pub mod rate_limits;
pub mod responses;
pub mod service_accounts;
pub mod training_speeds;
mod uploads;
pub mod usage;
pub mod users;
pub mod webhooks;
pub mod workers;

pub use admin_keys::{FoundAdminKey, OwnedAdminKey};
pub use api_keys::{AccessFilter, FoundKey, KeyOwnerShown, OwnedKey};
pub use audit::{AuditFilter, AuditPage, AuditPlace, AuditVerdict};
pub use batches::Lease;
pub use connect::{Store, StoreConfig};
pub use error::{ApplyError, BatchError, StoreError};
pub use idempotency::{IdempotencyEntry, Replay};
pub use jobs::{InsertLimits, Transition};
pub use kept_replies::{Claim, KeptRequest, Memory};
pub use metadata::MetadataFilter;
pub use outbox::OutboxMessage;
pub use projects::{ProjectChange, WhichProjects};
pub use rate_limits::RateLimitChange;
pub use service_accounts::ServiceAccountChange;
pub use uploads::{AddedPart, PartLimits};
pub use wall::SecondWall;
pub use webhooks::{DueDelivery, SealedSecret, WebhookChange};

macro_rules! accessors {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        impl Store {
            $($(#[$doc])*
            pub fn $name(&self) -> $type {
                <$type>::new(self)
            })*
        }
    };
}

accessors! {
    /// Organisations and projects.
    projects: projects::Projects<'_>;
    /// Keys that administer an organisation.
    admin_keys: admin_keys::AdminKeys<'_>;
    /// API keys of projects.
    api_keys: api_keys::ApiKeys<'_>;
    /// Users of organisations.
    users: users::Users<'_>;
    /// Members of projects.
    project_users: project_users::ProjectUsers<'_>;
    /// Service accounts of projects.
    service_accounts: service_accounts::ServiceAccounts<'_>;
    /// Invitations to organisations.
    invites: invites::Invites<'_>;
    /// What administrators did.
    audit: audit::Audit<'_>;
    /// Who else may use a tuned model.
    checkpoint_permissions: checkpoint_permissions::CheckpointPermissions<'_>;
    /// Uploaded and produced files.
    files: files::Files<'_>;
    /// Files that come in parts.
    uploads: uploads::Uploads<'_>;
    /// Installed base models.
    base_models: base_models::BaseModels<'_>;
    /// Batches of requests, and their outcomes.
    batches: batches::Batches<'_>;
    /// Fine-tuning jobs.
    jobs: jobs::Jobs<'_>;
    /// Jobs that are judged and never made.
    dry_runs: dry_runs::DryRuns<'_>;
    /// The public story of each job.
    events: events::Events<'_>;
    /// Checkpoints of jobs.
    checkpoints: checkpoints::Checkpoints<'_>;
    /// Measurements of each step.
    metrics: metrics::Metrics<'_>;
    /// Tuned models.
    models: models::Models<'_>;
    /// Other names for models.
    model_aliases: model_aliases::ModelAliases<'_>;
    /// What was consumed.
    usage: usage::Usage<'_>;
    /// How fast finished trainings went.
    training_speeds: training_speeds::TrainingSpeeds<'_>;
    /// How much projects may ask of models, and what is left of it.
    rate_limits: rate_limits::RateLimits<'_>;
    /// Messages that wait for the broker.
    outbox: outbox::Outbox<'_>;
    /// Where projects are told of what happened, and what is on its way there.
    webhooks: webhooks::Webhooks<'_>;
    /// Workers as they described themselves.
    workers: workers::Workers<'_>;
    /// Who does what one process suffices for.
    leader: leader::Leader<'_>;
    /// Chat completions that clients asked to keep.
    chat_completions: chat_completions::ChatCompletions<'_>;
    /// Responses that are kept.
    responses: responses::Responses<'_>;
    /// Which request made which object.
    idempotency: idempotency::Idempotency<'_>;
    /// What requests were answered with that may come again.
    kept_replies: kept_replies::KeptReplies<'_>;
}
