//! The one place that sends: time-outs, retries, and the errors that become of them.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Method, Response};
use tokio::time::{Instant, sleep};
use tracing::Instrument;
use url::Url;

use crate::credentials::{Certificates, Credentials};
use crate::endpoints::Endpoints;
use crate::error::{Error, with_causes};
use crate::metrics;
use crate::response::{ApiResponse, failure};
use crate::retry::{Attempts, RetryPolicy, deadline_after};

/// The longest answer that is read. 100,000 agents are some 80 MB; what is longer is no registry's answer.
const MAX_ANSWER: usize = 256 * 1_024 * 1_024;

/// Sends requests to a registry: to one URL until it fails, then to the next. Clones share connections and
/// what is known of the URLs.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    endpoints: Endpoints,
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
        let endpoints = Endpoints::parse(urls)?;
        let http = certificates
            .add_to(reqwest::Client::builder())?
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(IDLE_CONNECTION)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("registry-sdk/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                Error::Config(format!("the HTTP client cannot be set up: {}", with_causes(&error)))
            })?;
        Ok(Self { http, endpoints, attempt_timeout, credentials })
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
    pub(crate) async fn send(&self, request: &Request, policy: &RetryPolicy) -> Result<ApiResponse, Error> {
        let path = request.path.join("/");
        let span = tracing::debug_span!("registry_request", method = %request.method, path);
        self.send_until(request, policy.begin()).instrument(span).await
    }

    async fn send_until(&self, request: &Request, mut attempts: Attempts) -> Result<ApiResponse, Error> {
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
    pub(crate) async fn send_once(&self, request: &Request, limit: Duration) -> Result<ApiResponse, Error> {
        self.on_an_endpoint(limit, |endpoint| self.attempt(request, endpoint)).await
    }

    /// Sends a request once, and gives its answer, a stream of events, before it has come to its end.
    pub(crate) async fn open_events(&self, request: &Request) -> Result<Response, Error> {
        let opened = |endpoint| async move {
            let response = self.open(request, endpoint).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(failure(status, &self.read(response, endpoint).await?, request.optional).into());
            }
            let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            if kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
                Ok(response)
            } else {
                let detail = "no stream of events".to_owned();
                Err(Error::InvalidResponse { status: status.as_u16(), detail }.into())
            }
        };
        self.on_an_endpoint(self.attempt_timeout, opened).await
    }

    async fn on_an_endpoint<T, F>(&self, limit: Duration, attempt: impl Fn(usize) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let deadline = deadline_after(Instant::now(), limit);
        let mut left = self.endpoints.count();
        loop {
            left -= 1;
            let endpoint = self.endpoints.pick();
            let outcome = tokio::time::timeout_at(deadline, attempt(endpoint)).await.unwrap_or_else(|_| {
                let url = self.endpoints.url(endpoint).to_string();
                Err(Failed::after(Error::TimedOut { url, after: limit }))
            });
            self.endpoints
                .record(endpoint, !outcome.as_ref().is_err_and(|failed| failed.error.is_endpoint_failure()));
            match outcome {
                Err(Failed { sent: false, .. }) if left > 0 => {}
                outcome => return outcome.map_err(|failed| failed.error),
            }
        }
    }

    async fn attempt(&self, request: &Request, endpoint: usize) -> Result<ApiResponse, Failed> {
        let response = self.open(request, endpoint).await?;
        let status = response.status();
        let answer = self.read(response, endpoint).await?;
        if !status.is_success() {
            return Err(failure(status, &answer, request.optional).into());
        }
        // JSON, or nothing if the status allows that.
        match answer.body.trim_ascii_start().first() {
            Some(b'{' | b'[' | b'"' | b'n' | b't' | b'f') => Ok(answer),
            None if answer.may_be_empty() => Ok(answer),
            _ => Err(answer.invalid("no JSON").into()),
        }
    }

    async fn open(&self, request: &Request, endpoint: usize) -> Result<Response, Failed> {
        let base = self.endpoints.url(endpoint);
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

    async fn read(&self, mut response: Response, endpoint: usize) -> Result<ApiResponse, Failed> {
        let base = self.endpoints.url(endpoint);
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(base, error))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                let detail = format!("it is longer than {MAX_ANSWER} bytes");
                return Err(Error::InvalidResponse { status, detail }.into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(ApiResponse { status, headers, body })
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
            .map_err(|()| Error::Config(format!("{base} cannot have a path")))?
            .pop_if_empty()
            .extend(&self.path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}

/// What is kept of the libraries' errors: their texts.
fn cause(error: &dyn std::error::Error) -> Arc<dyn std::error::Error + Send + Sync> {
    Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(with_causes(error)))
}
