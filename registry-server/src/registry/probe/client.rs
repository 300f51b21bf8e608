//! Probes one agent over HTTP.

use std::time::Duration;

use axum::http::header::CONTENT_LENGTH;
use reqwest::redirect::Policy;
use tokio::time::{Instant, timeout};
use url::Host;

use super::address_filter::AddressFilter;
use registry_sdk::contract::health_url;

/// Maximum size of a response.
const MAX_RESPONSE_BYTES: usize = 64 * 1_024;

/// Maximum length of a failure's detail, in characters.
const MAX_DETAIL_CHARS: usize = 200;

/// An HTTP client for untrusted agents: follows no redirects, and limits the response in size and time.
#[derive(Clone, Debug)]
pub(super) struct ProbeClient {
    http: reqwest::Client,
    filter: AddressFilter,
    timeout: Duration,
}

/// The outcome of a probe.
#[derive(Debug)]
pub(super) struct ProbeOutcome {
    /// The reason if the agent does not count as healthy.
    pub(super) result: Result<(), String>,
    pub(super) elapsed: Duration,
}

impl ProbeClient {
    /// Creates a client with a timeout per probe.
    ///
    /// # Errors
    /// Fails if the system's TLS cannot be set up.
    pub(super) fn new(filter: AddressFilter, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .dns_resolver(filter.clone())
            // A proxy would resolve names itself and connect to any address.
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
        // Names are checked when they are resolved. A literal address is not resolved.
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
        // Most agents use the response status alone; some only report it in the body.
        let health = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        if health["status"] == "unhealthy" { Err("it says that it is unhealthy".to_owned()) } else { Ok(()) }
    }
}

/// Returns the innermost cause of an error, which is the most specific.
fn root_cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
