//! What happens around every request: its id, its log, the mark of stale answers, and panics.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use registry_sdk::contract::STALE_HEADER;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::{DefaultOnFailure, DefaultOnRequest, DefaultOnResponse, TraceLayer};
use tracing::{Level, Span};

use super::problem::ApiError;
use crate::registry::Registry;

/// Wraps the routes. A layer that is added later is outside of those before it.
pub(super) fn around(routes: Router<Arc<Registry>>, registry: &Arc<Registry>) -> Router<Arc<Registry>> {
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_request(DefaultOnRequest::new().level(Level::TRACE))
        .on_response(DefaultOnResponse::new().level(Level::DEBUG))
        // What goes wrong is logged where it does, and once: not again for each request that it meets.
        .on_failure(DefaultOnFailure::new().level(Level::DEBUG));
    routes
        .layer(from_fn_with_state(registry.clone(), observe))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(trace)
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(NumberedIds::default()))
}

/// Every line that is logged for a request has its id.
fn span(request: &Request) -> Span {
    let id = request.extensions().get::<RequestId>();
    let id = id.and_then(|id| id.header_value().to_str().ok()).unwrap_or_default();
    tracing::info_span!("request", id, method = %request.method(), path = request.uri().path())
}

/// Notes how long an answer took, by the route and not by the path: there are as many paths as callers like. Says for
/// how long the database has been away, where a read is answered from memory. Both in one, since each layer costs every
/// request something.
async fn observe(State(registry): State<Arc<Registry>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let mut response = next.run(request).await;
    if let Some(stale) = registry.stale_for().filter(|_| is_read) {
        response.headers_mut().insert(STALE_HEADER, stale.as_secs().into());
    }
    let route = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    registry.metrics().answered(method, route, response.status().as_str(), began.elapsed());
    response
}

#[expect(clippy::needless_pass_by_value, reason = "the layer gives it away")]
fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let message = cause.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(message, "a request failed by a defect");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed at this request").into_response()
}

/// Request ids: a number that is random for this process, and a running one.
#[derive(Clone)]
struct NumberedIds {
    process: u64,
    next: Arc<AtomicU64>,
}

impl Default for NumberedIds {
    fn default() -> Self {
        Self { process: RandomState::new().hash_one(0), next: Arc::default() }
    }
}

impl MakeRequestId for NumberedIds {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:016x}-{number}", self.process);
        HeaderValue::try_from(id).ok().map(RequestId::new)
    }
}
