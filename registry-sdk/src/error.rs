//! What can go wrong, told by what the caller can do about it.

use std::sync::Arc;
use std::time::Duration;

use crate::contract::{FieldError, Owner, ValidationError};

/// Shared, so that an error can be given to all who waited for the same answer.
type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client or the agent was set up wrongly. Nothing was sent.
    #[error("{0}")]
    Config(String),

    /// Fields are out of their limits; the registry said so, or it was found before sending.
    #[error("{detail}{}", list(fields))]
    Invalid {
        /// What is wrong in general.
        detail: String,
        /// The fields that are wrong, all of them.
        fields: Vec<FieldError>,
    },

    /// No connection could be made, or it broke before the answer was complete.
    #[error("the registry at {url} cannot be reached")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What happened.
        #[source]
        source: Cause,
    },

    /// No TLS connection could be made: a certificate is not trusted, not valid or for another name, or the endpoint speaks no
    /// TLS. Trying again does not help, another endpoint may.
    #[error("no TLS connection to the registry at {url} can be made")]
    Tls {
        /// Which endpoint.
        url: String,
        /// What happened.
        #[source]
        source: Cause,
    },

    /// No complete response came in time.
    #[error("the registry at {url} did not answer within {after:.1?}")]
    TimedOut {
        /// Where it was asked.
        url: String,
        /// How long was waited.
        after: Duration,
    },

    /// The registry cannot serve the request now (408, 425, 429, 500, 502, 503, 504).
    #[error("the registry cannot serve this now ({status}): {detail}")]
    Unavailable {
        /// The HTTP status.
        status: u16,
        /// What it said.
        detail: String,
        /// After which time it asked to be tried again.
        retry_after: Option<Duration>,
    },

    /// The registry does not know the agent.
    #[error("{detail}")]
    NotFound {
        /// What it said.
        detail: String,
    },

    /// Another process owns the agent's id (409).
    #[error("{detail}")]
    Superseded {
        /// What the registry said.
        detail: String,
        /// The process that owns the id. `None` from a registry that knows no ages: there the newest registration wins.
        owner: Option<Owner>,
    },

    /// The agent was shut down, and sends nothing more.
    #[error("the agent was shut down")]
    ShutDown,

    /// The process itself stood still, so the agent could not be heard within its deadline.
    #[error("no heartbeat could be sent for {silent:?}: the runtime was blocked, or the process suspended")]
    Stalled {
        /// How long the registry has heard nothing of the agent.
        silent: Duration,
    },

    /// The work that was given to [`Agent::run_until`](crate::Agent::run_until) failed.
    #[error("the agent's own work failed")]
    Work {
        /// The work's own error.
        #[source]
        source: Cause,
    },

    /// The credentials are missing, or not enough (401, 403).
    #[error("the registry refused the credentials ({status}): {detail}")]
    Denied {
        /// The HTTP status.
        status: u16,
        /// What it said.
        detail: String,
    },

    /// This registry does not have the operation.
    #[error("this registry cannot do that: it has no {operation}")]
    Unsupported {
        /// The method and the path.
        operation: &'static str,
    },

    /// The answer is not one that the contract knows: a page of HTML, perhaps, or a refusal by something in between.
    #[error("unexpected answer in place of the registry's ({status}): {detail}")]
    InvalidResponse {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        detail: String,
    },
}

/// What a caller does after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Tries again a little later, at any endpoint.
    Retry,
    /// Tries another endpoint; the same one would fail again.
    FailOver,
    /// Takes it as the answer.
    GiveUp,
    /// Mends the request or the settings first.
    Refuse,
}

impl Error {
    /// What a caller does next: the one place that says so.
    pub(crate) fn action(&self) -> Action {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Unavailable { .. } => Action::Retry,
            Self::Tls { .. } | Self::InvalidResponse { .. } => Action::FailOver,
            Self::Invalid { .. } | Self::Denied { .. } | Self::Config(_) => Action::Refuse,
            Self::NotFound { .. }
            | Self::Superseded { .. }
            | Self::Unsupported { .. }
            | Self::ShutDown
            | Self::Stalled { .. }
            | Self::Work { .. } => Action::GiveUp,
        }
    }

    /// The `error.type` of the spans.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Config(_) => "config",
            Self::Invalid { .. } => "invalid",
            Self::Unreachable { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::TimedOut { .. } => "timeout",
            Self::Unavailable { .. } => "unavailable",
            Self::NotFound { .. } => "not_found",
            Self::Superseded { .. } => "superseded",
            Self::ShutDown => "shut_down",
            Self::Stalled { .. } => "stalled",
            Self::Work { .. } => "work",
            Self::Denied { .. } => "denied",
            Self::Unsupported { .. } => "unsupported",
            Self::InvalidResponse { .. } => "invalid_response",
        }
    }

    /// Whether the same request may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.action() == Action::Retry
    }

    /// Whether the registry does not know the agent, so that it has to register (again).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the registry itself understood the request and refused it for good: trying again is of no use before
    /// the fields or the credentials are mended. A refusal in any other form than the contract's
    /// (`application/problem+json`) does not count: it comes from something in between, and may pass.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.action() == Action::Refuse
    }

    /// Whether somebody may have to mend something before the registry can be watched. A watch tries again all the same.
    pub(crate) fn refuses_watch(&self) -> bool {
        self.is_refused() || matches!(self, Self::Unsupported { .. })
    }

    /// Whether another process owns the agent's id.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        matches!(self, Self::Superseded { .. })
    }

    /// Whether the endpoint failed, so that another one may do better. One that asks a client to slow down has not failed.
    pub(crate) fn is_endpoint_failure(&self) -> bool {
        match self {
            Self::Unavailable { status, .. } => *status >= 500 || *status == 408,
            _ => matches!(self.action(), Action::Retry | Action::FailOver),
        }
    }

    /// Whether the registry could not be asked, so that its last good answer still counts. A refusal is an answer.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self.action(), Action::Retry | Action::FailOver)
    }

    /// The error and its causes in one line, for a log or a terminal: the telling part is often in the causes.
    #[must_use]
    pub fn full_message(&self) -> String {
        with_causes(self)
    }

    /// The fields that were wrong.
    #[must_use]
    pub fn fields(&self) -> &[FieldError] {
        if let Self::Invalid { fields, .. } = self { fields } else { &[] }
    }

    /// After which time the registry asked to be tried again, where it did.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Unavailable { retry_after, .. } = self { *retry_after } else { None }
    }
}

impl From<ValidationError> for Error {
    fn from(ValidationError(fields): ValidationError) -> Self {
        Self::Invalid { detail: "not sent".to_owned(), fields }
    }
}

/// An error and its causes on one line: libraries keep the telling part in the causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

fn list(fields: &[FieldError]) -> String {
    fields.iter().map(|field| format!("; {field}")).collect()
}
