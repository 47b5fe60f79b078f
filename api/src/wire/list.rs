//! Cursor pages.

use std::borrow::Cow;

use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::types::{ToJSON, Type};
use serde_json::{Value, json};

use super::nullable::Nullable;
use super::reply::{object_schema, reply};

/// One page. Ask for the next with `after=last_id`; it starts behind that item.
#[derive(Debug, Clone, PartialEq)]
pub struct List<T> {
    pub data: Vec<T>,
    pub first_id: Nullable<String>,
    pub last_id: Nullable<String>,
    /// Whether items follow behind `last_id`.
    pub has_more: bool,
}

impl<T: Type> Type for List<T> {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        format!("List_{}", T::name()).into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference(Self::name().into_owned())
    }

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(Self::name().into_owned(), |registry| {
            T::register(registry);
            let id = Nullable::<String>::schema_ref;
            object_schema(
                "One page. Ask for the next with `after=last_id`; it starts behind that item.",
                vec![
                    ("object", true, String::schema_ref(), "`list`."),
                    ("data", true, Vec::<T>::schema_ref(), ""),
                    ("first_id", true, id(), ""),
                    ("last_id", true, id(), ""),
                    (
                        "has_more",
                        true,
                        bool::schema_ref(),
                        "Whether items follow behind `last_id`.",
                    ),
                ],
            )
        });
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl<T: ToJSON> ToJSON for List<T> {
    fn to_json(&self) -> Option<Value> {
        Some(json!({
            "object": "list",
            "data": self.data.iter().map(|item| item.to_json()).collect::<Vec<_>>(),
            "first_id": self.first_id.to_json(),
            "last_id": self.last_id.to_json(),
            "has_more": self.has_more,
        }))
    }
}

/// Something that can stand in a page.
pub trait Listed {
    fn id(&self) -> &str;
}

impl<T: Listed> List<T> {
    pub fn page<U>(page: domain::page::Page<U>) -> Self
    where
        T: From<U>,
    {
        let data: Vec<T> = page.items.into_iter().map(T::from).collect();
        let id = |item: Option<&T>| Nullable(item.map(|item| item.id().to_owned()));
        Self {
            first_id: id(data.first()),
            last_id: id(data.last()),
            has_more: page.has_more,
            data,
        }
    }
}

reply! {
    /// What a deletion answers.
    Deleted as "Deleted" {
        id: String,
        /// What it was, such as `file` or `organization.invite.deleted`.
        object: &'static str,
        deleted: bool,
    }
}
