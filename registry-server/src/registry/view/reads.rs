//! Reads from the view.

use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::RwLockReadGuard;
use registry_sdk::contract::{
    AgentHealth, AgentStatus, HealthStatus, RegistryStats, Timestamp, UnhealthyReason, limits,
};
use registry_sdk::internal::{FilterParts, Hit, PreparedSearch, Rank, count_agent, heartbeat_timeout};
use registry_sdk::{AgentFilter, ListQuery};

use super::View;
use super::entry::{EffectiveStatus, Entry, ReadContext};
use super::record::{Json, Record};
use crate::store::RegistrationTag;

/// Approximate sizes of a match and of a record, in bytes.
const MATCH_BYTES: usize = 400;
const RECORD_BYTES: usize = 1_024;

/// Size up to which a response is created at once, as nearly all pages and searches are.
const WHOLE_BYTES: usize = 64 * 1_024;

/// Size of the chunks of a longer response. The smaller it is, the less memory a slow reader takes.
pub(crate) const CHUNK_BYTES: usize = 16 * 1_024;

/// The result of a read, and the agents whose missed deadlines must be confirmed before the result can be
/// used.
#[derive(Debug)]
pub(crate) struct Read<T> {
    pub(crate) value: T,
    pub(crate) unconfirmed: Vec<String>,
}

/// Number of agents that a list visits before it yields the lock to a waiting writer.
const AGENTS_AT_ONCE: usize = 1_000;

/// Maximum number of capabilities that a quick search visits, which takes up to a millisecond.
const MAX_QUICK: usize = 1_000;

/// The first chunk of a list, a search, or a page of either.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) first: Chunk,
    /// Cursor of the next page, if there is one.
    pub(crate) next: Option<String>,
}

/// A part of a JSON array: objects, each preceded by a comma.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) objects: Json,
    /// The remaining chunks, if there are any.
    pub(crate) rest: Option<Rest>,
}

/// The part of a response that has not been created yet.
///
/// Holds ids instead of agents, since a slow client must not keep agents in memory that the view has
/// replaced. Each agent is sent in its state when its chunk is created, or skipped if it no longer belongs to
/// the response.
#[derive(Clone, Debug)]
pub(crate) enum Rest {
    /// The agents of a list, starting at its cursor.
    List(ListQuery),
    /// Agents that were selected when the request arrived, and how many of them were already sent.
    Selected { filter: Arc<AgentFilter>, agents: Arc<[Selected]>, sent: usize },
}

/// An agent of a page or of a search result.
#[derive(Debug)]
pub(crate) struct Selected {
    agent_id: Arc<str>,
    found: Option<Found>,
}

/// The capability that a search found, with the registration that contains it.
#[derive(Debug)]
struct Found {
    index: usize,
    score: f64,
    registration: RegistrationTag,
}

impl Rest {
    /// Whether all agents have to be checked, possibly without many matches.
    pub(crate) fn is_expensive(&self) -> bool {
        matches!(self, Self::List(query) if query.filter.has_capability() || !query.filter.metadata.is_empty())
    }

    fn selected(agents: Vec<Selected>, filter: &AgentFilter) -> Option<Self> {
        if agents.is_empty() {
            return None;
        }
        Some(Self::Selected { filter: Arc::new(filter.clone()), agents: agents.into(), sent: 0 })
    }
}

impl View {
    pub(crate) fn get(&self, agent_id: &str, context: &ReadContext) -> Read<Option<Json>> {
        let mut unconfirmed = Vec::new();
        let Some(entry) = self.entry(agent_id) else {
            return Read { value: None, unconfirmed };
        };
        let effective = entry.effective_status(context, &mut unconfirmed);
        let record = Record::of_entry(&entry, effective, context).json(entry.registration_tag());
        Read { value: Some(record), unconfirmed }
    }

