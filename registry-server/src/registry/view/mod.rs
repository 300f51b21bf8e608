//! The view: every agent in memory. Here is how it is held and kept up to date; `reads` answers from it.

mod held;
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
pub(crate) use held::{Held, Moment, Pulse};
pub(crate) use reads::{ListQuery, Page, Read, SearchQuery};
pub(crate) use record::{Json, Load, Record};

/// Where an agent stands, in the index as well.
type Slot = u32;

#[derive(Debug, Default)]
struct Inner {
    ids: HashMap<Arc<str>, Slot>,
    /// The same, for lists.
    in_order: BTreeMap<Arc<str>, Slot>,
    slots: Vec<Option<Arc<Held>>>,
    index: SearchIndex,
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
            inner.put(Arc::new(agent));
        }
        Self { inner: RwLock::new(inner) }
    }

    /// The agent as it is held, its status as it was stored.
    pub(crate) fn held(&self, agent_id: &str) -> Option<Arc<Held>> {
        self.inner.read().get(agent_id).cloned()
    }

    /// Takes over an agent, unless what is held is as new.
    pub(crate) fn put(&self, agent: Arc<StoredAgent>) {
        self.inner.write().put_newer(agent);
    }

    /// Takes over that an agent was removed at a revision, unless what is held is newer.
    pub(crate) fn remove(&self, agent_id: &str, revision: i64) {
        let mut inner = self.inner.write();
        if inner.get(agent_id).is_none_or(|held| held.agent.revision < revision) {
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
        let there: HashSet<&str> = snapshot.agents.iter().map(|agent| agent.agent_id.as_str()).collect();
        let gone = |held: &&Arc<Held>| {
            held.agent.revision <= snapshot.revision && !there.contains(held.agent.agent_id.as_str())
        };
        let gone: Vec<_> =
            inner.slots.iter().flatten().filter(gone).map(|held| held.agent.agent_id.clone()).collect();
        for agent_id in gone {
            inner.remove(&agent_id);
        }
        for agent in snapshot.agents {
            inner.put_newer(Arc::new(agent));
        }
    }

    /// Moves last heartbeats forward.
    pub(crate) fn heard<'a>(&self, times: impl IntoIterator<Item = (&'a str, Timestamp)>) {
        let inner = self.inner.read();
        for (agent_id, time) in times {
            if let Some(held) = inner.get(agent_id) {
                held.pulse.hear(time);
            }
        }
    }

    /// Takes over what the database answered about the last heartbeats of the agents it was asked for. Where
    /// even the database has none in time, the missed deadline is believed from now on.
    pub(crate) fn confirm(&self, times: &[(String, Timestamp)], asked: &[String], moment: &Moment) {
        self.heard(times.iter().map(|(agent_id, time)| (agent_id.as_str(), *time)));
        let inner = self.inner.read();
        asked.iter().filter_map(|agent_id| inner.get(agent_id)).for_each(|held| held.believe(moment));
    }

    /// Forgets what was removed up to a revision that the follower has passed.
    pub(crate) fn forget_removed(&self, revision: i64) {
        if self.inner.read().removed.values().any(|removed| *removed <= revision) {
            self.inner.write().removed.retain(|_, removed| *removed > revision);
        }
    }

    /// Takes over what is known of an agent for the moment.
    pub(crate) fn report(&self, agent_id: &str, report: Report) {
        if let Some(held) = self.inner.read().get(agent_id) {
            held.pulse.update_report(report);
        }
    }

    /// The ids of all agents for which the test holds.
    pub(crate) fn ids_where(&self, test: impl Fn(&Held) -> bool) -> Vec<String> {
        let inner = self.inner.read();
        let found = inner.slots.iter().flatten().filter(|held| test(held));
        found.map(|held| held.agent.agent_id.clone()).collect()
    }
}

impl Inner {
    fn slot(&self, slot: Slot) -> Option<&Arc<Held>> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get(&self, agent_id: &str) -> Option<&Arc<Held>> {
        self.slot(*self.ids.get(agent_id)?)
    }

    fn put_newer(&mut self, agent: Arc<StoredAgent>) {
        let held = self.get(&agent.agent_id).map(|held| held.agent.revision);
        let removed = self.removed.get(&agent.agent_id).copied();
        if held.max(removed).is_none_or(|known| known < agent.revision) {
            self.put(agent);
        } else if let Some(held) = self.get(&agent.agent_id) {
            held.pulse.hear(agent.last_heartbeat);
        }
    }

    fn put(&mut self, agent: Arc<StoredAgent>) {
        self.removed.remove(&agent.agent_id);
        let known = self.ids.get(agent.agent_id.as_str()).copied();
        let before = known.and_then(|slot| self.slot(slot)).cloned();
        // What was known of another process says nothing of this one.
        let same = before.as_ref().filter(|before| before.agent.instance_id == agent.instance_id);
        let pulse =
            same.map_or_else(|| Pulse::new(agent.last_heartbeat).into(), |before| before.pulse.clone());
        pulse.hear(agent.last_heartbeat);
        if let Some(before) = &before {
            // Of a heartbeat that the row does not have yet.
            pulse.hear(before.pulse.heard());
        }
        let slot = match (known, before) {
            (Some(slot), Some(before)) if before.agent.capabilities == agent.capabilities => slot,
            _ => {
                self.remove(&agent.agent_id);
                let slot = self.index.insert(&agent.capabilities.decode());
                let id: Arc<str> = agent.agent_id.as_str().into();
                self.ids.insert(id.clone(), slot);
                self.in_order.insert(id, slot);
                slot
            }
        };
        if self.slots.len() <= slot as usize {
            self.slots.resize(slot as usize + 1, None);
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Arc::new(Held::new(agent, pulse)));
        }
    }

    fn remove(&mut self, agent_id: &str) {
        let Some(slot) = self.ids.remove(agent_id) else {
            return;
        };
        self.in_order.remove(agent_id);
        if let Some(held) = self.slots.get_mut(slot as usize) {
            *held = None;
        }
        self.index.remove(slot);
    }
}
