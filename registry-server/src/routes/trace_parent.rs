//! The trace of a request, for the log.

use axum::http::{HeaderMap, HeaderValue};
use registry_sdk::internal::{TRACEPARENT_HEADER, trace_id};

/// The header that names the trace of a request, as it arrived.
#[derive(Clone, Debug)]
pub(super) struct TraceParent(Option<HeaderValue>);

impl TraceParent {
    /// Takes the header from a request. Two of them are none, as the specification demands.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(TRACEPARENT_HEADER).iter();
        Self(values.next().filter(|_| values.next().is_none()).cloned())
    }

    /// Returns the trace id, if the header is valid.
    pub(super) fn trace_id(&self) -> Option<&str> {
        trace_id(self.0.as_ref()?.to_str().ok()?)
    }
}
