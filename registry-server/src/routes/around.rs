//! What happens around every request: its id, who calls, its log, its metrics, the mark of stale answers, and panics.
//!
//! All in one layer, since each costs every request something.

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

use super::auth::{Caller, Gate};
use super::problem::ApiError;
use crate::admission::Client;
use crate::connections::Peer;
use crate::registry::Registry;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is needed around every request.
pub(super) struct Around {
    registry: Arc<Registry>,
    gate: Arc<Gate>,
    ids: RequestIds,
}

impl Around {
    pub(super) fn new(registry: Arc<Registry>, gate: Arc<Gate>) -> Self {
        Self { registry, gate, ids: RequestIds::default() }
    }
}

pub(super) async fn handle(State(around): State<Arc<Around>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request.headers().get(REQUEST_ID).cloned().or_else(|| around.ids.next());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = method(request.method());
    let span = tracing::debug_span!("request", id = ?id, method, path = request.uri().path());
    let answered =
        AssertUnwindSafe(around.admit(request, next)).catch_unwind().instrument(span.clone()).await;
    let mut response = answered.unwrap_or_else(|cause| panicked(id.as_ref(), &*cause));
    let status = response.status();
    if let Some(stale) = around.registry.stale_for().filter(|_| matches!(method, "GET" | "HEAD")) {
        response.headers_mut().insert(STALE_HEADER, stale.as_secs().into());
    }
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let took = began.elapsed();
    // By the route and not by the path: there are as many paths as callers like.
    let route = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    around.registry.metrics().answered(method, route, status.as_str(), took);
    tracing::debug!(parent: &span, status = status.as_u16(), ?took, "answered");
    response
}

impl Around {
    /// Lets nobody through who has no token, where tokens are asked for.
    async fn admit(&self, mut request: Request, next: Next) -> Response {
        match self.gate.admit(&request) {
            Ok(caller) => {
                if let Err(too_early) = self.count(&request, &caller) {
                    return ApiError::too_many_requests(too_early).into_response();
                }
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(refused) => refused.into_response(),
        }
    }

    /// Counts a request towards its client's rate, where rates are limited. Whether the server is well may always be asked.
    fn count(&self, request: &Request, caller: &Caller) -> Result<(), Duration> {
        let admission = self.registry.admission();
        if !admission.limits_rates() || request.uri().path() == "/health" {
            return Ok(());
        }
        let address = || request.extensions().get::<Peer>().map(|Peer(address)| Client::at(*address));
        let client = caller.name().map(|name| Client::Token(name.to_owned())).or_else(address);
        client.map_or(Ok(()), |client| admission.count(&client))
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn panicked(request_id: Option<&HeaderValue>, cause: &(dyn Any + Send)) -> Response {
    let message = cause.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(?request_id, message, "a request failed by a defect");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed at this request").into_response()
}

/// Ids for requests that have none: a number that is random for this process, and a running one.
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
