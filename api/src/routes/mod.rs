//! Paths and parameters, nothing else: each method reads its request, calls one function of `app` and answers.

pub mod adapters;
pub mod admin_keys;
pub mod api_keys;
pub mod audit_logs;
pub mod batches;
pub mod chat;
pub mod checkpoint_permissions;
pub mod completion;
pub mod dry_runs;
pub mod embeddings;
pub mod export;
pub mod files;
pub mod fine_tuning;
pub mod form;
pub mod health;
pub mod invites;
pub mod job_stream;
pub mod model_aliases;
pub mod models;
pub mod moderations;
pub mod project_rate_limits;
pub mod project_spend_limits;
pub mod project_users;
pub mod projects;
pub mod reply;
pub mod response;
pub mod service_accounts;
pub mod uploads;
pub mod usage;
pub mod users;
pub mod webhooks;

use domain::page::{Order, PageRequest};
use poem_openapi::{OpenApiService, Tags};

use crate::error::ApiError;

/// The document's sections.
#[derive(Tags)]
pub enum Tag {
    Models,
    Files,
    Uploads,
    FineTuning,
    Chat,
    Responses,
    Completions,
    Embeddings,
    Batches,
    Moderations,
    Webhooks,
    Usage,
    Administration,
    /// Beyond OpenAI's API.
    Extensions,
    Operations,
}

/// OpenAI's routes of a project.
type ProjectApi = (
    models::ModelsApi,
    files::FilesApi,
    uploads::UploadsApi,
    fine_tuning::FineTuningApi,
    chat::ChatApi,
    response::ResponseApi,
    completion::CompletionApi,
    embeddings::EmbeddingsApi,
    batches::BatchesApi,
    moderations::ModerationsApi,
    webhooks::WebhooksApi,
);

/// OpenAI's routes of an organisation.
type OrganizationApi = (
    admin_keys::AdminKeysApi,
    projects::ProjectsApi,
    api_keys::ApiKeysApi,
    service_accounts::ServiceAccountsApi,
    project_users::ProjectUsersApi,
    project_rate_limits::ProjectRateLimitsApi,
    project_spend_limits::ProjectSpendLimitsApi,
    users::UsersApi,
    invites::InvitesApi,
    audit_logs::AuditLogsApi,
    checkpoint_permissions::CheckpointPermissionsApi,
    usage::UsageApi,
);

/// What OpenAI does not have.
type ExtensionsApi = (
    job_stream::JobStreamApi,
    adapters::AdaptersApi,
    dry_runs::DryRunsApi,
    model_aliases::ModelAliasesApi,
    export::ExportApi,
    health::HealthApi,
);

/// Every route of the public listener.
pub type Api = (ProjectApi, OrganizationApi, ExtensionsApi);

/// The routes with what describes them.
pub fn service() -> OpenApiService<Api, ()> {
    let of_projects = (
        models::ModelsApi,
        files::FilesApi,
        uploads::UploadsApi,
        fine_tuning::FineTuningApi,
        chat::ChatApi,
        response::ResponseApi,
        completion::CompletionApi,
        embeddings::EmbeddingsApi,
        batches::BatchesApi,
        moderations::ModerationsApi,
        webhooks::WebhooksApi,
    );
    let of_organizations = (
        admin_keys::AdminKeysApi,
        projects::ProjectsApi,
        api_keys::ApiKeysApi,
        service_accounts::ServiceAccountsApi,
        project_users::ProjectUsersApi,
        project_rate_limits::ProjectRateLimitsApi,
        project_spend_limits::ProjectSpendLimitsApi,
        users::UsersApi,
        invites::InvitesApi,
        audit_logs::AuditLogsApi,
        checkpoint_permissions::CheckpointPermissionsApi,
        usage::UsageApi,
    );
    let extensions = (
        job_stream::JobStreamApi,
        adapters::AdaptersApi,
        dry_runs::DryRunsApi,
        model_aliases::ModelAliasesApi,
        export::ExportApi,
        health::HealthApi,
    );
    let api = (of_projects, of_organizations, extensions);
    OpenApiService::new(api, "Luthier", env!("CARGO_PKG_VERSION")).description(
        "A fine-tuning service that speaks OpenAI's API. Where and why it differs: openapi/COMPATIBILITY.md.",
    )
}

/// `asc` or `desc`, the default.
fn order(text: Option<String>) -> Result<Order, ApiError> {
    order_or(text, Order::NewestFirst)
}

/// `asc` or `desc`.
fn order_or(text: Option<String>, default: Order) -> Result<Order, ApiError> {
    let Some(text) = text else {
        return Ok(default);
    };
    let at = crate::wire::decode::At::new("order", text.into());
    Ok(match at.one_of(&["asc", "desc"])? {
        "asc" => Order::OldestFirst,
        _ => Order::NewestFirst,
    })
}

/// A page of what administrators list: 1–100 items, 20 where they do not say.
fn administrators_page(
    after: Option<String>,
    limit: Option<i64>,
    order: Order,
) -> Result<PageRequest, ApiError> {
    crate::app::page_request(after, limit, 20, 100, order)
}
