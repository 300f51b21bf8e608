//! A simulated database host: its contents, and the log from which standbys and copies are created.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::Timestamp;
use tokio::time::Instant;

use super::network::LinkId;
use crate::store::{
    AgentRow, Event, EventKind, HeartbeatWrite, LogEntry, MAX_LOG_PAGE, MAX_REPLAYED_ENTRIES, Position,
    Snapshot, StoredAgent, Writes,
};

/// The time of every database at the beginning of a simulation.
const EPOCH_MILLIS: i64 = 1_800_000_000_000;

/// Time after which a heartbeat is on disk, though its commit did not wait for that.
const UNFLUSHED: Duration = Duration::from_millis(600);

/// Operations that a host allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    /// Sessions opened in this state stay read-only afterwards.
    ReadOnly,
    /// Like a standby before its promotion.
    Recovery,
}

/// A row of the agents' table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) agent: Arc<StoredAgent>,
    pub(super) is_readable: bool,
}

/// A change made with SQL, without the registry.
#[derive(Clone, Debug)]
pub(super) enum Sql {
    Delete(String),
    Put(Row),
    /// Empties the table of events.
    TruncateLog,
}

/// A record of the write-ahead log.
#[derive(Clone, Debug)]
pub(super) enum Record {
    Commit { writes: Arc<Writes>, now: Timestamp },
    Heartbeats(Vec<(String, Timestamp)>),
    Sql(Sql),
    Timeout(Duration),
    Lease { name: String, holder: String, until: Timestamp },
}

/// The contents of a host.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) rows: BTreeMap<String, Row>,
    pub(super) log: Vec<LogEntry>,
    pub(super) head: Position,
    pub(super) timeout: Option<Duration>,
    leases: HashMap<String, (String, Timestamp)>,
}

impl Image {
    fn empty() -> Self {
        // The state after the migrations.
        let head = Position { revision: 0, mark: 0 };
        let beginning = LogEntry { position: head, agent_id: String::new(), event: None };
        Self { rows: BTreeMap::new(), log: vec![beginning], head, timeout: None, leases: HashMap::new() }
    }

    fn apply(&mut self, record: &Record, retained: i64) {
        match record {
            Record::Commit { writes, now } => self.commit(writes, *now, retained),
            Record::Heartbeats(times) => {
                for (agent_id, time) in times {
                    if let Some(row) = self.rows.get_mut(agent_id) {
                        Arc::make_mut(&mut row.agent).last_heartbeat = *time;
                    }
                }
            }
            Record::Sql(Sql::Delete(agent_id)) => drop(self.rows.remove(agent_id)),
            Record::Sql(Sql::Put(row)) => drop(self.rows.insert(row.agent.agent_id.clone(), row.clone())),
            Record::Sql(Sql::TruncateLog) => self.log.clear(),
            Record::Timeout(timeout) => self.timeout = Some(*timeout),
            Record::Lease { name, holder, until } => {
                self.leases.insert(name.clone(), (holder.clone(), *until));
            }
        }
    }

    fn commit(&mut self, writes: &Writes, now: Timestamp, retained: i64) {
        for agent in &writes.heartbeats {
            if let Some(row) = self.rows.get_mut(&agent.agent_id) {
                let time = row.agent.last_heartbeat.min(now).max(agent.last_heartbeat);
                Arc::make_mut(&mut row.agent).last_heartbeat = time;
            }
        }
        for event in &writes.events {
            let agent = &event.agent;
            if event.kind == EventKind::Deregistered {
                self.rows.remove(&agent.agent_id);
            } else {
                let mut agent = agent.clone();
                if let Some(previous) = self.rows.get(&agent.agent_id) {
                    let time = previous.agent.last_heartbeat.min(now).max(agent.last_heartbeat);
                    if time != agent.last_heartbeat {
                        Arc::make_mut(&mut agent).last_heartbeat = time;
                    }
                }
                self.rows.insert(agent.agent_id.clone(), Row { agent, is_readable: true });
            }
            self.log.push(event.into());
            self.head = event.position();
        }
        let oldest = self.head.revision - retained;
        let dropped = self.log.partition_point(|entry| entry.position.revision <= oldest);
        self.log.drain(..dropped);
    }

