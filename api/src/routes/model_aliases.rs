//! `/v1/x/model_aliases`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;

use super::Tag;
use crate::app::model_aliases as app;
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::{Deleted, List};
use crate::wire::model_aliases::{AliasOrder, ModelAliasObject};

pub struct ModelAliasesApi;

#[OpenApi(prefix_path = "/v1/x/model_aliases", tag = "Tag::Extensions")]
impl ModelAliasesApi {
    /// Gives a model another name, in the caller's project.
    #[oai(path = "/", method = "post", operation_id = "createModelAlias")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        body: JsonBody<AliasOrder>,
    ) -> Result<Json<ModelAliasObject>, ApiError> {
        let alias = app::create(&state, &caller.project, body.value).await?;
        Ok(Json(alias.into()))
    }

    /// Lists the aliases that the project can use, by name.
    #[oai(path = "/", method = "get", operation_id = "listModelAliases")]
    async fn list(
        &self,
        state: Data<&Shared>,
        caller: Caller,
    ) -> Result<Json<List<ModelAliasObject>>, ApiError> {
        Ok(Json(List::page(app::list(&state, &caller.project).await?)))
    }

    /// Deletes an alias of the project; a `/` in it is spelled `%2F`.
    #[oai(path = "/:alias", method = "delete", operation_id = "deleteModelAlias")]
    async fn delete(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        alias: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &caller.project, &alias).await?;
        Ok(Json(Deleted {
            id: alias.0,
            object: "model_alias.deleted",
            deleted: true,
        }))
    }
}
