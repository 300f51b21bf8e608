//! The transport, which sends all requests: attempts, time limits and endpoints.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Method, Response};
use tokio::time::{sleep, timeout_at};
use tracing::{Instrument, Span};
use url::Url;

use crate::credentials::Credentials;
use crate::endpoints::{Attempt, Endpoints, shown};
use crate::error::{Error, with_causes};
use crate::http::HttpClients;
use crate::metrics;
use crate::propagation;
use crate::response::{ApiResponse, Kind, failure};
use crate::retry::{Attempts, Limit, RetryPolicy};
use crate::spans;

/// Maximum length of a list or of the matches of a search. 100,000 agents take about 80 MB.
const MAX_LIST: usize = 256 * 1_024 * 1_024;

/// Maximum length of any other response: several times the largest record.
const MAX_RECORD: usize = 4 * 1_024 * 1_024;

/// Number of bytes that have to arrive within each attempt timeout for a response to continue.
const PROGRESS: usize = 64 * 1_024;

/// Sends requests to the endpoints of a registry. Clones share connections and the states of the endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub(crate) http: HttpClients,
    pub(crate) endpoints: Endpoints,
    pub(crate) attempt_timeout: Duration,
    pub(crate) credentials: Option<Credentials>,
}

/// A request, which can be sent any number of times.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Option<Body>,
    /// The event after which a stream continues.
    pub(crate) last_event_id: Option<String>,
    pub(crate) kind: Kind,
}

/// The body of a request.
pub(crate) enum Body {
    /// The same for each attempt.
    Fixed(Vec<u8>),
    /// Encoded for each attempt, because it contains a duration until now.
    Fresh(Box<dyn Fn() -> Result<Vec<u8>, Error> + Send + Sync>),
}

impl Transport {
    /// Sends a request, and retries it if the policy and the failure allow that. A response that cannot be decoded is a failure
    /// of its endpoint.
    ///
    /// Cancel safe: nothing keeps running, although the registry may have received the request.
    pub(crate) async fn send<T>(
        &self,
        request: &Request,
        policy: &RetryPolicy,
        decode: impl Fn(&ApiResponse) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let attempts = policy.begin(self.attempt_timeout, self.endpoints.urls().len());
        self.send_until(request, attempts, |attempt| self.receive(request, attempt, &decode)).await
    }

    /// Sends a request once to each endpoint until one responds, within a limit that also bounds the response.
    pub(crate) async fn send_within<T>(
        &self,
        request: &Request,
        limit: Duration,
        decode: impl Fn(&ApiResponse) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let attempts = Attempts::within(limit, self.endpoints.urls().len());
        self.send_until(request, attempts, |attempt| self.receive(request, attempt, &decode)).await
    }

    /// Makes attempts at the endpoints until one succeeds or no further one would help.
    async fn send_until<'a, T, F>(
        &'a self,
        request: &Request,
        attempts: Attempts,
        send: impl Fn(Sending<'a>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let span = spans::registry_request(&request.method, &request.path);
        let outcome = self.attempt_until(request, attempts, send).instrument(span.clone()).await;
        spans::record_outcome(&span, &outcome);
        outcome
    }

    async fn attempt_until<'a, T, F>(
        &'a self,
        request: &Request,
        mut attempts: Attempts,
        send: impl Fn(Sending<'a>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut tried = Vec::new();
        let mut number = 0;
        loop {
            number += 1;
            let attempt = self.endpoints.begin(&tried);
            let index = attempt.index();
            let span = spans::registry_attempt(&request.method, &self.endpoints.urls()[index], number);
            let sending = Sending { attempt, limit: attempts.limit(), span: span.clone() };
            let Failed { error, was_sent } = match send(sending).instrument(span.clone()).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            spans::record_failure(&span, error.name());
            if error.is_endpoint_failure() {
                self.http.renew(&self.endpoints.urls()[index]);
                tried.push(index);
            }
            let (is_left, is_up) = self.endpoints.untried(&tried);
            // Without a connection the request cannot have arrived, so another endpoint may get it at once.
            if !was_sent && is_left && !attempts.time_left().is_zero() {
                continue;
            }
            let Some(delay) = attempts.delay_after(&error, is_up) else { return Err(error) };
            metrics::retried();
            tracing::debug!(%error, pause = ?delay, "trying again");
            sleep(delay).await;
            if !is_left {
                tried = tried.pop().into_iter().collect();
            }
        }
    }

