//! Choosing an agent: the best-ranked healthy one, with health asked side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::breaker::{BreakerSettings, Breakers, CircuitState};
use super::query::{HealthFrom, Policy, TaskQuery};
use crate::client::RegistryClient;
use crate::contract::{AgentStatus, CapabilityMatch, limits};
use crate::error::Error;
use crate::query::SearchQuery;

/// Finds living agents for tasks, and hands tasks over to them.
///
/// Cheap to clone; clones share what is known of the agents: who failed lately, and who was chosen when.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use registry_sdk::RegistryClient;
/// use registry_sdk::discovery::Orchestrator;
///
/// let orchestrator = Orchestrator::new(RegistryClient::new("http://127.0.0.1:8009")?);
/// let selection = orchestrator.find_best_agent("code_review").await?;
/// println!("{} at {}", selection.agent.agent_id, selection.agent.base_url);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Orchestrator {
    client: RegistryClient,
    http: reqwest::Client,
    pub(super) breakers: Breakers,
    /// When each agent was last chosen, in the order of choices.
    chosen: Arc<Mutex<Chosen>>,
}

#[derive(Debug, Default)]
struct Chosen {
    count: u64,
    last: HashMap<String, u64>,
}

/// The agent that was chosen, and how it came to that.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Selection {
    /// The agent, by the capability that matched.
    pub agent: CapabilityMatch,
    /// Which of the capabilities that were asked for it was found by.
    pub found_by: String,
    /// Whether that was a fallback.
    pub by_fallback: bool,
    /// Who came before it and was not chosen.
    pub passed_over: Vec<PassedOver>,
}

/// An agent that was not chosen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PassedOver {
    /// Who.
    pub agent_id: String,
    /// Why.
    pub why: Why,
}

/// Why an agent was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// It was to be left out.
    LeftOut,
    /// Its capability has not all the tags.
    NoSuchTag,
    /// It failed too often lately.
    CircuitOpen,
    /// It is not healthy.
    Unhealthy,
    /// Its health could not be told, or not in time.
    NoAnswer,
}

/// Why no agent was chosen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No healthy agent can do it.
    #[error("no healthy agent can do {capability:?}: {} were passed over", passed_over.len())]
    NoAgent {
        /// What was looked for first.
        capability: String,
        /// Everyone who could do it, or a fallback, and why it was not chosen.
        passed_over: Vec<PassedOver>,
    },
    /// The registry could not be searched.
    #[error("the registry could not be searched")]
    Registry(#[from] Error),
}

impl Orchestrator {
    /// With the default circuit breakers.
    #[must_use]
    pub fn new(client: RegistryClient) -> Self {
        Self::with_breakers(client, BreakerSettings::default())
    }

    /// With circuit breakers of one's own.
    #[must_use]
    pub fn with_breakers(client: RegistryClient, settings: BreakerSettings) -> Self {
        let http = client.http();
        Self { client, http, breakers: Breakers::new(settings), chosen: Arc::default() }
    }

    /// The client behind it.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// How an agent's circuit stands.
    #[must_use]
    pub fn circuit(&self, agent_id: &str) -> CircuitState {
        self.breakers.state(agent_id)
    }

    /// The best-ranked healthy agent that can do something.
    ///
    /// # Errors
    /// As [`Orchestrator::select`].
    pub async fn find_best_agent(&self, capability: impl Into<String>) -> Result<Selection, SelectError> {
        self.select(&TaskQuery::new(capability)).await
    }

    /// An agent for a query. Health is asked side by side, and the answer comes as soon as everyone who comes
    /// before the chosen one is known not to do.
    ///
    /// May be cancelled: nothing is left running.
    ///
    /// # Errors
    /// [`SelectError::NoAgent`] with everyone who was passed over; [`SelectError::Registry`] where the search
    /// itself failed.
    pub async fn select(&self, query: &TaskQuery) -> Result<Selection, SelectError> {
        let mut passed_over = Vec::new();
        let wanted = std::iter::once(&query.capability).chain(&query.fallbacks);
        for (place, capability) in wanted.enumerate() {
            // Those who are offline would only be asked in vain; the contract's order has them last.
            let search = SearchQuery::new(capability).limit(limits::PAGE);
            let mut found = self.client.search_capabilities(search).await?;
            found.retain(|agent| {
                agent.status != AgentStatus::Offline || query.health_from == HealthFrom::Agent
            });
            let candidates = self.admissible(query, found, &mut passed_over);
            if let Some(agent) = self.first_healthy(query, candidates, &mut passed_over).await {
                self.note_choice(&agent.agent_id);
                let found_by = capability.clone();
                return Ok(Selection { agent, found_by, by_fallback: place > 0, passed_over });
            }
        }
        Err(SelectError::NoAgent { capability: query.capability.clone(), passed_over })
    }

