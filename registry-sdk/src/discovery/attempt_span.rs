//! The span of an attempt, and its outcome.

use reqwest::Method;
use tracing::Span;
use tracing::field::Empty;
use url::Url;

use super::attempt::{Attempt, AttemptTimeout};
use super::http_task_error::HttpTaskError;
use super::task_error::TaskError;
use crate::spans;

/// The span of an attempt. If no outcome is recorded, the attempt was cancelled.
#[derive(Debug)]
pub(super) struct AttemptSpan {
    span: Span,
    has_outcome: bool,
}

impl AttemptSpan {
    pub(super) fn begin(agent_id: &str, number: u32, is_hedge: bool) -> Self {
        let span = tracing::info_span!(
            "delegation_attempt",
            otel.kind = "client",
            agent_id,
            attempt = number,
            hedge = is_hedge,
            outcome = Empty,
            http.request.method = Empty,
            http.response.status_code = Empty,
            server.address = Empty,
            server.port = Empty,
            url.full = Empty,
            error.type = Empty,
            otel.status_code = Empty,
        );
        Self { span, has_outcome: false }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn succeeded(mut self) {
        self.record_outcome("ok");
    }

    pub(super) fn failed(mut self, error: &TaskError) {
        self.record_outcome(error.kind.name());
        match error.source.downcast_ref() {
            Some(HttpTaskError::Status { status, .. }) => {
                spans::record_failure(&self.span, &status.to_string());
            }
            Some(error) => spans::record_failure(&self.span, error.name()),
            None if error.source.is::<AttemptTimeout>() => spans::record_failure(&self.span, "timeout"),
            None => spans::record_failure(&self.span, error.kind.name()),
        }
    }

    fn record_outcome(&mut self, outcome: &str) {
        self.has_outcome = true;
        self.span.record("outcome", outcome);
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        if !self.has_outcome {
            self.span.record("outcome", "cancelled");
        }
    }
}

impl Attempt {
    /// Adds the attempt's request to its span.
    pub(super) fn record_request(&self, method: &Method, url: &Url) {
        let span = &self.span;
        span.record("http.request.method", method.as_str());
        span.record("server.address", url.host_str());
        span.record("server.port", url.port_or_known_default());
        spans::record_url(span, url);
    }
}
