//! The view: every agent in memory. Here is how it is held and kept up to date; `reads` answers from it.

mod entry;
mod json;
mod reads;
mod record;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use registry_sdk::contract::{SearchIndex, Timestamp};

use super::reports::Report;
use crate::store::{Snapshot, StoredAgent};
pub(crate) use entry::{Entry, Liveness, ReadContext};
pub(crate) use reads::{ListQuery, Page, Read, SearchQuery};
pub(crate) use record::{Json, Load, Record};

/// Where an agent stands, in the index as well.
type Slot = u32;

#[derive(Debug, Default)]
struct Inner {
    ids: HashMap<Arc<str>, Slot>,
    /// The same, for lists.
    ordered_ids: BTreeMap<Arc<str>, Slot>,
    slots: Vec<Option<Arc<Entry>>>,
    index: SearchIndex,
    /// Agents that were removed, and at which revision, until the follower has passed it: a row that was
    /// read before must not bring them back.
    tombstones: HashMap<String, i64>,
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
            inner.put(Arc::new(agent));
        }
        Self { inner: RwLock::new(inner) }
    }

    /// The agent as it is held, its status as it was stored.
    pub(crate) fn entry(&self, agent_id: &str) -> Option<Arc<Entry>> {
        self.inner.read().get(agent_id).cloned()
    }

    /// Takes over an agent, unless what is held is as new.
    pub(crate) fn put(&self, agent: Arc<StoredAgent>) {
        self.inner.write().put_if_newer(agent);
    }

    /// Takes over that an agent was removed at a revision, unless what is held is newer.
    pub(crate) fn remove(&self, agent_id: &str, revision: i64) {
        let mut inner = self.inner.write();
        if inner.get(agent_id).is_none_or(|entry| entry.agent.revision < revision) {
            inner.remove(agent_id);
            inner.tombstones.insert(agent_id.to_owned(), revision);
        }
    }

    /// Takes over a whole snapshot: what it does not have was removed, unless it is newer. Where the database
    /// was set back to an older state, the snapshot counts whatever is held.
    pub(crate) fn replace(&self, snapshot: Snapshot, is_rolled_back: bool) {
        if is_rolled_back {
            *self.inner.write() = Self::new(snapshot).inner.into_inner();
            return;
        }
        let mut inner = self.inner.write();
        let present: HashSet<&str> = snapshot.agents.iter().map(|agent| agent.agent_id.as_str()).collect();
        let is_gone = |entry: &&Arc<Entry>| {
            entry.agent.revision <= snapshot.revision && !present.contains(entry.agent.agent_id.as_str())
        };
        let gone: Vec<_> =
            inner.slots.iter().flatten().filter(is_gone).map(|entry| entry.agent.agent_id.clone()).collect();
        for agent_id in gone {
            inner.remove(&agent_id);
        }
        for agent in snapshot.agents {
            inner.put_if_newer(Arc::new(agent));
        }
    }

    /// Moves last heartbeats forward.
    pub(crate) fn record_heartbeats<'a>(&self, times: impl IntoIterator<Item = (&'a str, Timestamp)>) {
        let inner = self.inner.read();
        for (agent_id, time) in times {
            if let Some(entry) = inner.get(agent_id) {
                entry.liveness.record_heartbeat(time);
            }
        }
    }

    /// Takes over what the database answered about the last heartbeats of the agents it was asked for. Where
    /// even the database has none in time, the missed deadline is believed from now on.
    pub(crate) fn confirm(&self, times: &[(String, Timestamp)], agent_ids: &[String], context: &ReadContext) {
        self.record_heartbeats(times.iter().map(|(agent_id, time)| (agent_id.as_str(), *time)));
        let inner = self.inner.read();
        agent_ids.iter().filter_map(|agent_id| inner.get(agent_id)).for_each(|entry| entry.confirm(context));
    }

    /// Forgets what was removed up to a revision that the follower has passed.
    pub(crate) fn prune_tombstones(&self, revision: i64) {
        if self.inner.read().tombstones.values().any(|removed| *removed <= revision) {
            self.inner.write().tombstones.retain(|_, removed| *removed > revision);
        }
    }

    /// Takes over what is known of an agent for the moment.
    pub(crate) fn report(&self, agent_id: &str, report: Report) {
        if let Some(entry) = self.inner.read().get(agent_id) {
            entry.liveness.update_report(report);
        }
    }

    /// The ids of all agents for which the test holds.
    pub(crate) fn ids_where(&self, predicate: impl Fn(&Entry) -> bool) -> Vec<String> {
        let inner = self.inner.read();
        let matching = inner.slots.iter().flatten().filter(|entry| predicate(entry));
        matching.map(|entry| entry.agent.agent_id.clone()).collect()
    }
}

impl Inner {
    fn slot(&self, slot: Slot) -> Option<&Arc<Entry>> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get(&self, agent_id: &str) -> Option<&Arc<Entry>> {
        self.slot(*self.ids.get(agent_id)?)
    }

    fn put_if_newer(&mut self, agent: Arc<StoredAgent>) {
        let current = self.get(&agent.agent_id).map(|entry| entry.agent.revision);
        let removed = self.tombstones.get(&agent.agent_id).copied();
        if current.max(removed).is_none_or(|known| known < agent.revision) {
            self.put(agent);
        } else if let Some(entry) = self.get(&agent.agent_id) {
            entry.liveness.record_heartbeat(agent.last_heartbeat);
        }
    }

    fn put(&mut self, agent: Arc<StoredAgent>) {
        self.tombstones.remove(&agent.agent_id);
        let known = self.ids.get(agent.agent_id.as_str()).copied();
        let previous = known.and_then(|slot| self.slot(slot)).cloned();
        // What was known of another process says nothing of this one.
        let same_process =
            previous.as_ref().filter(|previous| previous.agent.instance_id == agent.instance_id);
        let liveness = same_process
            .map_or_else(|| Liveness::new(agent.last_heartbeat).into(), |previous| previous.liveness.clone());
        liveness.record_heartbeat(agent.last_heartbeat);
        if let Some(previous) = &previous {
            // Of a heartbeat that the row does not have yet.
            liveness.record_heartbeat(previous.liveness.last_heartbeat());
        }
        let slot = match (known, previous) {
            (Some(slot), Some(previous)) if previous.agent.capabilities == agent.capabilities => slot,
            _ => {
                self.remove(&agent.agent_id);
                let slot = self.index.add(&agent.capabilities.decode());
                let id: Arc<str> = agent.agent_id.as_str().into();
                self.ids.insert(id.clone(), slot);
                self.ordered_ids.insert(id, slot);
                slot
            }
        };
        if self.slots.len() <= slot as usize {
            self.slots.resize(slot as usize + 1, None);
        }
        if let Some(slot_entry) = self.slots.get_mut(slot as usize) {
            *slot_entry = Some(Arc::new(Entry::new(agent, liveness)));
        }
    }

    fn remove(&mut self, agent_id: &str) {
        let Some(slot) = self.ids.remove(agent_id) else {
            return;
        };
        self.ordered_ids.remove(agent_id);
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            *entry = None;
        }
        self.index.remove(slot);
    }
}
