//! Persistence: sessions with a database, and one implementation per database.
//!
//! A session knows no rules, and has no time limits of its own. The registry decides what is written, gives each
//! step its time, and drops a session whose step failed or took too long.

mod agent;
mod card;
mod encoded;
mod error;
mod migrations;
mod postgres;
mod sqlite;
mod tag;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use registry_sdk::contract::{Timestamp, limits};
use tokio::sync::mpsc;

pub(crate) use agent::{Event, EventKind, StoredAgent};
pub(crate) use card::{CardWrite, card_digest};
pub(crate) use encoded::{Capabilities, Metadata};
pub(crate) use error::{CommitError, Result, StoreError};
pub(crate) use postgres::PostgresDatabase;
pub(crate) use sqlite::SqliteDatabase;
pub(crate) use tag::RegistrationTag;

/// A place in the history of a registry.
///
/// A database that lost its latest changes (a promoted standby, a restored backup) gives their revisions again. The
/// random mark tells the changes of one history from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Position {
    pub(crate) revision: i64,
    pub(crate) mark: i64,
}

/// The id of an event: `REVISION-MARK`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.revision, self.mark)
    }
}

/// A revision alone, the id of an older server, is in no history: it parses as one without a mark.
impl FromStr for Position {
    type Err = ();

    fn from_str(id: &str) -> std::result::Result<Self, ()> {
        let (revision, mark) = id.split_once('-').unwrap_or((id, "0"));
        let is_number = !revision.is_empty() && revision.bytes().all(|byte| byte.is_ascii_digit());
        let revision = revision.parse().ok().filter(|_| is_number).ok_or(())?;
        let mark = u64::from_str_radix(mark, 16).map_err(|_| ())?;
        Ok(Self { revision, mark: mark.cast_signed() })
    }
}

/// A change in the log.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    pub(crate) position: Position,
    pub(crate) agent_id: String,
    /// `None` if it cannot be decoded: a later version of the server may have written it.
    pub(crate) event: Option<Event>,
}

/// The state row: where the history ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) position: Position,
    /// The heartbeat timeout of all servers over this database.
    pub(crate) heartbeat_timeout: Option<Duration>,
    /// The database's time.
    pub(crate) now: Timestamp,
}

/// A part of the log.
#[derive(Debug)]
pub(crate) struct LogPage {
    pub(crate) head: Head,
    /// Whether the database takes writes. A standby and a read-only database do not.
    pub(crate) is_writable: bool,
    /// Entries from the requested revision on, that one included if it is kept, in ascending order.
    ///
    /// At most [`MAX_LOG_PAGE`].
    pub(crate) entries: Vec<LogEntry>,
}

/// All agents at one position, which were passed on while they were read.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The latest entries of the log, up to the head, for watchers that resume. At most [`MAX_REPLAYED_ENTRIES`].
    pub(crate) log: Vec<LogEntry>,
    pub(crate) head: Head,
}

/// The rows of some agents that follow each other by id.
#[derive(Debug)]
pub(crate) struct AgentPage {
    /// In the order of their ids.
    pub(crate) rows: Vec<AgentRow>,
    /// Revision of the registry at which the rows were read.
    pub(crate) revision: i64,
}

/// The row of an agent.
#[derive(Debug)]
pub(crate) enum AgentRow {
    Readable(Box<StoredAgent>),
    /// The row of the agent with this id cannot be decoded: another program may have written it.
    Unreadable(String),
}

impl AgentRow {
    pub(crate) fn agent_id(&self) -> &str {
        match self {
            Self::Readable(agent) => &agent.agent_id,
            Self::Unreadable(agent_id) => agent_id,
        }
    }
}

/// Agents that a transaction has locked, by id. Those without a row are in neither.
#[derive(Debug, Default)]
pub(crate) struct LockedAgents {
    pub(crate) rows: HashMap<String, AgentRow>,
    /// Agents whose rows somebody else has locked.
    pub(crate) held: HashSet<String>,
}

/// A heartbeat that only moves the agent's `last_heartbeat`.
#[derive(Clone, Debug)]
pub(crate) struct HeartbeatWrite {
    /// The agent as the caller knows it.
    ///
    /// If the database has another revision, the heartbeat may change more than the time, and is not written.
    pub(crate) agent: Arc<StoredAgent>,
    /// Time since the heartbeat arrived.
    pub(crate) age: Duration,
}

/// The result of writing heartbeats.
#[derive(Debug)]
pub(crate) struct WrittenHeartbeats {
    /// The database's time.
    pub(crate) now: Timestamp,
    /// The new times in the order of the heartbeats; `None` if the agent is gone, at another revision or locked by
    /// somebody else.
    pub(crate) times: Vec<Option<Timestamp>>,
}

/// Times of the last heartbeats in the database.
#[derive(Debug)]
pub(crate) struct LastHeartbeats {
    pub(crate) head: Head,
    pub(crate) times: Vec<(String, Timestamp)>,
}

