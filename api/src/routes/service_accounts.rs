//! `/v1/organization/projects/{project_id}/service_accounts`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use store::ServiceAccountChange;

use super::{Tag, administrators_page};
use crate::app::service_accounts as app;
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::{Deleted, List};
use crate::wire::service_accounts::{
    NewKeyObject, NewServiceAccount, ServiceAccountKeyOrder, ServiceAccountObject,
    ServiceAccountOrder,
};

pub struct ServiceAccountsApi;

#[OpenApi(prefix_path = "/v1/organization/projects", tag = "Tag::Administration")]
impl ServiceAccountsApi {
    /// Lists a project's service accounts, newest first.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(
        path = "/:project_id/service_accounts",
        method = "get",
        operation_id = "list-project-service-accounts"
    )]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<ServiceAccountObject>>, ApiError> {
        let page = administrators_page(after.0, limit.0, Order::NewestFirst)?;
        let listed = app::list(&state, &admin, &project_id, &page).await?;
        Ok(Json(List::page(listed)))
    }

    /// Makes a service account with a key, which is shown this once.
    #[oai(
        path = "/:project_id/service_accounts",
        method = "post",
        operation_id = "create-project-service-account"
    )]
    async fn create(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        body: JsonBody<ServiceAccountOrder>,
    ) -> Result<Json<NewServiceAccount>, ApiError> {
        let (account, key) = app::create(&state, &admin, &project_id, body.value).await?;
        Ok(Json(NewServiceAccount::new(account, key)))
    }

    /// Retrieves a service account.
    #[oai(
        path = "/:project_id/service_accounts/:service_account_id",
        method = "get",
        operation_id = "retrieve-project-service-account"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        service_account_id: Path<String>,
    ) -> Result<Json<ServiceAccountObject>, ApiError> {
        let account = app::get(&state, &admin, &project_id, &service_account_id).await?;
        Ok(Json(account.into()))
    }

    /// Changes a service account's name or role.
    #[oai(
        path = "/:project_id/service_accounts/:service_account_id",
        method = "post",
        operation_id = "update-project-service-account"
    )]
    async fn update(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        service_account_id: Path<String>,
        body: JsonBody<ServiceAccountChange>,
    ) -> Result<Json<ServiceAccountObject>, ApiError> {
        let (id, change) = (&service_account_id, body.value);
        let account = app::update(&state, &admin, &project_id, id, change).await?;
        Ok(Json(account.into()))
    }

    /// Deletes a service account: its keys open nothing any more.
    #[oai(
        path = "/:project_id/service_accounts/:service_account_id",
        method = "delete",
        operation_id = "delete-project-service-account"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        service_account_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &admin, &project_id, &service_account_id).await?;
        Ok(Json(Deleted {
            id: service_account_id.0,
            object: "organization.project.service_account.deleted",
            deleted: true,
        }))
    }

    /// Makes a further key of a service account, which is shown this once.
    #[oai(
        path = "/:project_id/service_accounts/:service_account_id/api_keys",
        method = "post",
        operation_id = "CreateanAPIkeyforaserviceaccount"
    )]
    async fn create_key(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        service_account_id: Path<String>,
        body: JsonBody<ServiceAccountKeyOrder>,
    ) -> Result<Json<NewKeyObject>, ApiError> {
        let (id, order) = (&service_account_id, body.value);
        let key = app::create_key(&state, &admin, &project_id, id, order).await?;
        Ok(Json(key.into()))
    }
}
