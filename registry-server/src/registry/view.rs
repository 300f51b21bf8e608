//! The view: every agent in memory. Reads are answered from here alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use registry_sdk::contract::{
    AgentHealth, AgentRecord, AgentStatus, CapabilityMatch, HealthStatus, RegistryStats, Timestamp,
    UnhealthyReason, heartbeat_timeout, terms,
};

use super::index::{CapabilityTerms, Index, Slot};
use super::rules::Patience;
use crate::store::{Snapshot, StoredAgent};

/// One agent in memory. Only its last heartbeat changes in place; for any other change there is a new one.
#[derive(Debug)]
pub(crate) struct Held {
    /// As it was stored; the time of the last heartbeat is in `heard`.
    pub(crate) agent: StoredAgent,
    /// The last heartbeat, in milliseconds since the Unix epoch.
    heard: AtomicI64,
    /// A last heartbeat that the database confirmed as the last of all, after it had become too old. Where
    /// other processes write as well, only then is the agent believed to have missed its deadline.
    confirmed: AtomicI64,
    terms: Box<[CapabilityTerms]>,
}

/// An agent's status at one moment.
#[derive(Clone, Copy, Debug)]
struct Standing {
    status: AgentStatus,
    missed_deadline: bool,
}

/// The circumstances of a read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: Timestamp,
    pub(crate) patience: Patience,
    /// Whether a missed deadline has to be confirmed by the database before it is believed.
    pub(crate) doubt: bool,
}

impl Moment {
    pub(crate) fn later(self, by: Duration) -> Self {
        self.shifted(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
    }

    pub(crate) fn earlier(self, by: Duration) -> Self {
        self.shifted(i64::try_from(by.as_millis()).unwrap_or(i64::MAX).wrapping_neg())
    }

    fn shifted(self, millis: i64) -> Self {
        Self {
            now: Timestamp::from_unix_millis(self.now.unix_millis().saturating_add(millis)),
            ..self
        }
    }
}

/// A read's answer as far as the view knows, and the agents whose missed deadlines have to be confirmed
/// before it is given.
#[derive(Debug)]
pub(crate) struct Read<T> {
    pub(crate) answer: T,
    pub(crate) doubts: Vec<String>,
}

impl Held {
    pub(crate) fn heard(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.heard.load(Ordering::Acquire))
    }

    pub(crate) fn is_overdue(&self, moment: &Moment) -> bool {
        moment
            .patience
            .is_overdue(self.heard(), self.agent.heartbeat_interval, moment.now)
    }

    fn standing(&self, moment: &Moment, doubts: &mut Vec<String>) -> Standing {
        let stored = Standing {
            status: self.agent.status,
            missed_deadline: self.agent.missed_deadline,
        };
        if stored.status == AgentStatus::Offline || !self.is_overdue(moment) {
            return stored;
        }
        if moment.doubt && self.confirmed.load(Ordering::Acquire) != self.heard.load(Ordering::Acquire) {
            doubts.push(self.agent.agent_id.clone());
        }
        Standing {
            status: AgentStatus::Offline,
            missed_deadline: true,
        }
    }

    fn timeout(&self, moment: &Moment) -> Duration {
        heartbeat_timeout(moment.patience.timeout, self.agent.heartbeat_interval)
    }

    fn record(&self, moment: &Moment, status: AgentStatus) -> AgentRecord {
        let mut agent = self.agent.clone();
        agent.status = status;
        agent.last_heartbeat = self.heard();
        record(agent, moment)
    }
}

