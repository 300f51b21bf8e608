//! Attempts of a delegation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::Span;

use super::failure_kind::FailureKind;
use super::task_error::{Cause, TaskError};
use crate::contract::{CapabilityMatch, cut};
use crate::error::with_causes;

/// Maximum length of the quote from an attempt's error.
const MAX_TEXT: usize = 1_000;

/// Limits on how many times a task is tried.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) attempts: usize,
    pub(super) time_limit: Duration,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) hedge_after: Option<Duration>,
    pub(super) at_most_once: bool,
    pub(super) idempotency_key: String,
    /// Whether the agent has done the task when the attempt ends.
    pub(super) reports_success: bool,
}

/// An attempt: a task in flight to an agent.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) agent: CapabilityMatch,
    /// The number of the attempt, starting at 1.
    pub(super) number: u32,
    pub(super) began: Instant,
    /// When the attempt is cut off, unless a response has begun by then: it may be the result.
    pub(super) deadline: Instant,
    /// When the delegation ends.
    pub(super) end: Instant,
    pub(super) idempotency_key: String,
    pub(super) span: Span,
    pub(super) awaited: Awaited,
}

/// Whether the agent of an attempt is awaited, so that it is at fault if the attempt is late. It is not awaited before it is
/// called, because its card may have to be read from the registry first, nor while it says that it is busy. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Awaited(Arc<AtomicBool>);

impl Awaited {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, is_awaited: bool) {
        self.0.store(is_awaited, Ordering::Relaxed);
    }
}

impl Attempt {
    /// Calls the agent, until the attempt's deadline.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, TaskError>>,
    ) -> Result<T, TaskError> {
        self.awaited.set(true);
        self.until_deadline(work).await?
    }

    /// Waits for some work until the attempt's deadline.
    pub(super) async fn until_deadline<T>(&self, work: impl Future<Output = T>) -> Result<T, TaskError> {
        let worked = timeout_at(self.deadline, work).await;
        worked.map_err(|_| TaskError::late(AttemptTimeout(self.deadline - self.began)))
    }
}

/// A failed attempt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailedAttempt {
    /// The agent that had the task.
    pub agent_id: String,
    /// What the failure says about the agent and the task.
    pub kind: FailureKind,
    /// How long the attempt took.
    pub elapsed: Duration,
    /// The error of the agent or of the caller's code. It can be downcast to [`HttpTaskError`](super::HttpTaskError),
    /// [`AttemptTimeout`], or the error that the closure of [`run`](super::Delegation::run) returned.
    pub error: Cause,
}

impl fmt::Display for FailedAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.agent_id, cut(&with_causes(&*self.error), MAX_TEXT))
    }
}

/// The error of an attempt that was cut off because there was no response in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no response within the attempt_timeout of {0:.1?}")]
pub struct AttemptTimeout(pub Duration);
