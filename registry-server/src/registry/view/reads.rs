//! Reads from the view.

use registry_sdk::contract::{
    AgentHealth, AgentStatus, HealthStatus, RegistryStats, UnhealthyReason, heartbeat_timeout,
};
use registry_sdk::search::Rank;

use super::View;
use super::entry::{EffectiveStatus, Entry, ReadContext};
use super::record::{Json, Record};

/// Approximate size of a match in bytes.
const MATCH_BYTES: usize = 400;

/// The result of a read, and the agents whose missed deadlines have to be confirmed before it can be used.
#[derive(Debug)]
pub(crate) struct Read<T> {
    pub(crate) value: T,
    pub(crate) unconfirmed: Vec<String>,
}

/// The query of a list.
#[derive(Clone, Debug)]
pub(crate) struct ListQuery {
    pub(crate) status: Option<AgentStatus>,
    /// Excludes this id and all before it.
    pub(crate) after: Option<String>,
    /// Maximum number of agents.
    pub(crate) limit: usize,
    /// Size of the records after which the page ends.
    pub(crate) max_bytes: usize,
}

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page {
    /// Records, separated by commas.
    pub(crate) records: Json,
    /// Id of the last agent.
    pub(crate) last_id: Option<String>,
    /// Whether there are further agents.
    pub(crate) has_more: bool,
}

/// The query of a search.
#[derive(Clone, Debug)]
pub(crate) struct SearchQuery {
    pub(crate) q: String,
    pub(crate) status: Option<AgentStatus>,
    pub(crate) healthy: Option<bool>,
    /// Maximum number of matches, of those that pass the filters.
    pub(crate) limit: usize,
}

impl SearchQuery {
    /// Returns whether an agent passes the filters.
    fn accepts(&self, effective: EffectiveStatus) -> bool {
        self.status.is_none_or(|wanted| wanted == effective.status)
            && self.healthy.is_none_or(|wanted| wanted == effective.is_healthy())
    }
}

impl View {
    pub(crate) fn get(&self, agent_id: &str, context: &ReadContext) -> Read<Option<Json>> {
        let mut unconfirmed = Vec::new();
        let Some(entry) = self.entry(agent_id) else {
            return Read { value: None, unconfirmed };
        };
        // Only to find out whether the deadline is confirmed: the record computes its own status.
        entry.effective_status(context, &mut unconfirmed);
        Read { value: Some(entry.record(context, entry.liveness.last_heartbeat())), unconfirmed }
    }

    pub(crate) fn health(&self, agent_id: &str, context: &ReadContext) -> Read<Option<AgentHealth>> {
        let mut unconfirmed = Vec::new();
        let Some(entry) = self.entry(agent_id) else {
            return Read { value: None, unconfirmed };
        };
        let effective = entry.effective_status(context, &mut unconfirmed);
        let (status, reason) = match effective {
            effective if effective.is_healthy() => (HealthStatus::Healthy, None),
            EffectiveStatus { status: AgentStatus::Active | AgentStatus::Busy, .. } => {
                (HealthStatus::Unhealthy, Some(UnhealthyReason::ProbeFailed))
            }
            EffectiveStatus { missed_deadline: true, .. } => {
                (HealthStatus::Unhealthy, Some(UnhealthyReason::HeartbeatMissed))
            }
            EffectiveStatus { .. } => (HealthStatus::Unhealthy, Some(UnhealthyReason::Offline)),
        };
        let mut health = AgentHealth::new(agent_id, status);
        health.agent_status = Some(effective.status);
        let last_heartbeat = entry.liveness.last_heartbeat();
        health.last_heartbeat = Some(last_heartbeat);
        health.since_heartbeat = Some(context.now.since(last_heartbeat));
        health.heartbeat_timeout =
            Some(heartbeat_timeout(context.policy.timeout, entry.agent.heartbeat_interval));
        health.reason = reason;
        health.probe = if context.is_probing { entry.liveness.report().probe } else { None };
        Read { value: Some(health), unconfirmed }
    }