/// The writes of a transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    /// Agents of which only `last_heartbeat` moves, as they are afterwards.
    pub(crate) heartbeats: Vec<Arc<StoredAgent>>,
    /// Agents that are created, replaced or removed, at most once each.
    ///
    /// Their revisions follow the head's without a gap.
    pub(crate) events: Vec<Event>,
    /// Cards of agents among them.
    pub(crate) cards: Vec<CardWrite>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.heartbeats.is_empty() && self.events.is_empty()
    }

    fn upserts(&self) -> impl Iterator<Item = &StoredAgent> {
        self.events.iter().filter(|event| event.kind != EventKind::Deregistered).map(|event| &*event.agent)
    }

    /// Returns the cards to be stored, each with the id of its agent.
    fn new_cards(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cards.iter().filter_map(|write| Some((write.agent_id.as_str(), write.card.as_ref()?.as_str())))
    }

    /// Returns the ids of the agents that have no card afterwards, though they may have one.
    fn agents_without_cards(&self) -> Vec<&str> {
        let removed = self.cards.iter().filter(|write| write.card.is_none());
        let mut agent_ids = self.deletes();
        agent_ids.extend(removed.map(|write| write.agent_id.as_str()));
        agent_ids
    }

    fn deletes(&self) -> Vec<&str> {
        let removed = self.events.iter().filter(|event| event.kind == EventKind::Deregistered);
        removed.map(|event| event.agent.agent_id.as_str()).collect()
    }
}

/// Use of a session. Each use has a session of its own, so that none waits for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Transactions, fully durable.
    Changes,
    /// Heartbeats. Commits do not wait for the disk: after a crash of the database the registry writes them again.
    Heartbeats,
    /// Everything else: reads, leases and broadcasts.
    Reads,
}

/// A database that stores the agents.
#[async_trait]
pub(crate) trait Database: Send + Sync + 'static {
    /// Returns the name of the store in `GET /health`.
    fn name(&self) -> &'static str;

    /// Whether other processes write to the database, so that memory may lag behind it.
    fn is_shared(&self) -> bool;

    /// Opens a session.
    async fn connect(&self, purpose: Purpose) -> Result<Box<dyn Session>>;

    /// Opens a session that is notified of the changes of other servers.
    async fn listen(&self) -> Result<Box<dyn Listener>>;

    /// Closes what the sessions share, after all of them have been dropped.
    async fn close(&self);
}

/// Reads the log of changes.
#[async_trait]
pub(crate) trait LogReader: Send {
    /// Reads the log from a revision on, that one included, inside or outside of a transaction. Not cancel safe.
    async fn read_log(&mut self, from: i64) -> Result<LogPage>;
}

impl fmt::Debug for dyn Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A connection, used by one task at a time.
///
/// # Cancel safety
/// None of its operations is cancel safe: after a cancelled or failed one the session has to be dropped, which rolls
/// back what was not committed and waits for nothing.
#[async_trait]
pub(crate) trait Session: LogReader + Sync {
    /// Begins a transaction, and locks the state row: the transactions of all servers are serialized.
    ///
    /// If that takes too long, the transaction has to be rolled back before the next attempt.
    async fn begin(&mut self) -> Result<Head>;

    /// Locks agents in the open transaction, without waiting for those that somebody else has locked.
    async fn lock_agents(&mut self, agent_ids: &[String]) -> Result<LockedAgents>;

    /// Writes in the open transaction, and commits it, fully durable. Drops log entries that are too old.
    ///
    /// Without writes it proves that the database takes some, with an update that changes nothing.
    async fn commit(&mut self, writes: &Writes) -> std::result::Result<(), CommitError>;

    /// Ends the open transaction without a change.
    async fn rollback(&mut self) -> Result<()>;

    /// Moves `last_heartbeat` forward for each agent that is still at the caller's revision.
    ///
    /// Waits for no lock. No agent may be in it twice.
    async fn write_heartbeats(&mut self, heartbeats: &[HeartbeatWrite]) -> Result<WrittenHeartbeats>;

    /// Returns the last heartbeats of the agents, as written by any process. For shared databases only.
    async fn last_heartbeats(&mut self, _agent_ids: &[String]) -> Result<LastHeartbeats> {
        Err(StoreError::Unavailable("no other process writes to it".into()))
    }

    /// Loads all agents at one position, and passes them on while it reads. Those that cannot be decoded are logged and
    /// skipped.
    async fn load(&mut self, agents: AgentSender) -> Result<Snapshot>;

    /// Reads the rows of the next agents by id, after an id or from the first one on. If there are fewer than `limit`,
    /// they are the last ones.
    async fn read_agents(&mut self, after: &str, limit: usize) -> Result<AgentPage>;

    /// Reads the card of an agent.
    async fn read_card(&mut self, agent_id: &str) -> Result<Option<String>>;

    /// Sets the heartbeat timeout of all servers over this database, in the open transaction.
    async fn set_heartbeat_timeout(&mut self, timeout: Duration) -> Result<()>;

