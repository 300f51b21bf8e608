//! Selection: the best-ranked healthy agent, with health checks side by side.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// Finds living agents for tasks, and delegates tasks to them.
///
/// Cheap to clone; clones share the circuit breakers and the memory of earlier selections.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use registry_sdk::{Orchestrator, RegistryClient};
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
    pub(super) breakers: Breakers,
    directory: Option<Directory>,
    order: Arc<Mutex<Order>>,
}

/// Sets up an [`Orchestrator`].
#[derive(Clone, Debug)]
pub struct OrchestratorBuilder {
    client: RegistryClient,
    breakers: BreakerSettings,
    directory: Option<Directory>,
    seed: Option<u64>,
}

impl OrchestratorBuilder {
    /// Sets when circuit breakers open, and for how long. Default: [`BreakerSettings::default`].
    #[must_use]
    pub fn breakers(mut self, settings: BreakerSettings) -> Self {
        self.breakers = settings;
        self
    }

    /// Finds agents in a directory, which is kept up to date by a watch, instead of searching the registry. While the
    /// directory is out of date the registry is asked; if that fails, the directory is used all the same. Default: none.
    #[must_use]
    pub fn directory(mut self, directory: Directory) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Makes random choices repeatable, for tests. Default: a random seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Makes the orchestrator. Nothing is sent yet.
    #[must_use]
    pub fn build(self) -> Orchestrator {
        let Self { client, breakers, directory, seed } = self;
        let random = seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        Orchestrator {
            client,
            breakers: Breakers::new(breakers),
            directory,
            order: Arc::new(Mutex::new(Order::new(random))),
        }
    }
}

/// The selected agent, and how it was selected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Selection {
    /// The agent, by the capability that matched.
    pub agent: CapabilityMatch,
    /// Which of the requested capabilities it was found by.
    pub matched_capability: String,
    /// Whether that was a fallback.
    pub is_fallback: bool,
    /// The agents that ranked higher and were skipped.
    pub skipped: Vec<Skipped>,
    /// How fresh the data behind this selection is.
    pub freshness: Freshness,
}

/// An agent that was skipped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// Its id.
    pub agent_id: String,
    /// Why it was skipped.
    pub reason: SkipReason,
}

/// Why an agent was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// The query excludes it.
    Excluded,
    /// Its capability lacks one of the tags.
    MissingTag,
    /// Its circuit breaker is open: it failed too often lately.
    CircuitOpen,
    /// It is not healthy.
    Unhealthy,
    /// Its health check failed, or took too long.
    NoAnswer,
}

/// Why no agent was selected.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No healthy agent can do it.
    #[error("no healthy agent can do {capability:?}: {} were skipped", skipped.len())]
    NoAgent {
        /// The capability that was wanted first.
        capability: String,
        /// All agents that can do it, or a fallback, and why each was skipped.
        skipped: Vec<Skipped>,
    },
    /// The registry could not be searched.
    #[error("the registry could not be searched")]
    Registry(#[from] Error),
}

impl Orchestrator {
    /// An orchestrator with the default settings.
    #[must_use]
    pub fn new(client: RegistryClient) -> Self {
        Self::builder(client).build()
    }

    /// Sets up an orchestrator.
    #[must_use]
    pub fn builder(client: RegistryClient) -> OrchestratorBuilder {
        OrchestratorBuilder { client, breakers: BreakerSettings::default(), directory: None, seed: None }
    }

