//! Persistence: the `Store` trait, and one implementation per database.
//!
//! A store knows no rules. It reads rows, passes them to the caller inside a transaction, and writes what the
//! caller decided. So both databases behave alike.

mod encoded;
mod postgres;
mod sqlite;
mod tag;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use registry_sdk::contract::{AgentStatus, Instances, Registration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast};

pub(crate) use encoded::{Capabilities, Metadata};
pub(crate) use postgres::PostgresStore;
pub(crate) use sqlite::SqliteStore;
pub(crate) use tag::RegistrationTag;

/// An agent as it is stored, in its row and in events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredAgent {
    pub(crate) agent_id: String,
    pub(crate) agent_name: String,
    pub(crate) base_url: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) metadata: Metadata,
    pub(crate) status: AgentStatus,
    /// Whether the agent is offline because it missed its deadline, not because it reported so.
    pub(crate) missed_deadline: bool,
    /// Time since which the agent has been offline.
    pub(crate) offline_since: Option<Timestamp>,
    /// Whether the registry's probes of the agent failed.
    pub(crate) probe_failed: bool,
    pub(crate) heartbeat_interval: Option<Duration>,
    /// Instance that registered last, if it named itself.
    pub(crate) instance_id: Option<String>,
    /// The last few instances of the agent. Events of older versions lack the field.
    #[serde(default)]
    pub(crate) instances: Instances,
    pub(crate) registered_at: Timestamp,
    pub(crate) last_heartbeat: Timestamp,
    /// Revision of the agent's last change. Plain heartbeats do not move it.
    pub(crate) revision: i64,
}

impl StoredAgent {
    /// Creates an agent from a registration. Its instances, times and revision are still to be set.
    pub(crate) fn from_registration(registration: Registration) -> serde_json::Result<Self> {
        let never = Timestamp::from_unix_millis(0);
        Ok(Self {
            capabilities: Capabilities::new(&registration.capabilities)?,
            metadata: Metadata::new(&registration.metadata)?,
            agent_id: registration.agent_id,
            agent_name: registration.agent_name,
            base_url: registration.base_url,
            status: registration.status,
            missed_deadline: false,
            offline_since: None,
            probe_failed: false,
            heartbeat_interval: registration.heartbeat_interval,
            instance_id: registration.instance_id,
            instances: Instances::default(),
            registered_at: never,
            last_heartbeat: never,
            revision: 0,
        })
    }

    /// Returns the tag of the registration.
    pub(crate) fn registration_tag(&self) -> RegistrationTag {
        RegistrationTag::compute(self)
    }

    /// Whether a registration would change nothing.
    pub(crate) fn has_same_registration(&self, draft: &Self) -> bool {
        self.status == draft.status
            && self.agent_name == draft.agent_name
            && self.base_url == draft.base_url
            && self.heartbeat_interval == draft.heartbeat_interval
            && self.instance_id == draft.instance_id
            && self.capabilities == draft.capabilities
            && self.metadata == draft.metadata
    }
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Registered,
    StatusChanged,
    Deregistered,
    /// A change for other replicas only: a heartbeat close to its deadline, or a started or ended instance.
    Internal,
}

impl EventKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::StatusChanged => "status_changed",
            Self::Deregistered => "deregistered",
            Self::Internal => "heard",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Registered, Self::StatusChanged, Self::Deregistered, Self::Internal];
        all.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A change, numbered by its revision.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: EventKind,
    /// The agent after the change; for `Deregistered`, its last state.
    pub(crate) agent: Arc<StoredAgent>,
}

impl Event {
    /// Decodes what [`Event::to_json`] encoded.
    fn from_json(kind: &str, agent: &str) -> Option<Self> {
        Some(Self { kind: EventKind::from_name(kind)?, agent: Arc::new(serde_json::from_str(agent).ok()?) })
    }

    fn to_json(&self) -> std::result::Result<String, sqlx::Error> {
        serde_json::to_string(&*self.agent).map_err(|error| sqlx::Error::Encode(error.into()))
    }
}

/// A heartbeat that only moves the agent's `last_heartbeat`.
#[derive(Clone, Debug)]
pub(crate) struct HeartbeatWrite {
    /// The agent as the caller knows it.
    ///
    /// If the database has another revision, the heartbeat may change more than the time, and is not written.
    pub(crate) agent: Arc<StoredAgent>,
    /// Arrival time of the request, by the monotonic clock.
    pub(crate) arrived: Instant,
}

/// All agents at one revision.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) agents: Vec<StoredAgent>,
    pub(crate) revision: i64,
    pub(crate) now: Timestamp,
}

/// The agents that a transaction has locked, and the revision that its changes follow.
#[derive(Debug)]
pub(crate) struct LockedState {
    pub(crate) agents: HashMap<String, StoredAgent>,
    pub(crate) revision: i64,
    /// Database time at which the transaction started.
    pub(crate) now: Timestamp,
}

/// The writes of a transaction.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// Agents of which only `last_heartbeat` moves.
    pub(crate) heartbeats: Vec<(String, Timestamp)>,
    /// Agents that are created, replaced or removed, at most once each.
    ///
    /// Their revisions follow [`LockedState::revision`] without a gap.
    pub(crate) events: Vec<Event>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.heartbeats.is_empty() && self.events.is_empty()
    }

    fn heartbeats(&self) -> impl Iterator<Item = (&str, Timestamp)> {
        self.heartbeats.iter().map(|(agent_id, time)| (agent_id.as_str(), *time))
    }

    fn upserts(&self) -> impl Iterator<Item = &StoredAgent> {
        self.events.iter().filter(|event| event.kind != EventKind::Deregistered).map(|event| &*event.agent)
    }

    fn deletes(&self) -> Vec<&str> {
        let removed = self.events.iter().filter(|event| event.kind == EventKind::Deregistered);
        removed.map(|event| event.agent.agent_id.as_str()).collect()
    }
}

