//! The one place that sends: time-outs, retries, and the errors that become of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::Retryable;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use tokio::time::Instant;
use tracing::Instrument;
use url::Url;

use crate::contract::{FieldError, Problem};
use crate::credentials::{Certificates, Credentials};
use crate::error::Error;
use crate::metrics;
use crate::retry::RetryPolicy;
use crate::targets::Targets;

/// The longest answer that is read. 100,000 agents are some 80 MB; what is longer is no registry's answer.
const LONGEST_ANSWER: usize = 256 * 1_024 * 1_024;

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
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Option<Vec<u8>>,
    /// After which event a stream of them is to go on.
    pub(crate) last_event_id: Option<String>,
    /// The method and the path as the contract writes them, where not every registry has the operation.
    pub(crate) optional: Option<&'static str>,
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
        let deadline = policy.limit().map(|limit| Instant::now() + limit);
        let path = request.path.join("/");
        let span = tracing::debug_span!("registry_request", method = %request.method, path);
        let attempt = || async {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.send_once(request, left.map_or(self.attempt_timeout, |left| left.min(self.attempt_timeout)))
                .await
        };
        attempt
            .retry(policy.delays())
            .when(Error::is_retryable)
            .adjust(|error, drawn| {
                let pause = policy.obeying(error.retry_after(), drawn?);
                let in_time = deadline.is_none_or(|deadline| Instant::now() + pause < deadline);
                in_time.then_some(pause)
            })
            .notify(|error, pause| {
                metrics::retried();
                tracing::debug!(%error, ?pause, "trying again");
            })
            .instrument(span)
            .await
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
        let deadline = Instant::now() + limit;
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
        match status {
            StatusCode::NO_CONTENT => Ok(answer),
            _ if !status.is_success() => Err(failure(status, &answer, request.optional).into()),
            _ if matches!(answer.body.trim_ascii_start().first(), Some(b'{' | b'[')) => Ok(answer),
            _ => Err(answer.nonsense("no JSON").into()),
        }
    }

    async fn open(&self, request: &Request, target: usize) -> Result<Response, Failed> {
        let base = self.targets.url(target);
        let mut builder = self.http.request(request.method.clone(), request.url(base)?);
        if let Some(body) = &request.body {
            builder = builder.header(CONTENT_TYPE, "application/json").body(body.clone());
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
        serde_json::from_slice(&self.body).map_err(|error| self.nonsense(error))
    }

    fn nonsense(&self, why: impl std::fmt::Display) -> Error {
        Error::UnexpectedAnswer { status: self.status, detail: format!("{why} in {}", quote(&self.body)) }
    }
}

/// What an answer that is no success means.
fn failure(status: StatusCode, answer: &Answer, optional: Option<&'static str>) -> Error {
    let (detail, fields, is_problem) = explain(&answer.body);
    let code = status.as_u16();
    match code {
        // Where the operation is missing, a server knows no such path, and does not say it as ours does.
        404 | 405 | 501 if optional.is_some() && (code != 404 || !is_problem) => {
            Error::Unsupported { operation: optional.unwrap_or_default() }
        }
        404 => Error::NotFound { detail },
        409 => Error::Superseded { detail },
        401 | 403 => Error::Denied { status: code, detail },
        400 | 413 | 415 | 422 => Error::Invalid { detail, fields },
        408 | 425 | 429 | 500 | 502 | 503 | 504 => {
            Error::Unavailable { status: code, detail, retry_after: retry_after(&answer.headers) }
        }
        _ => Error::UnexpectedAnswer { status: code, detail },
    }
}

/// What an error's body says, the fields it names, and whether it is a problem as the contract has it.
fn explain(body: &[u8]) -> (String, Vec<FieldError>, bool) {
    #[derive(serde::Deserialize)]
    struct Plain {
        detail: serde_json::Value,
    }
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return (problem.detail, problem.errors, true);
    }
    // As FastAPI writes errors: the detail alone, a text or a list.
    match serde_json::from_slice::<Plain>(body) {
        Ok(Plain { detail: serde_json::Value::String(text) }) => (text, Vec::new(), false),
        Ok(Plain { detail }) => (detail.to_string(), Vec::new(), false),
        Err(_) => (quote(body), Vec::new(), false),
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
        let (detail, _, is_problem) = explain(br#"{"detail": "Agent not found"}"#);
        assert_eq!((detail.as_str(), is_problem), ("Agent not found", false));
        let (detail, _, _) = explain(b"<html>\n502 Bad Gateway</html>");
        assert_eq!(detail, r#""<html>\n502 Bad Gateway</html>""#);
    }
}
