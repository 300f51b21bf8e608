//! Persistence: database sessions, and one implementation per database.
//!
//! Sessions know neither the registry's rules nor time limits. The registry decides what is written, limits
//! the time of each step, and drops a session whose step failed or took too long.

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

/// A position in the history of a registry.
///
/// A database that lost its latest changes (a promoted standby, a restored backup) assigns their revisions
/// again. The random mark distinguishes the changes of one history from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Position {
    pub(crate) revision: i64,
    pub(crate) mark: i64,
}

/// Formats the id of an event: `REVISION-MARK`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.revision, self.mark)
    }
}

/// Parses the id of an event. A revision alone, as sent by older servers, has no mark and so matches no
/// history.
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
    /// `None` if the entry cannot be decoded, because a later version of the server may have written it.
    pub(crate) event: Option<Event>,
}

/// The state row: the end of the history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) position: Position,
    /// The heartbeat timeout of all servers over this database.
    pub(crate) heartbeat_timeout: Option<Duration>,
    /// Time of the database.
    pub(crate) now: Timestamp,
}

/// A page of the log.
#[derive(Debug)]
pub(crate) struct LogPage {
    pub(crate) head: Head,
    /// Whether the database accepts writes. Standbys and read-only databases do not.
    pub(crate) is_writable: bool,
    /// Entries from the requested revision on, in ascending order. At most [`MAX_LOG_PAGE`].
    ///
    /// Includes the entry of the requested revision itself, if it is still kept.
    pub(crate) entries: Vec<LogEntry>,
}

/// What [`Session::load`] returns beside the agents: the log and the head at the same position.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The latest log entries up to the head, for watchers that resume. At most [`MAX_REPLAYED_ENTRIES`].
    pub(crate) log: Vec<LogEntry>,
    pub(crate) head: Head,
}

/// Rows of agents with consecutive ids.
#[derive(Debug)]
pub(crate) struct AgentPage {
    /// Ordered by id.
    pub(crate) rows: Vec<AgentRow>,
    /// Revision of the registry when the rows were read.
    pub(crate) revision: i64,
}

/// The row of an agent.
#[derive(Debug)]
pub(crate) enum AgentRow {
    Readable(Box<StoredAgent>),
    /// The id of an agent whose row cannot be decoded, because another program may have written it.
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

/// Agents that a transaction tried to lock, by id. Agents without a row are in neither collection.
#[derive(Debug, Default)]
pub(crate) struct LockedAgents {
    pub(crate) rows: HashMap<String, AgentRow>,
    /// Agents whose rows another session has locked.
    pub(crate) held: HashSet<String>,
}

/// A heartbeat that only changes the agent's `last_heartbeat`.
#[derive(Clone, Debug)]
pub(crate) struct HeartbeatWrite {
    /// The agent as the caller knows it.
    ///
    /// If the database has another revision, the heartbeat might change more than the time, so it is not
    /// written.
    pub(crate) agent: Arc<StoredAgent>,
    /// Time since the heartbeat arrived.
    pub(crate) age: Duration,
}

/// The result of writing heartbeats.
#[derive(Debug)]
pub(crate) struct WrittenHeartbeats {
    /// Time of the database.
    pub(crate) now: Timestamp,
    /// The new times, in the order of the heartbeats.
    ///
    /// `None` if the agent is gone, has another revision, or is locked by another session.
    pub(crate) times: Vec<Option<Timestamp>>,
}

/// Last heartbeats as recorded in the database.
#[derive(Debug)]
pub(crate) struct LastHeartbeats {
    pub(crate) head: Head,
    pub(crate) times: Vec<(String, Timestamp)>,
}

/// Writes of one transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    /// New states of agents of which only `last_heartbeat` changes.
    pub(crate) heartbeats: Vec<Arc<StoredAgent>>,
    /// Agents that are created, replaced or removed, each at most once.
    ///
    /// Their revisions continue the head's without a gap.
    pub(crate) events: Vec<Event>,
    /// Cards of agents in `events`.
    pub(crate) cards: Vec<CardWrite>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.heartbeats.is_empty() && self.events.is_empty()
    }

    fn upserts(&self) -> impl Iterator<Item = &StoredAgent> {
        self.events.iter().filter(|event| event.kind != EventKind::Deregistered).map(|event| &*event.agent)
    }

    /// Returns the cards to store, each with the id of its agent.
    fn new_cards(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cards.iter().filter_map(|write| Some((write.agent_id.as_str(), write.card.as_ref()?.as_str())))
    }

    /// Returns the ids of agents that must not have a card afterwards.
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

