//! Errors of agents that are called over A2A.

use super::task_state::TaskState;

/// Why an agent did not do a task over A2A.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum A2aError {
    /// The agent cannot be called. Nothing was sent to it.
    ///
    /// It has no card or no interface that the SDK supports, its card could not be read from the registry, or its version of the
    /// protocol, 0.3, does not allow a part of the message.
    #[error("{0}")]
    NotCallable(String),
    /// The agent responded with an error of the protocol.
    #[error("A2A error {code}{}", after_colon(message))]
    Refused {
        /// The JSON-RPC code, such as -32602, also for HTTP+JSON.
        code: i64,
        /// The beginning of what the agent says: up to 4 KiB.
        message: String,
    },
    /// The agent does not take a message of this size or media type.
    #[error("status {status}{}", after_colon(message))]
    NotAccepted {
        /// The status: 413 or 415.
        status: u16,
        /// The beginning of what the agent says: up to 4 KiB.
        message: String,
    },
    /// The task ended in a state other than completed.
    #[error("the task is {state}{}", after_colon(message))]
    Ended {
        /// The state: failed, rejected or canceled.
        state: TaskState,
        /// What the agent says.
        message: String,
    },
}

impl A2aError {
    /// The `error.type` of a span.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NotCallable(_) => "a2a_not_callable",
            Self::Refused { .. } => "a2a_refused",
            Self::NotAccepted { .. } => "a2a_not_accepted",
            Self::Ended { .. } => "a2a_ended",
        }
    }

    /// Whether the agent may have received the task.
    pub(crate) fn may_have_arrived(&self) -> bool {
        !matches!(self, Self::NotCallable(_))
    }
}

fn after_colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
