//! A number or the word `auto`.

use std::borrow::Cow;

use domain::hyperparameters::Auto;
use poem_openapi::registry::{MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use serde_json::Value;

/// `T`, or `"auto"` while the service has not chosen yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NumberOrAuto<T>(pub Auto<T>);

impl<T: Type + Copy> Type for NumberOrAuto<T> {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        format!("{}_or_auto", T::name()).into()
    }

    fn schema_ref() -> MetaSchemaRef {
        let auto = MetaSchema {
            enum_items: vec![Value::from("auto")],
            ..MetaSchema::new("string")
        };
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            one_of: vec![MetaSchemaRef::Inline(Box::new(auto)), T::schema_ref()],
            ..MetaSchema::ANY
        }))
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn as_raw_value(&self) -> Option<&Self::RawValueType> {
        Some(self)
    }

    fn raw_element_iter<'a>(
        &'a self,
    ) -> Box<dyn Iterator<Item = &'a Self::RawElementValueType> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl<T: ToJSON + Copy> ToJSON for NumberOrAuto<T> {
    fn to_json(&self) -> Option<Value> {
        match &self.0 {
            Auto::Auto => Some(Value::from("auto")),
            Auto::Given(value) => value.to_json(),
        }
    }
}

impl<T: ParseFromJSON + Copy> ParseFromJSON for NumberOrAuto<T> {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        if value.as_ref().is_some_and(|value| value == "auto") {
            return Ok(Self(Auto::Auto));
        }
        let number = T::parse_from_json(value).map_err(ParseError::propagate)?;
        Ok(Self(Auto::Given(number)))
    }
}
