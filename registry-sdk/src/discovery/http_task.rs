//! Tasks over HTTP: the request to an agent, and the meaning of its response.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use tokio::time::Instant;
use tracing::Span;
use url::Url;

use super::attempt::Attempt;
use super::failure_kind::FailureKind;
use super::http_task_error::HttpTaskError;
use super::task_error::{Cause, Charge, TaskError};
use crate::contract::{
    ATTEMPT_HEADER, CapabilityMatch, IDEMPOTENCY_KEY_HEADER, TIME_LEFT_HEADER, idempotency_key_value,
};
use crate::error::with_causes;
use crate::http::{HttpClients, Unread, read_bounded};
use crate::propagation;
use crate::response::retry_after;
use crate::spans;

/// Maximum length of an unsuccessful response that is read. It may be an error of A2A, which is understood only as a whole.
const MAX_REFUSAL: usize = 64 * 1_024;

/// How long the body of an unsuccessful response is waited for.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

type TokenProvider = Arc<dyn Fn(&CapabilityMatch) -> Option<String> + Send + Sync>;
type Classifier = Arc<dyn Fn(&HttpTaskError) -> FailureKind + Send + Sync>;

/// The settings for calling agents.
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
    /// Omits the token provider, which may contain tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentAccess").finish_non_exhaustive()
    }
}

/// A task that can be sent any number of times.
#[derive(Debug)]
pub(super) struct HttpTask {
    pub(super) access: AgentAccess,
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
        Self { access, method, path: path.to_owned(), headers, body }
    }

    /// Sends the task to an agent. Returns a successful response, whose body is read later.
    pub(super) async fn send(&self, attempt: &Attempt) -> Result<Response, TaskError> {
        let access = &self.access;
        let url = self.url(&attempt.agent.base_url).map_err(|source| access.unreachable(source))?;
        let headers = access.headers(attempt, &attempt.agent, &self.headers);
        let headers = headers.map_err(|error| access.failed(HttpTaskError::Request(error)))?;
        attempt.record_request(&self.method, &url);
        let request = access.request(&self.method, &url, headers, self.body.clone());
        let request = request.map_err(|error| access.failed(error))?;
        send(request, &attempt.span, attempt.deadline).await.map_err(|error| access.failed(error))
    }

    /// Returns the URL of the task, below the path of an agent's base URL. An empty path means the base URL itself, without an
    /// additional slash, because some servers distinguish the two.
    fn url(&self, base_url: &str) -> Result<Url, Cause> {
        let mut url = Url::parse(base_url).map_err(|error| Arc::new(error) as Cause)?;
        if !matches!(url.scheme(), "http" | "https") {
            let error = format!("the agent's base_url is not an http or https URL: {base_url:?}");
            return Err(Cause::from(Box::<dyn Error + Send + Sync>::from(error)));
        }
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path.as_str(), None),
        };
        if !path.is_empty() {
            let base = url.path().trim_end_matches('/');
            url.set_path(&format!("{base}/{}", path.trim_start_matches('/')));
        }
        url.set_query(query);
        url.set_fragment(None);
        Ok(url)
    }
}

