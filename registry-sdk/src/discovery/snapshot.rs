//! All agents at one moment, and the index by which they are found.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::candidate::Candidate;
use crate::contract::AgentRecord;
use crate::query::{PreparedSearch, SearchQuery};
use crate::search::{Hit, SearchIndex};

/// The agents, and the index by which they are found.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    agents: BTreeMap<String, (u32, Arc<AgentRecord>)>,
    by_slot: Vec<Option<Arc<AgentRecord>>>,
    index: SearchIndex,
}

impl Snapshot {
    pub(super) fn len(&self) -> usize {
        self.agents.len()
    }

    pub(super) fn agents(&self) -> Vec<Arc<AgentRecord>> {
        self.agents.values().map(|(_, agent)| agent.clone()).collect()
    }

    pub(super) fn get(&self, agent_id: &str) -> Option<Arc<AgentRecord>> {
        self.agents.get(agent_id).map(|(_, agent)| agent.clone())
    }

    /// The agents that can do something, the best match first, up to the query's limit, or all of them.
    pub(super) fn candidates(&self, query: &SearchQuery) -> Vec<Candidate> {
        let filter = &query.filter;
        let agent = |slot: u32| self.by_slot.get(slot as usize)?.as_ref();
        let accepts = |slot, position: u16| {
            let capability = agent(slot).and_then(|agent| agent.capabilities.get(usize::from(position)));
            capability.is_some_and(|capability| filter.accepts_capability(capability))
        };
        let candidate = |hit: &Hit| {
            let agent = agent(hit.slot)?.clone();
            let is_accepted = filter.accepts_status(agent.status, agent.healthy)
                && filter.accepts_metadata(&agent.metadata);
            is_accepted.then_some(Candidate::FromDirectory {
                agent,
                position: hit.position,
                score: hit.score,
            })
        };
        let limit = query.limit.unwrap_or(usize::MAX);
        let search = PreparedSearch::from(query.clone());
        search.search(&self.index, limit, accepts, candidate, Candidate::rank).0
    }

    pub(super) fn insert(&mut self, agent: Arc<AgentRecord>) {
        self.remove(&agent.agent_id);
        let slot = self.index.insert(&agent.capabilities);
        if self.by_slot.len() <= slot as usize {
            self.by_slot.resize(slot as usize + 1, None);
        }
        if let Some(entry) = self.by_slot.get_mut(slot as usize) {
            *entry = Some(agent.clone());
        }
        self.agents.insert(agent.agent_id.clone(), (slot, agent));
    }

    pub(super) fn remove(&mut self, agent_id: &str) {
        let Some((slot, _)) = self.agents.remove(agent_id) else { return };
        self.index.remove(slot);
        if let Some(entry) = self.by_slot.get_mut(slot as usize) {
            *entry = None;
        }
    }
}
