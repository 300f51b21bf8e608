//! The error of a delegation.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use super::attempt::FailedAttempt;
use super::selection::{Skipped, list};
use crate::error::{Error, with_causes};

/// Why a delegated task was not done: the reason, the error of each agent that had the task, and why others were skipped.
///
/// The text includes all of this. [`source`](StdError::source) is the last attempt's error, or the registry's.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DelegateError {
    /// Why the delegation ended.
    pub reason: EndReason,
    /// The failed attempts, in order.
    pub attempts: Vec<FailedAttempt>,
    /// The agents that were skipped.
    pub skipped: Vec<Skipped>,
}

/// Why a delegation ended without success.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EndReason {
    /// The request is invalid, and nothing was sent. A header, the idempotency key or the JSON payload is wrong.
    InvalidRequest(String),
    /// No agent can be given the task, or none is left after those that failed.
    NoAgent {
        /// The requested capability.
        capability: String,
    },
    /// The registry could not be searched.
    Registry(Error),
    /// As many agents failed as [`attempts`](super::Delegation::attempts) allows.
    AttemptsExhausted,
    /// The task was not done within the [`time_limit`](super::Delegation::time_limit).
    TimedOut {
        /// The time limit.
        limit: Duration,
    },
    /// All agents are busy for longer than the time that is left.
    Busy {
        /// When the first of them can be asked again.
        retry_after: Duration,
    },
    /// All agents refused the path, the credentials or, over A2A, the message: those are probably wrong.
    Misdeployed,
    /// An agent failed, and the [`RetryBudget`](super::RetryBudget) allows no further attempt.
    RetryBudgetExhausted,
    /// An attempt failed, and [`at_most_once`](super::Delegation::at_most_once) allows no further one: the task may have arrived.
    MayHaveArrived,
    /// An agent rejected the task itself: no other agent would succeed.
    Rejected,
    /// An agent did the task, but its response cannot be used.
    UnusableResponse,
}

impl EndReason {
    /// The `error.type` of the span.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::NoAgent { .. } => "no_agent",
            Self::Registry(_) => "registry",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::TimedOut { .. } => "timeout",
            Self::Busy { .. } => "busy",
            Self::Misdeployed => "misdeployed",
            Self::RetryBudgetExhausted => "retry_budget_exhausted",
            Self::MayHaveArrived => "may_have_arrived",
            Self::Rejected => "rejected",
            Self::UnusableResponse => "unusable_response",
        }
    }

    /// Whether it is of interest which agents there are besides those that were tried.
    pub(super) fn asks_for_others(&self) -> bool {
        matches!(self, Self::NoAgent { .. } | Self::Misdeployed | Self::Busy { .. })
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRequest(detail) => write!(f, "the task cannot be sent: {detail}"),
            Self::NoAgent { capability } => write!(f, "no agent is left that can be given {capability:?}"),
            Self::Registry(error) => {
                write!(f, "the registry could not be searched: {}", with_causes(error))
            }
            Self::AttemptsExhausted => f.write_str("as many agents failed as `attempts` allows"),
            Self::TimedOut { limit } => write!(f, "the task was not done within the time_limit of {limit:?}"),
            Self::Busy { retry_after } => {
                write!(f, "all agents are busy; the first can be asked again in {retry_after:.1?}")
            }
            Self::Misdeployed => f.write_str(
                "all agents refused the path, the credentials or the message: check how the task is sent, and the token",
            ),
            Self::RetryBudgetExhausted => {
                f.write_str("an agent failed, and the retry budget allows no further attempt now")
            }
            Self::MayHaveArrived => {
                f.write_str("the task may have arrived at an agent, and is sent at most once")
            }
            Self::Rejected => f.write_str("the task was rejected"),
            Self::UnusableResponse => {
                f.write_str("the task was done, but the response cannot be used; it is not run again")
            }
        }
    }
}

impl fmt::Display for DelegateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)?;
        let is_known = !self.attempts.is_empty() || !self.skipped.is_empty();
        if matches!(self.reason, EndReason::NoAgent { .. }) && !is_known {
            return f.write_str(": no healthy one is registered for it");
        }
        if matches!(self.reason, EndReason::TimedOut { .. }) && self.attempts.is_empty() {
            f.write_str("; by then the registry, or a health check, had not answered")?;
        }
        if !self.attempts.is_empty() {
            write!(f, "; tried {}", list(&self.last_attempts()))?;
        }
        if !self.skipped.is_empty() {
            write!(f, "; skipped {}", list(&self.skipped))?;
        }
        Ok(())
    }
}

impl StdError for DelegateError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        if let EndReason::Registry(error) = &self.reason {
            return Some(error);
        }
        self.attempts.last().map(|attempt| &*attempt.error as &(dyn StdError + 'static))
    }
}

impl DelegateError {
    /// The last attempt with each agent: a busy one may have had several.
    fn last_attempts(&self) -> Vec<&FailedAttempt> {
        let is_last = |(index, attempt): &(usize, &FailedAttempt)| {
            self.attempts[index + 1..].iter().all(|later| later.agent_id != attempt.agent_id)
        };
        self.attempts.iter().enumerate().filter(is_last).map(|(_, attempt)| attempt).collect()
    }

    pub(super) fn new(reason: EndReason) -> Self {
        Self { reason, attempts: Vec::new(), skipped: Vec::new() }
    }

    /// Returns how long to wait before trying again, if all agents are busy.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let EndReason::Busy { retry_after } = self.reason { Some(retry_after) } else { None }
    }
}
