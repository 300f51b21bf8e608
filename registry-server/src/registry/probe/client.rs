//! Probes one agent over HTTP.

use std::time::Duration;

use axum::http::header::LOCATION;
use reqwest::redirect::Policy;
use tokio::time::{Instant, timeout};
use url::Host;

use super::address_filter::AddressFilter;
use crate::store::StoredAgent;
use registry_sdk::internal::{HealthAnswer, MAX_HEALTH_REDIRECTS, health_url};

/// Size after which the rest of a response is not read.
const MAX_RESPONSE_BYTES: usize = 64 * 1_024;

/// Maximum length of a failure's detail, in characters.
const MAX_DETAIL_CHARS: usize = 200;

/// An HTTP client for untrusted agents.
///
/// Only follows redirects within an agent, and limits the size and the time of a response.
#[derive(Clone, Debug)]
pub(super) struct ProbeClient {
    http: reqwest::Client,
    filter: AddressFilter,
    timeout: Duration,
}

/// The outcome of a probe.
#[derive(Debug)]
pub(super) struct ProbeOutcome {
    pub(super) verdict: Verdict,
    pub(super) elapsed: Duration,
}

/// The verdict of a probe.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The agent responded successfully, or at least proved that it is running.
    Healthy,
    /// There is no health endpoint at the path.
    CannotTell(u16),
    /// The agent did not respond successfully, for this reason.
    Failed(String),
}

impl Verdict {
    /// Returns a description for people.
    pub(super) fn detail(&self) -> Option<String> {
        match self {
            Self::Healthy => None,
            Self::CannotTell(status) => Some(format!(
                "it answered {status}, which says nothing about its health: register its health_path, or \"probe\": \"off\""
            )),
            Self::Failed(detail) => Some(detail.clone()),
        }
    }
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
            // Redirects are followed one by one, after a check.
            .redirect(Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("registry-server/", env!("CARGO_PKG_VERSION"), " (probe)"))
            .build()?;
        Ok(Self { http, filter, timeout })
    }

    pub(super) async fn probe(&self, agent: &StoredAgent) -> ProbeOutcome {
        let started = Instant::now();
        let timed_out = || Err(format!("no complete answer within {:?}", self.timeout));
        let verdict = timeout(self.timeout, self.check(agent)).await.unwrap_or_else(|_| timed_out());
        let verdict =
            verdict.unwrap_or_else(|detail| Verdict::Failed(detail.chars().take(MAX_DETAIL_CHARS).collect()));
        ProbeOutcome { verdict, elapsed: started.elapsed() }
    }

    /// Probes an agent, following redirects within it. Returns the reason of a failure as the error.
    async fn check(&self, agent: &StoredAgent) -> Result<Verdict, String> {
        let url = health_url(&agent.base_url, agent.health_path.as_deref());
        let mut url = url.ok_or("its base_url is not a URL that can be probed")?;
        // Names are checked when they are resolved. Literal addresses are not resolved, and redirects keep
        // the host.
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        };
        if let Some(address) = address {
            self.filter.check(address).map_err(|forbidden| forbidden.to_string())?;
        }
        for _ in 0..=MAX_HEALTH_REDIRECTS {
            let response = self.http.get(url.clone()).send().await.map_err(root_cause)?;
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let status = response.status().as_u16();
            match HealthAnswer::of_head(&url, status, location) {
                HealthAnswer::Success if HealthAnswer::says_unhealthy(&read_body(response).await?) => {
                    return Err("it says that it is unhealthy".to_owned());
                }
                HealthAnswer::Success | HealthAnswer::Alive => return Ok(Verdict::Healthy),
                HealthAnswer::CannotTell => return Ok(Verdict::CannotTell(status)),
                HealthAnswer::Failure(detail) => return Err(detail),
                HealthAnswer::Redirect(target) => url = target,
            }
        }
        Err(format!("it redirects more than {MAX_HEALTH_REDIRECTS} times"))
    }
}

/// Reads the beginning of a response.
///
/// A longer response is a page rather than a health report, so its body says nothing about the agent's
/// health.
async fn read_body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while body.len() < MAX_RESPONSE_BYTES
        && let Some(chunk) = response.chunk().await.map_err(root_cause)?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the innermost cause of an error, which is the most specific one.
fn root_cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
