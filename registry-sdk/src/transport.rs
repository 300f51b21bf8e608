//! The one place that sends: time-outs, retries, and the errors that become of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};
use tracing::Instrument;
use url::Url;

use crate::contract::{FieldError, Owner};
use crate::credentials::{Certificates, Credentials};
use crate::error::Error;
use crate::metrics;
use crate::retry::{Attempts, RetryPolicy, deadline_after};
use crate::targets::Targets;

/// The longest answer that is read. 100,000 agents are some 80 MB; what is longer is no registry's answer.
const LONGEST_ANSWER: usize = 256 * 1_024 * 1_024;

/// Maximum length of an error's text in bytes.
const LONGEST_DETAIL: usize = 2_000;

/// How much of an answer that makes no sense is quoted.
const QUOTED: usize = 200;

/// Sends requests to a registry: to one URL until it fails, then to the next. Clones share connections and
/// what is known of the URLs.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    targets: Targets,
    attempt_timeout: Duration,
    credentials: Option<Credentials>,
}

/// A request, as it can be sent any number of times.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Option<Body>,
    /// After which event a stream of them is to go on.
    pub(crate) last_event_id: Option<String>,
    /// The method and the path as the contract writes them, where not every registry has the operation.
    pub(crate) optional: Option<&'static str>,
}

/// The body of a request.
pub(crate) enum Body {
    /// The same each time it is sent.
    Fixed(Vec<u8>),
    /// Encoded anew each time it is sent, because it says how much time has passed.
    Fresh(Box<dyn Fn() -> Result<Vec<u8>, Error> + Send + Sync>),
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// How long a connection is kept that is not used: less than the server keeps it, so that a request never takes one that the
/// server is just closing.
const IDLE_CONNECTION: Duration = Duration::from_secs(60);

impl Transport {
    pub(crate) fn new(
        urls: &str,
        attempt_timeout: Duration,
        connect_timeout: Duration,
        credentials: Option<Credentials>,
        certificates: &Certificates,
    ) -> Result<Self, Error> {
        let targets = Targets::parse(urls)?;
        let http = certificates
            .add_to(reqwest::Client::builder())?
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(IDLE_CONNECTION)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("registry-sdk/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Setup(format!("the HTTP client cannot be set up: {}", chain(&error))))?;
        Ok(Self { http, targets, attempt_timeout, credentials })
    }

    pub(crate) fn http(&self) -> reqwest::Client {
        self.http.clone()
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// Sends a request, and again where the policy and the failure allow it.
    ///
    /// Cancel safe in so far as nothing is left running; whether the registry had got the request is then
    /// unknown.
    pub(crate) async fn send(&self, request: &Request, policy: &RetryPolicy) -> Result<Answer, Error> {
        let path = request.path.join("/");
        let span = tracing::debug_span!("registry_request", method = %request.method, path);
        self.send_until(request, policy.begin()).instrument(span).await
    }

    async fn send_until(&self, request: &Request, mut attempts: Attempts) -> Result<Answer, Error> {
        loop {
            let limit = attempts.time_left(self.attempt_timeout);
            let error = match self.send_once(request, limit).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = attempts.pause_after(&error) else { return Err(error) };
            metrics::retried();
            tracing::debug!(%error, ?pause, "trying again");
            sleep(pause).await;
        }
    }

    /// Sends a request once, and waits no longer than `limit` for the complete answer. Where not even a
    /// connection can be made, the next URL is tried at once: the request cannot have arrived twice.
    pub(crate) async fn send_once(&self, request: &Request, limit: Duration) -> Result<Answer, Error> {
        self.on_a_target(limit, |target| self.attempt(request, target)).await
    }

    /// Sends a request once, and gives its answer, a stream of events, before it has come to its end.
    pub(crate) async fn open_events(&self, request: &Request) -> Result<Response, Error> {
        let opened = |target| async move {
            let response = self.open(request, target).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(failure(status, &self.read(response, target).await?, request.optional).into());
            }
            let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            if kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
                Ok(response)
            } else {
                let detail = "no stream of events".to_owned();
                Err(Error::UnexpectedAnswer { status: status.as_u16(), detail }.into())
            }
        };
        self.on_a_target(self.attempt_timeout, opened).await
    }

    async fn on_a_target<T, F>(&self, limit: Duration, attempt: impl Fn(usize) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let deadline = deadline_after(Instant::now(), limit);
        let mut left = self.targets.count();
        loop {
            left -= 1;
            let target = self.targets.pick();
            let outcome = tokio::time::timeout_at(deadline, attempt(target)).await.unwrap_or_else(|_| {
                let url = self.targets.url(target).to_string();
                Err(Failed::after(Error::TimedOut { url, after: limit }))
            });
            self.targets.note(target, !outcome.as_ref().is_err_and(|failed| failed.error.is_of_the_server()));
            match outcome {
                Err(Failed { sent: false, .. }) if left > 0 => {}
                outcome => return outcome.map_err(|failed| failed.error),
            }
        }
    }

    async fn attempt(&self, request: &Request, target: usize) -> Result<Answer, Failed> {
        let response = self.open(request, target).await?;
        let status = response.status();
        let answer = self.read(response, target).await?;
        if !status.is_success() {
            return Err(failure(status, &answer, request.optional).into());
        }
        // JSON, or nothing if the status allows that.
        match answer.body.trim_ascii_start().first() {
            Some(b'{' | b'[' | b'"' | b'n' | b't' | b'f') => Ok(answer),
            None if answer.may_be_empty() => Ok(answer),
            _ => Err(answer.unexpected("no JSON").into()),
        }
    }

