//! The table of outcomes: what happens after a failure.

use std::time::Duration;

#[cfg(feature = "a2a")]
use crate::a2a::a2a_error::A2aError;
#[cfg(feature = "a2a")]
use crate::a2a::task_state::TaskState;

/// Minimum time for which a busy agent is avoided.
const MIN_BUSY: Duration = Duration::from_secs(1);

/// Maximum time for which a busy agent is avoided.
const MAX_BUSY: Duration = Duration::from_secs(300);

/// What a failure says about the agent and the task.
///
/// This table shows the outcomes of tasks that are sent over HTTP. [`OrchestratorBuilder::classifier`] replaces it:
///
/// | outcome | kind | next | counts against the agent |
/// |---|---|---|---|
/// | no connection, a broken one, `attempt_timeout`, 408, 425, 5xx | [`Agent`](Self::Agent) | the next agent | yes |
/// | 401, 403, 404, 405, redirect (307 and 308 to the same origin are followed) | [`Deployment`](Self::Deployment) | the next agent | if another agent then succeeds |
/// | 429; 503 or 409 with `Retry-After` | [`Busy`](Self::Busy) | the next agent, and this one again after that time | no |
/// | any other 4xx | [`Task`](Self::Task) | the delegation ends | no |
/// | over A2A: no card, or none with an interface that this SDK supports; the state rejected or canceled; the errors -32004, -32005, -32008; 413, 415 | [`Declined`](Self::Declined) | the next agent | no |
/// | over A2A: the errors -32600, -32601, -32602, -32700 and -32009 | [`Deployment`](Self::Deployment) | the next agent | if another agent then succeeds |
/// | over A2A: the state failed, any other error | [`Agent`](Self::Agent) | the next agent | yes |
/// | over A2A: three failed polls in a row, the last one with 401 or 403 | [`Deployment`](Self::Deployment) | the next agent | if another agent then succeeds |
/// | over A2A: any other three failed polls in a row | [`Agent`](Self::Agent) | the next agent | yes |
/// | 2xx with a response that cannot be read or decoded; in a poll, only if it is too long or about another task | [`Response`](Self::Response) | the delegation ends, since the task was done | only if it did not arrive in time |
///
/// [`OrchestratorBuilder::classifier`]: super::OrchestratorBuilder::classifier
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// The agent failed. Another agent gets the task, and the failure counts against this one.
    Agent,
    /// The agent is deployed wrongly, or the task is sent wrongly: the path or the credentials are wrong, or an A2A agent does not
    /// understand the message. Another agent gets the task. The failure counts against this one only if the other agent succeeds.
    Deployment,
    /// The agent takes no task now. Another agent gets it, and this one is avoided for this time: at least 1 s and at most 5
    /// minutes.
    Busy {
        /// The time that the agent asked for.
        retry_after: Duration,
    },
    /// The agent does not take this task, although nothing is wrong with the agent. Another agent gets the task.
    Declined,
    /// The task is invalid: no other agent would succeed.
    Task,
    /// The agent has done the task, but its response cannot be used. The task is never run again.
    Response,
}

impl FailureKind {
    /// Returns the kind of an unsuccessful response, by its status and its `Retry-After`.
    #[must_use]
    pub fn of_status(status: u16, retry_after: Option<Duration>) -> Self {
        match (status, retry_after) {
            (429, _) => Self::Busy { retry_after: retry_after.unwrap_or_default() },
            (409 | 503, Some(retry_after)) => Self::Busy { retry_after },
            (408 | 425, _) => Self::Agent,
            (401 | 403 | 404 | 405 | 300..=399, _) => Self::Deployment,
            (400..=499, _) => Self::Task,
            // 5xx, and numbers that are not a status of HTTP.
            _ => Self::Agent,
        }
    }

    /// Returns the kind of an error of the A2A protocol, by its JSON-RPC code.
    #[cfg(feature = "a2a")]
    #[must_use]
    pub fn of_a2a_error(code: i64) -> Self {
        match code {
            // The agent does not speak what its card says: method not found, version not supported. Or it cannot read the message (no
            // JSON, no request, wrong parameters). Another agent may, because limits differ, and because some agents report their own
            // mistakes with these codes.
            -32601 | -32009 | -32700 | -32600 | -32602 => Self::Deployment,
            // It speaks less than this task needs: operation, content type, required extension.
            -32004 | -32005 | -32008 => Self::Declined,
            _ => Self::Agent,
        }
    }

    /// The kind of what an agent said over A2A in place of doing a task.
    #[cfg(feature = "a2a")]
    pub(super) fn of_a2a(error: &A2aError) -> Self {
        match error {
            A2aError::Refused { code, .. } => Self::of_a2a_error(*code),
            A2aError::Ended { state: TaskState::Failed, .. } => Self::Agent,
            A2aError::NotCallable(_) | A2aError::NotAccepted { .. } | A2aError::Ended { .. } => {
                Self::Declined
            }
        }
    }

    /// Returns how long a busy agent is avoided.
    pub(super) fn busy_time(retry_after: Duration) -> Duration {
        retry_after.clamp(MIN_BUSY, MAX_BUSY)
    }

    /// Returns the value of the metrics' label.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Deployment => "deployment",
            Self::Busy { .. } => "busy",
            Self::Declined => "declined",
            Self::Task => "task",
            Self::Response => "response",
        }
    }
}
