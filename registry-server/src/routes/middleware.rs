//! The middleware of every request.
//!
//! Sets the request id and the stale marker, checks origins, authenticates, limits rates, logs, measures,
//! catches panics, and closes connections while the server drains. All of this is one layer, since each layer
//! adds a cost to every request.

use std::any::Any;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use registry_sdk::contract::STALE_HEADER;

use super::auth::{Authenticator, Caller, Unauthenticated, is_health_check};
use super::client_address::TrustedProxies;
use super::origins::Origins;
use super::problem::{ApiError, UnloggedRejection};
use super::request_id::{REQUEST_ID, RequestIds};
use super::request_log::{LoggedRequest, RejectedChange, RequestSource, change_of};
use super::trace_parent::TraceParent;
use crate::admission::ClientKey;
use crate::connections::PeerAddr;
use crate::line_limit::LineLimit;
use crate::registry::Registry;

/// State of the middleware.
pub(super) struct Middleware {
    registry: Arc<Registry>,
    authenticator: Arc<Authenticator>,
    /// `None` if requests need tokens, which other sites do not know.
    origins: Option<Origins>,
    trusted_proxies: TrustedProxies,
    request_ids: RequestIds,
    /// Limits the log lines for changes rejected before they reach a handler.
    rejection_lines: LineLimit,
}

impl Middleware {
    pub(super) fn new(
        registry: Arc<Registry>,
        authenticator: Arc<Authenticator>,
        origins: Option<Origins>,
    ) -> Self {
        let trusted_proxies = TrustedProxies::new(&registry.config().trusted_proxies);
        let (request_ids, rejection_lines) = (RequestIds::default(), LineLimit::default());
        Self { registry, authenticator, origins, trusted_proxies, request_ids, rejection_lines }
    }
}

pub(super) async fn handle(
    State(middleware): State<Arc<Middleware>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let (method, version) = (method_label(request.method()), request.version());
    let mut logged = middleware.logged(&request);
    let outcome = AssertUnwindSafe(middleware.admit(request, &mut logged, next)).catch_unwind().await;
    let mut response = outcome.unwrap_or_else(|cause| panic_response(&logged.source, &*cause));
    let status = response.status();
    // ARD searches are reads, though their method is POST.
    let is_read = || {
        matches!(method, "GET" | "HEAD")
            || path.as_ref().is_some_and(|path| path.as_str().starts_with("/ard/"))
    };
    if let Some(stale) = middleware.registry.stale_for().filter(|_| is_read()) {
        response.headers_mut().insert(STALE_HEADER, stale.as_secs().into());
    }
    if let Some(id) = &logged.source.id {
        response.headers_mut().insert(REQUEST_ID, id.clone());
    }
    if middleware.registry.drain().has_begun() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        // Otherwise, hyper adds `keep-alive` for HTTP/1.0 clients that ask for it.
        *response.version_mut() = version;
    }
    let elapsed = started.elapsed();
    // Labelled by route, not by path, since callers can make up any number of paths.
    let route = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    middleware.registry.metrics().record_request(method, route, status.as_str(), elapsed);
    middleware.log_rejected_change(&logged, route, &response);
    logged.log_finished(status, elapsed, middleware.registry.config().access_log);
    response
}

impl Middleware {
    /// Collects a request's data for the log. The name of its token is added later.
    fn logged(&self, request: &Request) -> LoggedRequest {
        let peer = request.extensions().get::<PeerAddr>();
        let client = peer.map(|PeerAddr(peer)| self.trusted_proxies.client_address(*peer, request.headers()));
        LoggedRequest {
            source: RequestSource {
                id: self.request_ids.of(request.headers()),
                trace: TraceParent::of(request.headers()),
                client,
            },
            method: request.method().clone(),
            uri: request.uri().clone(),
            token: None,
        }
    }

    /// Runs the handler if the origin, the credentials and the rate limit allow it.
    async fn admit(&self, mut request: Request, logged: &mut LoggedRequest, next: Next) -> Response {
        match self.check(&request, logged) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(rejection) => rejection.into_response(),
        }
    }

    fn check(&self, request: &Request, logged: &mut LoggedRequest) -> Result<Caller, ApiError> {
        if let Some(origins) = &self.origins {
            origins.check(request)?;
        }
        let address = logged.source.client;
        match self.authenticator.authenticate(request, &logged.source) {
            Ok(caller) => {
                logged.token = caller.changed_by().cloned();
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

    /// Logs a change rejected before it reached a handler: it is forbidden, or the request is malformed.
    fn log_rejected_change(&self, logged: &LoggedRequest, route: &str, response: &Response) {
        if let Some(UnloggedRejection(error)) = response.extensions().get()
            && let Some(change) = change_of(&logged.method, route)
            && let Some(left_out) = self.rejection_lines.admit(logged.source.client)
        {
            let (token, agent_id, status) = (logged.token.as_deref(), logged.agent_id(), response.status());
            RejectedChange { token, agent_id: agent_id.as_deref(), change, status, error, left_out }
                .log(&logged.source);
        }
    }

    /// Counts wrong tokens towards a separate limit, so that guessing does not affect other clients at the
    /// same address.
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
            let detail = "this client exceeds its rate limit; wait, and send fewer requests";
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

fn panic_response(source: &RequestSource, cause: &(dyn Any + Send)) -> Response {
    let error = cause.downcast_ref::<String>().map(String::as_str);
    let error = error.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    let (request_id, trace_id) = (source.id(), source.trace.trace_id());
    tracing::error!(request_id, trace_id, error, "a request handler panicked, answering 500");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request failed because of an internal error")
        .into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tokio_util::sync::CancellationToken;
    use tower_service::Service;

    use super::*;
    use crate::config::{Config, MigrateMode};
    use crate::metrics::Metrics;
    use crate::registry::Supervisor;
    use crate::store::SqliteDatabase;

    async fn middleware() -> Arc<Middleware> {
        let database = SqliteDatabase::open("sqlite::memory:", MigrateMode::Auto).await.unwrap();
        let supervisor = Supervisor::new(CancellationToken::new());
        let registry =
            Registry::start(Arc::new(database), Config::default(), Metrics::new().unwrap(), &supervisor);
        Arc::new(Middleware::new(registry.await.unwrap(), Arc::new(Authenticator::new(None)), None))
    }

    fn record_log() -> (File, tracing::subscriber::DefaultGuard) {
        let log = tempfile::tempfile().unwrap();
        let subscriber = tracing_subscriber::fmt().json().with_writer(Arc::new(log.try_clone().unwrap()));
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    #[tokio::test]
    async fn a_panic_answers_500_and_logs_the_request_and_its_trace() {
        let (mut log, _recording) = record_log();
        let mut app = Router::new()
            .route("/fails", get(async || -> StatusCode { panic!("on purpose") }))
            .layer(from_fn_with_state(middleware().await, handle));
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let request = Request::get("/fails")
            .header("x-request-id", "mine")
            .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
        let response = app.call(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()["x-request-id"], "mine");
        let mut lines = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut lines).unwrap();
        let panics: Vec<serde_json::Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|line: &serde_json::Value| line["level"] == "ERROR")
            .collect();
        assert_eq!(panics.len(), 1, "{lines}");
        let expected = serde_json::json!({
            "message": "a request handler panicked, answering 500",
            "error": "on purpose",
            "request_id": "mine",
            "trace_id": trace,
        });
        assert_eq!(panics[0]["fields"], expected, "{lines}");
    }
}
