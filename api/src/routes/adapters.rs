//! `/v1/x/adapters`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::registry::MetaSchema;

use super::Tag;
use super::form::{self, Form, FormFields};
use super::reply::{Made, RepeatHeaders};
use crate::app;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::models::Model;

pub struct AdaptersApi;

#[OpenApi(prefix_path = "/v1/x", tag = "Tag::Extensions")]
impl AdaptersApi {
    /// Makes a model of a PEFT adapter.
    ///
    /// The zip holds `adapter_config.json` and `adapter_model.safetensors`, at the top or in one folder. The model can
    /// be talked to, trained on from, exported and deleted like one that was trained here.
    #[oai(path = "/adapters", method = "post", operation_id = "createAdapter")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        repeat: RepeatHeaders,
        form: Form<AdapterFields>,
    ) -> Result<Made<Model>, ApiError> {
        let content_type = form.content_type.as_deref();
        let created =
            app::adapters::create(&state, &caller, content_type, &repeat.0, form.chunks).await?;
        Ok(Made::from(created))
    }
}

struct AdapterFields;

impl FormFields for AdapterFields {
    fn fields() -> Vec<(&'static str, MetaSchema, bool)> {
        let described = |text| MetaSchema {
            description: Some(text),
            ..MetaSchema::new("string")
        };
        let base_model = described("The base model that the adapter was trained on.");
        let suffix = described("1–64 characters of `[A-Za-z0-9_.-]`, a part of the model's name.");
        vec![
            ("file", form::file(), true),
            ("base_model", base_model, true),
            ("suffix", suffix, false),
        ]
    }
}