/// Purpose of a session. Each purpose has its own session, so that none waits for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Transactions, fully durable.
    Changes,
    /// Heartbeats. Commits do not wait for the disk: after a crash of the database, the registry writes them
    /// again.
    Heartbeats,
    /// Everything else: reads, leases and broadcasts.
    Reads,
}

/// A database that stores the agents.
#[async_trait]
pub(crate) trait Database: Send + Sync + 'static {
    /// Returns the name of the store in `GET /health`.
    fn name(&self) -> &'static str;

    /// Whether other processes write to the database, so that memory may lag behind.
    fn is_shared(&self) -> bool;

    /// Opens a session.
    async fn connect(&self, purpose: Purpose) -> Result<Box<dyn Session>>;

    /// Opens a session that is notified of changes by other servers.
    async fn listen(&self) -> Result<Box<dyn Listener>>;

    /// Closes the resources that sessions share. All sessions must have been dropped.
    async fn close(&self);
}

/// Reads the log of changes.
#[async_trait]
pub(crate) trait LogReader: Send {
    /// Reads the log from a revision on, including that revision, inside or outside of a transaction.
    ///
    /// Not cancel safe.
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
/// No operation is cancel safe. A session must be dropped after an operation was cancelled or failed.
/// Dropping it rolls back uncommitted changes, without waiting.
#[async_trait]
pub(crate) trait Session: LogReader + Sync {
    /// Begins a transaction and locks the state row, which serializes the transactions of all servers.
    ///
    /// If this takes too long, the transaction must be rolled back before the next attempt.
    async fn begin(&mut self) -> Result<Head>;

    /// Locks agents in the open transaction, skipping those that another session has locked.
    async fn lock_agents(&mut self, agent_ids: &[String]) -> Result<LockedAgents>;

    /// Writes and commits the open transaction, fully durable. Drops log entries that are too old.
    ///
    /// Without any writes, it performs an update that changes nothing, to prove that the database accepts
    /// writes.
    async fn commit(&mut self, writes: &Writes) -> std::result::Result<(), CommitError>;

    /// Ends the open transaction without changing anything.
    async fn rollback(&mut self) -> Result<()>;

    /// Moves `last_heartbeat` forward for each agent that still has the caller's revision.
    ///
    /// Never waits for a lock. Each agent may occur only once.
    async fn write_heartbeats(&mut self, heartbeats: &[HeartbeatWrite]) -> Result<WrittenHeartbeats>;

    /// Returns the last heartbeats of the agents, as written by any process. Only for shared databases.
    async fn last_heartbeats(&mut self, _agent_ids: &[String]) -> Result<LastHeartbeats> {
        Err(StoreError::Unavailable("no other process writes to it".into()))
    }

    /// Loads all agents at one position, sending them to the channel while reading.
    ///
    /// Agents that cannot be decoded are logged and skipped.
    async fn load(&mut self, agents: AgentSender) -> Result<Snapshot>;

    /// Reads the next `limit` agent rows by id, starting after an id; `""` starts at the first.
    ///
    /// A page with fewer than `limit` rows is the last one.
    async fn read_agents(&mut self, after: &str, limit: usize) -> Result<AgentPage>;

    /// Reads the card of an agent.
    async fn read_card(&mut self, agent_id: &str) -> Result<Option<String>>;

