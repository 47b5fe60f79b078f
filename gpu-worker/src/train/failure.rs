//! Why an attempt ends without a result, and whose fault it is.

use domain::error::{FailureClass, JobError};
use platform::objects::ObjectsError;

use crate::adapters::AdapterError;
use crate::base_models::BaseError;
use crate::device::DeviceError;
use crate::door_client::DoorError;

/// What the door is told. The message is for the job's owner: it names no path, no key and no row's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub class: FailureClass,
    pub error: JobError,
}

impl Failure {
    /// The surroundings are at fault.
    pub(super) fn infra(message: String) -> Self {
        Self {
            class: FailureClass::Infra,
            error: JobError {
                code: "server_error".into(),
                message,
                param: None,
            },
        }
    }

    /// Rows of the file `param` are at fault.
    pub(super) fn bad_data(param: &'static str, reason: String) -> Self {
        let error = JobError {
            code: format!("invalid_{param}"),
            message: reason,
            param: Some(param.into()),
        };
        Self {
            class: FailureClass::User,
            error,
        }
    }

    /// An option of the job does not go with its base model.
    pub(super) fn bad_option(param: &str, reason: String) -> Self {
        Self {
            class: FailureClass::User,
            error: JobError {
                code: "invalid_x_training".into(),
                message: format!("Invalid '{param}': {reason}."),
                param: Some(param.into()),
            },
        }
    }

    /// The batch does not fit onto the device.
    pub(super) fn batch_too_large(batch_size: usize, longest: usize) -> Self {
        let message = format!(
            "A batch of {batch_size} examples of up to {longest} tokens does not fit into the device's memory. Use a \
             smaller batch_size or shorter examples."
        );
        Self {
            class: FailureClass::User,
            error: JobError {
                code: "out_of_memory".into(),
                message,
                param: None,
            },
        }
    }

    /// The loss is no number any more: it will not become one again.
    pub(super) fn diverged(reason: &str) -> Self {
        let message =
            format!("Training diverged: {reason}. Use a smaller learning_rate_multiplier.");
        Self {
            class: FailureClass::User,
            error: JobError {
                code: "training_diverged".into(),
                message,
                param: None,
            },
        }
    }

    /// The worker is going down and hands the job back.
    pub(super) fn drain() -> Self {
        let message = "the worker is shutting down".to_owned();
        let error = JobError {
            code: "worker_draining".into(),
            message,
            param: None,
        };
        Self {
            class: FailureClass::Drain,
            error,
        }
    }
}

impl From<ObjectsError> for Failure {
    fn from(error: ObjectsError) -> Self {
        tracing::warn!(%error, "the object store failed an attempt");
        Failure::infra(match error {
            ObjectsError::NotFound { .. } => "an object that the job needs is gone".to_owned(),
            ObjectsError::Corrupt { .. } => "an object that the job needs is damaged".to_owned(),
            _ => "the object store cannot be used".to_owned(),
        })
    }
}

impl From<DoorError> for Failure {
    fn from(error: DoorError) -> Self {
        Failure::infra(format!(
            "the scheduler does not take the worker's report: {error}"
        ))
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        match error {
            // Another worker may have such a device, or this one again: it is tried again as when something is away for a while.
            DeviceError::OtherArithmetic(reason) => Failure::infra(format!(
                "the job began on a device that computes otherwise, and goes on only on such a one: {reason}. Start a worker there, \
                 or create the job anew"
            )),
            error => Failure::infra(error.to_string()),
        }
    }
}

impl From<BaseError> for Failure {
    fn from(error: BaseError) -> Self {
        Failure::infra(error.to_string())
    }
}

impl From<AdapterError> for Failure {
    fn from(error: AdapterError) -> Self {
        Failure::infra(format!("the trained adapter cannot be served: {error}"))
    }
}