/// Decides what a transaction writes. Called again if the transaction is retried.
pub(crate) type Decide<'a> = &'a mut (dyn FnMut(LockedState) -> Writes + Send);

/// Events after a revision.
#[derive(Debug)]
pub(crate) struct EventBatch {
    /// The registry's current revision.
    pub(crate) revision: i64,
    /// The database time.
    pub(crate) now: Timestamp,
    /// Events in ascending order. Ends before an event that cannot be decoded.
    pub(crate) events: Vec<Event>,
}

/// Times of the last heartbeats in the database.
#[derive(Debug)]
pub(crate) struct LastHeartbeats {
    pub(crate) now: Timestamp,
    pub(crate) times: Vec<(String, Timestamp)>,
}

/// An error of the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database cannot be reached or cannot write now. A retry may succeed.
    #[error("the database is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database rejected the data. A retry cannot succeed.
    #[error("the database rejected the data")]
    Rejected(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    fn timed_out(timeout: Duration) -> Self {
        Self::Unavailable(format!("no response within {timeout:?}").into())
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let is_rejected = match &error {
            sqlx::Error::Database(database) => {
                // PostgreSQL's error classes 22 (data exception) and 23 (integrity constraint violation).
                let is_data_error =
                    database.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"));
                is_data_error || !matches!(database.kind(), sqlx::error::ErrorKind::Other)
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => true,
            _ => false,
        };
        if is_rejected { Self::Rejected(error.into()) } else { Self::Unavailable(error.into()) }
    }
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// A database that stores the agents.
#[async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// Returns the name of the store in `GET /health`.
    fn name(&self) -> &'static str;

    /// Whether other processes write to the database, so that memory may lag behind it.
    fn is_shared(&self) -> bool;

    /// Loads all agents at one revision.
    async fn load(&self) -> Result<Snapshot>;

    /// Moves `last_heartbeat` forward for each agent that is still at the caller's revision.
    ///
    /// Returns the new times in the order of `heartbeats`; `None` if the agent is gone or at another
    /// revision.
    async fn write_heartbeats(&self, heartbeats: &[HeartbeatWrite]) -> Result<Vec<Option<Timestamp>>>;

    /// Locks the agents, calls `decide`, and writes its result, in one fully durable transaction.
    ///
    /// The transactions of all processes are serialized.
    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()>;

    /// Returns the last heartbeats of the agents, as written by any process.
    async fn last_heartbeats(&self, agent_ids: &[String]) -> Result<LastHeartbeats>;

    /// Reads a batch of events after a revision. Also serves as the check that the database is reachable.
    async fn read_events(&self, after: i64) -> Result<EventBatch>;

    /// Checks that the database can write, with an update that changes nothing.
    async fn check_writable(&self) -> Result<()>;

    /// Deletes the events that are more than `keep` revisions old.
    async fn prune_events(&self, keep: i64) -> Result<()>;

    /// Returns a notification that another process may have written something.
    ///
    /// Wake-ups may be spurious and may get lost, so the receiver has to poll as well.
    fn change_notify(&self) -> Arc<Notify>;

    /// Sends messages to all processes, without storing them. They may get lost.
    ///
    /// Each message must be shorter than 8,000 bytes.
    async fn broadcast(&self, messages: &[String]) -> Result<()>;

    /// Subscribes to the broadcasts of all processes, this one included. Closed if there are no others.
    fn subscribe(&self) -> broadcast::Receiver<String>;

    /// Acquires or renews an exclusive lease, and returns whether the holder has it.
    ///
    /// A duration of zero releases the lease.
    async fn acquire_lease(&self, name: &str, holder: &str, duration: Duration) -> Result<bool>;

    /// Closes all connections.
    async fn close(&self);
}

/// Names the columns, since a later version may have added others.
macro_rules! select_agents {
    ($($rest:literal)*) => {
        concat!(
            "SELECT agent_id, agent_name, base_url, status, capabilities, metadata, last_heartbeat,
                 heartbeat_interval_seconds, instance_id, instances, registered_at, missed_deadline, offline_since,
                 probe_failed, revision
             FROM agent_registry ",
            $($rest),*
        )
    };
}
use select_agents;

/// Maximum number of events that one [`Store::read_events`] returns.
const MAX_EVENT_BATCH: i64 = 1_000;

/// Returns the error of a column with an invalid value.
fn undecodable(column: &'static str, error: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: error.to_string().into() }
}

fn interval_from_seconds(seconds: Option<f64>) -> Option<Duration> {
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Encodes an event, changes its JSON, and decodes it.
    fn decode_changed(
        change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
    ) -> Option<StoredAgent> {
        let mut agent =
            StoredAgent::from_registration(Registration::new("a", "A", "http://a").instance_id("one"))
                .unwrap();
        assert!(agent.instances.claim("one", None, None, Timestamp::from_unix_millis(1)));
        let event = Event { kind: EventKind::Registered, agent: agent.into() };
        let mut json = serde_json::from_str(&event.to_json().unwrap()).unwrap();
        change(&mut json);
        let event = Event::from_json("registered", &serde_json::to_string(&json).unwrap())?;
        Some(event.agent.as_ref().clone())
    }

    #[test]
    fn events_of_other_versions_are_decoded() {
        assert!(decode_changed(|_| {}).unwrap().instances.is_running("one"));
        let older = decode_changed(|event| assert!(event.remove("instances").is_some()));
        assert_eq!(older.unwrap().instances, Instances::default());
        let later =
            decode_changed(|event| assert!(event.insert("added_later".to_owned(), 1.into()).is_none()));
        assert!(later.unwrap().instances.is_running("one"));
    }
}