/// The record of an agent, with its status as it stands in `agent`.
pub(crate) fn record(agent: StoredAgent, moment: &Moment) -> AgentRecord {
    let timeout = heartbeat_timeout(moment.patience.timeout, agent.heartbeat_interval);
    let mut record = AgentRecord::new(agent.agent_id, agent.status);
    record.agent_name = agent.agent_name;
    record.base_url = agent.base_url;
    record.capabilities = agent.capabilities;
    record.metadata = agent.metadata;
    record.heartbeat_interval = agent.heartbeat_interval;
    record.registered_at = Some(agent.registered_at);
    record.last_heartbeat = Some(agent.last_heartbeat);
    record.heartbeat_timeout = Some(timeout);
    record
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

#[derive(Debug, Default)]
struct Inner {
    ids: BTreeMap<Arc<str>, Slot>,
    slots: Vec<Option<Arc<Held>>>,
    free: Vec<Slot>,
    index: Index,
    /// Agents that were removed, and at which revision, until the follower has passed it: a row that was
    /// read before must not bring them back.
    removed: HashMap<String, i64>,
}

/// Every agent, in memory.
#[derive(Debug, Default)]
pub(crate) struct View {
    inner: RwLock<Inner>,
}

impl View {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        let mut inner = Inner::default();
        for agent in snapshot.agents {
            inner.put(agent);
        }
        Self {
            inner: RwLock::new(inner),
        }
    }

    /// The agent as it is held, its status as it was stored.
    pub(crate) fn held(&self, agent_id: &str) -> Option<Arc<Held>> {
        self.inner.read().get(agent_id).cloned()
    }

    /// Takes over an agent, unless what is held is as new.
    pub(crate) fn put(&self, agent: StoredAgent) {
        self.inner.write().put_newer(agent);
    }

    /// Takes over that an agent was removed at a revision, unless what is held is newer.
    pub(crate) fn remove(&self, agent_id: &str, revision: i64) {
        let mut inner = self.inner.write();
        if inner
            .get(agent_id)
            .is_none_or(|held| held.agent.revision < revision)
        {
            inner.remove(agent_id);
            inner.removed.insert(agent_id.to_owned(), revision);
        }
    }

    /// Takes over a whole snapshot: what it does not have was removed, unless it is newer. Where the database
    /// was set back to an older state, the snapshot counts whatever is held.
    pub(crate) fn replace(&self, snapshot: Snapshot, set_back: bool) {
        if set_back {
            *self.inner.write() = Self::new(snapshot).inner.into_inner();
            return;
        }
        let mut inner = self.inner.write();
        let there: std::collections::HashSet<&str> = snapshot
            .agents
            .iter()
            .map(|agent| agent.agent_id.as_str())
            .collect();
        let gone = |held: &&Arc<Held>| {
            held.agent.revision <= snapshot.revision && !there.contains(held.agent.agent_id.as_str())
        };
        let gone: Vec<_> = inner
            .slots
            .iter()
            .flatten()
            .filter(gone)
            .map(|held| held.agent.agent_id.clone())
            .collect();
        for agent_id in gone {
            inner.remove(&agent_id);
        }
        for agent in snapshot.agents {
            inner.put_newer(agent);
        }
    }

    /// Moves last heartbeats forward.
    pub(crate) fn heard<'a>(&self, times: impl IntoIterator<Item = (&'a str, Timestamp)>) {
        let inner = self.inner.read();
        for (agent_id, time) in times {
            if let Some(held) = inner.get(agent_id) {
                held.heard.fetch_max(time.unix_millis(), Ordering::AcqRel);
            }
        }
    }

    /// Takes over what the database answered about the last heartbeats of the agents it was asked for. Where
    /// even the database has none in time, the missed deadline is believed from now on.
    pub(crate) fn confirm(&self, times: &[(String, Timestamp)], asked: &[String], moment: &Moment) {
        self.heard(times.iter().map(|(agent_id, time)| (agent_id.as_str(), *time)));
        let inner = self.inner.read();
        for held in asked.iter().filter_map(|agent_id| inner.get(agent_id)) {
            let heard = held.heard.load(Ordering::Acquire);
            let time = Timestamp::from_unix_millis(heard);
            if moment
                .patience
                .is_overdue(time, held.agent.heartbeat_interval, moment.now)
            {
                held.confirmed.store(heard, Ordering::Release);
            }
        }
    }

    /// Forgets what was removed up to a revision that the follower has passed.
    pub(crate) fn forget_removed(&self, revision: i64) {
        if self
            .inner
            .read()
            .removed
            .values()
            .any(|removed| *removed <= revision)
        {
            self.inner
                .write()
                .removed
                .retain(|_, removed| *removed > revision);
        }
    }

    /// Whether an agent is held as of a revision or a later one.
    pub(crate) fn has_seen(&self, agent_id: &str, revision: i64) -> bool {
        let inner = self.inner.read();
        inner
            .get(agent_id)
            .is_some_and(|held| held.agent.revision >= revision)
            || inner
                .removed
                .get(agent_id)
                .is_some_and(|removed| *removed >= revision)
    }

    /// The ids of all agents for which the test holds.
    pub(crate) fn ids_where(&self, test: impl Fn(&Held) -> bool) -> Vec<String> {
        let inner = self.inner.read();
        let found = inner.slots.iter().flatten().filter(|held| test(held));
        found.map(|held| held.agent.agent_id.clone()).collect()
    }

    pub(crate) fn get(&self, agent_id: &str, moment: &Moment) -> Read<Option<AgentRecord>> {
        let mut doubts = Vec::new();
        let Some(held) = self.held(agent_id) else {
            return Read { answer: None, doubts };
        };
        let standing = held.standing(moment, &mut doubts);
        Read {
            answer: Some(held.record(moment, standing.status)),
            doubts,
        }
    }

    pub(crate) fn health(&self, agent_id: &str, moment: &Moment) -> Read<Option<AgentHealth>> {
        let mut doubts = Vec::new();
        let Some(held) = self.held(agent_id) else {
            return Read { answer: None, doubts };
        };
        let standing = held.standing(moment, &mut doubts);
        let (status, reason) = match standing {
            Standing {
                status: AgentStatus::Active | AgentStatus::Busy,
                ..
            } => (HealthStatus::Healthy, None),
            Standing {
                missed_deadline: true,
                ..
            } => (HealthStatus::Unhealthy, Some(UnhealthyReason::HeartbeatMissed)),
            Standing { .. } => (HealthStatus::Unhealthy, Some(UnhealthyReason::Offline)),
        };
        let mut health = AgentHealth::new(agent_id, status);
        health.agent_status = Some(standing.status);
        health.last_heartbeat = Some(held.heard());
        health.since_heartbeat = Some(moment.now.since(held.heard()));
        health.heartbeat_timeout = Some(held.timeout(moment));
        health.reason = reason;
        Read {
            answer: Some(health),
            doubts,
        }
    }

    pub(crate) fn list(&self, query: &ListQuery, moment: &Moment) -> Read<Page> {
        use std::ops::Bound::{Excluded, Unbounded};
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut page = Page {
            agents: Vec::new(),
            more: false,
        };
        let start = query.after.as_deref().map_or(Unbounded, Excluded);
        for slot in inner
            .ids
            .range::<str, _>((start, Unbounded))
            .map(|(_, slot)| *slot)
        {
            let Some(held) = inner.slot(slot) else { continue };
            let status = held.standing(moment, &mut doubts).status;
            if query.status.is_some_and(|wanted| wanted != status) {
                continue;
            }
            if query.limit.is_some_and(|limit| page.agents.len() == limit) {
                page.more = true;
                break;
            }
            page.agents.push(held.record(moment, status));
        }
        Read { answer: page, doubts }
    }

    pub(crate) fn search(&self, query: &SearchQuery, moment: &Moment) -> Read<Vec<CapabilityMatch>> {
        let wanted: Vec<String> = terms(&query.q).collect();
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut found: Vec<Found<'_>> = Vec::new();
        for (slot, place) in inner.index.candidates(&wanted) {
            let Some(held) = inner.slot(slot) else { continue };
            let Some(terms) = held.terms.get(usize::from(place)) else {
                continue;
            };
            let Some(score) = inner.index.score(&wanted, terms) else {
                continue;
            };
            // One match an agent: the best, and of equals the first that it named.
            if let Some(last) = found.last_mut()
                && last.slot == slot
            {
                if score > last.score {
                    (last.score, last.place) = (score, place);
                }
                continue;
            }
            let status = held.standing(moment, &mut doubts).status;
            if query.status.is_none_or(|wanted| wanted == status) {
                found.push(Found {
                    slot,
                    place,
                    score,
                    status,
                    heard: held.heard(),
                    held,
                });
            }
        }
        found.sort_unstable_by(Found::rank);
        found.truncate(query.limit);
        Read {
            answer: found.iter().filter_map(Found::to_match).collect(),
            doubts,
        }
    }

    pub(crate) fn stats(&self, moment: &Moment) -> Read<RegistryStats> {
        let inner = self.inner.read();
        let mut doubts = Vec::new();
        let mut stats = RegistryStats::default();
        for held in inner.slots.iter().flatten() {
            let standing = held.standing(moment, &mut doubts);
            stats.total_agents += 1;
            stats.stale_agents += u64::from(standing.missed_deadline);
            *match standing.status {
                AgentStatus::Active => &mut stats.active_agents,
                AgentStatus::Busy => &mut stats.busy_agents,
                AgentStatus::Offline => &mut stats.offline_agents,
            } += 1;
        }
        let (capabilities, distinct) = inner.index.counts();
        stats.total_capabilities = capabilities as u64;
        stats.distinct_capabilities = distinct as u64;
        Read {
            answer: stats,
            doubts,
        }
    }
}

