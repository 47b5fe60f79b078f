//! Entries of the audit log as administrators see them.

use std::borrow::Cow;

use domain::audit::{Actor, AuditEntry};
use poem_openapi::registry::{MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{ToJSON, Type};
use serde_json::{Map, Value, json};

use super::list::Listed;
use super::nullable::Nullable;
use super::reply::{object_schema, reply};

reply! {
    /// The project it was done in, as it was then.
    AuditProjectObject as "AuditLogProject" {
        id: String,
        name: String,
    }

    /// Who did it.
    AuditActor as "AuditLogActor" {
        /// `api_key`.
        r#type: &'static str,
        api_key: AuditActorKey,
    }

    /// The admin key it was done with.
    AuditActorKey as "AuditLogActorApiKey" {
        id: String,
        /// `user`.
        r#type: &'static str,
        /// Absent: a key that was made on the command line for nobody.
        user: Option<AuditActorUser>,
    }

    /// The user whose key it is, as it was then.
    AuditActorUser as "AuditLogActorUser" {
        id: String,
        email: String,
    }
}

/// An entry. What was done stands under the name that `type` says.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditLogObject {
    id: String,
    kind: &'static str,
    effective_at: i64,
    project: Option<AuditProjectObject>,
    actor: Nullable<AuditActor>,
    ip: Nullable<String>,
    details: Map<String, Value>,
}

impl From<AuditEntry> for AuditLogObject {
    fn from(entry: AuditEntry) -> Self {
        let mut details = Map::new();
        details.insert("id".to_owned(), entry.event.resource_id.into());
        if let Value::Object(more) = entry.event.details {
            details.extend(more);
        }
        Self {
            id: entry.id.to_string(),
            kind: entry.event.kind.as_str(),
            effective_at: entry.effective_at.unix_s(),
            project: entry.project.map(|project| AuditProjectObject {
                id: project.id.to_string(),
                name: project.name,
            }),
            ip: Nullable(entry.actor.as_ref().map(|actor| actor.ip.clone())),
            actor: Nullable(entry.actor.map(Into::into)),
            details,
        }
    }
}

impl From<Actor> for AuditActor {
    fn from(actor: Actor) -> Self {
        Self {
            r#type: "api_key",
            api_key: AuditActorKey {
                id: actor.key_id.to_string(),
                r#type: "user",
                user: actor.user.map(|user| AuditActorUser {
                    id: user.id.to_string(),
                    email: user.email,
                }),
            },
        }
    }
}

impl Listed for AuditLogObject {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Type for AuditLogObject {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "AuditLog".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference("AuditLog".to_owned())
    }

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>("AuditLog".to_owned(), |registry| {
            AuditProjectObject::register(registry);
            Nullable::<AuditActor>::register(registry);
            let project = AuditProjectObject::schema_ref();
            let schema = object_schema(
                "What was done; the details stand under the name that `type` says.",
                vec![
                    ("id", true, String::schema_ref(), ""),
                    (
                        "type",
                        true,
                        String::schema_ref(),
                        "Such as `project.created`.",
                    ),
                    ("effective_at", true, i64::schema_ref(), "Unix seconds."),
                    ("project", false, project, "Absent: it was done in none."),
                    (
                        "actor",
                        true,
                        Nullable::<AuditActor>::schema_ref(),
                        "Null: the operator, on the command line.",
                    ),
                    (
                        "x_ip_address",
                        true,
                        Nullable::<String>::schema_ref(),
                        "Where the request came from.",
                    ),
                ],
            );
            MetaSchema {
                additional_properties: Some(Box::new(MetaSchemaRef::Inline(Box::new(
                    MetaSchema::new("object"),
                )))),
                ..schema
            }
        });
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ToJSON for AuditLogObject {
    fn to_json(&self) -> Option<Value> {
        let mut object = json!({
            "id": self.id,
            "type": self.kind,
            "effective_at": self.effective_at,
            "actor": self.actor.to_json(),
            "x_ip_address": self.ip.to_json(),
            self.kind: self.details,
        });
        if let Some(project) = &self.project {
            object["project"] = project.to_json()?;
        }
        Some(object)
    }
}