    /// Sends messages to all servers, without storing them. They may get lost. A server that is alone sends none.
    ///
    /// Each message must be shorter than 8,000 bytes.
    async fn broadcast(&mut self, _messages: &[String]) -> Result<()> {
        Ok(())
    }

    /// Acquires or renews an exclusive lease, and returns whether the holder has it.
    ///
    /// A duration of zero releases the lease. A server that is alone has every lease.
    async fn acquire_lease(&mut self, _name: &str, _holder: &str, _duration: Duration) -> Result<bool> {
        Ok(true)
    }
}

/// A connection that is notified of the changes of other servers.
#[async_trait]
pub(crate) trait Listener: LogReader {
    /// Waits for a notification.
    ///
    /// # Cancel safety
    /// Cancel safe: no notification is lost.
    async fn notified(&mut self) -> Result<Notification>;
}

/// A notification. It may get lost, so the log has to be polled, too.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    /// Another server may have written to the log.
    Changed,
    /// A message that a server broadcast, this one included.
    Broadcast(String),
}

/// Passes on agents that are loaded, some at a time.
#[derive(Clone, Debug)]
pub(crate) struct AgentSender {
    chunks: mpsc::Sender<Vec<StoredAgent>>,
    chunk: Vec<StoredAgent>,
}

/// Number of agents that are passed on at a time, and of such chunks that may wait.
const CHUNK_AGENTS: usize = 64;
const MAX_CHUNKS: usize = 32;

impl AgentSender {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Vec<StoredAgent>>) {
        let (chunks, received) = mpsc::channel(MAX_CHUNKS);
        (Self { chunks, chunk: Vec::new() }, received)
    }

    /// Passes on an agent that was read, unless it is unreadable.
    pub(crate) async fn send(&mut self, row: AgentRow) {
        let AgentRow::Readable(agent) = row else { return };
        self.chunk.push(*agent);
        if self.chunk.len() == CHUNK_AGENTS {
            self.flush().await;
        }
    }

    /// Passes on the last agents.
    pub(crate) async fn flush(&mut self) {
        // Whoever no longer receives them has given up.
        let _ = self.chunks.send(std::mem::take(&mut self.chunk)).await;
    }
}

/// Maximum number of entries in a [`LogPage`].
pub(crate) const MAX_LOG_PAGE: i64 = 1_000;

/// Maximum number of entries in the log of a [`Snapshot`].
///
/// Enough for about a minute of changes, and few enough not to delay the start.
pub(crate) const MAX_REPLAYED_ENTRIES: i64 = 4_096;

/// Number of revisions whose entries are kept in the log: a server further behind reloads everything.
const RETAINED_REVISIONS: i64 = 20_000;

/// Selects agents, with the expression for their last heartbeat. Names the columns, since a later version may have
/// added others.
macro_rules! select_agents {
    ($last_heartbeat:literal, $($rest:literal)*) => {
        concat!(
            "SELECT agent.agent_id, agent_name, base_url, health_path, probe, status, capabilities, metadata, ",
            $last_heartbeat,
            " AS last_heartbeat, heartbeat_interval_seconds, instance_id, instances, registered_at, missed_deadline,
                 offline_since, probe_failed, maintenance, changed_by, changed_by_revision, card_digest,
                 agent.revision
             FROM agent_registry AS agent ",
            $($rest),*
        )
    };
}
use select_agents;

/// Returns the error of a column with an invalid value.
fn undecodable(column: &'static str, error: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: error.to_string().into() }
}

/// Returns the row of an agent, readable or not; fails if the row could not be read at all.
///
/// The owner of a database may write to it with any program, so a value that nothing can read concerns its agent only.
fn agent_row(
    agent_id: String,
    decoded: std::result::Result<StoredAgent, sqlx::Error>,
) -> std::result::Result<AgentRow, sqlx::Error> {
    match decoded {
        Ok(agent) => Ok(AgentRow::Readable(Box::new(agent))),
        Err(error @ (sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_))) => {
            tracing::error!(
                agent_id,
                %error,
                "cannot read an agent's row, ignoring the agent until it registers again"
            );
            Ok(AgentRow::Unreadable(agent_id))
        }
        Err(error) => Err(error),
    }
}

/// Another program may have written any number. One that the contract does not allow counts as none.
fn interval_from_seconds(seconds: Option<f64>) -> Option<Duration> {
    timeout_from_seconds(seconds).filter(|interval| *interval <= limits::HEARTBEAT_INTERVAL)
}

/// Returns whoever made an agent's last change. The columns are left alone by servers that do not know them, so they count
/// only for the revision that they were written with.
fn changed_by(name: Option<String>, at_revision: Option<i64>, revision: i64) -> Option<String> {
    name.filter(|_| at_revision == Some(revision))
}

fn timeout_from_seconds(seconds: Option<f64>) -> Option<Duration> {
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}
