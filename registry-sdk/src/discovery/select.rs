//! Selection: the first candidate, in the policy's order, that can be given a task.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::agent_states::Call;
use super::candidate::Candidate;
use super::checks::HealthCheck;
use super::directory::Directory;
use super::freshness::Freshness;
use super::orchestrator::Orchestrator;
use super::query::{HealthSource, TaskQuery};
use super::selection::{SelectError, Selection, SkipReason, Skipped};
use crate::contract::{AgentStatus, limits};
use crate::error::Error;
use crate::query::SearchQuery;
use crate::retry::RetryPolicy;

/// How long the attempts of one delegation use what the first one's search found. After that they search again, if the registry
/// answers as quickly as for a health check.
const MAX_AGE: Duration = Duration::from_secs(5);

/// What earlier attempts of one delegation found and tried. So failing over needs no further search, not even if the registry has
/// gone down meanwhile.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    found: Mutex<HashMap<String, Found>>,
    /// Agents that have, or had, the task. They do not get it again.
    tried: Mutex<HashSet<String>>,
}

/// What was found for a capability, in the registry's order.
#[derive(Clone, Debug)]
struct Found {
    candidates: Vec<Candidate>,
    freshness: Freshness,
    at: Instant,
    /// Whether the unhealthy ones are among them.
    is_complete: bool,
}

impl Orchestrator {
    /// Selects an agent for a query: of the best matches, in the policy's order, the first healthy one.
    ///
    /// # Errors
    /// [`SelectError::NoAgent`] with all agents that were skipped; [`SelectError::Registry`] if the search itself
    /// failed.
    ///
    /// # Cancel safety
    /// Nothing is left running.
    pub async fn select(&self, query: &TaskQuery) -> Result<Selection, SelectError> {
        self.select_from(query, &Earlier::default()).await
    }

    pub(super) async fn select_from(
        &self,
        query: &TaskQuery,
        earlier: &Earlier,
    ) -> Result<Selection, SelectError> {
        let (mut skipped, mut incomplete) = (Vec::new(), Vec::new());
        for (index, capability) in query.capabilities().enumerate() {
            let found = self.search(query, capability, earlier).await?;
            let freshness = found.freshness;
            if !found.is_complete {
                incomplete.push(capability);
            }
            let selected = self.first_healthy(query, found, earlier, &mut skipped).await;
            let Some((agent, call, others)) = selected else {
                continue;
            };
            let Some(agent) = agent.into_match() else { continue };
            tracing::debug!(agent_id = agent.agent_id, capability, "selected");
            let (matched_capability, call) = (capability.clone(), Arc::new(call));
            let is_busy = |one: &Skipped| matches!(one.reason, SkipReason::Busy { .. });
            let is_last = others == 0 && index == query.fallbacks.len() && !skipped.iter().any(is_busy);
            let is_fallback = index > 0;
            return Ok(Selection {
                agent,
                matched_capability,
                is_fallback,
                skipped,
                freshness,
                is_last,
                call,
            });
        }
        self.explain(&incomplete, &mut skipped).await;
        Err(SelectError::NoAgent { capability: query.capability.clone(), skipped })
    }

