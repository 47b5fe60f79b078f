//! A job's public story, line by line.

use serde::{Deserialize, Serialize};

use crate::id::{EventId, JobId};
use crate::time::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    Message,
    Metrics,
}

/// An event as it is stored. Within a job `seq` is dense and an event is never withdrawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    pub job_id: JobId,
    pub seq: u64,
    pub level: Level,
    pub event_type: EventType,
    pub message: String,
    /// `{}` for messages, the step's numbers for metrics.
    pub data: serde_json::Value,
    pub created_at: Timestamp,
}

/// An event before the store gave it its place.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub level: Level,
    pub event_type: EventType,
    pub message: String,
    pub data: serde_json::Value,
}

impl NewEvent {
    pub fn message(level: Level, message: impl Into<String>) -> Self {
        Self {
            level,
            event_type: EventType::Message,
            message: message.into(),
            data: serde_json::json!({}),
        }
    }

    pub fn info(message: impl Into<String>) -> Self {
        Self::message(Level::Info, message)
    }
}
