//! What makes the registry last: a small trait, and a database behind it.
//!
//! A store knows no rules. It reads rows, hands them to the caller inside a transaction, and writes what the
//! caller decided; so both databases behave alike.

mod described;
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

pub(crate) use described::{Capabilities, Metadata};
pub(crate) use postgres::PostgresStore;
pub(crate) use sqlite::SqliteStore;
pub(crate) use tag::RegistrationTag;

/// One agent, as it is stored, and as its events have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredAgent {
    pub(crate) agent_id: String,
    pub(crate) agent_name: String,
    pub(crate) base_url: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) metadata: Metadata,
    pub(crate) status: AgentStatus,
    /// Offline because it missed its deadline, and not because it said so.
    pub(crate) missed_deadline: bool,
    /// Since when it is offline, where it is.
    pub(crate) offline_since: Option<Timestamp>,
    /// The registry asked the agent itself, and it did not answer well.
    pub(crate) probe_failed: bool,
    pub(crate) heartbeat_interval: Option<Duration>,
    /// Which process registered it last, where it said so.
    pub(crate) instance_id: Option<String>,
    /// The last few processes that came up with its id. Events of an older version lack it.
    #[serde(default)]
    pub(crate) instances: Instances,
    pub(crate) registered_at: Timestamp,
    pub(crate) last_heartbeat: Timestamp,
    /// The registry's revision at this agent's last change; heartbeats alone do not move it.
    pub(crate) revision: i64,
}

impl StoredAgent {
    /// An agent as it says it is, without what the registry adds: its instances, times and a revision.
    pub(crate) fn draft(given: Registration) -> serde_json::Result<Self> {
        let never = Timestamp::from_unix_millis(0);
        Ok(Self {
            capabilities: Capabilities::new(&given.capabilities)?,
            metadata: Metadata::new(&given.metadata)?,
            agent_id: given.agent_id,
            agent_name: given.agent_name,
            base_url: given.base_url,
            status: given.status,
            missed_deadline: false,
            offline_since: None,
            probe_failed: false,
            heartbeat_interval: given.heartbeat_interval,
            instance_id: given.instance_id,
            instances: Instances::default(),
            registered_at: never,
            last_heartbeat: never,
            revision: 0,
        })
    }

    /// The tag of what the agent registered.
    pub(crate) fn registration_tag(&self) -> RegistrationTag {
        RegistrationTag::of(self)
    }

    /// Whether an agent says nothing new of itself.
    pub(crate) fn says_the_same(&self, draft: &Self) -> bool {
        self.status == draft.status
            && self.agent_name == draft.agent_name
            && self.base_url == draft.base_url
            && self.heartbeat_interval == draft.heartbeat_interval
            && self.instance_id == draft.instance_id
            && self.capabilities == draft.capabilities
            && self.metadata == draft.metadata
    }
}

/// What kind of change a revision was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Registered,
    StatusChanged,
    Deregistered,
    /// No change that anybody sees, but one that every replica has to know: a heartbeat so late that the others might not
    /// hear of it in time, or a process that came up with the agent's id or was shut down.
    Heard,
}

impl EventKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::StatusChanged => "status_changed",
            Self::Deregistered => "deregistered",
            Self::Heard => "heard",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Registered, Self::StatusChanged, Self::Deregistered, Self::Heard];
        all.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One numbered change.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: EventKind,
    /// The agent after the change, with the change's number as its revision; where it was removed, as it was
    /// last.
    pub(crate) agent: Arc<StoredAgent>,
}

impl Event {
    /// Reads what [`Event::to_json`] wrote.
    fn from_json(kind: &str, agent: &str) -> Option<Self> {
        Some(Self { kind: EventKind::from_name(kind)?, agent: Arc::new(serde_json::from_str(agent).ok()?) })
    }

    fn to_json(&self) -> std::result::Result<String, sqlx::Error> {
        serde_json::to_string(&*self.agent).map_err(|error| sqlx::Error::Encode(error.into()))
    }
}

/// A heartbeat that changes nothing but the time.
#[derive(Clone, Debug)]
pub(crate) struct Touch {
    /// The agent as the sender knows it. Where the database has another revision, the heartbeat may change more than the
    /// time, and is not written.
    pub(crate) agent: Arc<StoredAgent>,
    /// When the heartbeat arrived, by the process's monotonic clock.
    pub(crate) arrived: Instant,
}

/// All agents at one revision.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) agents: Vec<StoredAgent>,
    pub(crate) revision: i64,
    pub(crate) now: Timestamp,
}

/// What a transaction finds: the agents it asked for, locked, and the revision that its changes follow.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) agents: HashMap<String, StoredAgent>,
    pub(crate) revision: i64,
    /// The database's clock, when the transaction began.
    pub(crate) now: Timestamp,
}