    /// The agents with a capability, in the registry's order: from the directory if it is up to date.
    async fn search(&self, query: &TaskQuery, capability: &str, earlier: &Earlier) -> Result<Found, Error> {
        let cached = self.directory.as_ref().and_then(|directory| Some((directory, directory.freshness()?)));
        let from_directory = |(directory, freshness): (&Directory, Freshness)| {
            Found::new(directory.candidates(capability), freshness, true)
        };
        if let Some(cached @ (_, Freshness::Fresh)) = cached {
            return Ok(from_directory(cached));
        }
        let kept = earlier.get(capability);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.at.elapsed() < MAX_AGE) {
            return Ok(kept.clone());
        }
        let mut search = SearchQuery::new(capability).limit(limits::PAGE);
        // An agent that is asked itself may be healthy whatever the registry thinks of it.
        let is_complete = query.health_source == HealthSource::Agent;
        search.healthy = (!is_complete).then_some(true);
        let outcome = match &kept {
            None => self.client.search_with_age(search).await,
            Some(_) => self.client.search_within(search, query.check_timeout).await,
        };
        match outcome {
            Ok(matches) => {
                let freshness = Freshness::of(matches.age);
                let candidates = matches.value.into_iter().map(Arc::new).map(Candidate::FromRegistry);
                let found = Found::new(candidates.collect(), freshness, is_complete);
                earlier.set(capability, &found);
                Ok(found)
            }
            Err(error) if error.is_outage() => match (cached, kept) {
                (Some(cached), _) => Ok(from_directory(cached)),
                (None, Some(mut kept)) => {
                    kept.freshness = Freshness::Stale { age: kept.at.elapsed() };
                    Ok(kept)
                }
                (None, None) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// The first healthy candidate, which has the task from then on, and the number of candidates after it. A few of them are
    /// checked at the same time.
    async fn first_healthy(
        &self,
        query: &TaskQuery,
        found: Found,
        earlier: &Earlier,
        skipped: &mut Vec<Skipped>,
    ) -> Option<(Candidate, Call, usize)> {
        let is_stale = found.freshness.is_stale();
        let (tried, found): (Vec<_>, Vec<_>) =
            found.candidates.into_iter().partition(|agent| earlier.was_tried(agent.agent_id()));
        let candidates = self.admissible(query, found, skipped);
        let mut ordered = self.states.order(query.policy, candidates, tried.len());
        let mut first = ordered.first.take();
        let admitted = ordered.admitted.len();
        let kept_out: Vec<_> =
            ordered.ejected.iter().map(|one| Skipped::new(one.agent_id(), SkipReason::Ejected)).collect();
        let (client, http, limit) = (&self.client, &self.access.http, query.check_timeout);
        let check = HealthCheck { client, http, source: query.health_source, is_stale, limit };
        let count = admitted + ordered.ejected.len();
        let candidates = ordered.admitted.into_iter().chain(ordered.ejected);
        let checks = stream::iter(candidates.enumerate()).map(|(index, agent)| async move {
            let verdict = check.run(&agent).await;
            (index, agent, verdict)
        });
        // In the candidates' order, whatever the order of the responses.
        let mut checks = std::pin::pin!(checks.buffered(query.max_concurrent_checks.max(1)));
        while let Some((index, agent, verdict)) = checks.next().await {
            let call = first.take();
            match verdict {
                Ok(()) => {
                    if index < admitted {
                        skipped.extend(kept_out);
                    }
                    let call = call.unwrap_or_else(|| self.states.begin(agent.agent_id()));
                    return Some((agent, call, count - index - 1));
                }
                Err(reason) => skipped.push(Skipped::new(agent.agent_id(), reason)),
            }
        }
        None
    }

    /// The candidates that may be selected, in the registry's order.
    fn admissible(
        &self,
        query: &TaskQuery,
        found: Vec<Candidate>,
        skipped: &mut Vec<Skipped>,
    ) -> Vec<Candidate> {
        let states = self.states.lock();
        let now = Instant::now();
        let looks_unhealthy =
            |agent: &Candidate| !agent.status().takes_work() || agent.reported_health() == Some(false);
        let mut candidates = Vec::with_capacity(found.len());
        for agent in found {
            let has = |tag: &String| agent.tags().contains(tag);
            let reason = if query.exclude.contains(agent.agent_id()) {
                Some(SkipReason::Excluded)
            } else if !query.tags.iter().all(has) {
                Some(SkipReason::MissingTag)
            } else if let Some(reason) = unfit(query.health_source, &agent) {
                Some(reason)
            } else {
                states.busy_for(agent.agent_id(), now).map(|retry_after| SkipReason::Busy { retry_after })
            };
            match reason {
                Some(reason) => skipped.push(Skipped::new(agent.agent_id(), reason)),
                None => candidates.push(agent),
            }
        }
        // If agents are asked themselves, those that are probably dead come last.
        candidates.sort_by_key(looks_unhealthy);
        candidates
    }

    /// Names the agents as well that the registry left out of the searches because they are not healthy.
    async fn explain(&self, capabilities: &[&String], skipped: &mut Vec<Skipped>) {
        let client = self.client.with_retry(RetryPolicy::none());
        for capability in capabilities {
            let search = SearchQuery::new(*capability).limit(limits::PAGE).healthy(false);
            let Ok(found) = client.search_capabilities(search).await else { break };
            skipped.extend(found.iter().map(|agent| {
                let is_offline = agent.status == AgentStatus::Offline;
                let reason = if is_offline { SkipReason::Offline } else { SkipReason::Unhealthy };
                Skipped::new(&agent.agent_id, reason)
            }));
        }
        // An agent may have been found by several capabilities.
        let mut named = HashSet::new();
        skipped.retain(|one| named.insert(one.agent_id.clone()));
    }
}

/// Why an agent cannot be given a task by what the registry reported of it.
fn unfit(health_source: HealthSource, agent: &Candidate) -> Option<SkipReason> {
    match (agent.status(), agent.reported_health()) {
        (AgentStatus::Unknown(_), _) => Some(SkipReason::Unhealthy),
        // It is asked itself.
        _ if health_source == HealthSource::Agent => None,
        (AgentStatus::Offline, _) => Some(SkipReason::Offline),
        (_, Some(false)) => Some(SkipReason::Unhealthy),
        _ => None,
    }
}

impl Found {
    fn new(candidates: Vec<Candidate>, freshness: Freshness, is_complete: bool) -> Self {
        Self { candidates, freshness, at: Instant::now(), is_complete }
    }
}

impl Earlier {
    fn get(&self, capability: &str) -> Option<Found> {
        lock(&self.found).get(capability).cloned()
    }

    fn set(&self, capability: &str, found: &Found) {
        lock(&self.found).insert(capability.to_owned(), found.clone());
    }

    fn was_tried(&self, agent_id: &str) -> bool {
        lock(&self.tried).contains(agent_id)
    }

    /// Records that an agent gets the task.
    pub(super) fn add_tried(&self, agent_id: &str) {
        lock(&self.tried).insert(agent_id.to_owned());
    }

    /// Records that an agent may get the task again.
    pub(super) fn remove_tried(&self, agent_id: &str) {
        lock(&self.tried).remove(agent_id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
