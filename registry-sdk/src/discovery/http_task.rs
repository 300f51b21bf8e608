//! Tasks over HTTP: what is sent to an agent, and what its response means.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response};
use tokio::time::Instant;
use url::Url;

use super::attempt::Attempt;
use super::outcome::{Cause, FailureKind, TaskError};
use crate::contract::{
    ATTEMPT_HEADER, CapabilityMatch, IDEMPOTENCY_KEY_HEADER, TIME_LEFT_HEADER, idempotency_key_value,
};
use crate::error::with_causes;
use crate::http::{HttpClients, Unread, read_bounded};
use crate::response::retry_after;

/// How much of an unsuccessful response is read.
const MAX_REFUSAL: usize = 4 * 1_024;

/// How long the body of an unsuccessful response is waited for.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// How much of a body an error's text quotes.
const QUOTED: usize = 300;

type TokenProvider = Arc<dyn Fn(&CapabilityMatch) -> Option<String> + Send + Sync>;
type Classifier = Arc<dyn Fn(&HttpTaskError) -> FailureKind + Send + Sync>;

/// How agents are reached.
#[derive(Clone)]
pub(super) struct AgentAccess {
    pub(super) http: HttpClients,
    pub(super) token: Option<TokenProvider>,
    pub(super) classifier: Classifier,
}

impl AgentAccess {
    pub(super) fn new(http: HttpClients) -> Self {
        Self { http, token: None, classifier: Arc::new(HttpTaskError::kind) }
    }
}

impl fmt::Debug for AgentAccess {
    /// Leaves out the token provider, which may know tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentAccess").finish_non_exhaustive()
    }
}

/// Why a task that was sent over HTTP failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpTaskError {
    /// The task cannot be sent: a header, a token or the path is wrong, or it cannot be written as JSON.
    #[error("the task cannot be sent: {0}")]
    Request(String),
    /// No connection to the agent could be made.
    #[error("no connection: {}", with_causes(&**.0))]
    Unreachable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The connection broke before the response began.
    #[error("the connection broke: {}", with_causes(&**.0))]
    Broken(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The agent answered with a status that is no success.
    #[error("status {status}{}{}", target(location.as_deref()), quote(": ", body))]
    Status {
        /// The status.
        status: u16,
        /// The time after which the agent asked to be tried again, if it did.
        retry_after: Option<Duration>,
        /// Where a redirect leads that is not followed.
        location: Option<String>,
        /// The beginning of the body: up to 4 KiB.
        body: String,
    },
    /// The agent answered with a success, but the response cannot be used.
    #[error("status {status}, but {detail}{}", quote(": ", &String::from_utf8_lossy(body)))]
    InvalidResponse {
        /// The status.
        status: u16,
        /// What is wrong: it cannot be decoded, is too long, did not end in time, or broke off.
        detail: String,
        /// The body, as far as it was read.
        body: Vec<u8>,
    },
}

impl HttpTaskError {
    /// What the failure says of the agent and the task by the table of [`FailureKind`].
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Request(_) => FailureKind::Task,
            Self::Unreachable(_) | Self::Broken(_) => FailureKind::Agent,
            Self::Status { status, retry_after, .. } => FailureKind::of_status(*status, *retry_after),
            Self::InvalidResponse { .. } => FailureKind::Response,
        }
    }
}

fn target(location: Option<&str>) -> String {
    location.map_or_else(String::new, |location| format!(" to {location}"))
}

/// The beginning of a body on one line.
fn quote(before: &str, body: &str) -> String {
    let (part, body) = (crate::contract::cut(body, QUOTED), body.trim());
    let text = part.split_whitespace().collect::<Vec<_>>().join(" ");
    let more = if part.trim().len() < body.len() { "…" } else { "" };
    if text.is_empty() { String::new() } else { format!("{before}{text}{more}") }
}

