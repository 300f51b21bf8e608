//! Answers from the view.

use registry_sdk::contract::{
    AgentHealth, AgentRecord, AgentStatus, CapabilityMatch, HealthStatus, Rank, RegistryStats,
    UnhealthyReason,
};

use super::View;
use super::held::{Held, Moment, Standing};

/// A read's answer as far as the view knows, and the agents whose missed deadlines have to be confirmed
/// before it is given.
#[derive(Debug)]
pub(crate) struct Read<T> {
    pub(crate) answer: T,
    pub(crate) doubts: Vec<String>,
}

/// Which agents a list is to have.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListQuery {
    pub(crate) status: Option<AgentStatus>,
    /// Only agents after this id.
    pub(crate) after: Option<String>,
    pub(crate) limit: Option<usize>,
}

/// Part of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) agents: Vec<AgentRecord>,
    /// Whether more agents follow.
    pub(crate) more: bool,
}

/// Which matches a search is to find.
#[derive(Clone, Debug)]
pub(crate) struct SearchQuery {
    pub(crate) q: String,
    pub(crate) status: Option<AgentStatus>,
    pub(crate) limit: usize,
}

impl View {
    pub(crate) fn get(&self, agent_id: &str, moment: &Moment) -> Read<Option<AgentRecord>> {
        let mut doubts = Vec::new();
        let Some(held) = self.held(agent_id) else {
            return Read { answer: None, doubts };
        };
        let standing = held.standing(moment, &mut doubts);
        Read { answer: Some(held.record(moment, standing)), doubts }
    }

    pub(crate) fn health(&self, agent_id: &str, moment: &Moment) -> Read<Option<AgentHealth>> {
        let mut doubts = Vec::new();
        let Some(held) = self.held(agent_id) else {
            return Read { answer: None, doubts };
        };
        let standing = held.standing(moment, &mut doubts);
        let (status, reason) = match standing {
            standing if standing.is_healthy() => (HealthStatus::Healthy, None),
            Standing { status: AgentStatus::Active | AgentStatus::Busy, .. } => {
                (HealthStatus::Unhealthy, Some(UnhealthyReason::ProbeFailed))
            }
            Standing { missed_deadline: true, .. } => {
                (HealthStatus::Unhealthy, Some(UnhealthyReason::HeartbeatMissed))
            }
            Standing { .. } => (HealthStatus::Unhealthy, Some(UnhealthyReason::Offline)),
        };
        let mut health = AgentHealth::new(agent_id, status);
        health.agent_status = Some(standing.status);
        health.last_heartbeat = Some(held.heard());
        health.since_heartbeat = Some(moment.now.since(held.heard()));
        health.heartbeat_timeout = Some(held.timeout(moment));
        health.reason = reason;
        health.probe = held.report().probe.filter(|_| moment.probes);
        Read { answer: Some(health), doubts }
    }

    pub(crate) fn list(&self, query: &ListQuery, moment: &Moment) -> Read<Page> {
        use std::ops::Bound::{Excluded, Unbounded};
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut page = Page { agents: Vec::new(), more: false };
        let start = query.after.as_deref().map_or(Unbounded, Excluded);
        for slot in inner.ids.range::<str, _>((start, Unbounded)).map(|(_, slot)| *slot) {
            let Some(held) = inner.slot(slot) else { continue };
            let standing = held.standing(moment, &mut doubts);
            if query.status.is_some_and(|wanted| wanted != standing.status) {
                continue;
            }
            if query.limit.is_some_and(|limit| page.agents.len() == limit) {
                page.more = true;
                break;
            }
            page.agents.push(held.record(moment, standing));
        }
        Read { answer: page, doubts }
    }

    pub(crate) fn search(&self, query: &SearchQuery, moment: &Moment) -> Read<Vec<CapabilityMatch>> {
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut found: Vec<Found<'_>> = Vec::new();
        for hit in inner.index.find(&query.q) {
            let Some(held) = inner.slot(hit.slot) else { continue };
            let standing = held.standing(moment, &mut doubts);
            let status = standing.status;
            if query.status.is_none_or(|wanted| wanted == status) {
                let last_heartbeat = Some(held.heard());
                let agent_id = &held.agent.agent_id;
                let rank = Rank { score: hit.score, status, last_heartbeat, agent_id };
                found.push(Found { rank, place: hit.place, healthy: standing.is_healthy(), held });
            }
        }
        found.sort_unstable_by(|one, other| one.rank.cmp(&other.rank));
        found.truncate(query.limit);
        Read { answer: found.iter().filter_map(Found::to_match).collect(), doubts }
    }

    pub(crate) fn stats(&self, moment: &Moment) -> Read<RegistryStats> {
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut stats = RegistryStats::default();
        for held in inner.slots.iter().flatten() {
            let standing = held.standing(moment, &mut doubts);
            stats.count(standing.status, standing.missed_deadline);
        }
        let (capabilities, distinct) = inner.index.counts();
        stats.total_capabilities = capabilities as u64;
        stats.distinct_capabilities = distinct as u64;
        Read { answer: stats, doubts }
    }
}

/// A match on its way to its place.
struct Found<'a> {
    rank: Rank<'a>,
    place: u16,
    healthy: bool,
    held: &'a Held,
}

impl Found<'_> {
    fn to_match(&self) -> Option<CapabilityMatch> {
        let agent = &self.held.agent;
        let capability = agent.capabilities.get(usize::from(self.place))?;
        let status = self.rank.status;
        let mut found = CapabilityMatch::new(agent.agent_id.clone(), status, capability.clone());
        found.agent_name.clone_from(&agent.agent_name);
        found.base_url.clone_from(&agent.base_url);
        found.last_heartbeat = self.rank.last_heartbeat;
        found.score = Some(self.rank.score);
        found.healthy = Some(self.healthy);
        (found.load, found.active_tasks) = self.held.load();
        Some(found)
    }
}
