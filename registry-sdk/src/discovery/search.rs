//! The searches of a selection.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::candidate::Candidate;
use super::directory::Directory;
use super::found::{Earlier, Found};
use super::freshness::Freshness;
use super::orchestrator::Orchestrator;
use super::query::{HealthSource, TaskQuery};
use super::selection::{SkipReason, Skipped};
use crate::contract::{AgentStatus, limits};
use crate::error::Error;
use crate::query::SearchQuery;

/// How long the attempts of one delegation use what the first one's search found without searching again.
const MAX_AGE: Duration = Duration::from_secs(5);

/// How long a search may take if there is something to fall back on: a registry that hangs costs no agent its time.
const SHORT: Duration = Duration::from_millis(500);

impl Orchestrator {
    /// The agents with a capability, in the registry's order: from the directory if it is up to date, or if the registry does not
    /// answer either.
    pub(super) async fn search(
        &self,
        query: &TaskQuery,
        capability: &str,
        earlier: &Earlier,
    ) -> Result<Found, Error> {
        let cached = self.directory.as_ref().and_then(|directory| Some((directory, directory.freshness()?)));
        let from_directory = |(directory, freshness): (&Directory, Freshness)| {
            Found::new(directory.candidates(capability), freshness, true)
        };
        if let Some(cached @ (_, Freshness::Fresh)) = cached {
            return Ok(from_directory(cached));
        }
        if let Some(cached) = cached
            && !self.fallback.is_wanted()
        {
            return Ok(from_directory(cached));
        }
        let kept = earlier.get(capability);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.at.elapsed() < MAX_AGE) {
            return Ok(kept.clone());
        }
        let kept = kept.or_else(|| self.last_searches.get(capability));
        let mut search = SearchQuery::new(capability).limit(limits::PAGE);
        // An agent that is asked itself may be healthy whatever the registry thinks of it.
        let is_complete = query.health_source == HealthSource::Agent;
        search.healthy = (!is_complete).then_some(true);
        let outcome = match (cached, &kept) {
            (None, None) => self.client.search_with_age(search).await,
            _ => self.client.search_within(search, SHORT).await,
        };
        if cached.is_some() {
            self.fallback.record(!matches!(&outcome, Err(error) if error.is_outage()));
        }
        match (outcome, cached, kept) {
            (Ok(matches), ..) => {
                let candidates = matches.value.into_iter().map(Arc::new).map(Candidate::FromRegistry);
                let found = Found::new(candidates.collect(), Freshness::of(matches.age), is_complete);
                earlier.set(capability, &found);
                self.last_searches.set(capability, &found);
                Ok(found)
            }
            (Err(error), Some(cached), _) if error.is_outage() => Ok(from_directory(cached)),
            // For a first attempt, a refusal is an answer.
            (Err(error), _, Some(mut kept)) if error.is_outage() || earlier.has(capability) => {
                kept.freshness = Freshness::Stale { age: kept.at.elapsed() };
                // In a later attempt, they were healthy a moment ago.
                kept.needs_check |= !earlier.has(capability);
                Ok(kept)
            }
            (Err(error), ..) => Err(error),
        }
    }

    /// Names the agents as well that the registry left out of the searches because they are not healthy.
    pub(super) async fn explain(&self, query: &TaskQuery, earlier: &Earlier, skipped: &mut Vec<Skipped>) {
        for capability in query.capabilities().filter(|capability| earlier.is_incomplete(capability)) {
            let search = SearchQuery::new(capability).limit(limits::PAGE).healthy(false);
            let Ok(found) = self.client.search_within(search, query.check_timeout).await else { break };
            skipped.extend(found.value.iter().map(|agent| {
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
