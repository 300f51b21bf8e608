//! Errors, classified by what the caller can do.

use std::sync::Arc;
use std::time::Duration;

use crate::contract::{FieldError, Owner, ValidationError};

/// A cause, shared so that several callers can get the same error.
type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// The reason why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client or the agent is configured wrongly, a provider of credentials panicked, or a background task of the SDK ended
    /// with its runtime. If the call was being retried, an earlier attempt may have been sent.
    #[error("{0}")]
    Config(String),

    /// Fields are out of their limits. Either the registry refused them, or the client before sending.
    #[error("{detail}{}", list(fields))]
    Invalid {
        /// The general problem.
        detail: String,
        /// All invalid fields.
        fields: Vec<FieldError>,
    },

    /// The connection failed, or broke before the response was complete.
    #[error("the registry at {url} cannot be reached")]
    Unreachable {
        /// The URL of the endpoint.
        url: String,
        /// The cause.
        #[source]
        source: Cause,
    },

    /// The TLS connection failed: the certificate is not trusted, invalid or for another name, or the endpoint does not use
    /// TLS. A retry does not help, but another endpoint may.
    #[error("the TLS connection to the registry at {url} failed")]
    Tls {
        /// The URL of the endpoint.
        url: String,
        /// The cause.
        #[source]
        source: Cause,
    },

    /// No complete response arrived in time.
    #[error("the registry at {url} did not answer within {after:.1?}")]
    TimedOut {
        /// The URL of the endpoint.
        url: String,
        /// How long the client waited.
        after: Duration,
    },

    /// The registry cannot serve the request now (408, 425, 429, 500, 502, 503, 504).
    #[error("the registry cannot serve the request now ({status}): {detail}")]
    Unavailable {
        /// The HTTP status code.
        status: u16,
        /// The registry's message.
        detail: String,
        /// The delay that the registry asked for.
        retry_after: Option<Duration>,
    },

    /// The registry does not know the agent.
    #[error("{detail}")]
    NotFound {
        /// The registry's message.
        detail: String,
    },

    /// Another process owns the agent's id (409).
    #[error("{detail}")]
    Superseded {
        /// What the registry said.
        detail: String,
        /// The process that owns the id. `None` from a registry that does not name it: there, the newest
        /// registration owns the id, whichever process is younger.
        owner: Option<Owner>,
    },

    /// The agent was shut down and sends nothing any more.
    #[error("the agent was shut down")]
    ShutDown,

    /// The process was suspended or blocked past the agent's deadline.
    #[error("no heartbeat could be sent for {silent:?}: the runtime was blocked, or the process suspended")]
    Stalled {
        /// How long the registry has not heard of the agent.
        silent: Duration,
    },

    /// The work passed to [`Agent::run_until`](crate::Agent::run_until) failed.
    #[error("the agent's own work failed")]
    Work {
        /// The work's own error.
        #[source]
        source: Cause,
    },

    /// The credentials are missing or insufficient (401, 403).
    #[error("the registry refused the credentials ({status}): {detail}")]
    Denied {
        /// The HTTP status code.
        status: u16,
        /// The message in the response.
        detail: String,
    },

    /// The registry does not support the operation.
    #[error("this registry does not support {operation}")]
    Unsupported {
        /// The operation's method and path.
        operation: &'static str,
    },

    /// The response does not follow the contract. It may be an HTML page, or a refusal by something in between.
    #[error("unexpected response ({status}): {detail}")]
    InvalidResponse {
        /// The HTTP status code.
        status: u16,
        /// What is wrong with the response.
        detail: String,
    },
}

/// The caller's reaction to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Retry a little later, at any endpoint.
    Retry,
    /// Try another endpoint, because the same one would fail again.
    FailOver,
    /// Accept the error as the answer.
    GiveUp,
    /// Fix the request or the settings first.
    Refuse,
}

impl Error {
    /// Returns what a caller should do. No other function decides that.
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

    /// Returns the `error.type` of spans.
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

    /// Returns whether the same request may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.action() == Action::Retry
    }

    /// Returns whether the registry does not know the agent, which has to register (again).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Returns whether the request was refused for good: a retry is useless until the fields, the credentials or the settings
    /// are fixed.
    ///
    /// Either the registry understood the request and refused it, or the client did before sending it: [`Error::Config`], and
    /// [`Error::Invalid`] for fields that the client checks itself. A refusal in any form other than the contract's
    /// (`application/problem+json`) does not count, because it comes from something in between and may be temporary.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.action() == Action::Refuse
    }

    /// Returns whether somebody may have to fix something before the registry can be watched. A watch retries anyway.
    pub(crate) fn refuses_watch(&self) -> bool {
        self.is_refused() || matches!(self, Self::Unsupported { .. })
    }

    /// Returns whether another process owns the agent's id.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        matches!(self, Self::Superseded { .. })
    }

    /// Returns whether the endpoint failed, so that another one may succeed. An endpoint that asks clients to slow down has not
    /// failed.
    pub(crate) fn is_endpoint_failure(&self) -> bool {
        match self {
            Self::Unavailable { status, .. } => *status >= 500 || *status == 408,
            _ => matches!(self.action(), Action::Retry | Action::FailOver),
        }
    }

    /// Returns whether the registry could not be reached, so that its last response is still the best information. A refusal is
    /// a response.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self.action(), Action::Retry | Action::FailOver)
    }

    /// Formats the error and its causes on one line, for a log or a terminal.
    #[must_use]
    pub fn full_message(&self) -> String {
        with_causes(self)
    }

    /// Returns the invalid fields.
    #[must_use]
    pub fn fields(&self) -> &[FieldError] {
        if let Self::Invalid { fields, .. } = self { fields } else { &[] }
    }

    /// Returns the delay that the registry asked for, if any.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Unavailable { retry_after, .. } = self { *retry_after } else { None }
    }
}

impl From<ValidationError> for Error {
    fn from(ValidationError(fields): ValidationError) -> Self {
        Self::Invalid { detail: "the request was not sent because fields are invalid".to_owned(), fields }
    }
}

/// Formats an error and its causes on one line, because libraries put the details into the causes.
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
