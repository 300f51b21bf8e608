//! The states of an agent's task.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The state of an A2A agent's task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskState {
    /// The agent has accepted the task and not begun it.
    Submitted,
    /// The agent works on the task.
    Working,
    /// The agent has done the task.
    Completed,
    /// The agent could not do the task.
    Failed,
    /// The task was canceled before it was done.
    Canceled,
    /// The agent needs input from the caller to continue.
    InputRequired,
    /// The agent rejected the task.
    Rejected,
    /// The agent needs credentials to continue.
    AuthRequired,
    /// A state that this version does not know, or that the agent reports as unknown.
    Unknown(String),
}

impl TaskState {
    /// Whether the agent still works on the task. Unknown states count as such.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Submitted | Self::Working | Self::Unknown(_))
    }

    /// Whether the agent waits for the caller.
    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(self, Self::InputRequired | Self::AuthRequired)
    }

    /// The state's name in messages, such as `input-required`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Submitted => "submitted",
            Self::Working => "working",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::InputRequired => "input-required",
            Self::Rejected => "rejected",
            Self::AuthRequired => "auth-required",
            Self::Unknown(name) => name,
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TaskState {
    type Err = Infallible;

    /// Reads the names of the versions 1.0 (`TASK_STATE_WORKING`) and 0.3 (`working`).
    fn from_str(name: &str) -> Result<Self, Infallible> {
        Ok(match name {
            "TASK_STATE_SUBMITTED" | "submitted" => Self::Submitted,
            "TASK_STATE_WORKING" | "working" => Self::Working,
            "TASK_STATE_COMPLETED" | "completed" => Self::Completed,
            "TASK_STATE_FAILED" | "failed" => Self::Failed,
            "TASK_STATE_CANCELED" | "canceled" => Self::Canceled,
            "TASK_STATE_INPUT_REQUIRED" | "input-required" => Self::InputRequired,
            "TASK_STATE_REJECTED" | "rejected" => Self::Rejected,
            "TASK_STATE_AUTH_REQUIRED" | "auth-required" => Self::AuthRequired,
            other => Self::Unknown(other.to_owned()),
        })
    }
}
