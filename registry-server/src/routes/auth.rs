//! Who calls, and whether they may.

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

/// Whether anybody may ask for it: the pages, what the API is, and whether the server is well, since load balancers have no
/// token.
fn is_open(path: &str) -> bool {
    path == "/health"
        || path == "/openapi.json"
        || path.starts_with("/docs")
        || dashboard::PATHS.contains(&path)
}

/// Checks credentials, where there is a file of tokens.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    file: Option<PathBuf>,
    tokens: RwLock<Arc<Tokens>>,
    reloaded: watch::Sender<()>,
}

/// Who calls. A handler that changes something asks whether they may.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// No credentials are asked for.
    Anyone,
    /// The bearer of a token. The other end tells when the tokens have been read anew.
    Bearer(Arc<Token>, watch::Receiver<()>),
}

impl Gate {
    pub(crate) fn open(file: Option<PathBuf>) -> Result<Self, TokensError> {
        let gate = Self { file, tokens: RwLock::default(), reloaded: watch::Sender::default() };
        gate.reload()?;
        Ok(gate)
    }

    /// Reads the file anew. Requests under way go by what was read before; where it cannot be used, so do all.
    pub(crate) fn reload(&self) -> Result<(), TokensError> {
        if let Some(file) = &self.file {
            let tokens = Tokens::read(file)?;
            tracing::info!(file = %file.display(), tokens = tokens.len(), "read the tokens");
            *self.tokens.write() = Arc::new(tokens);
            self.reloaded.send_replace(());
        }
        Ok(())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.file.is_none()
    }

    /// Who calls, where they may at all.
    pub(super) fn admit(&self, request: &Request) -> Result<Caller, ApiError> {
        if self.is_open() || is_open(request.uri().path()) {
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
    /// Refuses a change of an agent that is not theirs.
    pub(super) fn speaks_for(&self, agent_id: &str) -> Result<(), ApiError> {
        match self {
            Self::Bearer(token, _) if !token.may_act_for(agent_id) => {
                let name = &token.name;
                let detail = format!("the token {name:?} does not allow to change the agent {agent_id:?}");
                Err(ApiError::new(StatusCode::FORBIDDEN, detail))
            }
            Self::Bearer(..) | Self::Anyone => Ok(()),
        }
    }

    /// The name of the token that was shown, where one is asked for.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::Bearer(token, _) => Some(&token.name),
        }
    }

    /// Waits until who was let in has to show a token again: it has expired, or the tokens were read anew.
    pub(super) async fn has_to_show_again(&mut self) {
        let Self::Bearer(token, reloaded) = self else { return std::future::pending().await };
        let expires = async {
            match token.expires_in(SystemTime::now()) {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // It ends with the gate, which ends with the server.
            _ = reloaded.changed() => {}
            () = expires => {}
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // A route that was forgotten behind the gate lets nobody through.
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| unauthorized("nobody has looked at the credentials"))
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
