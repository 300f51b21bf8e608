//! The view: every agent in memory, and the latest events. This module updates it, and `reads` reads from it.
//!
//! Only [`View::apply`] writes to the view, in the order of revisions. The agents, the events and the
//! position change together, under one lock.

mod entry;
mod find;
mod json;
mod reads;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use registry_sdk::contract::Timestamp;
use registry_sdk::internal::{self, SearchIndex};
use tokio::sync::{mpsc, watch};

use super::events::{Cursor, EventLog, LogRead, StreamStart};
use super::reports::Report;
use crate::store::{Event, EventKind, LogEntry, Position, Snapshot, StoredAgent};
pub(crate) use entry::{Entry, Liveness, ReadContext};
pub(crate) use find::{Find, FoundAgent, FoundAgents};
pub(crate) use reads::{CHUNK_BYTES, Chunk, Page, Read, Rest};
pub(crate) use record::{Json, Load, Record};

/// Maximum time to wait for changes of other servers.
const REACH_TIMEOUT: Duration = Duration::from_secs(1);

/// Index of an agent in `slots` and in the search index.
type Slot = u32;

#[derive(Debug)]
struct Inner {
    agents: Agents,
    log: EventLog,
}

/// All agents, indexed by id and by capability.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    ids: HashMap<Arc<str>, Slot>,
    /// The same ids, sorted for lists.
    ordered_ids: BTreeMap<Arc<str>, Slot>,
    slots: Vec<Option<Arc<Entry>>>,
    index: SearchIndex,
}

/// Every agent, and the latest events.
#[derive(Debug)]
pub(crate) struct View {
    inner: RwLock<Inner>,
    /// Signals that there may be new events.
    changed: watch::Sender<()>,
}

/// The position in the history that the view has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ViewPosition {
    pub(crate) position: Position,
    /// Number of reloads. Entries read before a reload are not applied after it.
    pub(crate) epoch: u64,
}

impl View {
    /// Creates an empty view, at the beginning of all histories.
    pub(crate) fn new() -> Self {
        let log = EventLog::new(Position { revision: 0, mark: 0 }, 0);
        let inner = Inner { agents: Agents::default(), log };
        Self { inner: RwLock::new(inner), changed: watch::Sender::new(()) }
    }

    /// Returns the position that the view has reached.
    pub(crate) fn position(&self) -> ViewPosition {
        self.inner.read().position()
    }

    /// Returns the agent's entry, with the stored status.
    ///
    /// Every heartbeat needs this, and must not wait for a search or a list. So the lock is taken even while
    /// a writer waits for it, which in turn waits for the longest read.
    pub(crate) fn entry(&self, agent_id: &str) -> Option<Arc<Entry>> {
        self.inner.read_recursive().agents.get(agent_id).cloned()
    }

    /// Applies consecutive committed entries, skipping those that are already known.
    ///
    /// Returns false if the view was reloaded since `epoch`, or if entries are missing in between.
    pub(crate) fn apply(&self, epoch: u64, entries: &[LogEntry], context: &ReadContext) -> bool {
        let frames: Vec<_> = entries.iter().map(|entry| self.frame(entry, context)).collect();
        let mut inner = self.inner.write();
        if inner.log.epoch() != epoch {
            return false;
        }
        for (entry, frame) in entries.iter().zip(frames) {
            let next = inner.log.head().revision + 1;
            if entry.position.revision < next {
                continue;
            }
            if entry.position.revision > next {
                return false;
            }
            match &entry.event {
                Some(Event { kind: EventKind::Deregistered, agent, .. }) => {
                    inner.agents.remove(&agent.agent_id);
                }
                Some(Event { agent, .. }) => inner.agents.put(agent.clone(), None, context.now),
                None => {}
            }
            inner.log.push(entry.position, frame);
        }
        drop(inner);
        self.changed.send_replace(());
        true
    }

    /// Builds a replacement for all agents while they are loaded. Keeps known heartbeats and reports.
    pub(crate) async fn build(&self, mut loaded: mpsc::Receiver<Vec<StoredAgent>>, now: Timestamp) -> Agents {
        let mut agents = Agents::default();
        while let Some(chunk) = loaded.recv().await {
            for agent in chunk {
                let known = self.entry(&agent.agent_id);
                agents.put(Arc::new(agent), known.as_deref(), now);
            }
        }
        agents
    }

    /// Replaces everything with the agents of a snapshot, and resets all watchers.
    pub(crate) fn replace(&self, agents: Agents, snapshot: &Snapshot, context: &ReadContext) {
        let log = replayed_log(snapshot, self.position().epoch + 1, context);
        let replaced = std::mem::replace(&mut *self.inner.write(), Inner { agents, log });
        self.changed.send_replace(());
        // Dropping the old agents takes long, so it happens outside of the lock.
        drop(replaced);
    }

    /// Whether an event is in the history. `None` if this is unknown, because older entries are no longer
    /// kept.
    pub(crate) fn has_event(&self, event: Position) -> Option<bool> {
        self.inner.read().log.contains(event)
    }

    /// Returns the cursor at which a stream starts, and the head of the log.
    pub(crate) fn cursor(&self, start: StreamStart) -> (Cursor, Position) {
        let log = &self.inner.read().log;
        (log.cursor(start), log.head())
    }

