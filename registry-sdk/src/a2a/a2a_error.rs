//! What agents say in place of doing a task.

use super::task_state::TaskState;

/// Why an agent that was to be called over A2A did not do a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum A2aError {
    /// The agent cannot be called: it has no card, or none of its interfaces is one that this SDK speaks. Nothing was sent.
    #[error("{0}")]
    NotCallable(String),
    /// The agent answered with an error of the protocol.
    #[error("A2A error {code}{}", after_colon(message))]
    Refused {
        /// The code of JSON-RPC, such as -32602, also over HTTP+JSON.
        code: i64,
        /// What the agent says.
        message: String,
    },
    /// The task ended in another state than completed.
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
            Self::Ended { .. } => "a2a_ended",
        }
    }

    /// Whether the agent may have got the task.
    pub(crate) fn may_have_arrived(&self) -> bool {
        !matches!(self, Self::NotCallable(_))
    }
}

fn after_colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