/// A match on its way to its place.
struct Found<'a> {
    slot: Slot,
    place: u16,
    score: f64,
    status: AgentStatus,
    heard: Timestamp,
    held: &'a Held,
}

impl Found<'_> {
    /// The contract's order: the score, then the status, then the latest heartbeat, then the id.
    fn rank(&self, other: &Self) -> std::cmp::Ordering {
        let by_status = |found: &Self| AgentStatus::ALL.iter().position(|status| *status == found.status);
        other
            .score
            .total_cmp(&self.score)
            .then_with(|| by_status(self).cmp(&by_status(other)))
            .then_with(|| other.heard.cmp(&self.heard))
            .then_with(|| self.held.agent.agent_id.cmp(&other.held.agent.agent_id))
    }

    fn to_match(&self) -> Option<CapabilityMatch> {
        let agent = &self.held.agent;
        let capability = agent.capabilities.get(usize::from(self.place))?;
        let mut found = CapabilityMatch::new(agent.agent_id.clone(), self.status, capability.clone());
        found.agent_name.clone_from(&agent.agent_name);
        found.base_url.clone_from(&agent.base_url);
        found.last_heartbeat = Some(self.heard);
        found.score = Some(self.score);
        found.healthy = Some(self.status != AgentStatus::Offline);
        Some(found)
    }
}

