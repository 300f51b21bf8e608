//! One question to one agent: how are you?

use std::time::Duration;

use axum::http::header::CONTENT_LENGTH;
use reqwest::redirect::Policy;
use tokio::time::{Instant, timeout};
use url::Host;

use super::guard::Guard;
use registry_sdk::contract::health_url;

/// The longest answer that is read.
const LONGEST_ANSWER: usize = 64 * 1_024;

/// How much of what went wrong is kept.
const LONGEST_DETAIL: usize = 200;

/// Asks agents. They are not trusted: no redirect is followed, and an answer is bounded in length and time.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    http: reqwest::Client,
    guard: Guard,
    limit: Duration,
}

/// What came of a question.
#[derive(Debug)]
pub(super) struct Answered {
    /// Why it does not count as healthy, where it does not.
    pub(super) outcome: Result<(), String>,
    pub(super) took: Duration,
}

impl Asker {
    /// # Errors
    /// Where the system's TLS cannot be set up.
    pub(super) fn new(guard: Guard, limit: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .dns_resolver(guard.clone())
            // A proxy would resolve names by itself, and dial what it likes.
            .no_proxy()
            .redirect(Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("registry-server/", env!("CARGO_PKG_VERSION"), " (probe)"))
            .build()?;
        Ok(Self { http, guard, limit })
    }

    pub(super) async fn ask(&self, base_url: &str) -> Answered {
        let began = Instant::now();
        let late = || format!("no complete answer within {:?}", self.limit);
        let outcome = timeout(self.limit, self.answer(base_url)).await.unwrap_or_else(|_| Err(late()));
        let outcome = outcome.map_err(|detail| detail.chars().take(LONGEST_DETAIL).collect());
        Answered { outcome, took: began.elapsed() }
    }

    async fn answer(&self, base_url: &str) -> Result<(), String> {
        let url = health_url(base_url).ok_or("its base_url cannot be asked")?;
        // Names are checked where they are resolved; an address is not resolved.
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        };
        if let Some(address) = address {
            self.guard.check(address).map_err(|refused| refused.to_string())?;
        }
        let mut answer = self.http.get(url).send().await.map_err(cause)?;
        if !answer.status().is_success() {
            return Err(format!("it answered {}", answer.status().as_u16()));
        }
        let too_long = || format!("its answer is longer than {LONGEST_ANSWER} bytes");
        let announced =
            answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > LONGEST_ANSWER) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(cause)? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        // Most say it with the status of the answer alone; some only in words.
        let said = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        if said["status"] == "unhealthy" { Err("it says that it is unhealthy".to_owned()) } else { Ok(()) }
    }
}

/// The innermost cause of an error: the telling part.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
