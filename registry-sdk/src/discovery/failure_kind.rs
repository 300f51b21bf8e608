//! The table of outcomes: what happens after a task failed at an agent.

use std::time::Duration;

/// How long a busy agent is left alone at least, also if it says nothing of it.
const MIN_BUSY: Duration = Duration::from_secs(1);

/// How long a busy agent is left alone at most.
const MAX_BUSY: Duration = Duration::from_secs(300);

/// What a failure says of the agent and the task.
///
/// This is the table of outcomes for tasks that are sent over HTTP. [`OrchestratorBuilder::classifier`] replaces it:
///
/// | outcome | kind | next | counts against the agent |
/// |---|---|---|---|
/// | no connection, a broken one, `attempt_timeout`, 408, 425, 5xx | [`Agent`](Self::Agent) | the next agent | yes |
/// | 401, 403, 404, 405, redirect (307 and 308 to the same origin are followed) | [`Deployment`](Self::Deployment) | the next agent | if another agent then succeeds |
/// | 429; 503 or 409 with `Retry-After` | [`Busy`](Self::Busy) | the next agent, and this one again after that time | no |
/// | any other 4xx | [`Task`](Self::Task) | the delegation ends | no |
/// | 2xx with a response that cannot be read or decoded | [`Response`](Self::Response) | the delegation ends, since the task was done | only if it did not arrive in time |
///
/// [`OrchestratorBuilder::classifier`]: super::OrchestratorBuilder::classifier
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// The agent failed. Another one gets the task, and the failure counts against this one.
    Agent,
    /// The agent is deployed wrongly, or the task is sent wrongly: the path, the credentials. Another agent gets the task. Only
    /// if that succeeds, the failure counts against this one.
    Deployment,
    /// The agent takes no task now. Another one gets it, and this one is not asked again before the time has passed: at least
    /// 1 s and at most 5 minutes.
    Busy {
        /// The time that the agent asked for.
        retry_after: Duration,
    },
    /// The task's own fault: no other agent would do better.
    Task,
    /// The agent has done the task, but its response cannot be used. The task is never run again.
    Response,
}

impl FailureKind {
    /// The kind of a response that is no success, by its status and its `Retry-After`.
    #[must_use]
    pub fn of_status(status: u16, retry_after: Option<Duration>) -> Self {
        match (status, retry_after) {
            (429, _) => Self::Busy { retry_after: retry_after.unwrap_or_default() },
            (409 | 503, Some(retry_after)) => Self::Busy { retry_after },
            (408 | 425, _) => Self::Agent,
            (401 | 403 | 404 | 405 | 300..=399, _) => Self::Deployment,
            (400..=499, _) => Self::Task,
            // 5xx, and what is no status of HTTP.
            _ => Self::Agent,
        }
    }

    /// How long a busy agent is left alone.
    pub(super) fn busy_time(retry_after: Duration) -> Duration {
        retry_after.clamp(MIN_BUSY, MAX_BUSY)
    }

    /// The value of the metrics' label.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Deployment => "deployment",
            Self::Busy { .. } => "busy",
            Self::Task => "task",
            Self::Response => "response",
        }
    }
}
