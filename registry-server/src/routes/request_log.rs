//! Log lines of requests: the access log, and changes that were rejected before a handler could log them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, Uri};
use url::form_urlencoded;

use super::trace_parent::TraceParent;

/// Maximum length of an agent's id from a path in the log, in characters: longer ones are no ids.
const MAX_ID_CHARACTERS: usize = 64;

/// Where a request came from, for its lines in the log.
#[derive(Clone, Debug)]
pub(super) struct RequestSource {
    /// Id of the request, as in the response.
    pub(super) id: Option<HeaderValue>,
    /// The trace that it belongs to.
    pub(super) trace: TraceParent,
    /// Address of the client.
    pub(super) client: Option<IpAddr>,
}

impl RequestSource {
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_ref().and_then(|id| id.to_str().ok())
    }
}

/// What the log says of a request.
pub(super) struct LoggedRequest {
    pub(super) source: RequestSource,
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// Name of the client's token, once it is known.
    pub(super) token: Option<Arc<str>>,
}

impl LoggedRequest {
    /// Logs the request after its response has started.
    pub(super) fn log_finished(&self, status: StatusCode, elapsed: Duration, is_access_log: bool) {
        // The level of an event is fixed where it is written.
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.source.id(),
                    trace_id = self.source.trace.trace_id(),
                    token = self.token.as_deref(),
                    client = self.source.client.map(display),
                    method = self.method.as_str(),
                    path = self.uri.path(),
                    status = status.as_u16(),
                    ?elapsed,
                    "request finished"
                )
            };
        }
        if is_access_log { log!(info) } else { log!(debug) }
    }

    /// Returns the id of the agent in the path, as its handler would read it.
    pub(super) fn agent_id(&self) -> Option<String> {
        let segment = self.uri.path().strip_prefix("/agents/")?.split('/').next()?;
        // For every character that an id can have, form encoding is the same as path encoding.
        let (decoded, _) = form_urlencoded::parse(segment.as_bytes()).next()?;
        Some(decoded.chars().take(MAX_ID_CHARACTERS).collect())
    }
}

/// A change that was not made, and why.
pub(super) struct RejectedChange<'a> {
    pub(super) token: Option<&'a str>,
    pub(super) agent_id: Option<&'a str>,
    pub(super) change: &'a str,
    pub(super) status: StatusCode,
    pub(super) error: &'a str,
    /// Number of such lines that were left out before.
    pub(super) left_out: u64,
}

impl RejectedChange<'_> {
    pub(super) fn log(&self, source: &RequestSource) {
        tracing::info!(
            request_id = source.id(),
            trace_id = source.trace.trace_id(),
            token = self.token,
            client = source.client.map(display),
            agent_id = self.agent_id,
            change = self.change,
            status = self.status.as_u16(),
            error = self.error,
            left_out = (self.left_out > 0).then_some(self.left_out),
            "did not change an agent"
        );
    }
}

/// Returns the change that a request of a route asks for, as the log names it.
pub(super) fn change_of(method: &Method, route: &str) -> Option<&'static str> {
    Some(match (method.as_str(), route) {
        ("POST", "/register") => "register",
        ("POST", "/agents/{id}/heartbeat") => "heartbeat",
        ("PUT", "/agents/{id}/status") => "set the status",
        ("PUT", "/agents/{id}/maintenance") => "begin maintenance",
        ("DELETE", "/agents/{id}/maintenance") => "end maintenance",
        ("DELETE", "/agents/{id}") => "remove",
        _ => return None,
    })
}
