//! Paths and parameters, nothing else: each method reads its request, calls one function of `app` and answers.

pub mod adapters;
pub mod batches;
pub mod chat;
pub mod completion;
pub mod export;
pub mod files;
pub mod fine_tuning;
pub mod form;
pub mod health;
pub mod job_stream;
pub mod models;
pub mod moderations;
pub mod reply;
pub mod response;
pub mod uploads;
pub mod webhooks;

use domain::page::Order;
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
    Batches,
    Moderations,
    Webhooks,
    /// Beyond OpenAI's API.
    Extensions,
    Operations,
}

/// Every route of the public listener.
pub type Api = (
    models::ModelsApi,
    files::FilesApi,
    uploads::UploadsApi,
    fine_tuning::FineTuningApi,
    chat::ChatApi,
    response::ResponseApi,
    completion::CompletionApi,
    batches::BatchesApi,
    moderations::ModerationsApi,
    webhooks::WebhooksApi,
    job_stream::JobStreamApi,
    adapters::AdaptersApi,
    export::ExportApi,
    health::HealthApi,
);

/// The routes with what describes them.
pub fn service() -> OpenApiService<Api, ()> {
    let api = (
        models::ModelsApi,
        files::FilesApi,
        uploads::UploadsApi,
        fine_tuning::FineTuningApi,
        chat::ChatApi,
        response::ResponseApi,
        completion::CompletionApi,
        batches::BatchesApi,
        moderations::ModerationsApi,
        webhooks::WebhooksApi,
        job_stream::JobStreamApi,
        adapters::AdaptersApi,
        export::ExportApi,
        health::HealthApi,
    );
    OpenApiService::new(api, "Luthier", env!("CARGO_PKG_VERSION")).description(
        "A fine-tuning service that speaks OpenAI's API. Where and why it differs: openapi/COMPATIBILITY.md.",
    )
}

/// `asc` or `desc`, the default.
fn order(text: Option<String>) -> Result<Order, ApiError> {
    let Some(text) = text else {
        return Ok(Order::NewestFirst);
    };
    let at = crate::wire::decode::At::new("order", text.into());
    Ok(match at.one_of(&["asc", "desc"])? {
        "asc" => Order::OldestFirst,
        _ => Order::NewestFirst,
    })
}