    /// Sets the heartbeat timeout of all servers over this database, within the open transaction.
    async fn set_heartbeat_timeout(&mut self, timeout: Duration) -> Result<()>;

    /// Sends messages to all servers without storing them. Messages may get lost.
    ///
    /// Each message must be shorter than 8,000 bytes. Databases with a single server send nothing.
    async fn broadcast(&mut self, _messages: &[String]) -> Result<()> {
        Ok(())
    }

    /// Acquires or renews an exclusive lease, and returns whether the holder has it.
    ///
    /// A duration of zero releases the lease. Databases with a single server always grant it.
    async fn acquire_lease(&mut self, _name: &str, _holder: &str, _duration: Duration) -> Result<bool> {
        Ok(true)
    }
}

/// A connection that is notified of changes by other servers.
#[async_trait]
pub(crate) trait Listener: LogReader {
    /// Waits for a notification.
    ///
    /// # Cancel safety
    /// Cancel safe: no notification gets lost.
    async fn notified(&mut self) -> Result<Notification>;
}

/// A notification. Notifications may get lost, so the log has to be polled as well.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    /// Another server may have written to the log.
    Changed,
    /// A message that a server broadcast, possibly this one.
    Broadcast(String),
}

/// Sends loaded agents to a channel, in chunks.
#[derive(Clone, Debug)]
pub(crate) struct AgentSender {
    chunks: mpsc::Sender<Vec<StoredAgent>>,
    chunk: Vec<StoredAgent>,
}

/// Number of agents in a chunk, and of chunks that the channel holds.
const CHUNK_AGENTS: usize = 64;
const MAX_CHUNKS: usize = 32;

impl AgentSender {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Vec<StoredAgent>>) {
        let (chunks, received) = mpsc::channel(MAX_CHUNKS);
        (Self { chunks, chunk: Vec::new() }, received)
    }

    /// Sends an agent, unless its row is unreadable.
    pub(crate) async fn send(&mut self, row: AgentRow) {
        let AgentRow::Readable(agent) = row else { return };
        self.chunk.push(*agent);
        if self.chunk.len() == CHUNK_AGENTS {
            self.flush().await;
        }
    }

    /// Sends the last, incomplete chunk.
    pub(crate) async fn flush(&mut self) {
        // A receiver that is gone has given up on the agents.
        let _ = self.chunks.send(std::mem::take(&mut self.chunk)).await;
    }
}

/// Maximum number of entries in a [`LogPage`].
pub(crate) const MAX_LOG_PAGE: i64 = 1_000;

/// Maximum number of entries in the log of a [`Snapshot`].
///
/// Covers about a minute of changes, and does not delay the start noticeably.
pub(crate) const MAX_REPLAYED_ENTRIES: i64 = 4_096;

/// Number of revisions kept in the log. A server that is further behind reloads everything.
const RETAINED_REVISIONS: i64 = 20_000;

/// Selects agents, with the given expression as their last heartbeat.
///
/// Names the columns, since a later version may have added others.
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

/// Creates the error for a column with an invalid value.
fn undecodable(column: &'static str, error: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: error.to_string().into() }
}

/// Returns the row of an agent, readable or not. Fails if the row could not be fetched.
///
/// Any program may write to the database, so an undecodable value must only affect its own agent.
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

/// Converts a heartbeat interval. Intervals that the contract forbids, written by another program, are
/// ignored.
fn interval_from_seconds(seconds: Option<f64>) -> Option<Duration> {
    timeout_from_seconds(seconds).filter(|interval| *interval <= limits::HEARTBEAT_INTERVAL)
}

/// Returns the name behind an agent's last change.
///
/// Older servers leave these columns unchanged, so they only count for the revision with which they were
/// written.
fn changed_by(name: Option<String>, at_revision: Option<i64>, revision: i64) -> Option<String> {
    name.filter(|_| at_revision == Some(revision))
}

fn timeout_from_seconds(seconds: Option<f64>) -> Option<Duration> {
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}
