//! Health checks of candidates.

use std::time::Duration;

use reqwest::header::LOCATION;
use tokio::time::{Instant, timeout};

use super::candidate::Candidate;
use super::query::HealthSource;
use super::selection::SkipReason;
use crate::client::RegistryClient;
use crate::contract::own_health::{HealthAnswer, MAX_HEALTH_REDIRECTS, health_url};
use crate::contract::{ProbeMode, UnhealthyReason};
use crate::http::{HttpClients, Unread, read_bounded};
use crate::propagation;

/// Maximum length of an agent's own health report in bytes.
const MAX_REPORT: usize = 64 * 1_024;

/// Whom to ask for an agent's health.
#[derive(Clone, Copy, Debug)]
pub(super) struct HealthCheck<'a> {
    pub(super) client: &'a RegistryClient,
    pub(super) http: &'a HttpClients,
    pub(super) source: HealthSource,
    /// Whether the registry is unavailable: its data is old, and its health checks would fail.
    pub(super) is_stale: bool,
    pub(super) limit: Duration,
}

/// An agent's report on its own health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Healthy,
    Unhealthy,
    /// The agent has no health endpoint, or does not want to be asked.
    CannotTell,
    NoAnswer,
}

impl HealthCheck<'_> {
    /// Returns whether an agent can be given a task. Makes one attempt each.
    pub(super) async fn run(&self, agent: &Candidate) -> Result<(), SkipReason> {
        let is_healthy = match (self.source, agent.reported_health()) {
            (HealthSource::Agent, _) => return self.trust_agent(agent).await,
            _ if self.is_stale => return self.trust_agent(agent).await,
            (HealthSource::Search, Some(is_healthy)) => is_healthy,
            (HealthSource::Search | HealthSource::Registry, reported) => {
                let health = self.client.check_health_within(agent.agent_id(), self.limit).await;
                match (health, reported) {
                    (Ok(health), _) if health.reason == Some(UnhealthyReason::Maintenance) => {
                        return Err(SkipReason::Maintenance);
                    }
                    (Ok(health), _) => health.is_healthy(),
                    // Its recent report still counts.
                    (Err(error), Some(reported)) if error.is_outage() => reported,
                    (Err(error), None) if error.is_outage() => return self.trust_agent(agent).await,
                    (Err(_), _) => return Err(SkipReason::NoAnswer),
                }
            }
        };
        if is_healthy { Ok(()) } else { Err(SkipReason::Unhealthy) }
    }

    /// Asks the agent itself. If that gives no result, the registry's last report counts.
    async fn trust_agent(&self, agent: &Candidate) -> Result<(), SkipReason> {
        match self.ask_agent(agent).await {
            Report::Healthy => Ok(()),
            Report::CannotTell if agent.looks_healthy() => Ok(()),
            Report::CannotTell | Report::Unhealthy => Err(SkipReason::Unhealthy),
            Report::NoAnswer => Err(SkipReason::NoAnswer),
        }
    }

    async fn ask_agent(&self, agent: &Candidate) -> Report {
        if agent.probe() != ProbeMode::On {
            return Report::CannotTell;
        }
        let asked = timeout(self.limit, self.request_report(agent)).await;
        asked.ok().flatten().unwrap_or(Report::NoAnswer)
    }

    /// Returns `None` if there is no complete response.
    async fn request_report(&self, agent: &Candidate) -> Option<Report> {
        let mut url = health_url(agent.base_url(), agent.health_path())?;
        for _ in 0..=MAX_HEALTH_REDIRECTS {
            let request = self.http.for_url(&url).ok()?.get(url).headers(propagation::headers());
            let response = request.send().await.ok()?;
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            // The client has followed some redirects itself.
            match HealthAnswer::of_head(response.url(), response.status().as_u16(), location) {
                HealthAnswer::Success => {
                    let forever = crate::retry::deadline_after(Instant::now(), Duration::MAX);
                    // A longer body is a page rather than a report, and says nothing about health.
                    let read = read_bounded(response, MAX_REPORT, forever, None).await;
                    let (Ok(body) | Err(Unread::TooLong(body))) = read else { return None };
                    let is_unhealthy = HealthAnswer::says_unhealthy(&body);
                    return Some(if is_unhealthy { Report::Unhealthy } else { Report::Healthy });
                }
                HealthAnswer::Alive => return Some(Report::Healthy),
                HealthAnswer::CannotTell => return Some(Report::CannotTell),
                HealthAnswer::Failure(_) => return Some(Report::Unhealthy),
                HealthAnswer::Redirect(target) => url = target,
            }
        }
        Some(Report::Unhealthy)
    }
}
