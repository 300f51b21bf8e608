//! The middleware of every request.
//!
//! It sets the request id and the stale marker, authenticates, limits rates, logs, measures, and catches
//! panics. One layer does all of it, since every layer adds a cost to every request.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use registry_sdk::contract::STALE_HEADER;
use tracing::Instrument;

use super::auth::{Authenticator, Caller};
use super::problem::ApiError;
use crate::admission::ClientKey;
use crate::connections::PeerAddr;
use crate::registry::Registry;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// State of the middleware.
pub(super) struct Middleware {
    registry: Arc<Registry>,
    authenticator: Arc<Authenticator>,
    request_ids: RequestIds,
}

impl Middleware {
    pub(super) fn new(registry: Arc<Registry>, authenticator: Arc<Authenticator>) -> Self {
        Self { registry, authenticator, request_ids: RequestIds::default() }
    }
}

pub(super) async fn handle(
    State(middleware): State<Arc<Middleware>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = request.headers().get(REQUEST_ID).cloned().or_else(|| middleware.request_ids.next());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = method_label(request.method());
    let span = tracing::debug_span!("request", id = ?id, method, path = request.uri().path());
    let outcome =
        AssertUnwindSafe(middleware.admit(request, next)).catch_unwind().instrument(span.clone()).await;
    let mut response = outcome.unwrap_or_else(|cause| panic_response(id.as_ref(), &*cause));
    let status = response.status();
    if let Some(stale) = middleware.registry.stale_for().filter(|_| matches!(method, "GET" | "HEAD")) {
        response.headers_mut().insert(STALE_HEADER, stale.as_secs().into());
    }
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let elapsed = started.elapsed();
    // Labelled by route, not by path: callers can make up any number of paths.
    let route = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    middleware.registry.metrics().record_request(method, route, status.as_str(), elapsed);
    tracing::debug!(parent: &span, status = status.as_u16(), ?elapsed, "request finished");
    response
}

impl Middleware {
    /// Runs the handler if the credentials and the rate limit allow it.
    async fn admit(&self, mut request: Request, next: Next) -> Response {
        match self.authenticator.authenticate(&request) {
            Ok(caller) => {
                if let Err(wait) = self.check_rate(&request, &caller) {
                    return ApiError::too_many_requests(wait).into_response();
                }
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(rejection) => rejection.into_response(),
        }
    }

    /// Counts the request towards its client's rate limit.
    ///
    /// `/health` is exempt, so that monitoring always gets an answer.
    fn check_rate(&self, request: &Request, caller: &Caller) -> Result<(), Duration> {
        let admission = self.registry.admission();
        if !admission.has_rate_limit() || request.uri().path() == "/health" {
            return Ok(());
        }
        let address = || {
            request.extensions().get::<PeerAddr>().map(|PeerAddr(address)| ClientKey::from_address(*address))
        };
        let client = caller.name().map(|name| ClientKey::Token(name.to_owned())).or_else(address);
        client.map_or(Ok(()), |client| admission.check_rate(&client))
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn panic_response(request_id: Option<&HeaderValue>, cause: &(dyn Any + Send)) -> Response {
    let message = cause.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(?request_id, message, "a request handler panicked, answering 500");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed at this request").into_response()
}

/// Generates ids for requests without one: a random prefix per process, then a sequence number.
struct RequestIds {
    process: String,
    next: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { process: format!("{:016x}-", RandomState::new().hash_one(0)), next: AtomicU64::default() }
    }
}

impl RequestIds {
    fn next(&self) -> Option<HeaderValue> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        HeaderValue::try_from(format!("{}{number}", self.process)).ok()
    }
}
