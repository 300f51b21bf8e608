//! Selection: the first candidate, in the policy's order, that can be given a task.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::agent_states::Call;
use super::candidate::Candidate;
use super::checks::HealthCheck;
use super::found::{Earlier, Found};
use super::freshness::Freshness;
use super::orchestrator::Orchestrator;
use super::order::{KeptOut, Order};
use super::query::{HealthSource, TaskQuery};
use super::selection::{SelectError, Selection, SkipReason, Skipped};
use crate::contract::{AgentStatus, CapabilityMatch};

/// Candidates that are tried before those of the next tier: first the admitted ones of each capability, then the ejected ones.
#[derive(Debug)]
struct Tier<'a> {
    capability: &'a String,
    is_fallback: bool,
    freshness: Freshness,
    /// Whether the agents themselves are asked for their health, because the registry's data is old.
    needs_check: bool,
    candidates: Vec<Candidate>,
}

impl Orchestrator {
    /// Selects an agent for a query: the first healthy one of the best matches, in the policy's order.
    ///
    /// # Errors
    /// [`SelectError::NoAgent`] with all agents that were skipped; [`SelectError::Registry`] if the search itself
    /// failed.
    ///
    /// # Cancel safety
    /// Nothing is left running.
    pub async fn select(&self, query: &TaskQuery) -> Result<Selection, SelectError> {
        let earlier = Earlier::default();
        let mut selected = self.select_from(query, &earlier).await;
        if let Err(SelectError::NoAgent { skipped, .. }) = &mut selected {
            self.explain(query, &earlier, skipped).await;
        }
        selected
    }

    /// Selects an agent that was not tried earlier. An error does not yet name the agents that the registry omitted.
    pub(super) async fn select_from(
        &self,
        query: &TaskQuery,
        earlier: &Earlier,
    ) -> Result<Selection, SelectError> {
        let (mut skipped, mut last_resorts) = (Vec::new(), Vec::new());
        for (index, capability) in query.capabilities().enumerate() {
            let found = self.search(query, capability, earlier).await?;
            let (tried, untried): (Vec<_>, Vec<_>) =
                found.candidates.into_iter().partition(|agent| earlier.was_tried(agent.agent_id()));
            let mut candidates = self.admissible(query, untried, &mut skipped);
            let mut kept_out = self.states.keep_out(&mut candidates, tried.len());
            let Found { freshness, needs_check, .. } = found;
            let mut tier = Tier { capability, is_fallback: index > 0, freshness, needs_check, candidates };
            let selected = self.first_healthy(query, &mut tier, Some(&mut kept_out), &mut skipped).await;
            let left = tier.candidates.len() + query.fallbacks.len() - index;
            last_resorts.push(Tier { candidates: kept_out.candidates, ..tier });
            if let Some((agent, call)) = selected {
                let kept_out = last_resorts.iter().flat_map(|tier| &tier.candidates);
                let kept_out: Vec<_> =
                    kept_out.map(|agent| Skipped::new(agent.agent_id(), SkipReason::Ejected)).collect();
                let is_last = left + kept_out.len() == 0 && !skipped.iter().any(Skipped::is_busy);
                skipped.extend(kept_out);
                return Ok(tier.selection(agent, call, skipped, is_last));
            }
        }
        // An agent that failed recently is better than none.
        let mut left: usize = last_resorts.iter().map(|tier| tier.candidates.len()).sum();
        for mut tier in last_resorts {
            left -= tier.candidates.len();
            if let Some((agent, call)) = self.first_healthy(query, &mut tier, None, &mut skipped).await {
                left += tier.candidates.len();
                let is_last = left == 0 && !skipped.iter().any(Skipped::is_busy);
                return Ok(tier.selection(agent, call, skipped, is_last));
            }
        }
        Err(SelectError::NoAgent { capability: query.capability.clone(), skipped })
    }