    /// Opens a stream of events, whose body is read later. Also returns its endpoint.
    pub(crate) async fn open_events(&self, request: &Request) -> Result<(Response, usize), Error> {
        let endpoints = self.endpoints.urls().len();
        let limit = self.attempt_timeout.saturating_mul(u32::try_from(endpoints).unwrap_or(u32::MAX));
        let attempts = Attempts::within(limit, endpoints);
        self.send_until(request, attempts, |attempt| self.open_events_at(request, attempt)).await
    }

    /// Records that a stream was silent or broke off before its first event.
    pub(crate) fn stream_failed(&self, index: usize) {
        self.endpoints.record_failure(index);
        self.http.renew(&self.endpoints.urls()[index]);
    }

    async fn open_events_at(
        &self,
        request: &Request,
        sending: Sending<'_>,
    ) -> Result<(Response, usize), Failed> {
        let index = sending.attempt.index();
        let opened = self.open_stream(request, &sending).await;
        match &opened {
            Ok(_) => sending.attempt.undecided(),
            Err(failed) => record(sending.attempt, failed),
        }
        opened.map(|response| (response, index))
    }

    async fn open_stream(&self, request: &Request, sending: &Sending<'_>) -> Result<Response, Failed> {
        let response = self.head(request, sending).await?;
        let status = response.status();
        if !status.is_success() {
            let url = &self.endpoints.urls()[sending.attempt.index()];
            let response = read(response, url, sending.limit, MAX_RECORD).await?;
            return Err(failure(status, &response, request.kind).into());
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            Ok(response)
        } else {
            let detail = "this is not a stream of events".to_owned();
            Err(Error::InvalidResponse { status: status.as_u16(), detail }.into())
        }
    }

    /// Makes an attempt and records its outcome.
    async fn receive<T>(
        &self,
        request: &Request,
        sending: Sending<'_>,
        decode: &impl Fn(&ApiResponse) -> Result<T, Error>,
    ) -> Result<T, Failed> {
        let received = self.receive_response(request, &sending).await;
        let decoded = received.and_then(|response| Ok((decode(&response)?, response.age())));
        let attempt = sending.attempt;
        match decoded {
            // A response from memory counts as a failure if there is another endpoint.
            Ok((value, age)) if !age.is_zero() => {
                attempt.failed(false);
                Ok(value)
            }
            Ok((value, _)) => {
                attempt.succeeded();
                Ok(value)
            }
            Err(failed) => {
                record(attempt, &failed);
                Err(failed)
            }
        }
    }

    async fn receive_response(
        &self,
        request: &Request,
        sending: &Sending<'_>,
    ) -> Result<ApiResponse, Failed> {
        let response = self.head(request, sending).await?;
        sending.attempt.head_arrived();
        let status = response.status();
        let most = if request.kind == Kind::List { MAX_LIST } else { MAX_RECORD };
        let url = &self.endpoints.urls()[sending.attempt.index()];
        let response = read(response, url, sending.limit, most).await?;
        if !status.is_success() {
            return Err(failure(status, &response, request.kind).into());
        }
        // The body has to be JSON, or empty if the status allows that.
        match response.body.trim_ascii_start().first() {
            Some(b'{' | b'[' | b'"' | b'n' | b't' | b'f') => Ok(response),
            None if response.may_be_empty() => Ok(response),
            _ => Err(response.invalid("no JSON").into()),
        }
    }

