//! Answers from the view.

use registry_sdk::contract::{
    AgentHealth, AgentStatus, HealthStatus, RegistryStats, UnhealthyReason, heartbeat_timeout,
};
use registry_sdk::search::Rank;

use super::View;
use super::held::{Held, Moment, Standing};
use super::record::{Json, Record};

/// About how many bytes a match has.
const MATCH_BYTES: usize = 400;

/// A read's answer as far as the view knows, and the agents whose missed deadlines have to be confirmed
/// before it is given.
#[derive(Debug)]
pub(crate) struct Read<T> {
    pub(crate) answer: T,
    pub(crate) doubts: Vec<String>,
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
    pub(crate) enough: usize,
}

/// Part of a list.
#[derive(Debug)]
pub(crate) struct Page {
    /// Records, with commas between them.
    pub(crate) records: Json,
    /// The last agent's id.
    pub(crate) last: Option<String>,
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
    pub(crate) fn get(&self, agent_id: &str, moment: &Moment) -> Read<Option<Json>> {
        let mut doubts = Vec::new();
        let Some(held) = self.held(agent_id) else {
            return Read { answer: None, doubts };
        };
        // For the doubts alone: the record stands as it is heard now.
        held.standing(moment, &mut doubts);
        Read { answer: Some(held.record(moment, held.pulse.heard())), doubts }
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
        let heard = held.pulse.heard();
        health.last_heartbeat = Some(heard);
        health.since_heartbeat = Some(moment.now.since(heard));
        health.heartbeat_timeout =
            Some(heartbeat_timeout(moment.patience.timeout, held.agent.heartbeat_interval));
        health.reason = reason;
        health.probe = if moment.probes { held.pulse.report().probe } else { None };
        Read { answer: Some(health), doubts }
    }

    pub(crate) fn list(&self, query: &ListQuery, moment: &Moment) -> Read<Page> {
        use std::ops::Bound::{Excluded, Unbounded};
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut page = Page { records: Vec::new(), last: None, more: false };
        let (mut count, mut last) = (0, None);
        let start = query.after.as_deref().map_or(Unbounded, Excluded);
        for slot in inner.in_order.range::<str, _>((start, Unbounded)).map(|(_, slot)| *slot) {
            let Some(held) = inner.slot(slot) else { continue };
            let standing = held.standing(moment, &mut doubts);
            if query.status.is_some_and(|wanted| wanted != standing.status) {
                continue;
            }
            if count == query.limit || page.records.len() >= query.enough {
                page.more = true;
                break;
            }
            if count > 0 {
                page.records.push(b',');
            }
            let pulse = &held.pulse;
            let record = Record::new(&held.agent, pulse.heard(), standing, pulse.load(), moment);
            record.write(held.registration_tag(), &mut page.records);
            last = Some(held);
            count += 1;
        }
        page.last = last.map(|held| held.agent.agent_id.clone());
        Read { answer: page, doubts }
    }

    /// The matches, as a list.
    pub(crate) fn search(&self, query: &SearchQuery, moment: &Moment) -> Read<Json> {
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut found: Vec<Found<'_>> = Vec::new();
        for hit in inner.index.search(&query.q) {
            let Some(held) = inner.slot(hit.slot) else { continue };
            let standing = held.standing(moment, &mut doubts);
            let status = standing.status;
            if query.status.is_none_or(|wanted| wanted == status) {
                let last_heartbeat = Some(held.pulse.heard());
                let agent_id = &held.agent.agent_id;
                let rank = Rank { score: hit.score, status, last_heartbeat, agent_id };
                found.push(Found { rank, place: hit.position.into(), standing, held });
            }
        }
        if found.len() > query.limit {
            found.select_nth_unstable_by(query.limit, |one, other| one.rank.cmp(&other.rank));
            found.truncate(query.limit);
        }
        found.sort_unstable_by(|one, other| one.rank.cmp(&other.rank));
        let mut list = Vec::with_capacity(2 + found.len() * MATCH_BYTES);
        list.push(b'[');
        for (number, Found { rank, place, standing, held }) in found.iter().enumerate() {
            if number > 0 {
                list.push(b',');
            }
            let heard = rank.last_heartbeat.unwrap_or(held.agent.last_heartbeat);
            let record = Record::new(&held.agent, heard, *standing, held.pulse.load(), moment);
            record.write_match(&mut list, *place, rank.score);
        }
        list.push(b']');
        Read { answer: list, doubts }
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
    place: usize,
    standing: Standing,
    held: &'a Held,
}
