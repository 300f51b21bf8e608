//! The table of outcomes: what happens after a task failed at an agent.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A shared error, so that errors can be cloned.
pub(super) type Cause = Arc<dyn Error + Send + Sync>;

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

/// Why a task failed, and what that says of the agent and the task.
///
/// Any error becomes one with `?`:
///
/// - a `reqwest::Error` by its status, as [`FailureKind`] says, or by what failed;
/// - a `serde_json::Error` is a [`FailureKind::Response`], so the task is not run again;
/// - any other error is a [`FailureKind::Agent`], so the next agent gets the task.
///
/// ```
/// use registry_sdk::TaskError;
///
/// fn check(reply: &str) -> Result<u32, TaskError> {
///     if reply == "no such repository" {
///         return Err(TaskError::permanent(reply)); // no other agent would do better
///     }
///     Ok(serde_json::from_str(reply)?)
/// }
/// # assert_eq!(check("3").unwrap(), 3);
/// ```
#[derive(Clone, Debug)]
pub struct TaskError {
    pub(super) kind: FailureKind,
    pub(super) source: Cause,
    /// Whether the agent may have got the task.
    pub(super) may_have_arrived: bool,
    /// Whether the agent refused at once, so that a further attempt is free.
    pub(super) was_instant: bool,
    /// Whether it counts against the agent.
    pub(super) is_charged: bool,
}

impl TaskError {
    /// A failure of a kind. The error may also be a text.
    #[must_use]
    pub fn new(kind: FailureKind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::of(kind, Cause::from(error.into()))
    }

    /// The agent's fault: another agent may do better.
    #[must_use]
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::Agent, error)
    }

    /// The task's own fault: no other agent would do better.
    #[must_use]
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::Task, error)
    }

    /// Says that the agent has certainly not got the task, so that it may go to another one also with
    /// [`at_most_once`](super::Delegation::at_most_once).
    #[must_use]
    pub fn not_sent(mut self) -> Self {
        self.may_have_arrived = false;
        self
    }

    /// What the failure says of the agent and the task.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    pub(super) fn of(kind: FailureKind, source: Cause) -> Self {
        let was_instant = matches!(kind, FailureKind::Busy { .. } | FailureKind::Deployment);
        let is_charged = kind == FailureKind::Agent;
        Self { kind, source, may_have_arrived: true, was_instant, is_charged }
    }

    /// A failure to connect to the agent.
    pub(super) fn unreachable(kind: FailureKind, source: Cause, timed_out: bool) -> Self {
        Self { may_have_arrived: false, was_instant: !timed_out, ..Self::of(kind, source) }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

// No `std::error::Error` itself, since the standard library's `From<T> for T` would overlap with this.
impl<E: Error + Send + Sync + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        let source = Cause::from(Box::<dyn Error + Send + Sync>::from(error));
        if let Some(error) = source.downcast_ref::<reqwest::Error>() {
            let (kind, timed_out) = (kind_of_request(error), error.is_timeout());
            if error.is_connect() {
                return Self::unreachable(kind, source, timed_out);
            }
            return Self::of(kind, source);
        }
        let kind = if source.is::<serde_json::Error>() { FailureKind::Response } else { FailureKind::Agent };
        Self::of(kind, source)
    }
}

/// The kind of a request of the caller's own that failed.
fn kind_of_request(error: &reqwest::Error) -> FailureKind {
    match error.status() {
        Some(status) => FailureKind::of_status(status.as_u16(), None),
        None if error.is_builder() => FailureKind::Task,
        None if error.is_decode() || error.is_body() => FailureKind::Response,
        None if error.is_redirect() => FailureKind::Deployment,
        None => FailureKind::Agent,
    }
}
