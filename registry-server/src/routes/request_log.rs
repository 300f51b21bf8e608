//! Log lines of requests: the access log, and changes that were rejected before a handler could log them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, Uri};
use tracing::field::display;
use url::form_urlencoded;

use super::trace_parent::TraceParent;

/// Maximum length of an agent's id from a path in the log, in characters: longer ones are no ids.
const MAX_ID_CHARACTERS: usize = 64;

/// What the log says of a request.
pub(super) struct LoggedRequest {
    pub(super) id: Option<HeaderValue>,
    /// The trace that it belongs to.
    pub(super) trace: TraceParent,
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// Address of the client.
    pub(super) client: Option<IpAddr>,
    /// Name of the client's token, once it is known.
    pub(super) token: Option<Arc<str>>,
}

impl LoggedRequest {
    /// Logs the request after its response has started.
    pub(super) fn log_finished(&self, status: StatusCode, elapsed: Duration, is_access_log: bool) {
        let (request_id, token, client) = (self.id(), self.token.as_deref(), self.client.map(display));
        let (method, path, status) = (self.method.as_str(), self.uri.path(), status.as_u16());
        let trace_id = self.trace.trace_id();
        if is_access_log {
            tracing::info!(
                request_id,
                trace_id,
                token,
                client,
                method,
                path,
                status,
                ?elapsed,
                "request finished"
            );
        } else {
            tracing::debug!(
                request_id,
                trace_id,
                token,
                client,
                method,
                path,
                status,
                ?elapsed,
                "request finished"
            );
        }
    }

    /// Logs a change that was rejected. `left_out` is the number of such lines that were left out before.
    pub(super) fn log_rejected_change(&self, change: &str, status: StatusCode, error: &str, left_out: u64) {
        let (request_id, token, client) = (self.id(), self.token.as_deref(), self.client.map(display));
        let (agent_id, status) = (self.agent_id(), status.as_u16());
        let left_out = (left_out > 0).then_some(left_out);
        tracing::info!(
            request_id,
            trace_id = self.trace.trace_id(),
            token,
            client,
            agent_id,
            change,
            status,
            error,
            left_out,
            "did not change an agent"
        );
    }

    /// Returns the id of the agent in the path, as its handler would read it.
    fn agent_id(&self) -> Option<String> {
        let segment = self.uri.path().strip_prefix("/agents/")?.split('/').next()?;
        // Forms encode all characters that an id can have like paths do.
        let (decoded, _) = form_urlencoded::parse(segment.as_bytes()).next()?;
        Some(decoded.chars().take(MAX_ID_CHARACTERS).collect())
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_ref().and_then(|id| id.to_str().ok())
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
