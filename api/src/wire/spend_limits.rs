//! A project's spend limit as administrators see and order it.

use poem_openapi::Object;

use super::decode::Fields;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// More than anybody pays. US cents.
const MOST: i64 = 1_000_000_000_000;

reply! {
    /// What a project may spend in a calendar month (UTC).
    SpendLimitObject as "ProjectSpendLimit" {
        /// `project.spend_limit`.
        object: &'static str,
        /// US cents.
        threshold_amount: u64,
        /// `USD`.
        currency: &'static str,
        /// `month`.
        interval: &'static str,
        enforcement: EnforcementObject,
    }

    /// Whether the limit is reached.
    EnforcementObject as "SpendLimitEnforcement" {
        /// `enforcing`: what costs something is refused; `inactive`: there is something left.
        status: &'static str,
    }

    /// The project may spend as much as it likes.
    SpendLimitDeleted as "ProjectSpendLimitDeleted" {
        /// `project.spend_limit.deleted`.
        object: &'static str,
        deleted: bool,
    }
}

impl SpendLimitObject {
    pub fn new(cents: u64, is_reached: bool) -> Self {
        let status = if is_reached { "enforcing" } else { "inactive" };
        Self {
            object: "project.spend_limit",
            threshold_amount: cents,
            currency: "USD",
            interval: "month",
            enforcement: EnforcementObject { status },
        }
    }
}

/// The body that sets a project's spend limit.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct SpendLimitRequest {
    /// US cents; with 0 the project spends nothing.
    pub threshold_amount: u64,
    /// `USD`.
    pub currency: String,
    /// `month`.
    pub interval: String,
}

/// What was ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpendLimitOrder {
    /// US cents.
    pub threshold_amount: u64,
}

impl Decode for SpendLimitOrder {
    type Schema = SpendLimitRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let amount = body.require("threshold_amount")?.integer(0..=MOST)?;
        body.require("currency")?.one_of(&["USD"])?;
        body.require("interval")?.one_of(&["month"])?;
        body.finish()?;
        Ok(Self {
            threshold_amount: amount.unsigned_abs(),
        })
    }
}
