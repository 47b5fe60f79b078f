//! Invitations to organisations.

use domain::audit::AuditEntry;
use domain::id::{InviteId, OrganizationId};
use domain::invite::Invite;
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Select};

use crate::connect::Store;
use crate::convert::{from_code, from_json, json, text};
use crate::entity::invite::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct Invites<'a>(&'a Store);

impl<'a> Invites<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Errors: `UnknownAfter`.
    pub async fn list(
        self,
        organization: &OrganizationId,
        page: &PageRequest,
    ) -> Result<Page<Invite>, StoreError> {
        let page = self
            .0
            .page(of(organization), page, Column::CreatedAt, Column::Id);
        page.await?.try_map(to_domain)
    }

    pub async fn find(
        self,
        organization: &OrganizationId,
        id: &InviteId,
    ) -> Result<Option<Invite>, StoreError> {
        let select = of(organization).filter(Column::Id.eq(id.as_str()));
        self.0.one(select).await?.map(to_domain).transpose()
    }

    pub async fn insert(self, invite: &Invite, entry: &AuditEntry) -> Result<(), StoreError> {
        let row = Model {
            id: invite.id.to_string(),
            organization_id: invite.organization_id.to_string(),
            email: text("email", &invite.email)?,
            role: invite.role.as_str().to_owned(),
            projects: json(&invite.projects),
            created_at: invite.created_at.0,
            expires_at: invite.expires_at.0,
        };
        let insert = Entity::insert(row.into_active_model());
        self.0.audited_insert(insert, entry).await
    }

    /// False: the organisation has no such invitation.
    pub async fn delete(self, id: &InviteId, entry: &AuditEntry) -> Result<bool, StoreError> {
        let organization = &entry.organization_id;
        let delete = Entity::delete_many()
            .filter(Column::OrganizationId.eq(organization.as_str()))
            .filter(Column::Id.eq(id.as_str()));
        self.0.audited_delete(delete, entry).await
    }
}

fn of(organization: &OrganizationId) -> Select<Entity> {
    Entity::find().filter(Column::OrganizationId.eq(organization.as_str()))
}

fn to_domain(row: Model) -> Result<Invite, StoreError> {
    Ok(Invite {
        id: InviteId::parse(&row.id)?,
        organization_id: OrganizationId::parse(&row.organization_id)?,
        email: row.email,
        role: from_code("role", &row.role)?,
        projects: from_json("projects", &row.projects)?,
        created_at: Timestamp(row.created_at),
        expires_at: Timestamp(row.expires_at),
    })
}
