//! Lists that are filtered by metadata.

use sea_orm::sea_query::{Expr, ExprTrait, SelectStatement};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, Select};

use crate::convert::text;
use crate::error::StoreError;

/// What a list shows, by metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MetadataFilter {
    #[default]
    Any,
    /// What has no metadata.
    None_,
    /// What has every one of these pairs.
    All(Vec<(String, String)>),
}

/// Keeps the rows that the filter allows. `pairs` selects the pairs of the row at hand; `key` and `value` are their columns.
pub(crate) fn with_metadata<E: EntityTrait, C: ColumnTrait>(
    select: Select<E>,
    filter: &MetadataFilter,
    pairs: impl Fn() -> SelectStatement,
    key: C,
    value: C,
) -> Result<Select<E>, StoreError> {
    match filter {
        MetadataFilter::Any => Ok(select),
        MetadataFilter::None_ => Ok(select.filter(Expr::exists(pairs()).not())),
        MetadataFilter::All(wanted) => wanted.iter().try_fold(select, |select, (k, v)| {
            let mut pairs = pairs();
            pairs
                .and_where(key.eq(text("metadata", k)?))
                .and_where(value.eq(text("metadata", v)?));
            Ok(select.filter(Expr::exists(pairs)))
        }),
    }
}
