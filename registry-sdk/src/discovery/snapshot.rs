//! All agents at a moment, and the index that finds them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::candidate::{Candidate, known_health};
use crate::contract::AgentRecord;
use crate::query::SearchQuery;
use crate::query::filter::FilterParts;
use crate::query::prepared::PreparedSearch;
use crate::search::{Hit, SearchIndex};

/// The agents, and the index that finds them.
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

    /// Returns the agents that match, best match first, up to the query's limit, or all of them. Includes agents in
    /// maintenance, which a registry omits, only on request.
    pub(super) fn candidates(&self, query: &SearchQuery, wants_maintenance: bool) -> Vec<Candidate> {
        let filter = &query.filter;
        let agent = |slot: u32| self.by_slot.get(slot as usize)?.as_ref();
        let accepts = |slot, position: u16| {
            let capability = agent(slot).and_then(|agent| agent.capabilities.get(usize::from(position)));
            capability.is_some_and(|capability| filter.accepts_capability(capability))
        };
        let candidate = |hit: &Hit| {
            let agent = agent(hit.slot)?.clone();
            let is_accepted = filter.accepts_status(agent.status, known_health(&agent))
                && filter.accepts_metadata(&agent.metadata);
            let found = Candidate::FromDirectory { agent, position: hit.position, score: hit.score };
            Some(found).filter(|found| is_accepted && (wants_maintenance || !found.is_in_maintenance()))
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::contract::{AgentStatus, Capability, MaintenanceRequest, Timestamp};

    /// A record from a maintenance that ends this long from now, or ended before.
    fn snapshot(ends_in: i64) -> Snapshot {
        let mut agent = AgentRecord::new("a", AgentStatus::Active);
        agent.capabilities = vec![Capability::new("work")];
        agent.healthy = Some(false);
        let end = Timestamp::from(SystemTime::now()).unix_millis() + ends_in;
        let day = Duration::from_secs(86_400);
        let since = Timestamp::from_unix_millis(end).saturating_sub(day);
        agent.maintenance = Some(MaintenanceRequest::new("upgrade").duration(day).begin(since));
        let mut snapshot = Snapshot::default();
        snapshot.insert(Arc::new(agent));
        snapshot
    }

    /// The registry may be unavailable at the end of the maintenance, and not have reported it yet.
    #[test]
    fn maintenance_is_over_at_its_end_whether_or_not_the_registry_has_said_so() {
        let found = |ends_in, query: SearchQuery| {
            let found = snapshot(ends_in).candidates(&query, false);
            found.first().map(Candidate::reported_health)
        };
        let work = || SearchQuery::new("work");
        for query in [work(), work().healthy(false), work().healthy(true)] {
            assert_eq!(found(3_600_000, query.clone()), None, "{query:?}");
            assert_eq!(found(-1, query), Some(None), "its health is not known");
        }
        let candidates = snapshot(3_600_000).candidates(&work(), true);
        assert!(candidates[0].is_in_maintenance() && candidates[0].reported_health() == Some(false));
    }
}
