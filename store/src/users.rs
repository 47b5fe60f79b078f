//! Users of organisations.

use domain::id::{OrganizationId, UserId};
use domain::time::Timestamp;
use domain::user::User;

use crate::convert::from_code;
use crate::entity::user::Model;
use crate::error::StoreError;

pub(crate) fn to_domain(row: Model) -> Result<User, StoreError> {
    Ok(User {
        id: UserId::parse(&row.id)?,
        organization_id: OrganizationId::parse(&row.organization_id)?,
        email: row.email,
        name: row.name,
        role: from_code("role", &row.role)?,
        added_at: Timestamp(row.added_at),
    })
}
