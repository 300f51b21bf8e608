//! The spans of requests, with names and fields by OpenTelemetry's conventions for HTTP.
//!
//! Without a subscriber, none of their values is computed; `benches/README.md` has their cost.

use reqwest::Method;
use tracing::Span;
use tracing::field::Empty;
use url::Url;

use crate::endpoints::shown;
use crate::error::Error;

/// Creates a span at `info` within a span of the caller, and at `debug` elsewhere, so that requests that the SDK makes by itself, such
/// as heartbeats, begin no traces by default.
macro_rules! span {
    ($name:literal, $($fields:tt)*) => {
        if Span::current().is_none() {
            tracing::debug_span!($name, $($fields)*)
        } else {
            tracing::info_span!($name, $($fields)*)
        }
    };
}

/// The span of one operation of the registry, with all of its attempts.
pub(crate) fn registry_request(method: &Method, path: &[String]) -> Span {
    span!("registry_request", %method, path = path.join("/"), error.type = Empty, otel.status_code = Empty)
}

/// The span of one attempt of an operation, within that of the operation. `number` is 1 for the first.
pub(crate) fn registry_attempt(method: &Method, endpoint: &Url, number: u32) -> Span {
    span!(
        "registry_attempt",
        otel.kind = "client",
        otel.name = method.as_str(),
        http.request.method = method.as_str(),
        http.request.resend_count = (number > 1).then(|| number - 1),
        http.response.status_code = Empty,
        server.address = endpoint.host_str(),
        server.port = endpoint.port_or_known_default(),
        url.full = Empty,
        error.type = Empty,
        otel.status_code = Empty,
    )
}

/// Adds the request of an attempt to its span.
pub(crate) fn record_url(span: &Span, url: &Url) {
    if !span.is_disabled() {
        span.record("url.full", shown(url));
    }
}

/// Adds the status of a response to the span of its request.
pub(crate) fn record_status(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
}

/// Marks a span as failed. There must be few different reasons.
pub(crate) fn record_failure(span: &Span, error_type: &str) {
    span.record("error.type", error_type);
    span.record("otel.status_code", "error");
}

/// Marks a span as failed if its call did.
pub(crate) fn record_outcome<T>(span: &Span, outcome: &Result<T, Error>) {
    if let Err(error) = outcome {
        record_failure(span, error.name());
    }
}