    pub(crate) fn health(&self, agent_id: &str, context: &ReadContext) -> Read<Option<AgentHealth>> {
        let mut unconfirmed = Vec::new();
        let Some(entry) = self.entry(agent_id) else {
            return Read { value: None, unconfirmed };
        };
        let effective = entry.effective_status(context, &mut unconfirmed);
        let (status, reason) = match effective {
            effective if effective.is_healthy() => (HealthStatus::Healthy, None),
            EffectiveStatus { status: AgentStatus::Active | AgentStatus::Busy, in_maintenance, .. } => {
                let probe_failed = UnhealthyReason::ProbeFailed;
                let reason = if in_maintenance { UnhealthyReason::Maintenance } else { probe_failed };
                (HealthStatus::Unhealthy, Some(reason))
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
        let is_probed = context.is_probing && entry.agent.may_be_probed();
        health.probe = if is_probed { entry.liveness.report().probe } else { None };
        Read { value: Some(health), unconfirmed }
    }

    /// Returns the first chunk of a list or of one of its pages.
    pub(crate) fn list(&self, query: &ListQuery, context: &ReadContext) -> Read<Page> {
        self.list_up_to(WHOLE_BYTES, query, context)
    }

    /// Returns the next chunk of a response.
    pub(crate) fn next_chunk(&self, rest: &Rest, context: &ReadContext) -> Read<Chunk> {
        match rest {
            Rest::List(query) => {
                let Read { value: page, unconfirmed } = self.list_up_to(CHUNK_BYTES, query, context);
                Read { value: page.first, unconfirmed }
            }
            Rest::Selected { filter, agents, sent } => {
                let mut sent = *sent;
                let Read { value: objects, unconfirmed } =
                    self.write_selected(agents, &mut sent, filter, context);
                let rest = Rest::Selected { filter: filter.clone(), agents: agents.clone(), sent };
                Read { value: Chunk { objects, rest: (sent < agents.len()).then_some(rest) }, unconfirmed }
            }
        }
    }

    fn list_up_to(&self, max_bytes: usize, query: &ListQuery, context: &ReadContext) -> Read<Page> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut part = PartOfList::new(max_bytes, query, context);
        let mut looked_at: Option<Arc<str>> = query.cursor.as_deref().map(Arc::from);
        let mut inner = self.inner.read();
        loop {
            let start = looked_at.as_deref().map_or(Unbounded, Excluded);
            let ids = inner.agents.ordered_ids.range::<str, _>((start, Unbounded));
            let (mut count, mut latest) = (0, None);
            for (agent_id, slot) in ids.take(AGENTS_AT_ONCE) {
                (count, latest) = (count + 1, Some(agent_id));
                if let Some(entry) = inner.agents.slot(*slot)
                    && part.add(agent_id, entry).is_break()
                {
                    return part.finish();
                }
            }
            if count < AGENTS_AT_ONCE {
                return part.finish();
            }
            looked_at = latest.cloned();
            RwLockReadGuard::bump(&mut inner);
        }
    }

    /// Writes one chunk of the selected agents, and advances `sent` past it.
    fn write_selected(
        &self,
        selected: &[Selected],
        sent: &mut usize,
        filter: &AgentFilter,
        context: &ReadContext,
    ) -> Read<Json> {
        let agents = &self.inner.read().agents;
        let (mut objects, mut unconfirmed) = (Vec::with_capacity(CHUNK_BYTES + RECORD_BYTES), Vec::new());
        while objects.len() < CHUNK_BYTES
            && let Some(Selected { agent_id, found }) = selected.get(*sent)
        {
            *sent += 1;
            let Some(entry) = agents.get(agent_id) else { continue };
            let effective = entry.effective_status(context, &mut unconfirmed);
            let belongs = match found {
                // The filter already accepted this registration.
                Some(found) => !effective.in_maintenance && found.registration == entry.registration_tag(),
                None => entry.agent.passes(filter),
            };
            if !effective.passes(filter) || !belongs {
                continue;
            }
            objects.push(b',');
            let record = Record::of_entry(entry, effective, context);
            match found {
                None => record.write(entry.registration_tag(), &mut objects),
                Some(found) => record.write_match(&mut objects, found.index, found.score),
            }
        }
        Read { value: objects, unconfirmed }
    }

    /// Whether a search takes no longer than a page of a list.
    pub(crate) fn is_quick(&self, search: &PreparedSearch) -> bool {
        search.is_quick(&self.inner.read().agents.index, MAX_QUICK)
    }

    /// Returns the first chunk of the matches, or of one page of them.
    pub(crate) fn search(&self, search: &PreparedSearch, context: &ReadContext) -> Read<Page> {
        let agents = &self.inner.read().agents;
        let query = search.query();
        let filter = &query.filter;
        let mut unconfirmed = Vec::new();
        let accepts = |slot, position: u16| {
            let entry = agents.slot(slot).filter(|_| filter.has_capability());
            entry.is_none_or(|entry| entry.agent.capabilities.passes(position.into(), filter))
        };
        let candidate = |hit: &Hit| {
            let entry = agents.slot(hit.slot)?;
            let effective = entry.effective_status(context, &mut unconfirmed);
            let last_heartbeat = entry.liveness.last_heartbeat();
            let is_accepted =
                effective.passes(filter) && !effective.in_maintenance && entry.agent.metadata.passes(filter);
            is_accepted.then_some(Candidate { hit: *hit, last_heartbeat, effective, entry })
        };
        let limit = query.limit.unwrap_or(limits::DEFAULT_MATCHES);
        let (candidates, next) = search.search(&agents.index, limit, accepts, candidate, Candidate::rank);
        let mut objects = Vec::with_capacity(WHOLE_BYTES.min(candidates.len() * MATCH_BYTES));
        let mut selected = Vec::new();
        for Candidate { hit: Hit { position, score, .. }, effective, entry, .. } in candidates {
            let index = position.into();
            if objects.len() < WHOLE_BYTES {
                objects.push(b',');
                Record::of_entry(entry, effective, context).write_match(&mut objects, index, score);
            } else if let Some((agent_id, _)) = agents.ids.get_key_value(&*entry.agent.agent_id) {
                let found = Found { index, score, registration: entry.registration_tag() };
                selected.push(Selected { agent_id: agent_id.clone(), found: Some(found) });
            }
        }
        let first = Chunk { objects, rest: Rest::selected(selected, filter) };
        Read { value: Page { first, next }, unconfirmed }
    }

    pub(crate) fn stats(&self, context: &ReadContext) -> Read<RegistryStats> {
        let agents = &self.inner.read().agents;
        let mut unconfirmed = Vec::new();
        let mut stats = RegistryStats::default();
        for entry in agents.slots.iter().flatten() {
            let effective = entry.effective_status(context, &mut unconfirmed);
            count_agent(&mut stats, effective.status, effective.missed_deadline);
            stats.maintenance_agents += u64::from(effective.in_maintenance);
        }
        let (capabilities, distinct) = agents.index.counts();
        stats.total_capabilities = capabilities as u64;
        stats.distinct_capabilities = distinct as u64;
        Read { value: stats, unconfirmed }
    }
}

/// A match that has not been ranked yet. Small, since thousands may have the same score.
struct Candidate<'a> {
    hit: Hit,
    last_heartbeat: Timestamp,
    effective: EffectiveStatus,
    entry: &'a Entry,
}