    async fn open(&self, request: &Request, target: usize) -> Result<Response, Failed> {
        let base = self.targets.url(target);
        let mut builder = self.http.request(request.method.clone(), request.url(base)?);
        if let Some(body) = &request.body {
            let body = match body {
                Body::Fixed(body) => body.clone(),
                Body::Fresh(encode) => encode()?,
            };
            builder = builder.header(CONTENT_TYPE, "application/json").body(body);
        }
        if let Some(credentials) = &self.credentials {
            builder = builder.header(AUTHORIZATION, credentials.header()?);
        }
        if let Some(id) = &request.last_event_id {
            builder = builder.header("last-event-id", id);
        }
        builder.send().await.map_err(|error| unreachable(base, error))
    }

    async fn read(&self, mut response: Response, target: usize) -> Result<Answer, Failed> {
        let base = self.targets.url(target);
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(base, error))? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                let detail = format!("it is longer than {LONGEST_ANSWER} bytes");
                return Err(Error::UnexpectedAnswer { status, detail }.into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body })
    }
}

fn unreachable(base: &Url, error: reqwest::Error) -> Failed {
    Failed {
        sent: !error.is_connect(),
        error: Error::Unreachable { url: base.to_string(), source: cause(&error.without_url()) },
    }
}

/// An attempt that failed, and whether the request may have arrived.
struct Failed {
    error: Error,
    sent: bool,
}

impl Failed {
    fn after(error: Error) -> Self {
        Self { error, sent: true }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::after(error)
    }
}

impl Request {
    fn url(&self, base: &Url) -> Result<Url, Error> {
        let mut url = base.clone();
        url.path_segments_mut()
            .map_err(|()| Error::Setup(format!("{base} cannot have a path")))?
            .pop_if_empty()
            .extend(&self.path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}

impl Answer {
    /// Reads the body as JSON of the contract.
    pub(crate) fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| self.unexpected(error))
    }

    /// The body's fields, whatever they are: none if it is empty, or JSON but no object.
    pub(crate) fn fields(&self) -> Result<Map<String, Value>, Error> {
        if self.body.trim_ascii().is_empty() && self.may_be_empty() {
            return Ok(Map::new());
        }
        match self.decode()? {
            Value::Object(fields) => Ok(fields),
            _ => Ok(Map::new()),
        }
    }

    /// An empty 200 is more likely cut off than meant so.
    fn may_be_empty(&self) -> bool {
        matches!(self.status, 201 | 202 | 204)
    }

    fn unexpected(&self, why: impl std::fmt::Display) -> Error {
        Error::UnexpectedAnswer { status: self.status, detail: format!("{why} in {}", quote(&self.body)) }
    }

    /// The error that the body is, if it has the contract's own form. All of RFC 9457's members may be missing.
    fn problem(&self) -> Option<Refusal> {
        let kind = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let is_problem = kind
            .split(';')
            .next()
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/problem+json"));
        is_problem.then(|| serde_json::from_slice(&self.body).ok()).flatten()
    }
}

/// The members of a problem that are read (RFC 9457).
#[derive(Default, serde::Deserialize)]
struct Refusal {
    detail: Option<String>,
    title: Option<String>,
    #[serde(default)]
    errors: Vec<FieldError>,
    owner: Option<Owner>,
}

/// What an answer that is no success means.
fn failure(status: StatusCode, answer: &Answer, optional: Option<&'static str>) -> Error {
    let problem = answer.problem();
    let is_own = problem.is_some();
    let Refusal { detail, title, errors: fields, owner } = problem.unwrap_or_default();
    let detail = shorten(detail.or(title).unwrap_or_else(|| plain_detail(&answer.body)));
    let code = status.as_u16();
    match code {
        // Where the operation is missing, a server knows no such path, and does not say it as ours does.
        404 | 405 | 501 if optional.is_some() && (code != 404 || !is_own) => {
            Error::Unsupported { operation: optional.unwrap_or_default() }
        }
        404 => Error::NotFound { detail },
        409 if is_own => Error::Superseded { detail, owner },
        401 | 403 if is_own => Error::Denied { status: code, detail },
        400 | 413 | 415 | 422 if is_own => Error::Invalid { detail, fields },
        408 | 425 | 429 | 500 | 502 | 503 | 504 => {
            Error::Unavailable { status: code, detail, retry_after: retry_after(&answer.headers) }
        }
        _ => Error::UnexpectedAnswer { status: code, detail },
    }
}

/// Cuts off what nobody would read: an error stands in log lines, and is kept in states.
fn shorten(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST_DETAIL));
    text
}

/// What an error of another service says. FastAPI writes the detail alone, a text or a list.
fn plain_detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Plain {
        detail: Value,
    }
    match serde_json::from_slice::<Plain>(body) {
        Ok(Plain { detail: Value::String(text) }) => text,
        Ok(Plain { detail }) => detail.to_string(),
        Err(_) => quote(body),
    }
}

/// The header in either of its forms: seconds, or an HTTP date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The beginning of a body, fit to stand in a log line.
fn quote(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(QUOTED)]);
    if body.is_empty() { "an empty body".to_owned() } else { format!("{text:?}") }
}

/// What is kept of the libraries' errors: their texts.
fn cause(error: &dyn std::error::Error) -> Arc<dyn std::error::Error + Send + Sync> {
    Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(chain(error)))
}

/// An error and its causes in one line: the libraries below keep the telling part in the causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let wait = read(&date).unwrap();
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(60), "{wait:?}");
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn errors_of_other_services_are_understood() {
        assert_eq!(plain_detail(br#"{"detail": "Agent not found"}"#), "Agent not found");
        assert_eq!(plain_detail(br#"{"detail": [1]}"#), "[1]");
        assert_eq!(plain_detail(b"<html>\n502 Bad Gateway</html>"), r#""<html>\n502 Bad Gateway</html>""#);
    }
}
