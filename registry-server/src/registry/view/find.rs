//! Agents in the form in which they registered, for protocols that describe agents in their own terms.

use std::sync::Arc;

use registry_sdk::ListQuery;
use registry_sdk::contract::{Capability, Timestamp};
use registry_sdk::internal::{Hit, PreparedSearch, Rank};
use serde_json::{Map, Value};

use super::View;
use super::entry::ReadContext;
use super::reads::Read;
use crate::store::StoredAgent;

/// The agents to find.
#[derive(Clone, Debug)]
pub(crate) enum Find {
    /// The matches of a search with a cursor, ordered by score and id.
    Matches(Arc<PreparedSearch>),
    /// The agents of a list, ordered by id. Only the status and health conditions of its filter apply.
    All(ListQuery),
}

/// An agent in the form in which it registered.
#[derive(Clone, Debug)]
pub(crate) struct FoundAgent {
    agent: Arc<StoredAgent>,
    /// Score of the capability that a search found, from 0 to 1. `None` in a list.
    score: Option<f64>,
}

/// The agents that were found, and the cursor of the next page if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct FoundAgents {
    pub(crate) agents: Vec<FoundAgent>,
    pub(crate) next: Option<String>,
}

impl FoundAgent {
    pub(crate) fn agent_id(&self) -> &str {
        &self.agent.agent_id
    }

    pub(crate) fn name(&self) -> &str {
        &self.agent.agent_name
    }

    pub(crate) fn has_card(&self) -> bool {
        self.agent.card_digest.is_some()
    }

    pub(crate) fn registered_at(&self) -> Timestamp {
        self.agent.registered_at
    }

    pub(crate) fn score(&self) -> Option<f64> {
        self.score
    }

    pub(crate) fn capabilities(&self) -> Vec<Capability> {
        self.agent.capabilities.decode()
    }

    pub(crate) fn metadata(&self) -> Map<String, Value> {
        // Always decodes, since the JSON was encoded from a map.
        serde_json::from_str(self.agent.metadata.json().get()).unwrap_or_default()
    }

    /// Returns the rank within a page, which only depends on the score and the id.
    fn rank(&self) -> Rank<'_> {
        let (score, agent_id) = (self.score.unwrap_or_default(), self.agent_id());
        Rank { score, status: self.agent.status, last_heartbeat: None, agent_id }
    }
}

impl View {
    /// Returns a registered agent, whatever its status.
    pub(crate) fn find_one(&self, agent_id: &str) -> Option<FoundAgent> {
        Some(FoundAgent { agent: self.entry(agent_id)?.agent.clone(), score: None })
    }

    /// Returns the agents that are found and accepted, up to a limit.
    pub(crate) fn find(
        &self,
        which: &Find,
        limit: usize,
        accepts: impl Fn(&FoundAgent) -> bool,
        context: &ReadContext,
    ) -> Read<FoundAgents> {
        match which {
            Find::Matches(search) => self.find_matches(search, limit, accepts, context),
            Find::All(query) => self.find_all(query, limit, accepts, context),
        }
    }

    fn find_matches(
        &self,
        search: &PreparedSearch,
        limit: usize,
        accepts: impl Fn(&FoundAgent) -> bool,
        context: &ReadContext,
    ) -> Read<FoundAgents> {
        let known = &self.inner.read().agents;
        let filter = &search.query().filter;
        let mut unconfirmed = Vec::new();
        let candidate = |hit: &Hit| {
            let entry = known.slot(hit.slot)?;
            let effective = entry.effective_status(context, &mut unconfirmed);
            let found = FoundAgent { agent: entry.agent.clone(), score: Some(hit.score) };
            let is_accepted = effective.passes(filter) && !effective.in_maintenance && accepts(&found);
            is_accepted.then_some(found)
        };
        let (agents, next) = search.search(&known.index, limit, |_, _| true, candidate, FoundAgent::rank);
        Read { value: FoundAgents { agents, next }, unconfirmed }
    }

    fn find_all(
        &self,
        query: &ListQuery,
        limit: usize,
        accepts: impl Fn(&FoundAgent) -> bool,
        context: &ReadContext,
    ) -> Read<FoundAgents> {
        let (mut found, mut unconfirmed) = (FoundAgents::default(), Vec::new());
        for entry in self.entries_between(query.cursor.as_deref().unwrap_or_default(), None) {
            let effective = entry.effective_status(context, &mut unconfirmed);
            let agent = FoundAgent { agent: entry.agent.clone(), score: None };
            if !effective.passes(&query.filter) || !accepts(&agent) {
                continue;
            }
            if found.agents.len() == limit {
                found.next = found.agents.last().map(|last| last.agent_id().to_owned());
                break;
            }
            found.agents.push(agent);
        }
        Read { value: found, unconfirmed }
    }
}
