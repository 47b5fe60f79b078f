//! How the shape of a reply is declared: once, for its JSON and for the document.

/// Declares structs that become JSON objects and are described in the document with their doc lines.
/// A field of type `Option` is left out when it is `None`; a `Nullable` one is `null` then.
macro_rules! reply {
    ($(
        $(#[doc = $about:literal])*
        $name:ident as $title:literal {
            $($(#[doc = $doc:literal])* $field:ident: $type:ty,)*
        }
    )*) => {$(
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl poem_openapi::types::Type for $name {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> std::borrow::Cow<'static, str> {
                $title.into()
            }

            fn schema_ref() -> poem_openapi::registry::MetaSchemaRef {
                poem_openapi::registry::MetaSchemaRef::Reference($title.to_owned())
            }

            fn register(registry: &mut poem_openapi::registry::Registry) {
                registry.create_schema::<Self, _>($title.to_owned(), |registry| {
                    $(<$type as poem_openapi::types::Type>::register(registry);)*
                    $crate::wire::reply::object_schema(
                        concat!($($about, "\n"),*).trim(),
                        vec![$((
                            $crate::wire::reply::plain(stringify!($field)),
                            <$type as poem_openapi::types::Type>::IS_REQUIRED,
                            <$type as poem_openapi::types::Type>::schema_ref(),
                            concat!("", $($doc, "\n"),*).trim(),
                        )),*],
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

        impl poem_openapi::types::ToJSON for $name {
            fn to_json(&self) -> Option<serde_json::Value> {
                let mut object = serde_json::Map::new();
                $(if !poem_openapi::types::Type::is_none(&self.$field) {
                    let value = poem_openapi::types::ToJSON::to_json(&self.$field).unwrap_or_default();
                    object.insert($crate::wire::reply::plain(stringify!($field)).to_owned(), value);
                })*
                Some(serde_json::Value::Object(object))
            }
        }
    )*};
}

pub(crate) use reply;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use serde_json::Value;

/// The name of a field that Rust spells with `r#`.
pub fn plain(field: &'static str) -> &'static str {
    field.strip_prefix("r#").unwrap_or(field)
}

/// Metadata as an object.
pub fn pairs(pairs: Vec<(String, String)>) -> Value {
    Value::Object(
        pairs
            .into_iter()
            .map(|(k, v)| (k, Value::from(v)))
            .collect(),
    )
}

/// The schema of an object from its fields: name, whether it is always there, schema, description.
pub fn object_schema(
    about: &'static str,
    fields: Vec<(&'static str, bool, MetaSchemaRef, &'static str)>,
) -> MetaSchema {
    let mut schema = MetaSchema {
        description: (!about.is_empty()).then_some(about),
        ..MetaSchema::new("object")
    };
    for (name, is_required, of_type, description) in fields {
        if is_required {
            schema.required.push(name);
        }
        let described = MetaSchema {
            description: (!description.is_empty()).then_some(description),
            ..MetaSchema::ANY
        };
        schema.properties.push((name, of_type.merge(described)));
    }
    schema
}