impl Inner {
    fn slot(&self, slot: Slot) -> Option<&Arc<Held>> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get(&self, agent_id: &str) -> Option<&Arc<Held>> {
        self.slot(*self.ids.get(agent_id)?)
    }

    fn put_newer(&mut self, agent: StoredAgent) {
        let held = self.get(&agent.agent_id).map(|held| held.agent.revision);
        let removed = self.removed.get(&agent.agent_id).copied();
        if held.max(removed).is_none_or(|known| known < agent.revision) {
            self.put(agent);
        } else if let Some(held) = self.get(&agent.agent_id) {
            held.heard
                .fetch_max(agent.last_heartbeat.unix_millis(), Ordering::AcqRel);
        }
    }

    fn put(&mut self, agent: StoredAgent) {
        let heard = self
            .get(&agent.agent_id)
            .map(|held| held.heard.load(Ordering::Acquire));
        let heard = heard.unwrap_or_default().max(agent.last_heartbeat.unix_millis());
        self.remove(&agent.agent_id);
        self.removed.remove(&agent.agent_id);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot::try_from(self.slots.len() - 1).unwrap_or(Slot::MAX)
        });
        let terms = self.index.add(slot, &agent.capabilities);
        self.ids.insert(agent.agent_id.as_str().into(), slot);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            let heard = AtomicI64::new(heard);
            *place = Some(Arc::new(Held {
                agent,
                heard,
                confirmed: AtomicI64::new(i64::MIN),
                terms,
            }));
        }
    }

    fn remove(&mut self, agent_id: &str) {
        let Some(slot) = self.ids.remove(agent_id) else {
            return;
        };
        if let Some(held) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.index.remove(slot, &held.agent.capabilities, &held.terms);
        }
        self.free.push(slot);
    }
}