    /// Returns the candidates that may be selected, in the registry's order.
    fn admissible(
        &self,
        query: &TaskQuery,
        found: Vec<Candidate>,
        skipped: &mut Vec<Skipped>,
    ) -> Vec<Candidate> {
        let states = self.states.lock();
        let now = Instant::now();
        let mut candidates = Vec::with_capacity(found.len());
        for agent in found {
            let reason = if query.exclude.contains(agent.agent_id()) {
                Some(SkipReason::Excluded)
            } else if let Some(reason) = unfit(query.health_source, &agent) {
                Some(reason)
            } else {
                states.busy_for(&agent, now).map(|retry_after| SkipReason::Busy { retry_after })
            };
            match reason {
                Some(reason) => skipped.push(Skipped::new(agent.agent_id(), reason)),
                None => candidates.push(agent),
            }
        }
        // If agents are asked themselves, those that are probably dead come last.
        candidates.sort_by_key(|agent| !agent.looks_healthy());
        candidates
    }

    /// Removes and returns the first healthy candidate of a tier, which has the task from then on. Checks a few others at the
    /// same time.
    async fn first_healthy(
        &self,
        query: &TaskQuery,
        tier: &mut Tier<'_>,
        mut kept_out: Option<&mut KeptOut>,
        skipped: &mut Vec<Skipped>,
    ) -> Option<(CapabilityMatch, Call)> {
        let is_stale = tier.freshness.is_stale();
        let (client, http, limit) = (&self.client, &self.access.http, query.check_timeout);
        let check =
            &HealthCheck { client, http, source: query.health_source, is_stale: tier.needs_check, limit };
        let order = Order { capability: tier.capability, policy: query.policy, is_fresh: !is_stale };
        let candidates = &mut tier.candidates;
        self.states.sort(order, candidates);
        let (mut begun, mut verdicts) = (HashSet::new(), HashMap::new());
        let mut checks = FuturesUnordered::new();
        while let Some(call) = self.states.choose(order, candidates, kept_out.as_deref_mut()) {
            let first = candidates.first()?.agent_id().to_owned();
            let verdict = loop {
                if let Some(verdict) = verdicts.remove(&first) {
                    break verdict;
                }
                for (index, agent) in candidates.iter().take(query.max_concurrent_checks.max(1)).enumerate() {
                    let has_room = index == 0 || checks.len() < query.max_concurrent_checks;
                    if has_room && begun.insert(agent.agent_id().to_owned()) {
                        let agent = agent.clone();
                        checks.push(async move { (agent.agent_id().to_owned(), check.run(&agent).await) });
                    }
                }
                let (agent_id, verdict) = checks.next().await?;
                verdicts.insert(agent_id, verdict);
            };
            let agent = candidates.remove(0);
            match (verdict, agent.into_match()) {
                (Ok(()), Some(agent)) => return Some((agent, call)),
                (Err(reason), _) => skipped.push(Skipped::new(&first, reason)),
                // The candidate no longer has its capability.
                (Ok(()), None) => {}
            }
        }
        None
    }
}

impl Tier<'_> {
    fn selection(
        self,
        agent: CapabilityMatch,
        call: Call,
        skipped: Vec<Skipped>,
        is_last: bool,
    ) -> Selection {
        tracing::debug!(agent_id = agent.agent_id, capability = self.capability, "selected");
        Selection {
            agent,
            matched_capability: self.capability.clone(),
            is_fallback: self.is_fallback,
            skipped,
            freshness: self.freshness,
            is_last,
            call: Arc::new(call),
        }
    }
}

/// Returns why an agent cannot be given a task, judged by the registry's data.
fn unfit(health_source: HealthSource, agent: &Candidate) -> Option<SkipReason> {
    match (agent.status(), agent.reported_health()) {
        (AgentStatus::Unknown(_), _) => Some(SkipReason::Unhealthy),
        (AgentStatus::Offline, _) if health_source != HealthSource::Agent => Some(SkipReason::Offline),
        _ if agent.is_in_maintenance() => Some(SkipReason::Maintenance),
        // The agent is asked itself.
        _ if health_source == HealthSource::Agent => None,
        (_, Some(false)) => Some(SkipReason::Unhealthy),
        _ => None,
    }
}
