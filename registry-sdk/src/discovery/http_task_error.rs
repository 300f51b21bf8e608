//! The error of a task that was sent over HTTP.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::failure_kind::FailureKind;
#[cfg(feature = "a2a")]
use crate::a2a::a2a_error::A2aError;
use crate::contract::cut;

/// Maximum length of an agent's text that is kept.
const MAX_TEXT: usize = 4 * 1_024;

/// Maximum length of the quote from a body, or from a decoder's message.
const QUOTED: usize = 300;

/// Why a task that was sent over HTTP failed.
///
/// The text and `Debug` quote at most 300 bytes of an agent's response.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HttpTaskError {
    /// The task cannot be sent, because a token is invalid.
    #[error("the task cannot be sent: {0}")]
    Request(String),
    /// The connection to the agent failed.
    #[error("no connection")]
    Unreachable(#[source] Arc<dyn Error + Send + Sync>),
    /// The connection broke before the response began, or the response was invalid.
    #[error("the connection broke")]
    Broken(#[source] Arc<dyn Error + Send + Sync>),
    /// There were more redirects than the HTTP client follows.
    #[error("too many redirects")]
    Redirects(#[source] Arc<dyn Error + Send + Sync>),
    /// The agent responded with an unsuccessful status.
    #[error("status {status}{}{}", quote(" to ", location.as_deref().unwrap_or_default()), quote(": ", body))]
    Status {
        /// The status.
        status: u16,
        /// The delay that the agent asked for, if any.
        retry_after: Option<Duration>,
        /// The target of a redirect that is not followed, without user name, password and query.
        location: Option<String>,
        /// The beginning of the body: up to 4 KiB.
        body: String,
    },
    /// The agent responded with a success, but the response cannot be used.
    #[error("status {status}, but {}{}", quote("", detail), quote(": ", &String::from_utf8_lossy(cut_bytes(body))))]
    InvalidResponse {
        /// The status.
        status: u16,
        /// What is wrong: the body cannot be decoded, is too long, did not end in time, or broke off.
        detail: String,
        /// The part of the body that was read.
        body: Vec<u8>,
    },
    /// The agent was called over A2A and did not do the task (feature `a2a`).
    #[cfg(feature = "a2a")]
    #[error("{}", quote("", &_0.to_string()))]
    A2a(A2aError),
}

impl HttpTaskError {
    /// Returns what the failure says about the agent and the task, by the table of [`FailureKind`].
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Request(_) => FailureKind::Task,
            Self::Unreachable(_) | Self::Broken(_) => FailureKind::Agent,
            Self::Redirects(_) => FailureKind::Deployment,
            Self::Status { status, retry_after, .. } => FailureKind::of_status(*status, *retry_after),
            Self::InvalidResponse { .. } => FailureKind::Response,
            #[cfg(feature = "a2a")]
            Self::A2a(error) => FailureKind::of_a2a(error),
        }
    }

    /// Cuts the text of an agent that did not take the task.
    pub(super) fn shorten(&mut self) {
        let text = match self {
            Self::Status { body, .. } => body,
            #[cfg(feature = "a2a")]
            Self::A2a(A2aError::Refused { message, .. } | A2aError::NotAccepted { message, .. }) => message,
            _ => return,
        };
        *text = cut(text, MAX_TEXT).to_owned();
    }

    /// Returns the `error.type` of the span. A status has its own value.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Request(_) => "invalid_request",
            Self::Unreachable(_) => "unreachable",
            Self::Broken(_) => "broken",
            Self::Redirects(_) => "redirects",
            Self::Status { .. } => "status",
            Self::InvalidResponse { .. } => "invalid_response",
            #[cfg(feature = "a2a")]
            Self::A2a(error) => error.name(),
        }
    }

    /// Returns whether the agent may have received the task.
    pub(super) fn may_have_arrived(&self) -> bool {
        match self {
            Self::Request(_) | Self::Unreachable(_) => false,
            #[cfg(feature = "a2a")]
            Self::A2a(error) => error.may_have_arrived(),
            _ => true,
        }
    }

    /// Returns whether a further attempt draws from the retry budget: after a timeout or a status, but not after a connection
    /// that was refused or cut, which costs nothing.
    pub(super) fn draws(&self) -> bool {
        match self {
            Self::Unreachable(source) | Self::Broken(source) => {
                source.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout)
            }
            #[cfg(feature = "a2a")]
            Self::A2a(error) => error.may_have_arrived(),
            _ => true,
        }
    }
}

impl fmt::Debug for HttpTaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_string();
        match self.source() {
            Some(source) => f.debug_tuple("HttpTaskError").field(&text).field(&source).finish(),
            None => f.debug_tuple("HttpTaskError").field(&text).finish(),
        }
    }
}

fn cut_bytes(body: &[u8]) -> &[u8] {
    &body[..body.len().min(2 * QUOTED)]
}

/// Returns the beginning of an agent's text on one line, without control characters, which could control a terminal.
fn quote(before: &str, text: &str) -> String {
    let part = cut(text.trim(), QUOTED);
    let printable: String =
        part.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let words = printable.split_whitespace().collect::<Vec<_>>().join(" ");
    let more = if part.len() < text.trim().len() { "…" } else { "" };
    if words.is_empty() { String::new() } else { format!("{before}{words}{more}") }
}
