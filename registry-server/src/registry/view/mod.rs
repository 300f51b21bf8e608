//! The view: every agent in memory. This file updates it, and `reads` answers from it.

mod entry;
mod json;
mod reads;
mod record;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use registry_sdk::contract::Timestamp;
use registry_sdk::search::SearchIndex;

use super::reports::Report;
use crate::store::{Snapshot, StoredAgent};
pub(crate) use entry::{Entry, Liveness, ReadContext};
pub(crate) use reads::{CHUNK_BYTES, Chunk, Filter, ListQuery, Page, Read, Rest, SearchQuery};
pub(crate) use record::{Json, Load, Record};

/// Index of an agent in `slots` and in the search index.
type Slot = u32;

#[derive(Debug, Default)]
struct Inner {
    ids: HashMap<Arc<str>, Slot>,
    /// The same as `ids`, sorted for lists.
    ordered_ids: BTreeMap<Arc<str>, Slot>,
    slots: Vec<Option<Arc<Entry>>>,
    index: SearchIndex,
    /// Revisions at which agents were removed, until the follower has passed them.
    ///
    /// They keep a row that was read before the removal from restoring the agent.
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

    /// Returns the agent's entry, with the status as stored.
    pub(crate) fn entry(&self, agent_id: &str) -> Option<Arc<Entry>> {
        self.inner.read().get(agent_id).cloned()
    }

    /// Inserts or replaces an agent, unless the view has the same or a later revision.
    pub(crate) fn put_if_newer(&self, agent: Arc<StoredAgent>) {
        self.inner.write().put_if_newer(agent);
    }

    /// Removes an agent at a revision, unless the view has a later one.
    pub(crate) fn remove(&self, agent_id: &str, revision: i64) {
        let mut inner = self.inner.write();
        if inner.get(agent_id).is_none_or(|entry| entry.agent.revision < revision) {
            inner.remove(agent_id);
            inner.tombstones.insert(agent_id.to_owned(), revision);
        }
    }

    /// Replaces the view by a snapshot, except for entries that are newer.
    ///
    /// If the database was rolled back, the snapshot replaces everything.
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

    /// Records heartbeats in memory.
    pub(crate) fn record_heartbeats<'a>(&self, times: impl IntoIterator<Item = (&'a str, Timestamp)>) {
        let inner = self.inner.read();
        for (agent_id, time) in times {
            if let Some(entry) = inner.get(agent_id) {
                entry.liveness.record_heartbeat(time);
            }
        }
    }

    /// Records the last heartbeats from the database, and marks those that are overdue as confirmed.
    pub(crate) fn confirm(&self, times: &[(String, Timestamp)], agent_ids: &[String], context: &ReadContext) {
        self.record_heartbeats(times.iter().map(|(agent_id, time)| (agent_id.as_str(), *time)));
        let inner = self.inner.read();
        agent_ids.iter().filter_map(|agent_id| inner.get(agent_id)).for_each(|entry| entry.confirm(context));
    }

    /// Drops the tombstones up to a revision that the follower has passed.
    pub(crate) fn prune_tombstones(&self, revision: i64) {
        if self.inner.read().tombstones.values().any(|removed| *removed <= revision) {
            self.inner.write().tombstones.retain(|_, removed| *removed > revision);
        }
    }

    /// Updates the report of an agent.
    pub(crate) fn report(&self, agent_id: &str, report: Report) {
        if let Some(entry) = self.inner.read().get(agent_id) {
            entry.liveness.update_report(report);
        }
    }

    /// Returns the ids of all agents whose entries match.
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
        // Transient state of another process does not apply.
        let same_process =
            previous.as_ref().filter(|previous| previous.agent.instance_id == agent.instance_id);
        let liveness = same_process
            .map_or_else(|| Liveness::new(agent.last_heartbeat).into(), |previous| previous.liveness.clone());
        liveness.record_heartbeat(agent.last_heartbeat);
        if let Some(previous) = &previous {
            // Memory may have a heartbeat that was not in the row yet.
            liveness.record_heartbeat(previous.liveness.last_heartbeat());
        }
        let slot = match (known, previous) {
            (Some(slot), Some(previous)) if previous.agent.capabilities == agent.capabilities => slot,
            _ => {
                self.remove(&agent.agent_id);
                let slot = self.index.insert(&agent.capabilities.decode());
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