/// What a transaction writes.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// Only the time of the last heartbeat moves.
    pub(crate) beats: Vec<(String, Timestamp)>,
    /// Agents that are created, replaced or removed, at most once each, numbered on from
    /// [`Current::revision`] without a gap.
    pub(crate) events: Vec<Event>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.beats.is_empty() && self.events.is_empty()
    }

    fn beats(&self) -> impl Iterator<Item = (&str, Timestamp)> {
        self.beats.iter().map(|(agent_id, time)| (agent_id.as_str(), *time))
    }

    fn puts(&self) -> impl Iterator<Item = &StoredAgent> {
        self.events.iter().filter(|event| event.kind != EventKind::Deregistered).map(|event| &*event.agent)
    }

    fn removes(&self) -> Vec<&str> {
        let removed = self.events.iter().filter(|event| event.kind == EventKind::Deregistered);
        removed.map(|event| event.agent.agent_id.as_str()).collect()
    }
}

/// The caller's part of a transaction. It may be called again where the transaction has to be repeated.
pub(crate) type Decide<'a> = &'a mut (dyn FnMut(Current) -> Writes + Send);

/// What happened since a revision.
#[derive(Debug)]
pub(crate) struct Followed {
    /// The registry's revision now.
    pub(crate) revision: i64,
    /// The database's clock now.
    pub(crate) now: Timestamp,
    /// What changed, the oldest change first. Ends before a change that cannot be read.
    pub(crate) changed: Vec<Event>,
}

/// Times of last heartbeats, as the database has them.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) now: Timestamp,
    pub(crate) times: Vec<(String, Timestamp)>,
}

/// What the database could not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It does not answer, or cannot write now. Trying again later may help.
    #[error("the database is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refused the data. Trying again will not help.
    #[error("the database refused the data")]
    Rejected(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    fn timed_out(after: Duration) -> Self {
        Self::Unavailable(format!("no answer within {after:?}").into())
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let refused = match &error {
            sqlx::Error::Database(database) => {
                // PostgreSQL's classes 22 (data exception) and 23 (constraint violation).
                let class =
                    database.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"));
                class || !matches!(database.kind(), sqlx::error::ErrorKind::Other)
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => true,
            _ => false,
        };
        if refused { Self::Rejected(error.into()) } else { Self::Unavailable(error.into()) }
    }
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// A database that keeps the agents.
#[async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// Its name in `GET /health`.
    fn name(&self) -> &'static str;

    /// Whether other processes write to it as well, so that memory may lag behind it.
    fn is_shared(&self) -> bool;

    /// Everything, at one revision.
    async fn load(&self) -> Result<Snapshot>;

    /// Moves the last heartbeat forward for each agent whose revision is still the sender's. Answers with the
    /// new time, in the order of `touches`, or `None` where the agent is not there or not at that revision.
    async fn touch(&self, touches: &[Touch]) -> Result<Vec<Option<Timestamp>>>;

    /// Locks the named agents, lets the caller decide, and writes what it decided, in one transaction that
    /// commits fully. Changes of all processes happen one after another.
    async fn transact(&self, agent_ids: &[String], decide: Decide<'_>) -> Result<()>;

    /// When the named agents were last heard of, by any process.
    async fn heard(&self, agent_ids: &[String]) -> Result<Heard>;

    /// What changed after a revision, up to a batch of it. Also tells whether the database answers at all.
    async fn follow(&self, after: i64) -> Result<Followed>;

    /// Whether it can write now: it does, and changes nothing.
    async fn check_writing(&self) -> Result<()>;

    /// Removes events that are more than `keep` revisions old.
    async fn prune_events(&self, keep: i64) -> Result<()>;

    /// Wakes whoever follows, when another process may have changed something. It may wake for nothing, and
    /// it may miss something: who follows looks every so often as well.
    fn changed(&self) -> Arc<Notify>;

    /// Tells the other processes something that is not stored and may get lost. Each message has to be shorter
    /// than 8,000 bytes.
    async fn tell(&self, messages: &[String]) -> Result<()>;

    /// What processes tell, this one included. Ends at once where there are no others.
    fn news(&self) -> broadcast::Receiver<String>;

    /// Takes or renews a lease, which is for one holder at a time; for no time, gives it back. Whether the holder has
    /// it for that time.
    async fn hold_lease(&self, name: &str, holder: &str, time: Duration) -> Result<bool>;

    /// Closes all connections.
    async fn close(&self);
}

/// The columns of an agent, by name: a later version may have added others.
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

/// How many events one [`Store::follow`] reads.
const FOLLOW_BATCH: i64 = 1_000;

/// A column that does not hold what it should.
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

    /// An event as it is written now, after a change of its JSON.
    fn read(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Option<StoredAgent> {
        let mut agent =
            StoredAgent::draft(Registration::new("a", "A", "http://a").instance_id("one")).unwrap();
        assert!(agent.instances.claim("one", None, None, Timestamp::from_unix_millis(1)));
        let event = Event { kind: EventKind::Registered, agent: agent.into() };
        let mut json = serde_json::from_str(&event.to_json().unwrap()).unwrap();
        change(&mut json);
        let event = Event::from_json("registered", &serde_json::to_string(&json).unwrap())?;
        Some(event.agent.as_ref().clone())
    }

    #[test]
    fn events_of_other_versions_are_read() {
        assert!(read(|_| {}).unwrap().instances.is_running("one"));
        let older = read(|event| assert!(event.remove("instances").is_some()));
        assert_eq!(older.unwrap().instances, Instances::default());
        let later = read(|event| assert!(event.insert("added_later".to_owned(), 1.into()).is_none()));
        assert!(later.unwrap().instances.is_running("one"));
    }
}
