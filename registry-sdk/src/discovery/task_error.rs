//! The errors of tasks.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
#[cfg(feature = "a2a")]
use std::time::Duration;

use super::failure_kind::FailureKind;
use super::http_task_error::HttpTaskError;

/// A shared error, so that task errors can be cloned.
pub(super) type Cause = Arc<dyn Error + Send + Sync>;

/// Why a task failed, and what that says about the agent and the task.
///
/// Any error that implements [`std::error::Error`] converts into one with `?`. Its kind is set by the first error in the chain
/// (the error itself, then its causes) that is one of these:
///
/// - an [`HttpTaskError`](super::HttpTaskError): its own kind;
/// - a `reqwest::Error`: by its status, as [`FailureKind`] says, or by what failed. It carries no `Retry-After`, so a 409 or 503
///   never counts as busy;
/// - a `serde_json::Error`: [`FailureKind::Response`] if it has a line, as those of `from_str` and `from_slice` do; otherwise
///   [`FailureKind::Task`], for example for those of `from_value`. In both cases the task is not run again.
///
/// Without any of these, it is a [`FailureKind::Agent`], so the next agent gets the task.
///
/// Boxed errors and those of `anyhow` do not implement that trait: use `map_err(TaskError::transient)`.
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
    /// Whether a further attempt draws from the retry budget.
    pub(super) draws: bool,
    pub(super) charge: Charge,
}

/// Whether a failure counts against the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    No,
    Yes,
    /// The attempt was cut off: it counts if the agent had enough time.
    IfItHadTime,
}

impl TaskError {
    /// Creates an error of a kind. The cause may also be a text.
    #[must_use]
    pub fn new(kind: FailureKind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::of(kind, Cause::from(error.into()))
    }

    /// Creates an error that is the agent's fault: another agent may succeed.
    #[must_use]
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::Agent, error)
    }

    /// Creates an error that is the task's fault: no other agent would succeed.
    #[must_use]
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(FailureKind::Task, error)
    }

    /// Declares that the agent certainly did not receive the task.
    ///
    /// The task may then go to another agent even with [`at_most_once`](super::Delegation::at_most_once), does not count towards
    /// [`attempts`](super::Delegation::attempts), and draws nothing from the [`RetryBudget`](super::RetryBudget).
    #[must_use]
    pub fn not_sent(mut self) -> Self {
        self.may_have_arrived = false;
        self.draws = false;
        self
    }

    /// Returns what the failure says about the agent and the task.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Returns the delay that a busy agent asked for.
    #[cfg(feature = "a2a")]
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if let FailureKind::Busy { retry_after } = self.kind { Some(retry_after) } else { None }
    }

    /// Returns whether the agent may have begun the task, so that it counts for [`attempts`](super::Delegation::attempts).
    pub(super) fn has_begun(&self) -> bool {
        match self.kind {
            FailureKind::Agent | FailureKind::Declined => self.may_have_arrived,
            // A refusal draws only if it is that of a poll.
            FailureKind::Deployment => self.draws,
            _ => false,
        }
    }

    /// Creates the error of an attempt that was cut off because it took too long.
    pub(super) fn late(error: impl Error + Send + Sync + 'static) -> Self {
        Self { charge: Charge::IfItHadTime, ..Self::transient(error) }
    }

    pub(super) fn of(kind: FailureKind, source: Cause) -> Self {
        let is_refusal = matches!(kind, FailureKind::Busy { .. } | FailureKind::Deployment);
        let charge = if kind == FailureKind::Agent { Charge::Yes } else { Charge::No };
        Self { kind, source, may_have_arrived: true, draws: !is_refusal, charge }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

// Does not implement `std::error::Error`, because the standard library's `From<T> for T` would overlap with this.
impl<E: Error + Send + Sync + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        let error = Box::<dyn Error + Send + Sync>::from(error);
        let error = match error.downcast::<reqwest::Error>() {
            // A query may contain a key, and errors are logged.
            Ok(error) => Box::<dyn Error + Send + Sync>::from(error.without_url()),
            Err(error) => error,
        };
        let source = Cause::from(error);
        let mut cause: Option<&(dyn Error + 'static)> = Some(&*source);
        while let Some(error) = cause {
            if let Some(known) = Known::of(error) {
                let mut error = Self::of(known.kind, source.clone());
                error.may_have_arrived &= known.may_have_arrived;
                error.draws &= known.draws;
                if known.is_charged {
                    error.charge = Charge::Yes;
                }
                return error;
            }
            cause = error.source();
        }
        Self::of(FailureKind::Agent, source)
    }
}

/// The classification of errors of the libraries that send tasks.
struct Known {
    kind: FailureKind,
    may_have_arrived: bool,
    /// Whether it is a timeout or a status.
    draws: bool,
    /// Whether it counts against the agent despite its kind.
    is_charged: bool,
}

impl Known {
    fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<HttpTaskError>() {
            return Some(Self {
                kind: error.kind(),
                may_have_arrived: error.may_have_arrived(),
                draws: error.draws(),
                is_charged: false,
            });
        }
        if let Some(error) = error.downcast_ref::<reqwest::Error>() {
            let kind = kind_of_request(error);
            return Some(Self {
                kind,
                may_have_arrived: !error.is_connect(),
                draws: error.is_timeout() || error.is_status(),
                is_charged: kind == FailureKind::Response && error.is_timeout(),
            });
        }
        let error = error.downcast_ref::<serde_json::Error>()?;
        // Only what is read has a line.
        let kind = if error.line() > 0 { FailureKind::Response } else { FailureKind::Task };
        Some(Self { kind, may_have_arrived: true, draws: true, is_charged: false })
    }
}

/// Returns the kind of a failed request of the caller's own client.
fn kind_of_request(error: &reqwest::Error) -> FailureKind {
    match error.status() {
        Some(status) => FailureKind::of_status(status.as_u16(), None),
        None if error.is_builder() => FailureKind::Task,
        None if error.is_decode() || error.is_body() => FailureKind::Response,
        None if error.is_redirect() => FailureKind::Deployment,
        None => FailureKind::Agent,
    }
}
