//! Authentication and authorization of requests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::dashboard;
use super::problem::ApiError;
use crate::tokens::{Token, Tokens, TokensError};

/// Whether a path needs no token: the pages, the API description, and the server's health for load balancers.
fn is_public(path: &str) -> bool {
    path == "/health"
        || path == "/openapi.json"
        || path.starts_with("/docs")
        || dashboard::PATHS.contains(&path)
}

/// Authenticates requests by the tokens file, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Authenticator {
    file: Option<PathBuf>,
    tokens: RwLock<Arc<Tokens>>,
    reloaded: watch::Sender<()>,
}

/// The authenticated caller. Handlers that write check its authorization.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// No tokens file is configured, or the path is public.
    Anyone,
    /// The bearer of a token, and a receiver that is notified when the tokens are reloaded.
    Bearer(Arc<Token>, watch::Receiver<()>),
}

impl Authenticator {
    pub(crate) fn open(file: Option<PathBuf>) -> Result<Self, TokensError> {
        let authenticator = Self { file, tokens: RwLock::default(), reloaded: watch::Sender::default() };
        authenticator.reload()?;
        Ok(authenticator)
    }

    /// Reloads the tokens file. If that fails, the previous tokens stay valid.
    pub(crate) fn reload(&self) -> Result<(), TokensError> {
        if let Some(file) = &self.file {
            let tokens = Tokens::read(file)?;
            tracing::info!(file = %file.display(), tokens = tokens.len(), "loaded the tokens");
            *self.tokens.write() = Arc::new(tokens);
            self.reloaded.send_replace(());
        }
        Ok(())
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.file.is_none()
    }

    /// Returns the caller, or a 401 error.
    pub(super) fn authenticate(&self, request: &Request) -> Result<Caller, ApiError> {
        if self.is_disabled() || is_public(request.uri().path()) {
            return Ok(Caller::Anyone);
        }
        let tokens = self.tokens.read().clone();
        let presented =
            bearer(request.headers()).ok_or_else(|| unauthorized("send a token: Authorization: Bearer …"))?;
        let token = tokens.find(presented, SystemTime::now());
        let reloaded = self.reloaded.subscribe();
        let bearer = token.map(|token| Caller::Bearer(token, reloaded));
        bearer.ok_or_else(|| unauthorized("the token is unknown, or has expired"))
    }
}

impl Caller {
    /// Rejects the write if the caller is not authorized for the agent.
    pub(super) fn check_may_act_for(&self, agent_id: &str) -> Result<(), ApiError> {
        match self {
            Self::Bearer(token, _) if !token.may_act_for(agent_id) => {
                let name = &token.name;
                let detail = format!("the token {name:?} does not allow to change the agent {agent_id:?}");
                Err(ApiError::new(StatusCode::FORBIDDEN, detail))
            }
            Self::Bearer(..) | Self::Anyone => Ok(()),
        }
    }

    /// Returns the name of the caller's token.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::Bearer(token, _) => Some(&token.name),
        }
    }

    /// Waits until the caller has to authenticate again: the token has expired, or the tokens were reloaded.
    pub(super) async fn credentials_expired(&mut self) {
        let Self::Bearer(token, reloaded) = self else { return std::future::pending().await };
        let expires = async {
            match token.expires_in(SystemTime::now()) {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender is dropped with the authenticator, when the server ends.
            _ = reloaded.changed() => {}
            () = expires => {}
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // A route that is not behind the middleware rejects everything.
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| unauthorized("the request was not authenticated"))
    }
}

/// The token in `Authorization: Bearer …` (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(detail: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, detail)
}