    pub(crate) fn list(&self, query: &ListQuery, context: &ReadContext) -> Read<Page> {
        use std::ops::Bound::{Excluded, Unbounded};
        let inner = self.inner.read();
        let mut unconfirmed = Vec::new();
        let mut page = Page { records: Vec::new(), last_id: None, has_more: false };
        let (mut count, mut last) = (0, None);
        let start = query.after.as_deref().map_or(Unbounded, Excluded);
        for slot in inner.ordered_ids.range::<str, _>((start, Unbounded)).map(|(_, slot)| *slot) {
            let Some(entry) = inner.slot(slot) else { continue };
            let effective = entry.effective_status(context, &mut unconfirmed);
            if query.status.is_some_and(|wanted| wanted != effective.status) {
                continue;
            }
            if count == query.limit || page.records.len() >= query.max_bytes {
                page.has_more = true;
                break;
            }
            if count > 0 {
                page.records.push(b',');
            }
            let liveness = &entry.liveness;
            let record =
                Record::new(&entry.agent, liveness.last_heartbeat(), effective, liveness.load(), context);
            record.write(entry.registration_tag(), &mut page.records);
            last = Some(entry);
            count += 1;
        }
        page.last_id = last.map(|entry| entry.agent.agent_id.clone());
        Read { value: page, unconfirmed }
    }

    /// Returns the JSON array of matches.
    pub(crate) fn search(&self, query: &SearchQuery, context: &ReadContext) -> Read<Json> {
        let inner = self.inner.read();
        let mut unconfirmed = Vec::new();
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for hit in inner.index.search(&query.q) {
            let Some(entry) = inner.slot(hit.slot) else { continue };
            let effective = entry.effective_status(context, &mut unconfirmed);
            if query.accepts(effective) {
                let last_heartbeat = Some(entry.liveness.last_heartbeat());
                let agent_id = &entry.agent.agent_id;
                let rank = Rank { score: hit.score, status: effective.status, last_heartbeat, agent_id };
                candidates.push(Candidate { rank, index: hit.position.into(), effective, entry });
            }
        }
        if candidates.len() > query.limit {
            candidates.select_nth_unstable_by(query.limit, |one, other| one.rank.cmp(&other.rank));
            candidates.truncate(query.limit);
        }
        candidates.sort_unstable_by(|one, other| one.rank.cmp(&other.rank));
        let mut list = Vec::with_capacity(2 + candidates.len() * MATCH_BYTES);
        list.push(b'[');
        for (position, Candidate { rank, index, effective, entry }) in candidates.iter().enumerate() {
            if position > 0 {
                list.push(b',');
            }
            let last_heartbeat = rank.last_heartbeat.unwrap_or(entry.agent.last_heartbeat);
            let record =
                Record::new(&entry.agent, last_heartbeat, *effective, entry.liveness.load(), context);
            record.write_match(&mut list, *index, rank.score);
        }
        list.push(b']');
        Read { value: list, unconfirmed }
    }

    pub(crate) fn stats(&self, context: &ReadContext) -> Read<RegistryStats> {
        let inner = self.inner.read();
        let mut unconfirmed = Vec::new();
        let mut stats = RegistryStats::default();
        for entry in inner.slots.iter().flatten() {
            let effective = entry.effective_status(context, &mut unconfirmed);
            stats.count(effective.status, effective.missed_deadline);
        }
        let (capabilities, distinct) = inner.index.counts();
        stats.total_capabilities = capabilities as u64;
        stats.distinct_capabilities = distinct as u64;
        Read { value: stats, unconfirmed }
    }
}

/// A match that has not been ranked yet.
struct Candidate<'a> {
    rank: Rank<'a>,
    index: usize,
    effective: EffectiveStatus,
    entry: &'a Entry,
}
