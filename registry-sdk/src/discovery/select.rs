//! Choosing an agent: the best-ranked healthy one, with health asked side by side.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::breaker::{BreakerSettings, Breakers, CircuitState};
use super::candidate::Candidate;
use super::directory::Directory;
use super::freshness::Freshness;
use super::order::Order;
use super::query::{HealthSource, Policy, TaskQuery};
use crate::client::RegistryClient;
use crate::contract::{AgentStatus, CapabilityMatch, health_url, limits};
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
    directory: Option<Directory>,
    order: Arc<Mutex<Order>>,
}

/// The agent that was chosen, and how it came to that.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Selection {
    /// The agent, by the capability that matched.
    pub agent: CapabilityMatch,
    /// Which of the capabilities that were asked for it was found by.
    pub matched_capability: String,
    /// Whether that was a fallback.
    pub is_fallback: bool,
    /// Who came before it and was not chosen.
    pub skipped: Vec<Skipped>,
    /// How much that it was there, and was healthy, can be relied on.
    pub freshness: Freshness,
}

/// An agent that was not chosen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// Who.
    pub agent_id: String,
    /// SkipReason.
    pub why: SkipReason,
}

/// SkipReason an agent was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// It was to be left out.
    Excluded,
    /// Its capability has not all the tags.
    MissingTag,
    /// It failed too often lately.
    CircuitOpen,
    /// It is not healthy.
    Unhealthy,
    /// Its health could not be told, or not in time.
    NoAnswer,
}

