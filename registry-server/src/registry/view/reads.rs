//! Answers from the view.

use registry_sdk::contract::{
    AgentHealth, AgentStatus, HealthStatus, Rank, RegistryStats, UnhealthyReason, heartbeat_timeout,
};

use super::View;
use super::entry::{EffectiveStatus, Entry, ReadContext};
use super::record::{Json, Record};

/// About how many bytes a match has.
const MATCH_BYTES: usize = 400;

/// A read's answer as far as the view knows, and the agents whose missed deadlines have to be confirmed
/// before it is given.
#[derive(Debug)]
pub(crate) struct Read<T> {
    pub(crate) value: T,
    pub(crate) unconfirmed: Vec<String>,
}

/// Which agents a list is to have.
#[derive(Clone, Debug)]
pub(crate) struct ListQuery {
    pub(crate) status: Option<AgentStatus>,
    /// Only agents after this id.
    pub(crate) after: Option<String>,
    /// How many agents at most.
    pub(crate) limit: usize,
    /// No further agent where the records have as many bytes.
    pub(crate) max_bytes: usize,
}

/// Part of a list.
#[derive(Debug)]
pub(crate) struct Page {
    /// Records, with commas between them.
    pub(crate) records: Json,
    /// The last agent's id.
    pub(crate) last_id: Option<String>,
    /// Whether more agents follow.
    pub(crate) has_more: bool,
}

/// Which matches a search is to find.
#[derive(Clone, Debug)]
pub(crate) struct SearchQuery {
    pub(crate) q: String,
    pub(crate) status: Option<AgentStatus>,
    pub(crate) limit: usize,
}

impl View {
    pub(crate) fn get(&self, agent_id: &str, context: &ReadContext) -> Read<Option<Json>> {
        let mut unconfirmed = Vec::new();
        let Some(entry) = self.entry(agent_id) else {
            return Read { value: None, unconfirmed };
        };
        // For the doubts alone: the record stands as it is heard now.
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

    /// The matches, as a list.
    pub(crate) fn search(&self, query: &SearchQuery, context: &ReadContext) -> Read<Json> {
        let inner = self.inner.read();
        let mut unconfirmed = Vec::new();
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for hit in inner.index.find(&query.q) {
            let Some(entry) = inner.slot(hit.slot) else { continue };
            let effective = entry.effective_status(context, &mut unconfirmed);
            let status = effective.status;
            if query.status.is_none_or(|wanted| wanted == status) {
                let last_heartbeat = Some(entry.liveness.last_heartbeat());
                let agent_id = &entry.agent.agent_id;
                let rank = Rank { score: hit.score, status, last_heartbeat, agent_id };
                candidates.push(Candidate { rank, index: hit.place.into(), effective, entry });
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

/// A match on its way to its place.
struct Candidate<'a> {
    rank: Rank<'a>,
    index: usize,
    effective: EffectiveStatus,
    entry: &'a Entry,
}