    /// Those that may be chosen, in the policy's order.
    fn admissible(
        &self,
        query: &TaskQuery,
        found: Vec<CapabilityMatch>,
        passed_over: &mut Vec<PassedOver>,
    ) -> Vec<CapabilityMatch> {
        let refused = |agent: &CapabilityMatch| {
            let has = |tag: &String| agent.tags.contains(tag);
            if query.leave_out.contains(&agent.agent_id) {
                Some(Why::LeftOut)
            } else if !query.tags.iter().all(has) {
                Some(Why::NoSuchTag)
            } else if self.breakers.state(&agent.agent_id) == CircuitState::Open {
                Some(Why::CircuitOpen)
            } else {
                None
            }
        };
        let mut candidates = Vec::with_capacity(found.len());
        for agent in found {
            match refused(&agent) {
                Some(why) => passed_over.push(PassedOver { agent_id: agent.agent_id, why }),
                None => candidates.push(agent),
            }
        }
        self.order(query.policy, &mut candidates);
        candidates
    }

    fn order(&self, policy: Policy, candidates: &mut [CapabilityMatch]) {
        match policy {
            Policy::Rank => {}
            Policy::Random => fastrand::shuffle(candidates),
            Policy::RoundRobin => {
                candidates.sort_by(|a, b| a.agent_id.cmp(&b.agent_id));
                let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
                // After the one that was chosen last.
                let last = (0..candidates.len())
                    .filter_map(|place| Some((chosen.last.get(&candidates[place].agent_id)?, place)))
                    .max();
                if let Some((_, place)) = last {
                    candidates.rotate_left(place + 1);
                }
            }
            Policy::LeastRecentlyUsed => {
                let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
                // Never chosen comes first; of equals, the better match.
                candidates.sort_by_key(|agent| chosen.last.get(&agent.agent_id).copied());
            }
        }
    }

    /// The first that is healthy. Those after it are asked at the same time, and their answers dropped.
    async fn first_healthy(
        &self,
        query: &TaskQuery,
        candidates: Vec<CapabilityMatch>,
        passed_over: &mut Vec<PassedOver>,
    ) -> Option<CapabilityMatch> {
        let checks = stream::iter(candidates).map(|agent| async {
            let verdict = timeout(query.check_timeout, self.check(query.health_from, &agent)).await;
            (agent, verdict.unwrap_or(Err(Why::NoAnswer)))
        });
        // In the candidates' order, however the answers come in.
        let mut checks = std::pin::pin!(checks.buffered(query.at_once.max(1)));
        while let Some((agent, verdict)) = checks.next().await {
            match verdict {
                Ok(()) => return Some(agent),
                Err(why) => passed_over.push(PassedOver { agent_id: agent.agent_id, why }),
            }
        }
        None
    }

    async fn check(&self, source: HealthFrom, agent: &CapabilityMatch) -> Result<(), Why> {
        let healthy = match source {
            // A registry that does not say has at least not called it offline.
            HealthFrom::Search => agent.healthy.unwrap_or(agent.status != AgentStatus::Offline),
            HealthFrom::Registry => {
                let health = self.client.check_health(&agent.agent_id).await;
                health.map_err(|_| Why::NoAnswer)?.is_healthy()
            }
            HealthFrom::Agent => {
                let url = format!("{}/health", agent.base_url.trim_end_matches('/'));
                let answer = self.http.get(url).send().await.map_err(|_| Why::NoAnswer)?;
                answer.status().is_success()
            }
        };
        if healthy { Ok(()) } else { Err(Why::Unhealthy) }
    }

    fn note_choice(&self, agent_id: &str) {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        chosen.count += 1;
        let count = chosen.count;
        chosen.last.insert(agent_id.to_owned(), count);
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }
}
