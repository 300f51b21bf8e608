//! Authentication and authorization of requests.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::ard::MANIFEST_PATH;
use super::dashboard;
use super::problem::ApiError;
use super::request_log::{RejectedChange, RequestSource};
use crate::registry::{Error, Written};
use crate::tokens::{Token, Tokens};

/// Whether a path is a health check of the server itself, which must never be rejected.
pub(super) fn is_health_check(path: &str) -> bool {
    matches!(path, "/health" | "/livez" | "/readyz")
}

/// Whether a path needs no token: pages, API description, manifest and health checks.
fn is_public(path: &str) -> bool {
    is_health_check(path)
        || matches!(path, "/openapi.json" | MANIFEST_PATH)
        || path.starts_with("/docs")
        || dashboard::has(path)
}

/// Authenticates requests with the tokens file, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Authenticator {
    tokens: Option<RwLock<Arc<Tokens>>>,
    replaced: watch::Sender<()>,
}

/// The authenticated caller. Handlers that write must check its authorization.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) source: RequestSource,
    /// `None` if no tokens file is configured, or the path is public.
    bearer: Option<Bearer>,
}

/// The bearer of a token.
#[derive(Clone, Debug)]
struct Bearer {
    token: Arc<Token>,
    /// Notified when the tokens are replaced.
    replaced: watch::Receiver<()>,
}

/// The reason why a request is not authenticated.
pub(super) enum Unauthenticated {
    /// The request has no token.
    NoToken,
    /// The token is unknown or has expired.
    WrongToken,
}

impl Authenticator {
    /// Creates an authenticator that accepts these tokens, or every request if there is no tokens file.
    pub(crate) fn new(tokens: Option<Tokens>) -> Self {
        let tokens = tokens.map(|tokens| RwLock::new(Arc::new(tokens)));
        Self { tokens, replaced: watch::Sender::default() }
    }

    /// Replaces the tokens of the file.
    pub(crate) fn replace(&self, tokens: Arc<Tokens>) {
        let Some(current) = &self.tokens else { return };
        // Unchanged, for example if only a certificate was renewed: event streams need not restart.
        if *current.read() == tokens {
            return;
        }
        *current.write() = tokens;
        self.replaced.send_replace(());
    }

    /// Returns the tokens of the file.
    pub(crate) fn tokens(&self) -> Option<Arc<Tokens>> {
        self.tokens.as_ref().map(|tokens| tokens.read().clone())
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.tokens.is_none()
    }

    /// Returns the caller of a request.
    pub(super) fn authenticate(
        &self,
        request: &Request,
        source: &RequestSource,
    ) -> Result<Caller, Unauthenticated> {
        let source = source.clone();
        let Some(tokens) = self.tokens.as_ref().filter(|_| !is_public(request.uri().path())) else {
            return Ok(Caller { source, bearer: None });
        };
        // Subscribe first, so that no later change to the tokens is missed.
        let replaced = self.replaced.subscribe();
        let tokens = tokens.read().clone();
        let presented = bearer(request.headers()).ok_or(Unauthenticated::NoToken)?;
        let token = tokens.find(presented, SystemTime::now()).ok_or(Unauthenticated::WrongToken)?;
        Ok(Caller { source, bearer: Some(Bearer { token, replaced }) })
    }
}

impl Caller {
    /// Rejects a write if the caller is not authorized for the agent.
    ///
    /// `change` describes the requested change in the log.
    pub(super) fn check_may_act_for(&self, agent_id: &str, change: &str) -> Result<(), ApiError> {
        match &self.bearer {
            Some(Bearer { token, .. }) if !token.may_act_for(agent_id) => {
                let name = &token.name;
                let detail = format!("the token {name:?} does not allow changing the agent {agent_id:?}");
                Err(self.rejected(agent_id, change, ApiError::new(StatusCode::FORBIDDEN, detail)))
            }
            _ => Ok(()),
        }
    }

    /// Runs an authorized change of an agent, and logs the outcome.
    pub(super) async fn change<T>(
        &self,
        agent_id: &str,
        change: &str,
        make: impl Future<Output = Result<Written<T>, Error>>,
    ) -> Result<T, ApiError> {
        match make.await {
            Ok(written) => {
                self.log_change(agent_id, change, written.revision(), written.changed_by());
                Ok(written.response)
            }
            Err(error) => Err(self.rejected(agent_id, change, error.into())),
        }
    }

    /// Logs a change and its caller.
    pub(super) fn log_change(&self, agent_id: &str, change: &str, revision: i64, changed_by: Option<&str>) {
        tracing::info!(
            request_id = self.source.id(),
            trace_id = self.source.trace.trace_id(),
            token = self.name(),
            client = self.source.client.map(display),
            agent_id,
            change,
            revision,
            changed_by,
            "changed an agent"
        );
    }

    /// Logs a rejected change with its caller and the reason.
    fn rejected(&self, agent_id: &str, change: &str, error: ApiError) -> ApiError {
        let (token, agent_id, status) = (self.name(), Some(agent_id), error.status());
        RejectedChange { token, agent_id, change, status, error: error.detail(), left_out: 0 }
            .log(&self.source);
        error.logged()
    }

    /// Returns the name of the caller's token.
    pub(super) fn name(&self) -> Option<&str> {
        self.changed_by().map(|name| &**name)
    }

    /// Returns the name that is recorded for changes by this caller.
    pub(super) fn changed_by(&self) -> Option<&Arc<str>> {
        self.bearer.as_ref().map(|bearer| &bearer.token.name)
    }

    /// Waits until the caller must authenticate again: the token expires, or the tokens are replaced.
    pub(super) async fn credentials_expired(&mut self) {
        let Some(Bearer { token, replaced }) = &mut self.bearer else { return std::future::pending().await };
        let expires = async {
            match token.expires_in(SystemTime::now()) {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Fails if the authenticator was dropped, when the server ends.
            _ = replaced.changed() => {}
            () = expires => {}
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Routes without the middleware reject every request. Removed, since cloning would slow down every
        // heartbeat.
        let caller = parts.extensions.remove::<Self>();
        caller.ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "the request was not authenticated"))
    }
}

/// Returns the token in `Authorization: Bearer …` (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