/// SkipReason no agent was chosen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No healthy agent can do it.
    #[error("no healthy agent can do {capability:?}: {} were passed over", skipped.len())]
    NoAgent {
        /// What was looked for first.
        capability: String,
        /// Everyone who could do it, or a fallback, and why it was not chosen.
        skipped: Vec<Skipped>,
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
        let order = Arc::new(Mutex::new(Order::new(fastrand::Rng::new())));
        Self { client, http, breakers: Breakers::new(settings), directory: None, order }
    }

    /// Finds agents in a directory that is kept up to date by watching, and not by a search. While it is out of date
    /// the registry is asked, and where that does not answer, the directory serves all the same.
    #[must_use]
    pub fn with_directory(mut self, directory: Directory) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Makes the choices that are left to chance the same every time: for tests.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        let order = Arc::new(Mutex::new(Order::new(fastrand::Rng::with_seed(seed))));
        Self { order, ..self }
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
        let mut skipped = Vec::new();
        let wanted = std::iter::once(&query.capability).chain(&query.fallbacks);
        for (place, capability) in wanted.enumerate() {
            let (mut found, freshness) = self.search(query, capability).await?;
            // Those who are offline would only be asked in vain.
            found.retain(|agent| {
                agent.status() != AgentStatus::Offline || query.health_source == HealthSource::Agent
            });
            let candidates = self.admissible(query, found, &mut skipped);
            // What the registry would say of them is not to be had while it does not answer.
            let health_source = match query.health_source {
                HealthSource::Registry if freshness.is_stale() => HealthSource::Search,
                source => source,
            };
            let chosen = self.first_healthy(query, health_source, candidates, &mut skipped).await;
            if let Some(agent) = chosen.and_then(Candidate::into_match) {
                self.lock_order().note(&agent.agent_id);
                let matched_capability = capability.clone();
                return Ok(Selection {
                    agent,
                    matched_capability,
                    is_fallback: place > 0,
                    skipped,
                    freshness,
                });
            }
        }
        Err(SelectError::NoAgent { capability: query.capability.clone(), skipped })
    }

    /// The same, and the agent's circuit lets the task through. Where it is half open, this task is the trial.
    pub(super) async fn select_admitted(&self, mut query: TaskQuery) -> Result<Selection, SelectError> {
        loop {
            let selection = self.select(&query).await?;
            let agent_id = &selection.agent.agent_id;
            if self.breakers.admit(agent_id) {
                return Ok(selection);
            }
            query.exclude.insert(agent_id.clone());
        }
    }

    /// Who can do something, in the registry's order: from the directory, where there is one that is up to date.
    async fn search(
        &self,
        query: &TaskQuery,
        capability: &str,
    ) -> Result<(Vec<Candidate>, Freshness), Error> {
        let copied = self.directory.as_ref().and_then(|directory| Some((directory, directory.freshness()?)));
        // Loads come with heartbeats, which a directory does not hear of.
        if let Some((directory, Freshness::Fresh)) = copied
            && query.policy != Policy::LeastLoaded
        {
            return Ok((directory.candidates(capability), Freshness::Fresh));
        }
        let search = SearchQuery::new(capability).limit(limits::PAGE);
        match (self.client.search_capabilities(search).await, copied) {
            (Ok(found), _) => {
                Ok((found.into_iter().map(Box::new).map(Candidate::Given).collect(), Freshness::Fresh))
            }
            (Err(error), Some((directory, freshness))) if error.is_endpoint_failure() => {
                Ok((directory.candidates(capability), freshness))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Those that may be chosen, in the policy's order.
    fn admissible(
        &self,
        query: &TaskQuery,
        found: Vec<Candidate>,
        skipped: &mut Vec<Skipped>,
    ) -> Vec<Candidate> {
        let refused = |agent: &Candidate| {
            let has = |tag: &String| agent.tags().contains(tag);
            if query.exclude.contains(agent.agent_id()) {
                Some(SkipReason::Excluded)
            } else if !query.tags.iter().all(has) {
                Some(SkipReason::MissingTag)
            } else if self.breakers.state(agent.agent_id()) == CircuitState::Open {
                Some(SkipReason::CircuitOpen)
            } else {
                None
            }
        };
        let mut candidates = Vec::with_capacity(found.len());
        for agent in found {
            match refused(&agent) {
                Some(why) => skipped.push(Skipped { agent_id: agent.agent_id().to_owned(), why }),
                None => candidates.push(agent),
            }
        }
        self.lock_order().sort(query.policy, &mut candidates);
        candidates
    }

    /// The first that is healthy. Those after it are asked at the same time, and their answers dropped.
    async fn first_healthy(
        &self,
        query: &TaskQuery,
        health_source: HealthSource,
        candidates: Vec<Candidate>,
        skipped: &mut Vec<Skipped>,
    ) -> Option<Candidate> {
        let checks = stream::iter(candidates).map(|agent| async {
            let verdict = timeout(query.check_timeout, self.check(health_source, &agent)).await;
            (agent, verdict.unwrap_or(Err(SkipReason::NoAnswer)))
        });
        // What needs no request is not done ahead.
        let max_concurrent_checks =
            if health_source == HealthSource::Search { 1 } else { query.max_concurrent_checks.max(1) };
        // In the candidates' order, however the answers come in.
        let mut checks = std::pin::pin!(checks.buffered(max_concurrent_checks));
        while let Some((agent, verdict)) = checks.next().await {
            match verdict {
                Ok(()) => return Some(agent),
                Err(why) => skipped.push(Skipped { agent_id: agent.agent_id().to_owned(), why }),
            }
        }
        None
    }

    async fn check(&self, source: HealthSource, agent: &Candidate) -> Result<(), SkipReason> {
        let healthy = match source {
            HealthSource::Search => agent.is_said_healthy(),
            HealthSource::Registry => {
                let health = self.client.check_health(agent.agent_id()).await;
                health.map_err(|_| SkipReason::NoAnswer)?.is_healthy()
            }
            HealthSource::Agent => {
                let url = health_url(agent.base_url()).ok_or(SkipReason::NoAnswer)?;
                let answer = self.http.get(url).send().await.map_err(|_| SkipReason::NoAnswer)?;
                let is_success = answer.status().is_success();
                // Some say it only in words.
                let said = answer.bytes().await.map_err(|_| SkipReason::NoAnswer)?;
                let said = serde_json::from_slice::<serde_json::Value>(&said).unwrap_or_default();
                is_success && said["status"] != "unhealthy"
            }
        };
        if healthy { Ok(()) } else { Err(SkipReason::Unhealthy) }
    }

    fn lock_order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }
}