impl AgentAccess {
    /// Creates a request to an agent.
    pub(super) fn request(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<RequestBuilder, HttpTaskError> {
        let http = self.http.for_url(url).map_err(|error| HttpTaskError::Unreachable(Arc::new(error)))?;
        Ok(http.request(method.clone(), url.clone()).headers(headers).body(body))
    }

    /// Reads a successful response to its end. It may take all of the remaining time, because no other agent gets the task.
    ///
    /// A response that can be requested again has a longest pause, after which it is given up. If it does not arrive as a whole, that
    /// does not show that the task was done.
    pub(super) async fn read(
        &self,
        response: Response,
        max: usize,
        attempt: &Attempt,
        max_pause: Option<Duration>,
    ) -> Result<Vec<u8>, TaskError> {
        let status = response.status().as_u16();
        let unread = match read_bounded(response, max, attempt.end, max_pause).await {
            Ok(body) => return Ok(body),
            Err(unread) => unread,
        };
        let (detail, is_late) = match &unread {
            Unread::TooLong(_) => (format!("the response is longer than {max} bytes"), false),
            Unread::Late(_) => {
                let time = attempt.end - attempt.began;
                (format!("the response did not end within {time:.1?}, the rest of the time_limit"), true)
            }
            Unread::Stalled(_) => {
                let pause = max_pause.unwrap_or_default();
                (format!("the response has not ended, and nothing more of it arrived for {pause:?}"), false)
            }
            Unread::Broken(_, error) => (format!("the response broke off ({})", with_causes(error)), false),
        };
        let shows_result = max_pause.is_none() || matches!(unread, Unread::TooLong(_));
        let error = HttpTaskError::InvalidResponse { status, detail, body: unread.into_part() };
        let mut failed = self.failed(error);
        if !shows_result {
            failed.kind = FailureKind::Agent;
        }
        if is_late {
            failed.charge = Charge::IfItHadTime;
        }
        Err(failed)
    }

    /// Returns a failure with the kind that the classifier chooses.
    pub(super) fn failed(&self, mut error: HttpTaskError) -> TaskError {
        error.shorten();
        let (kind, may_have_arrived, draws) =
            ((self.classifier)(&error), error.may_have_arrived(), error.draws());
        let mut error = TaskError::of(kind, Arc::new(error));
        error.may_have_arrived = may_have_arrived;
        error.draws &= draws;
        error
    }

    fn unreachable(&self, source: Cause) -> TaskError {
        self.failed(HttpTaskError::Unreachable(source))
    }

    /// Returns the headers of an attempt, including the caller's own. The token is that for `agent`, which is the attempt's
    /// agent at the URL of the request.
    pub(super) fn headers(
        &self,
        attempt: &Attempt,
        agent: &CapabilityMatch,
        own: &HeaderMap,
    ) -> Result<HeaderMap, String> {
        let mut headers = propagation::headers();
        let key = idempotency_key_value(&attempt.idempotency_key).unwrap_or_default();
        let key = HeaderValue::try_from(key).map_err(|error| format!("the idempotency key: {error}"))?;
        headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY_HEADER), key);
        headers.insert(HeaderName::from_static(ATTEMPT_HEADER), HeaderValue::from(attempt.number));
        if let Some(token) = self.token.as_ref().and_then(|token| token(agent)) {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value =
                value.map_err(|_| "the token has characters that are not allowed in a header".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let left = attempt.deadline.saturating_duration_since(Instant::now());
        if let Ok(left) = HeaderValue::try_from(format!("{:.3}", left.as_secs_f64())) {
            headers.insert(HeaderName::from_static(TIME_LEFT_HEADER), left);
        }
        // The caller's own headers replace these.
        for (name, value) in own {
            headers.insert(name, value.clone());
        }
        Ok(headers)
    }
}

/// Sends a request to an agent, and adds the status of the response to a span. Returns a successful response.
pub(super) async fn send(
    request: RequestBuilder,
    span: &Span,
    deadline: Instant,
) -> Result<Response, HttpTaskError> {
    let response = request.send().await.map_err(|error| {
        let error = Arc::new(error.without_url());
        match &error {
            cause if cause.is_connect() => HttpTaskError::Unreachable(error),
            cause if cause.is_redirect() => HttpTaskError::Redirects(error),
            _ => HttpTaskError::Broken(error),
        }
    })?;
    spans::record_status(span, response.status().as_u16());
    if response.status().is_success() { Ok(response) } else { Err(refusal(response, deadline).await) }
}

/// Reads the body of an unsuccessful response.
async fn refusal(response: Response, deadline: Instant) -> HttpTaskError {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let location = response.headers().get("location").and_then(|value| value.to_str().ok());
    let location = location.filter(|_| response.status().is_redirection());
    let location = location.and_then(|location| target(response.url(), location));
    let deadline = deadline.min(Instant::now() + REFUSAL_TIME);
    let body = read_bounded(response, MAX_REFUSAL, deadline, None).await.unwrap_or_else(Unread::into_part);
    HttpTaskError::Status { status, retry_after, location, body: String::from_utf8_lossy(&body).into_owned() }
}

/// Returns the target of a redirect, without parts that must not be logged.
fn target(url: &Url, location: &str) -> Option<String> {
    let mut target = url.join(location).ok()?;
    let _ = target.set_username("");
    let _ = target.set_password(None);
    target.set_query(None);
    target.set_fragment(None);
    Some(target.into())
}
