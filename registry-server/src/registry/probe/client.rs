//! One question to one agent: how are you?

use std::time::Duration;

use axum::http::header::CONTENT_LENGTH;
use reqwest::redirect::Policy;
use tokio::time::{Instant, timeout};
use url::Host;

use super::address_filter::AddressFilter;
use registry_sdk::contract::health_url;

/// The longest answer that is read.
const MAX_RESPONSE_BYTES: usize = 64 * 1_024;

/// How much of what went wrong is kept.
const MAX_DETAIL_CHARS: usize = 200;

/// Asks agents. They are not trusted: no redirect is followed, and an answer is bounded in length and time.
#[derive(Clone, Debug)]
pub(super) struct ProbeClient {
    http: reqwest::Client,
    filter: AddressFilter,
    timeout: Duration,
}

/// What came of a question.
#[derive(Debug)]
pub(super) struct ProbeOutcome {
    /// Why it does not count as healthy, where it does not.
    pub(super) result: Result<(), String>,
    pub(super) elapsed: Duration,
}

impl ProbeClient {
    /// # Errors
    /// Where the system's TLS cannot be set up.
    pub(super) fn new(filter: AddressFilter, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .dns_resolver(filter.clone())
            // A proxy would resolve names by itself, and dial what it likes.
            .no_proxy()
            .redirect(Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("registry-server/", env!("CARGO_PKG_VERSION"), " (probe)"))
            .build()?;
        Ok(Self { http, filter, timeout })
    }

    pub(super) async fn probe(&self, base_url: &str) -> ProbeOutcome {
        let started = Instant::now();
        let timed_out = || format!("no complete answer within {:?}", self.timeout);
        let result = timeout(self.timeout, self.check(base_url)).await.unwrap_or_else(|_| Err(timed_out()));
        let result = result.map_err(|detail| detail.chars().take(MAX_DETAIL_CHARS).collect());
        ProbeOutcome { result, elapsed: started.elapsed() }
    }

    async fn check(&self, base_url: &str) -> Result<(), String> {
        let url = health_url(base_url).ok_or("its base_url cannot be asked")?;
        // Names are checked where they are resolved; an address is not resolved.
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        };
        if let Some(address) = address {
            self.filter.check(address).map_err(|forbidden| forbidden.to_string())?;
        }
        let mut response = self.http.get(url).send().await.map_err(root_cause)?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status().as_u16()));
        }
        let too_long = || format!("its answer is longer than {MAX_RESPONSE_BYTES} bytes");
        let content_length =
            response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if content_length.is_some_and(|length: usize| length > MAX_RESPONSE_BYTES) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(root_cause)? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        // Most say it with the status of the answer alone; some only in words.
        let health = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        if health["status"] == "unhealthy" { Err("it says that it is unhealthy".to_owned()) } else { Ok(()) }
    }
}

/// The innermost cause of an error: the telling part.
fn root_cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