    /// Returns the log entries from a revision on.
    pub(super) fn log_from(&self, from: i64) -> Vec<LogEntry> {
        let start = self.log.partition_point(|entry| entry.position.revision < from);
        let limit = usize::try_from(MAX_LOG_PAGE).unwrap_or_default();
        self.log.iter().skip(start).take(limit).cloned().collect()
    }

    pub(super) fn row(&self, agent_id: &str) -> Option<AgentRow> {
        self.rows.get(agent_id).map(Row::decode)
    }
}

impl Row {
    pub(super) fn decode(&self) -> AgentRow {
        if self.is_readable {
            AgentRow::Readable(Box::new((*self.agent).clone()))
        } else {
            AgentRow::Unreadable(self.agent.agent_id.clone())
        }
    }
}

/// A change in the history of a host.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) event: Event,
    pub(super) committed_at: Instant,
}

/// A host of the database.
pub(super) struct Host {
    pub(super) image: Image,
    /// Everything written since the simulation began, with its time.
    wal: Vec<(Instant, Record)>,
    /// Every change, even if the table of events no longer has it.
    pub(super) history: Vec<Past>,
    pub(super) access: Access,
    /// Connections are refused.
    pub(super) is_down: bool,
    /// Nothing is processed before this time.
    pub(super) paused_until: Option<Instant>,
    /// Commits wait for a synchronous standby until this time.
    pub(super) commits_stall_until: Option<Instant>,
    /// The session that holds the state row.
    pub(super) state_lock: Option<LinkId>,
    /// Rows that are or were locked by an operator, with the end of each lock.
    pub(super) operator_locks: BTreeMap<String, Instant>,
    started: Instant,
    /// Offset by which the host's clock was set, in milliseconds.
    clock_offset: i64,
    /// Time at which the clock is frozen.
    pub(super) frozen_at: Option<Timestamp>,
    /// Number of revisions whose log entries are kept.
    pub(super) retained: i64,
}

impl Host {
    pub(super) fn new(started: Instant, retained: i64) -> Self {
        Self {
            image: Image::empty(),
            wal: Vec::new(),
            history: Vec::new(),
            access: Access::ReadWrite,
            is_down: false,
            paused_until: None,
            commits_stall_until: None,
            state_lock: None,
            operator_locks: BTreeMap::new(),
            started,
            clock_offset: 0,
            frozen_at: None,
            retained,
        }
    }

    /// Returns the index of a change in the history.
    pub(super) fn find(&self, position: Position) -> Option<usize> {
        // Revisions start at one and have no gaps.
        let index = usize::try_from(position.revision).ok()?.checked_sub(1)?;
        self.history.get(index).is_some_and(|past| past.event.position() == position).then_some(index)
    }

    /// Creates a host from the first `kept` records of this host's log: a promoted standby or a restored
    /// copy.
    fn fork(&self, kept: usize) -> Self {
        let mut fork = Self { clock_offset: self.clock_offset, ..Self::new(self.started, self.retained) };
        for (at, record) in self.wal.iter().take(kept) {
            fork.replay(*at, record.clone());
        }
        fork
    }

    /// Creates a host that lacks the last `lost` commits of this host, and everything written after them.
    pub(super) fn without_last_commits(&self, lost: usize) -> Self {
        let commits = self.wal.iter().enumerate().rev();
        let mut commits = commits.filter(|(_, (_, record))| matches!(record, Record::Commit { .. }));
        let kept =
            if lost == 0 { self.wal.len() } else { commits.nth(lost - 1).map_or(0, |(index, _)| index) };
        self.fork(kept)
    }