    /// The client that the orchestrator searches with.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.client
    }

    /// State of an agent's circuit breaker.
    #[must_use]
    pub fn circuit(&self, agent_id: &str) -> CircuitState {
        self.breakers.state(agent_id)
    }

    /// Selects the best-ranked healthy agent with a capability.
    ///
    /// # Errors
    /// As [`Orchestrator::select`].
    pub async fn find_best_agent(&self, capability: impl Into<String>) -> Result<Selection, SelectError> {
        self.select(&TaskQuery::new(capability)).await
    }

    /// Selects an agent for a query. Health checks run side by side, and the selection returns as soon as every
    /// higher-ranked candidate has been ruled out.
    ///
    /// # Errors
    /// [`SelectError::NoAgent`] with all agents that were skipped; [`SelectError::Registry`] if the search itself
    /// failed.
    ///
    /// # Cancel safety
    /// Nothing is left running.
    pub async fn select(&self, query: &TaskQuery) -> Result<Selection, SelectError> {
        let mut skipped = Vec::new();
        let wanted = std::iter::once(&query.capability).chain(&query.fallbacks);
        for (index, capability) in wanted.enumerate() {
            let (mut found, freshness) = self.search(query, capability).await?;
            // Health checks of offline agents would fail.
            found.retain(|agent| {
                let status = agent.status();
                status.takes_work()
                    || status == AgentStatus::Offline && query.health_source == HealthSource::Agent
            });
            let candidates = self.admissible(query, found, &mut skipped);
            // While the registry does not answer, its health checks would fail.
            let health_source = match query.health_source {
                HealthSource::Registry if freshness.is_stale() => HealthSource::Search,
                source => source,
            };
            let selected = self.first_healthy(query, health_source, candidates, &mut skipped).await;
            if let Some(agent) = selected.and_then(Candidate::into_match) {
                self.lock_order().note(&agent.agent_id);
                let matched_capability = capability.clone();
                return Ok(Selection {
                    agent,
                    matched_capability,
                    is_fallback: index > 0,
                    skipped,
                    freshness,
                });
            }
        }
        Err(SelectError::NoAgent { capability: query.capability.clone(), skipped })
    }

    /// Selects an agent whose circuit breaker admits the task. If it is half open, this task is the trial.
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

    /// The agents with a capability, in the registry's order: from the directory if it is up to date.
    async fn search(
        &self,
        query: &TaskQuery,
        capability: &str,
    ) -> Result<(Vec<Candidate>, Freshness), Error> {
        let cached = self.directory.as_ref().and_then(|directory| Some((directory, directory.freshness()?)));
        // Loads come with heartbeats, which no event reports.
        if let Some((directory, Freshness::Fresh)) = cached
            && query.policy != Policy::LeastLoaded
        {
            return Ok((directory.candidates(capability), Freshness::Fresh));
        }
        let search = SearchQuery::new(capability).limit(limits::PAGE);
        match (self.client.search_with_age(search).await, cached) {
            (Ok(found), _) => {
                let candidates = found.value.into_iter().map(Box::new).map(Candidate::FromRegistry);
                Ok((candidates.collect(), Freshness::of(found.age)))
            }
            (Err(error), Some((directory, freshness))) if error.is_outage() => {
                Ok((directory.candidates(capability), freshness))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The candidates that may be selected, in the policy's order.
    fn admissible(
        &self,
        query: &TaskQuery,
        found: Vec<Candidate>,
        skipped: &mut Vec<Skipped>,
    ) -> Vec<Candidate> {
        let skip_reason = |agent: &Candidate| {
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
            match skip_reason(&agent) {
                Some(reason) => skipped.push(Skipped { agent_id: agent.agent_id().to_owned(), reason }),
                None => candidates.push(agent),
            }
        }
        self.lock_order().sort(query.policy, &mut candidates);
        candidates
    }

    /// The first healthy candidate. Later ones are checked at the same time, and their results dropped.
    async fn first_healthy(
        &self,
        query: &TaskQuery,
        health_source: HealthSource,
        candidates: Vec<Candidate>,
        skipped: &mut Vec<Skipped>,
    ) -> Option<Candidate> {
        let checks = stream::iter(candidates).map(|agent| async {
            let verdict = self.check(health_source, &agent, query.check_timeout).await;
            (agent, verdict)
        });
        // Checks that need no request are not worth doing ahead.
        let max_concurrent =
            if health_source == HealthSource::Search { 1 } else { query.max_concurrent_checks.max(1) };
        // In the candidates' order, whatever the order of the responses.
        let mut checks = std::pin::pin!(checks.buffered(max_concurrent));
        while let Some((agent, verdict)) = checks.next().await {
            match verdict {
                Ok(()) => return Some(agent),
                Err(reason) => skipped.push(Skipped { agent_id: agent.agent_id().to_owned(), reason }),
            }
        }
        None
    }

    async fn check(
        &self,
        source: HealthSource,
        agent: &Candidate,
        limit: Duration,
    ) -> Result<(), SkipReason> {
        let is_healthy = match source {
            HealthSource::Search => agent.is_reported_healthy(),
            HealthSource::Registry => match self.client.check_health_within(agent.agent_id(), limit).await {
                Ok(health) => health.is_healthy(),
                // Its word of a moment ago still counts.
                Err(error) if error.is_outage() => agent.is_reported_healthy(),
                Err(_) => return Err(SkipReason::NoAnswer),
            },
            HealthSource::Agent => {
                let asked = timeout(limit, self.ask_agent(agent)).await;
                asked.ok().flatten().ok_or(SkipReason::NoAnswer)?
            }
        };
        if is_healthy { Ok(()) } else { Err(SkipReason::Unhealthy) }
    }

    /// Asks an agent itself whether it is healthy. `None` if it does not answer.
    async fn ask_agent(&self, agent: &Candidate) -> Option<bool> {
        let url = health_url(agent.base_url())?;
        let response = self.client.http().for_url(&url).ok()?.get(url).send().await.ok()?;
        let is_success = response.status().is_success();
        // Some agents answer 200 and say it only in the body.
        let body = response.bytes().await.ok()?;
        let health = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        Some(is_success && health["status"] != "unhealthy")
    }

    fn lock_order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