/// A task that can be sent any number of times.
#[derive(Debug)]
pub(super) struct HttpTask {
    access: AgentAccess,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl HttpTask {
    pub(super) fn new(
        access: AgentAccess,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Self {
        Self { access, method, path: path.trim_start_matches('/').to_owned(), headers, body }
    }

    /// Sends the task to an agent. Returns a successful response, whose body is read later.
    pub(super) async fn send(&self, attempt: &Attempt) -> Result<Response, TaskError> {
        let failed = |error| self.failed(error);
        let agent = &attempt.agent;
        let url = format!("{}/{}", agent.base_url.trim_end_matches('/'), self.path);
        let url = Url::parse(&url).map_err(|error| self.unreachable(Arc::new(error), false))?;
        let http =
            self.access.http.for_url(&url).map_err(|error| self.unreachable(Arc::new(error), false))?;
        let headers = self.headers_of(attempt).map_err(|error| failed(HttpTaskError::Request(error)))?;
        let request = http.request(self.method.clone(), url).headers(headers).body(self.body.clone());
        let response = request.send().await.map_err(|error| {
            let (is_connect, is_builder) = (error.is_connect(), error.is_builder());
            let (timed_out, source) = (error.is_timeout(), Arc::new(error.without_url()));
            match source {
                source if is_connect => self.unreachable(source, timed_out),
                source if is_builder => failed(HttpTaskError::Request(with_causes(&source))),
                source => failed(HttpTaskError::Broken(source)),
            }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(failed(refusal(response, attempt.deadline).await))
    }

    /// Reads a successful response to its end.
    pub(super) async fn read(
        &self,
        response: Response,
        max: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, TaskError> {
        let status = response.status().as_u16();
        let unread = match read_bounded(response, max, deadline).await {
            Ok(body) => return Ok(body),
            Err(unread) => unread,
        };
        let (detail, is_late) = match &unread {
            Unread::TooLong(_) => (format!("the response is longer than {max} bytes"), false),
            Unread::Late(_) => ("the response did not end within the attempt_timeout".to_owned(), true),
            Unread::Broken(_, error) => (format!("the response broke off ({})", with_causes(error)), false),
        };
        let error = HttpTaskError::InvalidResponse { status, detail, body: unread.into_part() };
        let mut failed = self.failed(error);
        failed.is_charged |= is_late;
        Err(failed)
    }

    /// A failure, as the classifier sees it.
    pub(super) fn failed(&self, error: HttpTaskError) -> TaskError {
        TaskError::of((self.access.classifier)(&error), Arc::new(error))
    }

    fn unreachable(&self, source: Cause, timed_out: bool) -> TaskError {
        let error = HttpTaskError::Unreachable(source);
        TaskError::unreachable((self.access.classifier)(&error), Arc::new(error), timed_out)
    }

    fn headers_of(&self, attempt: &Attempt) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        if !self.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let key = idempotency_key_value(&attempt.idempotency_key).unwrap_or_default();
        let key = HeaderValue::try_from(key).map_err(|error| format!("the idempotency key: {error}"))?;
        headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY_HEADER), key);
        headers.insert(HeaderName::from_static(ATTEMPT_HEADER), HeaderValue::from(attempt.number));
        if let Some(token) = self.access.token.as_ref().and_then(|token| token(&attempt.agent)) {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value =
                value.map_err(|_| "the token has characters that no header can have".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // The caller's own come last, and so replace these.
        headers.extend(self.headers.clone());
        let left = attempt.deadline.saturating_duration_since(Instant::now());
        if let Ok(left) = HeaderValue::try_from(format!("{:.3}", left.as_secs_f64())) {
            headers.insert(HeaderName::from_static(TIME_LEFT_HEADER), left);
        }
        Ok(headers)
    }
}

/// Reads what an agent says in place of a success.
async fn refusal(response: Response, deadline: Instant) -> HttpTaskError {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let location = response.headers().get("location").and_then(|value| value.to_str().ok());
    let location = location.filter(|_| response.status().is_redirection()).map(str::to_owned);
    let deadline = deadline.min(Instant::now() + REFUSAL_TIME);
    let body = read_bounded(response, MAX_REFUSAL, deadline).await.unwrap_or_else(Unread::into_part);
    HttpTaskError::Status { status, retry_after, location, body: String::from_utf8_lossy(&body).into_owned() }
}
