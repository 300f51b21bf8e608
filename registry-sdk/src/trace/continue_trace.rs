//! Middleware with which an agent on axum continues a trace.

use std::collections::HashMap;

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::trace::FutureExt;
use opentelemetry::{Context, global};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::contract::trace_context::{TRACEPARENT_HEADER, trace_id};
use crate::spans;

/// Axum middleware that handles each request in a span whose parent is the caller's span.
///
/// A request without the propagator's headers, or with invalid ones, begins a new trace. So put the middleware around the
/// routes for tasks, and not around [`HealthEndpoint`](crate::HealthEndpoint): each probe would be a trace of its own.
///
/// ```no_run
/// use axum::{Json, Router, middleware::from_fn, routing::post};
/// use registry_sdk::{HealthEndpoint, trace::continue_trace};
/// use serde_json::Value;
///
/// # fn app(health: HealthEndpoint) -> Router {
/// async fn execute(Json(task): Json<Value>) -> Json<Value> {
///     tracing::info!("spans and events of the handler belong to the caller's trace");
///     Json(task)
/// }
/// let work = Router::new().route("/execute", post(execute)).layer(from_fn(continue_trace));
/// let app: Router = work.merge(health.router());
/// # app
/// # }
/// ```
pub async fn continue_trace(request: Request, next: Next) -> Response {
    let context = extract(request.headers());
    let span = {
        let _parent = context.clone().attach();
        request_span(&request)
    };
    let handled = async {
        let response = next.run(request).await;
        let status = response.status();
        spans::record_status(&span, status.as_u16());
        if status.is_server_error() {
            spans::record_failure(&span, status.as_str());
        }
        response
    };
    // Sets the current context, too, for handlers that create spans by OpenTelemetry's own API.
    handled.instrument(span.clone()).with_context(context).await
}

fn request_span(request: &Request) -> Span {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    tracing::info_span!(
        "agent_request",
        otel.kind = "server",
        otel.name = route.map(|route| format!("{method} {route}")).as_deref().unwrap_or(method),
        http.request.method = method,
        http.route = route,
        url.path = path,
        http.response.status_code = Empty,
        error.type = Empty,
        otel.status_code = Empty,
    )
}

/// Returns the context that a request carries, or the current one.
fn extract(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| {
        let fields =
            propagator.fields().filter_map(|name| Some((name.to_ascii_lowercase(), field(headers, name)?)));
        propagator.extract(&fields.collect::<HashMap<_, _>>())
    })
}

/// Returns the value of a header. Several fields of one name form a list, so two parents are invalid, as the specification requires.
fn field(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    let value = values.join(",");
    // The propagator also accepts ids that are too short.
    let is_valid = !name.eq_ignore_ascii_case(TRACEPARENT_HEADER) || trace_id(&value).is_some();
    (!values.is_empty() && is_valid).then_some(value)
}
