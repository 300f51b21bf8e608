//! The middleware of every request.
//!
//! It sets the request id and the stale marker, checks origins, authenticates, limits rates, logs, measures, catches
//! panics, and closes connections while the server is drained. One layer does all of it, since every layer adds a
//! cost to every request.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use registry_sdk::contract::STALE_HEADER;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::auth::{Authenticator, Caller, Unauthenticated, is_health_check};
use super::client_address::TrustedProxies;
use super::origins::Origins;
use super::problem::ApiError;
use super::trace_parent::TraceParent;
use crate::admission::ClientKey;
use crate::connections::PeerAddr;
use crate::registry::Registry;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// State of the middleware.
pub(super) struct Middleware {
    registry: Arc<Registry>,
    authenticator: Arc<Authenticator>,
    /// `None` if requests need tokens, which no other site knows.
    origins: Option<Origins>,
    trusted_proxies: TrustedProxies,
    request_ids: RequestIds,
}

impl Middleware {
    pub(super) fn new(
        registry: Arc<Registry>,
        authenticator: Arc<Authenticator>,
        origins: Option<Origins>,
    ) -> Self {
        let trusted_proxies = TrustedProxies(registry.config().trusted_proxies.clone());
        Self { registry, authenticator, origins, trusted_proxies, request_ids: RequestIds::default() }
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
    let (method, version) = (method_label(request.method()), request.version());
    let span = middleware.span(&request, id.as_ref());
    let outcome = AssertUnwindSafe(middleware.admit(request, id.clone(), &span, next))
        .catch_unwind()
        .instrument(span.clone())
        .await;
    let mut response = outcome.unwrap_or_else(|cause| panic_response(id.as_ref(), &*cause));
    let status = response.status();
    // The searches of ARD are read by POST.
    let is_read = || {
        matches!(method, "GET" | "HEAD")
            || path.as_ref().is_some_and(|path| path.as_str().starts_with("/ard/"))
    };
    if let Some(stale) = middleware.registry.stale_for().filter(|_| is_read()) {
        response.headers_mut().insert(STALE_HEADER, stale.as_secs().into());
    }
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if middleware.registry.drain().has_begun() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        // Otherwise hyper adds `keep-alive` for clients of HTTP/1.0 that ask for it.
        *response.version_mut() = version;
    }
    let elapsed = started.elapsed();
    // Labelled by route, not by path: callers can make up any number of paths.
    let route = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    middleware.registry.metrics().record_request(method, route, status.as_str(), elapsed);
    let status = status.as_u16();
    if middleware.registry.config().access_log {
        tracing::info!(parent: &span, status, ?elapsed, "request finished");
    } else {
        tracing::debug!(parent: &span, status, ?elapsed, "request finished");
    }
    response
}

impl Middleware {
    /// Returns the span of a request, to which the log of its handling belongs. The client's address and token are added later.
    fn span(&self, request: &Request, id: Option<&HeaderValue>) -> Span {
        let (id, method, path) =
            (id.and_then(|id| id.to_str().ok()), request.method().as_str(), request.uri().path());
        let trace = TraceParent::of(request.headers());
        let trace_id = trace.trace_id();
        if self.registry.config().access_log {
            tracing::info_span!("request", id, trace_id, method, path, client = Empty, token = Empty)
        } else {
            tracing::debug_span!("request", id, trace_id, method, path, client = Empty, token = Empty)
        }
    }

    /// Runs the handler if the origin, the credentials and the rate limit allow it.
    async fn admit(
        &self,
        mut request: Request,
        id: Option<HeaderValue>,
        span: &Span,
        next: Next,
    ) -> Response {
        match self.check(&request, id, span) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(rejection) => rejection.into_response(),
        }
    }

    fn check(&self, request: &Request, id: Option<HeaderValue>, span: &Span) -> Result<Caller, ApiError> {
        if let Some(origins) = &self.origins {
            origins.check(request)?;
        }
        let peer = request.extensions().get::<PeerAddr>();
        let address =
            peer.map(|PeerAddr(peer)| self.trusted_proxies.client_address(*peer, request.headers()));
        span.record("client", address.map(tracing::field::display));
        match self.authenticator.authenticate(request, id, address) {
            Ok(caller) => {
                span.record("token", caller.name());
                self.check_rate(request, caller.name(), address)?;
                Ok(caller)
            }
            Err(Unauthenticated::NoToken) => {
                self.check_rate(request, None, address)?;
                Err(ApiError::new(StatusCode::UNAUTHORIZED, "send a token: Authorization: Bearer …"))
            }
            Err(Unauthenticated::WrongToken) => Err(self.wrong_token(address)),
        }
    }

    /// Counts wrong tokens towards a limit of their own, so that guessing takes nothing from clients at the same address.
    fn wrong_token(&self, address: Option<IpAddr>) -> ApiError {
        match address.map_or(Ok(()), |address| self.registry.admission().count_wrong_token(address)) {
            Ok(()) => ApiError::new(StatusCode::UNAUTHORIZED, "the token is unknown, or has expired"),
            Err(wait) => {
                let detail = "too many tokens from this address are unknown or have expired; check the token, and wait";
                ApiError::too_many_requests(detail, wait)
            }
        }
    }

    /// Counts the request towards the rate limit of its client: its token, or else its address.
    fn check_rate(
        &self,
        request: &Request,
        token: Option<&str>,
        address: Option<IpAddr>,
    ) -> Result<(), ApiError> {
        let admission = self.registry.admission();
        if !admission.has_rate_limit() || is_health_check(request.uri().path()) {
            return Ok(());
        }
        let client = token.map(|name| ClientKey::Token(name.to_owned()));
        let Some(client) = client.or_else(|| address.map(ClientKey::from_address)) else { return Ok(()) };
        admission.check_rate(&client).map_err(|wait| {
            let detail = "this client sends more requests than it may; wait, and send fewer";
            ApiError::too_many_requests(detail, wait)
        })
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
