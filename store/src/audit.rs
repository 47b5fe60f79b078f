//! The audit log. Every change that an administrator makes is one transaction with the entry that tells of it:
//! [`begin`], the change, [`commit`]. Changes of one organisation happen one after another.

use domain::audit::{Actor, ActorUser, AuditEntry, AuditEvent, AuditProject, link};
use domain::id::{AuditLogId, KeyId, OrganizationId, ProjectId, UserId};
use domain::page::Page;
use domain::time::Timestamp;
use sea_orm::sea_query::{ExprTrait, LockType};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, DeleteMany, EntityTrait, Insert,
    IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, Select, UpdateMany,
};

use crate::connect::Store;
use crate::convert::{from_code, from_json, json, text, unsigned};
use crate::entity::audit_log::{Column, Entity, Model};
use crate::entity::organization;
use crate::error::StoreError;

/// Entries that are checked at a time.
const CHECKED_AT_ONCE: u64 = 1000;

#[derive(Clone, Copy)]
pub struct Audit<'a>(&'a Store);

/// Which entries; an empty list asks for all.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// OpenAI's names; those that never happen here are none of ours.
    pub event_types: Vec<String>,
    pub project_ids: Vec<String>,
    /// Users and keys.
    pub actor_ids: Vec<String>,
    pub actor_emails: Vec<String>,
    pub resource_ids: Vec<String>,
    /// Not before this instant.
    pub since: Option<Timestamp>,
    /// Before this instant.
    pub until: Option<Timestamp>,
}

/// Which part of the list, newest first.
#[derive(Debug, Clone)]
pub struct AuditPage {
    pub limit: u64,
    pub place: AuditPlace,
}

#[derive(Debug, Clone)]
pub enum AuditPlace {
    First,
    /// What follows this entry: older ones.
    After(String),
    /// What stands just before this entry: newer ones.
    Before(String),
}

/// What a check of the whole log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditVerdict {
    /// Nothing was changed or taken out. The last hash, kept elsewhere, proves that later, too.
    Whole { n_entries: u64, hash: String },
    /// The first entry that is not there, or not as it was written.
    Broken { seq: u64 },
}

/// Begins a change that an administrator of the organisation makes.
pub(crate) async fn begin(
    store: &Store,
    organization: &OrganizationId,
) -> Result<DatabaseTransaction, StoreError> {
    let tx = store.begin().await?;
    head(&tx, organization).await?;
    Ok(tx)
}

/// The organisation's row, held until the transaction ends. Rows that only refer to it do not wait for that.
async fn head(
    tx: &DatabaseTransaction,
    organization: &OrganizationId,
) -> Result<organization::Model, StoreError> {
    organization::Entity::find_by_id(organization.as_str())
        .lock(LockType::NoKeyUpdate)
        .one(tx)
        .await?
        .ok_or(StoreError::NotFound)
}

/// Writes an entry in the transaction of the change it tells of.
pub(crate) async fn append(tx: &DatabaseTransaction, entry: &AuditEntry) -> Result<(), StoreError> {
    let head = head(tx, &entry.organization_id).await?;
    let seq = head.audit_seq + 1;
    let hash = link(&head.audit_hash, unsigned(seq)?, entry);
    let row = to_row(entry, seq, hash.clone())?;
    Entity::insert(row.into_active_model())
        .exec_without_returning(tx)
        .await?;
    organization::Entity::update_many()
        .col_expr(organization::Column::AuditSeq, seq.into())
        .col_expr(organization::Column::AuditHash, hash.into())
        .filter(organization::Column::Id.eq(entry.organization_id.as_str()))
        .exec(tx)
        .await?;
    Ok(())
}

/// Writes the entry of a change, and ends its transaction.
pub(crate) async fn commit(tx: DatabaseTransaction, entry: &AuditEntry) -> Result<(), StoreError> {
    append(&tx, entry).await?;
    Ok(tx.commit().await?)
}

/// Changes that are one statement.
impl Store {
    pub(crate) async fn audited_insert<A: ActiveModelTrait>(
        &self,
        insert: Insert<A>,
        entry: &AuditEntry,
    ) -> Result<(), StoreError> {
        let work = async {
            let tx = begin(self, &entry.organization_id).await?;
            insert.exec_without_returning(&tx).await?;
            commit(tx, entry).await
        };
        self.bounded(work).await
    }

    /// False, and no entry: there was no row to change.
    pub(crate) async fn audited_update<E: EntityTrait>(
        &self,
        update: UpdateMany<E>,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let work = async {
            let tx = begin(self, &entry.organization_id).await?;
            if update.exec(&tx).await?.rows_affected == 0 {
                return Ok(false);
            }
            commit(tx, entry).await.map(|()| true)
        };
        self.bounded(work).await
    }

    /// False, and no entry: there was no row to delete.
    pub(crate) async fn audited_delete<E: EntityTrait>(
        &self,
        delete: DeleteMany<E>,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let work = async {
            let tx = begin(self, &entry.organization_id).await?;
            if delete.exec(&tx).await?.rows_affected == 0 {
                return Ok(false);
            }
            commit(tx, entry).await.map(|()| true)
        };
        self.bounded(work).await
    }
}

