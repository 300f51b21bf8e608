//! The interface of a database: sessions, and what they read and write.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use registry_sdk::contract::Timestamp;

use super::agent::StoredAgent;
use super::agent_sender::AgentSender;
use super::error::{CommitError, Result, StoreError};
use super::log::{Head, LogPage, Snapshot};
use super::rows::AgentRow;
use super::writes::Writes;

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

impl fmt::Debug for dyn Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads the log of changes.
#[async_trait]
pub(crate) trait LogReader: Send {
    /// Reads the log from a revision on, including that revision, inside or outside of a transaction.
    ///
    /// Not cancel safe.
    async fn read_log(&mut self, from: i64) -> Result<LogPage>;
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

    /// Sets the heartbeat timeout of all servers that share this database, within the open transaction.
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

/// Rows of agents with consecutive ids.
#[derive(Debug)]
pub(crate) struct AgentPage {
    /// Ordered by id.
    pub(crate) rows: Vec<AgentRow>,
    /// Revision of the registry when the rows were read.
    pub(crate) revision: i64,
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