    /// Sends a request and waits for the head of its response.
    async fn head(&self, request: &Request, sending: &Sending<'_>) -> Result<Response, Failed> {
        let Sending { attempt, limit, span } = sending;
        let url = &self.endpoints.urls()[attempt.index()];
        let full_url = request.url(url)?;
        spans::record_url(span, &full_url);
        let mut builder = self.http.for_url(url)?.request(request.method.clone(), full_url);
        builder = builder.headers(propagation::headers());
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
        let response = match timeout_at(limit.deadline, builder.send()).await {
            Ok(response) => response.map_err(|error| broken(url, *limit, error))?,
            Err(_) => return Err(timed_out(url, *limit).into()),
        };
        spans::record_status(span, response.status().as_u16());
        Ok(response)
    }
}

/// An attempt in flight.
struct Sending<'a> {
    attempt: Attempt<'a>,
    limit: Limit,
    span: Span,
}

/// Reads a response to its end. Each part that arrives extends the deadline, unless the limit is strict.
async fn read(
    mut response: Response,
    url: &Url,
    mut limit: Limit,
    most: usize,
) -> Result<ApiResponse, Failed> {
    let status = response.status().as_u16();
    let headers = std::mem::take(response.headers_mut());
    let (mut body, mut milestone) = (Vec::new(), PROGRESS);
    loop {
        let chunk = match timeout_at(limit.deadline, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| broken(url, limit, error))?,
            Err(_) => return Err(timed_out(url, limit).into()),
        };
        let Some(chunk) = chunk else { return Ok(ApiResponse { status, headers, body }) };
        if body.len() + chunk.len() > most {
            let detail = format!("it is longer than {most} bytes");
            return Err(Error::InvalidResponse { status, detail }.into());
        }
        body.extend_from_slice(&chunk);
        if body.len() >= milestone {
            milestone = body.len() + PROGRESS;
            limit.extend();
        }
    }
}

fn timed_out(url: &Url, limit: Limit) -> Error {
    Error::TimedOut { url: shown(url), after: limit.duration }
}

/// Records a failed attempt, which need not be the endpoint's fault.
fn record(attempt: Attempt<'_>, Failed { error, .. }: &Failed) {
    if error.is_endpoint_failure() {
        attempt.failed(matches!(error, Error::TimedOut { .. }));
    } else {
        attempt.succeeded();
    }
}

/// Returns the error for a connection that could not be made or broke.
fn broken(url: &Url, limit: Limit, error: reqwest::Error) -> Failed {
    if error.is_builder() {
        return Error::Config(format!("the request cannot be sent: {}", with_causes(&error.without_url())))
            .into();
    }
    if error.is_timeout() && !error.is_connect() {
        let after = limit.duration;
        return Error::TimedOut { url: shown(url), after }.into();
    }
    let (was_sent, is_tls) = (!error.is_connect(), url.scheme() == "https" && is_tls_failure(&error));
    let (url, source) = (shown(url), Arc::new(error.without_url()));
    let error = if is_tls { Error::Tls { url, source } } else { Error::Unreachable { url, source } };
    Failed { was_sent, error }
}

/// Returns whether the TLS protocol failed. TLS implementations use this kind of I/O error, and connections that were cut off
/// have another one.
fn is_tls_failure(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData) {
            return true;
        }
        // The source of an I/O error that wraps another one is not that error itself.
        cause = match io.and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// A failed attempt, and whether the request may have arrived.
struct Failed {
    was_sent: bool,
    error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { was_sent: true, error }
    }
}

impl Request {
    fn url(&self, base: &Url) -> Result<Url, Error> {
        let mut url = base.clone();
        url.path_segments_mut()
            .map_err(|()| Error::Config(format!("{} cannot be a base URL", shown(base))))?
            .pop_if_empty()
            .extend(&self.path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}
