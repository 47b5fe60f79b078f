//! `/v1/models`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;

use super::Tag;
use crate::app;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::Deleted;
use crate::wire::models::{Model, ModelList};

pub struct ModelsApi;

#[OpenApi(prefix_path = "/v1/models", tag = "Tag::Models")]
impl ModelsApi {
    /// Lists base models and the project's tuned models.
    #[oai(path = "/", method = "get", operation_id = "listModels")]
    async fn list(
        &self,
        state: Data<&Shared>,
        caller: Caller,
    ) -> Result<Json<ModelList>, ApiError> {
        let data = app::models::list(&state, &caller.project).await?;
        Ok(Json(ModelList {
            object: "list",
            data,
        }))
    }

    /// Retrieves one model.
    #[oai(path = "/:model", method = "get", operation_id = "retrieveModel")]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        model: Path<String>,
    ) -> Result<Json<Model>, ApiError> {
        app::models::get(&state, &caller.project, &model)
            .await
            .map(Json)
    }

    /// Deletes a tuned model of the project.
    #[oai(path = "/:model", method = "delete", operation_id = "deleteModel")]
    async fn delete(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        model: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::models::delete(&state, &caller.project, &model).await?;
        Ok(Json(Deleted {
            id: model.0,
            object: "model",
            deleted: true,
        }))
    }
}