    /// Reads the events after the cursor, and advances the cursor.
    pub(crate) fn read_events(&self, cursor: &mut Cursor) -> LogRead {
        self.inner.read().log.read(cursor)
    }

    /// Waits briefly until the view reaches a revision that another server may just have written.
    pub(crate) async fn reach(&self, revision: i64) {
        let mut changed = self.changed.subscribe();
        let reached = changed.wait_for(|()| self.position().position.revision >= revision);
        // The caller continues with the current view even after a timeout.
        let _ = tokio::time::timeout(REACH_TIMEOUT, reached).await;
    }

    /// Returns a receiver that is notified when there may be new events.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Records the last heartbeats from the database, and marks overdue ones as confirmed.
    pub(crate) fn confirm(&self, times: &[(String, Timestamp)], agent_ids: &[String], context: &ReadContext) {
        let agents = &self.inner.read().agents;
        for (agent_id, time) in times {
            if let Some(entry) = agents.get(agent_id) {
                entry.liveness.record_heartbeat(*time, context.now);
            }
        }
        agent_ids.iter().filter_map(|agent_id| agents.get(agent_id)).for_each(|entry| entry.confirm(context));
    }

    /// Updates the report of an agent.
    pub(crate) fn report(&self, agent_id: &str, report: Report) {
        if let Some(entry) = self.entry(agent_id) {
            entry.liveness.update_report(report);
        }
    }

    /// Returns all entries that match a predicate.
    pub(crate) fn entries_where(&self, predicate: impl Fn(&Entry) -> bool) -> Vec<Arc<Entry>> {
        self.inner.read().agents.slots.iter().flatten().filter(|entry| predicate(entry)).cloned().collect()
    }

    /// Returns the ids of all agents whose entries match a predicate.
    pub(crate) fn ids_where(&self, predicate: impl Fn(&Entry) -> bool) -> Vec<String> {
        self.entries_where(predicate).iter().map(|entry| entry.agent.agent_id.clone()).collect()
    }

    /// Returns the entries after an id, up to and including another id or up to the end, ordered by id.
    pub(crate) fn entries_between(&self, after: &str, up_to: Option<&str>) -> Vec<Arc<Entry>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let inner = self.inner.read();
        let range = (Excluded(after), up_to.map_or(Unbounded, Included));
        let slots = inner.agents.ordered_ids.range::<str, _>(range);
        slots.filter_map(|(_, slot)| inner.agents.slot(*slot).cloned()).collect()
    }

    /// Encodes the event of an entry for watchers. `None` for internal events.
    fn frame(&self, entry: &LogEntry, context: &ReadContext) -> Option<Vec<u8>> {
        let load = self.entry(&entry.agent_id).map(|entry| entry.liveness.load());
        encode_frame(entry.event.as_ref()?, load.unwrap_or_default(), context)
    }
}

fn encode_frame(event: &Event, load: Load, context: &ReadContext) -> Option<Vec<u8>> {
    let kind = match event.kind {
        EventKind::Registered => internal::EventKind::Registered,
        EventKind::StatusChanged => internal::EventKind::StatusChanged,
        EventKind::Deregistered => internal::EventKind::Deregistered,
        EventKind::Internal => return None,
    };
    let record = Record::stored(&event.agent, load, context).json(event.agent.registration_tag());
    Some(kind.frame(event.position(), &record))
}

/// Returns the event log of a snapshot: the entries that lead up to its head without a gap.
fn replayed_log(snapshot: &Snapshot, epoch: u64, context: &ReadContext) -> EventLog {
    let head = snapshot.head.position;
    let is_followed = |pair: &&[LogEntry]| match pair {
        [entry, next] => entry.position.revision + 1 == next.position.revision,
        _ => false,
    };
    let count = snapshot.log.windows(2).rev().take_while(is_followed).count();
    let (before, replayed) = snapshot.log.split_at(snapshot.log.len() - count);
    let is_whole = snapshot.log.last().is_some_and(|last| last.position == head);
    let base = before.last().filter(|_| is_whole).map_or(head, |before| before.position);
    let mut log = EventLog::new(base, epoch);
    for entry in replayed.iter().filter(|_| is_whole) {
        let event = entry.event.as_ref();
        log.push(entry.position, event.and_then(|event| encode_frame(event, Load::default(), context)));
    }
    log
}

impl Inner {
    fn position(&self) -> ViewPosition {
        ViewPosition { position: self.log.head(), epoch: self.log.epoch() }
    }
}

impl Agents {
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    fn slot(&self, slot: Slot) -> Option<&Arc<Entry>> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get(&self, agent_id: &str) -> Option<&Arc<Entry>> {
        self.slot(*self.ids.get(agent_id)?)
    }

    /// Inserts or replaces an agent. `known` is its entry in the view that this one will replace.
    fn put(&mut self, agent: Arc<StoredAgent>, known: Option<&Entry>, now: Timestamp) {
        let slot = self.ids.get(agent.agent_id.as_str()).copied();
        let previous = slot.and_then(|slot| self.slot(slot)).cloned();
        let liveness = Liveness::succeeding(previous.as_deref().or(known), &agent, now);
        let slot = match (slot, previous) {
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
