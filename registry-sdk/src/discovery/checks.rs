//! Health checks of candidates.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::candidate::Candidate;
use super::query::HealthSource;
use super::selection::SkipReason;
use crate::client::RegistryClient;
use crate::contract::health_url;
use crate::http::{HttpClients, read_bounded};

/// Maximum length of an agent's own health report in bytes.
const MAX_REPORT: usize = 64 * 1_024;

/// Who is asked how an agent is.
#[derive(Clone, Copy, Debug)]
pub(super) struct HealthCheck<'a> {
    pub(super) client: &'a RegistryClient,
    pub(super) http: &'a HttpClients,
    pub(super) source: HealthSource,
    /// Whether the registry could not be asked: its word is old, and its health checks would fail.
    pub(super) is_stale: bool,
    pub(super) limit: Duration,
}

/// What an agent says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Healthy,
    Unhealthy,
    /// It answers, but has no health endpoint.
    NoEndpoint,
    NoAnswer,
}

impl HealthCheck<'_> {
    /// Whether an agent can be given a task. One attempt each.
    pub(super) async fn run(&self, agent: &Candidate) -> Result<(), SkipReason> {
        let is_healthy = match (self.source, agent.reported_health()) {
            (HealthSource::Agent, _) => match self.ask_agent(agent).await {
                Report::Healthy => true,
                Report::Unhealthy | Report::NoEndpoint => false,
                Report::NoAnswer => return Err(SkipReason::NoAnswer),
            },
            _ if self.is_stale => return self.trust_agent(agent).await,
            (HealthSource::Search, Some(is_healthy)) => is_healthy,
            (HealthSource::Search | HealthSource::Registry, reported) => {
                let health = self.client.check_health_within(agent.agent_id(), self.limit).await;
                match (health, reported) {
                    (Ok(health), _) => health.is_healthy(),
                    // Its word of a moment ago still counts.
                    (Err(error), Some(reported)) if error.is_outage() => reported,
                    (Err(error), None) if error.is_outage() => return self.trust_agent(agent).await,
                    (Err(_), _) => return Err(SkipReason::NoAnswer),
                }
            }
        };
        if is_healthy { Ok(()) } else { Err(SkipReason::Unhealthy) }
    }

    /// Asks the agent in place of a registry that is away. If it has no health endpoint, the registry's last word counts.
    async fn trust_agent(&self, agent: &Candidate) -> Result<(), SkipReason> {
        match self.ask_agent(agent).await {
            Report::Healthy => Ok(()),
            Report::NoEndpoint if agent.reported_health() != Some(false) => Ok(()),
            Report::NoEndpoint | Report::Unhealthy => Err(SkipReason::Unhealthy),
            Report::NoAnswer => Err(SkipReason::NoAnswer),
        }
    }

    async fn ask_agent(&self, agent: &Candidate) -> Report {
        let asked = timeout(self.limit, self.request_report(agent)).await;
        asked.ok().flatten().unwrap_or(Report::NoAnswer)
    }

    /// `None` if there is no complete answer.
    async fn request_report(&self, agent: &Candidate) -> Option<Report> {
        let url = health_url(agent.base_url())?;
        let response = self.http.for_url(&url).ok()?.get(url).send().await.ok()?;
        let status = response.status();
        if matches!(status.as_u16(), 404 | 405 | 501) {
            return Some(Report::NoEndpoint);
        }
        if !status.is_success() {
            return Some(Report::Unhealthy);
        }
        // Some agents answer 200 and say it only in the body.
        let forever = crate::retry::deadline_after(Instant::now(), Duration::MAX);
        let body = read_bounded(response, MAX_REPORT, forever).await.ok()?;
        let report = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        Some(if report["status"] == "unhealthy" { Report::Unhealthy } else { Report::Healthy })
    }
}
