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
use crate::contract::{AgentStatus, CapabilityMatch, limits};
use crate::error::Error;
use crate::query::filter::FilterParts;

/// How long the attempts of a delegation use the first search's result without another search.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Time limit of a search if there is a fallback: a registry that hangs does not take time from agents.
const SHORT: Duration = Duration::from_millis(500);

impl Orchestrator {
    /// Returns the agents with a capability, in the registry's order. Uses the directory if it is up to date, or if the
    /// registry does not respond either.
    pub(super) async fn search(
        &self,
        query: &TaskQuery,
        capability: &str,
        earlier: &Earlier,
    ) -> Result<Found, Error> {
        let cached = self.directory.as_ref().and_then(|directory| Some((directory, directory.freshness()?)));
        let from_directory = |(directory, freshness): (&Directory, Freshness)| {
            Found::new(directory.candidates(&query.search(capability)), freshness, true)
        };
        if let Some(cached @ (_, Freshness::Fresh)) = cached {
            return Ok(from_directory(cached));
        }
        if let Some(cached) = cached
            && !self.search_fallback.is_wanted()
        {
            return Ok(from_directory(cached));
        }
        let kept = earlier.get(capability);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.at.elapsed() < MAX_AGE) {
            return Ok(kept.clone());
        }
        let mut search = query.search(capability).limit(limits::PAGE);
        // An agent that is asked itself may be healthy whatever the registry reports.
        let is_complete = query.health_source == HealthSource::Agent;
        search.filter.healthy = (!is_complete).then_some(true);
        let kept = kept.or_else(|| self.last_searches.get(&search));
        let outcome = match (cached, &kept) {
            (None, None) => self.client.search_with_age(search.clone()).await,
            _ => self.client.search_within(search.clone(), SHORT).await,
        };
        if cached.is_some() {
            self.search_fallback.record(!matches!(&outcome, Err(error) if error.is_outage()));
        }
        match (outcome, cached, kept) {
            (Ok(matches), ..) => {
                let candidates = matches.value.into_iter().map(Arc::new).map(Candidate::FromRegistry);
                let found = Found::new(candidates.collect(), Freshness::of(matches.age), is_complete);
                earlier.set(capability, &found);
                self.last_searches.set(&search, &found);
                Ok(found)
            }
            (Err(error), Some(cached), _) if error.is_outage() => Ok(from_directory(cached)),
            // For a first attempt, a refusal is a response.
            (Err(error), _, Some(mut kept)) if error.is_outage() || earlier.has(capability) => {
                kept.freshness = Freshness::Stale { age: kept.at.elapsed() };
                // In a later attempt, they were healthy a moment ago.
                kept.needs_check |= !earlier.has(capability);
                Ok(kept)
            }
            (Err(error), ..) => Err(error),
        }
    }

    /// Also names the agents that the searches omitted: unhealthy ones, and those that the query's tags and metadata exclude or
    /// whose description alone matches.
    pub(super) async fn explain(&self, query: &TaskQuery, earlier: &Earlier, skipped: &mut Vec<Skipped>) {
        for capability in query.capabilities() {
            let Ok(unhealthy) = self.unhealthy(query, capability, earlier).await else { break };
            skipped.extend(unhealthy);
            let Ok(filtered) = self.filtered(query, capability, earlier).await else { break };
            skipped.extend(filtered);
        }
        // An agent may have been found by several capabilities.
        let mut named = HashSet::new();
        skipped.retain(|one| named.insert(one.agent_id.clone()));
    }

    /// Names the agents that the registry omitted because they are unhealthy.
    async fn unhealthy(
        &self,
        query: &TaskQuery,
        capability: &str,
        earlier: &Earlier,
    ) -> Result<Vec<Skipped>, Error> {
        if !earlier.is_incomplete(capability) {
            return Ok(Vec::new());
        }
        let search = query.search(capability).limit(limits::PAGE).healthy(false);
        let found = self.client.search_within(search, query.check_timeout).await?;
        let skipped = |agent: &CapabilityMatch| {
            let is_offline = agent.status == AgentStatus::Offline;
            let reason = if is_offline { SkipReason::Offline } else { SkipReason::Unhealthy };
            Skipped::new(&agent.agent_id, reason)
        };
        Ok(found.value.iter().map(skipped).collect())
    }

    /// Names the agents that have the capability, but not the tags or the metadata, or only in its description.
    async fn filtered(
        &self,
        query: &TaskQuery,
        capability: &str,
        earlier: &Earlier,
    ) -> Result<Vec<Skipped>, Error> {
        if query.tags.is_empty() && query.metadata.is_empty() && query.description_only {
            return Ok(Vec::new());
        }
        let filtered = query.search(capability);
        let mut unfiltered = filtered.clone();
        (unfiltered.filter.tags, unfiltered.filter.metadata) = (Vec::new(), Vec::new());
        unfiltered.description_only = true;
        let (passed, all) = match (earlier.get(capability), &self.directory) {
            (None, Some(directory)) => (directory.candidates(&filtered), directory.candidates(&unfiltered)),
            (found, _) => {
                let search = unfiltered.limit(limits::PAGE);
                let all = self.client.search_within(search, query.check_timeout).await?;
                let all = all.value.into_iter().map(Arc::new).map(Candidate::FromRegistry);
                (found.map_or_else(Vec::new, |found| found.candidates), all.collect())
            }
        };
        let passed: HashSet<&str> = passed.iter().map(Candidate::agent_id).collect();
        let others = all
            .iter()
            .filter(|agent| !passed.contains(agent.agent_id()) && !earlier.was_tried(agent.agent_id()));
        let is_in_description_alone = filtered.in_description_alone();
        let skipped = |agent: &Candidate| {
            let has_words = query.description_only
                || agent.clone().into_match().is_some_and(|found| !is_in_description_alone(&found));
            let has_tags = query.tags.iter().all(|tag| agent.tags().contains(tag));
            let has_metadata = agent
                .metadata()
                .map_or(query.metadata.is_empty(), |all| filtered.filter.accepts_metadata(all));
            let reason = match query.exclude.contains(agent.agent_id()) {
                true => SkipReason::Excluded,
                false if !has_tags => SkipReason::MissingTag,
                false if !has_metadata => SkipReason::OtherMetadata,
                false if !has_words => SkipReason::DescriptionOnly,
                false => return None,
            };
            Some(Skipped::new(agent.agent_id(), reason))
        };
        Ok(others.filter_map(skipped).collect())
    }
}