    /// Restarts after a crash. Commits that did not wait for the disk may be lost.
    pub(super) fn recover_from_crash(&mut self) {
        let now = Instant::now();
        let is_lost = |(at, record): &&(Instant, Record)| {
            matches!(record, Record::Heartbeats(_)) && now.duration_since(*at) < UNFLUSHED
        };
        let lost = self.wal.iter().rev().take_while(is_lost).count();
        if lost > 0 {
            self.image = self.fork(self.wal.len() - lost).image;
            self.wal.truncate(self.wal.len() - lost);
        }
        (self.state_lock, self.commits_stall_until) = (None, None);
        self.end_operator_locks();
    }

    /// Writes a record.
    pub(super) fn write(&mut self, record: Record) {
        self.replay(Instant::now(), record);
    }

    fn replay(&mut self, at: Instant, record: Record) {
        self.image.apply(&record, self.retained);
        if let Record::Commit { writes, .. } = &record {
            let past = |event: &Event| Past { event: event.clone(), committed_at: at };
            self.history.extend(writes.events.iter().map(past));
        }
        self.wal.push((at, record));
    }

    /// Returns the host's time.
    pub(super) fn now(&self) -> Timestamp {
        self.frozen_at.unwrap_or_else(|| self.time_at(Instant::now()))
    }

    fn time_at(&self, at: Instant) -> Timestamp {
        let elapsed = i64::try_from(at.duration_since(self.started).as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_unix_millis(EPOCH_MILLIS + elapsed + self.clock_offset)
    }

    /// Sets the clock forward or back, also if it is frozen.
    pub(super) fn set_clock(&mut self, by_millis: i64) {
        self.clock_offset += by_millis;
        let set = |frozen: Timestamp| Timestamp::from_unix_millis(frozen.unix_millis() + by_millis);
        self.frozen_at = self.frozen_at.map(set);
    }

    /// Ends the locks of operators, which are remembered.
    pub(super) fn end_operator_locks(&mut self) {
        let now = Instant::now();
        self.operator_locks.values_mut().for_each(|until| *until = now.min(*until));
    }

    pub(super) fn is_locked_by_operator(&self, agent_id: &str) -> bool {
        self.operator_locks.get(agent_id).is_some_and(|until| *until > Instant::now())
    }

    /// Writes heartbeats. `is_locked` returns whether a row is locked.
    pub(super) fn write_heartbeats(
        &mut self,
        heartbeats: &[HeartbeatWrite],
        is_locked: impl Fn(&str) -> bool,
    ) -> Vec<Option<Timestamp>> {
        let now = self.now();
        let time = |HeartbeatWrite { agent, age }: &HeartbeatWrite| {
            let row = self.image.rows.get(&agent.agent_id)?;
            let is_current = row.agent.revision == agent.revision && !is_locked(&agent.agent_id);
            let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            let arrived = Timestamp::from_unix_millis(now.unix_millis().saturating_sub(age));
            is_current.then(|| row.agent.last_heartbeat.min(now).max(arrived))
        };
        let times: Vec<_> = heartbeats.iter().map(time).collect();
        let written = heartbeats.iter().zip(&times);
        let written = written.filter_map(|(write, time)| Some((write.agent.agent_id.clone(), (*time)?)));
        self.write(Record::Heartbeats(written.collect()));
        times
    }

    pub(super) fn snapshot(&self, head: crate::store::Head) -> Snapshot {
        let skipped =
            self.image.log.len().saturating_sub(usize::try_from(MAX_REPLAYED_ENTRIES).unwrap_or_default());
        Snapshot { log: self.image.log.iter().skip(skipped).cloned().collect(), head }
    }

    /// Acquires, renews or releases a lease.
    pub(super) fn acquire_lease(&mut self, name: &str, holder: &str, duration: Duration) -> bool {
        let now = self.now();
        let is_free = |(current, until): &(String, Timestamp)| current == holder || *until < now;
        let is_acquired = self.image.leases.get(name).is_none_or(is_free);
        if is_acquired {
            let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
            let until = Timestamp::from_unix_millis(now.unix_millis().saturating_add(millis));
            self.write(Record::Lease { name: name.to_owned(), holder: holder.to_owned(), until });
        }
        is_acquired
    }
}