impl Candidate<'_> {
    fn rank(&self) -> Rank<'_> {
        let Self { hit, last_heartbeat, effective, entry } = self;
        let last_heartbeat = Some(*last_heartbeat);
        Rank { score: hit.score, status: effective.status, last_heartbeat, agent_id: &entry.agent.agent_id }
    }
}

/// A part of a list that is created under one lock.
struct PartOfList<'a> {
    max_bytes: usize,
    query: &'a ListQuery,
    context: &'a ReadContext,
    objects: Json,
    /// Agents that belong to the page, but are not written yet.
    selected: Vec<Selected>,
    unconfirmed: Vec<String>,
    count: usize,
    last: Option<Arc<str>>,
    has_more: bool,
}

impl<'a> PartOfList<'a> {
    fn new(max_bytes: usize, query: &'a ListQuery, context: &'a ReadContext) -> Self {
        let bytes = query.limit.map_or(max_bytes, |limit| limit * RECORD_BYTES).min(max_bytes);
        Self {
            max_bytes,
            query,
            context,
            objects: Vec::with_capacity(bytes + RECORD_BYTES),
            selected: Vec::new(),
            unconfirmed: Vec::new(),
            count: 0,
            last: None,
            has_more: false,
        }
    }

    /// Adds an agent if it passes the filter. Breaks if the agent belongs to the next part.
    fn add(&mut self, agent_id: &Arc<str>, entry: &Entry) -> ControlFlow<()> {
        let effective = entry.effective_status(self.context, &mut self.unconfirmed);
        let filter = &self.query.filter;
        if !effective.passes(filter) || !entry.agent.passes(filter) {
            return ControlFlow::Continue(());
        }
        let is_full = self.objects.len() >= self.max_bytes;
        if self.query.limit.map_or(is_full, |limit| self.count == limit) {
            self.has_more = true;
            return ControlFlow::Break(());
        }
        if is_full {
            self.selected.push(Selected { agent_id: agent_id.clone(), found: None });
        } else {
            self.objects.push(b',');
            let record = Record::of_entry(entry, effective, self.context);
            record.write(entry.registration_tag(), &mut self.objects);
        }
        self.count += 1;
        self.last = Some(agent_id.clone());
        ControlFlow::Continue(())
    }

    fn finish(self) -> Read<Page> {
        let Self { query, objects, selected, unconfirmed, .. } = self;
        let next = self.last.filter(|_| self.has_more).map(|last| last.to_string());
        let (rest, next) = match (query.limit, next) {
            (None, Some(last)) => (Some(Rest::List(query.clone().after(last))), None),
            (_, next) => (Rest::selected(selected, &query.filter), next),
        };
        Read { value: Page { first: Chunk { objects, rest }, next }, unconfirmed }
    }
}