impl<'a> Audit<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Newest first. Errors: `UnknownAfter`.
    pub async fn list(
        self,
        organization: &OrganizationId,
        filter: &AuditFilter,
        page: &AuditPage,
    ) -> Result<Page<AuditEntry>, StoreError> {
        let all = of(organization);
        let chosen = narrowed(all.clone(), filter);
        let newest_first = |select: Select<Entity>| select.order_by_desc(Column::Seq);
        let (select, is_backwards) = match &page.place {
            AuditPlace::First => (newest_first(chosen), false),
            AuditPlace::After(id) => {
                let seq = self.seq_of(all, id).await?;
                (newest_first(chosen.filter(Column::Seq.lt(seq))), false)
            }
            AuditPlace::Before(id) => {
                let seq = self.seq_of(all, id).await?;
                let nearest_first = chosen.filter(Column::Seq.gt(seq));
                (nearest_first.order_by_asc(Column::Seq), true)
            }
        };
        let select = select.limit(page.limit.saturating_add(1));
        let rows = self.0.all(select).await?;
        let mut page = Page::from_overfetch(rows, page.limit);
        if is_backwards {
            page.items.reverse();
        }
        page.try_map(to_domain)
    }

    async fn seq_of(self, all: Select<Entity>, id: &str) -> Result<i64, StoreError> {
        let row = self
            .0
            .one(all.filter(Column::Id.eq(id.replace('\0', ""))))
            .await?;
        let row = row.ok_or_else(|| StoreError::UnknownAfter(id.to_owned()))?;
        Ok(row.seq)
    }

    /// Reads the whole log and follows its hashes to the one that the organisation's row names.
    pub async fn verify(self, organization: &OrganizationId) -> Result<AuditVerdict, StoreError> {
        let row = organization::Entity::find_by_id(organization.as_str());
        let head = self.0.one(row).await?.ok_or(StoreError::NotFound)?;
        let (mut seq, mut hash) = (0, String::new());
        loop {
            let next = of(organization)
                .filter(Column::Seq.gt(seq))
                .filter(Column::Seq.lte(head.audit_seq))
                .order_by_asc(Column::Seq)
                .limit(CHECKED_AT_ONCE);
            let rows = self.0.all(next).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                let (stored, is_next) = (row.hash.clone(), row.seq == seq + 1);
                let entry = to_domain(row).ok();
                let expected = entry.map(|entry| link(&hash, (seq + 1).unsigned_abs(), &entry));
                if !is_next || expected.as_ref() != Some(&stored) {
                    return Ok(AuditVerdict::Broken {
                        seq: unsigned(seq + 1)?,
                    });
                }
                (seq, hash) = (seq + 1, stored);
            }
        }
        if (seq, &hash) != (head.audit_seq, &head.audit_hash) {
            return Ok(AuditVerdict::Broken {
                seq: unsigned(seq + 1)?,
            });
        }
        let n_entries = unsigned(seq)?;
        Ok(AuditVerdict::Whole { n_entries, hash })
    }
}

fn of(organization: &OrganizationId) -> Select<Entity> {
    Entity::find().filter(Column::OrganizationId.eq(organization.as_str()))
}

fn narrowed(mut select: Select<Entity>, filter: &AuditFilter) -> Select<Entity> {
    for (column, values) in [
        (Column::Kind, &filter.event_types),
        (Column::ProjectId, &filter.project_ids),
        (Column::ActorEmail, &filter.actor_emails),
        (Column::ResourceId, &filter.resource_ids),
    ] {
        if !values.is_empty() {
            select = select.filter(column.is_in(values));
        }
    }
    if !filter.actor_ids.is_empty() {
        let is_user = Column::ActorUserId.is_in(&filter.actor_ids);
        select = select.filter(is_user.or(Column::ActorKeyId.is_in(&filter.actor_ids)));
    }
    if let Some(since) = filter.since {
        select = select.filter(Column::EffectiveAt.gte(since.0));
    }
    if let Some(until) = filter.until {
        select = select.filter(Column::EffectiveAt.lt(until.0));
    }
    select
}

fn to_row(entry: &AuditEntry, seq: i64, hash: String) -> Result<Model, StoreError> {
    let user = entry.actor.as_ref().and_then(|actor| actor.user.as_ref());
    let project = entry.project.as_ref();
    Ok(Model {
        id: entry.id.to_string(),
        organization_id: entry.organization_id.to_string(),
        seq,
        effective_at: entry.effective_at.0,
        kind: entry.event.kind.as_str().to_owned(),
        resource_id: text("resource_id", &entry.event.resource_id)?,
        // JSON spells NUL as an escape.
        details: json(&entry.event.details),
        project_id: project.map(|project| project.id.to_string()),
        project_name: project.map(|project| project.name.clone()),
        actor_key_id: entry.actor.as_ref().map(|actor| actor.key_id.to_string()),
        actor_user_id: user.map(|user| user.id.to_string()),
        actor_email: user.map(|user| user.email.clone()),
        ip: entry.actor.as_ref().map(|actor| actor.ip.clone()),
        hash,
    })
}

fn to_domain(row: Model) -> Result<AuditEntry, StoreError> {
    let user = match (row.actor_user_id, row.actor_email) {
        (Some(id), Some(email)) => Some(ActorUser {
            id: UserId::parse(&id)?,
            email,
        }),
        _ => None,
    };
    let actor = match (row.actor_key_id, row.ip) {
        (Some(key), Some(ip)) => Some(Actor {
            key_id: KeyId::parse(&key)?,
            user,
            ip,
        }),
        _ => None,
    };
    let project = match (row.project_id, row.project_name) {
        (Some(id), Some(name)) => Some(AuditProject {
            id: ProjectId::parse(&id)?,
            name,
        }),
        _ => None,
    };
    Ok(AuditEntry {
        id: AuditLogId::parse(&row.id)?,
        organization_id: OrganizationId::parse(&row.organization_id)?,
        effective_at: Timestamp(row.effective_at),
        actor,
        project,
        event: AuditEvent {
            kind: from_code("type", &row.kind)?,
            resource_id: row.resource_id,
            details: from_json("details", &row.details)?,
        },
    })
}
