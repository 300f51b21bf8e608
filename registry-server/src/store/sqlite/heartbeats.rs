//! Heartbeats: an append-only log in the file, and its state in memory.
//!
//! A batch of heartbeats updates many agents, whose rows are on many pages, and SQLite writes whole pages. In
//! a log the batch is one short row at the end of a table. No other process writes to the file, so memory has
//! the current state.

use std::collections::HashMap;

use registry_sdk::contract::Timestamp;
use serde::Serializer;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use crate::store::{Event, EventKind, HeartbeatWrite, StoredAgent};

/// Log size, in heartbeats, at which the log is compacted, and the same per agent if there are many agents.
///
/// The log has to be read at the next start.
const MAX_ENTRIES: usize = 4_096;
const MAX_ENTRIES_PER_AGENT: usize = 4;

/// Number of agents per row of a compacted log.
const AGENTS_PER_ROW: usize = 1_000;

type Result<T> = std::result::Result<T, sqlx::Error>;

/// The last heartbeats of all agents.
///
/// Changed only while holding the connection, so that it agrees with the file.
#[derive(Debug, Default)]
pub(super) struct HeartbeatLog {
    agents: HashMap<String, LastHeartbeat>,
    entries: usize,
}

#[derive(Debug)]
struct LastHeartbeat {
    revision: i64,
    /// Milliseconds since the Unix epoch.
    millis: i64,
}

impl HeartbeatLog {
    /// Loads the log, and sets the agents' last heartbeats.
    ///
    /// Times are capped at `now`: if the host's clock was set back between two runs, times in the future
    /// would keep dead agents alive.
    pub(super) async fn load(
        connection: &mut SqliteConnection,
        agents: &mut [StoredAgent],
        now: Timestamp,
    ) -> Result<Self> {
        let log = sqlx::query("SELECT heard FROM agent_registry_heartbeat ORDER BY batch")
            .fetch_all(connection)
            .await?;
        let mut times: HashMap<String, i64> = HashMap::with_capacity(agents.len());
        let mut entries = 0;
        for row in &log {
            let batch: HashMap<String, i64> = serde_json::from_str(row.try_get(0)?)
                .map_err(|error| crate::store::undecodable("heard", error))?;
            entries += batch.len();
            times.extend(batch);
        }
        for agent in &mut *agents {
            let logged = times.get(&agent.agent_id).copied().map(Timestamp::from_unix_millis);
            agent.last_heartbeat = agent.last_heartbeat.max(logged.unwrap_or(agent.last_heartbeat)).min(now);
        }
        let agents = agents.iter().map(|agent| (agent.agent_id.clone(), LastHeartbeat::new(agent))).collect();
        Ok(Self { agents, entries })
    }

    /// Returns the last heartbeat of an agent, if it exists.
    pub(super) fn last_heartbeat(&self, agent_id: &str) -> Option<Timestamp> {
        Some(Timestamp::from_unix_millis(self.agents.get(agent_id)?.millis))
    }

    /// Computes the new times; `None` if an agent is not at the caller's revision.
    ///
    /// They take effect once they are written, with [`HeartbeatLog::record`].
    pub(super) fn resolve(&self, heartbeats: &[HeartbeatWrite], now: Timestamp) -> Vec<Option<Timestamp>> {
        let time = |heartbeat: &HeartbeatWrite| {
            let agent = self
                .agents
                .get(&heartbeat.agent.agent_id)
                .filter(|agent| agent.revision == heartbeat.agent.revision)?;
            let age = i64::try_from(heartbeat.arrived.elapsed().as_millis()).unwrap_or(i64::MAX);
            Some(Timestamp::from_unix_millis(agent.millis.max(now.unix_millis() - age)))
        };
        heartbeats.iter().map(time).collect()
    }

    /// Applies heartbeats that were appended to the log.
    pub(super) fn record<'a>(&mut self, heartbeats: impl IntoIterator<Item = (&'a str, Timestamp)>) {
        for (agent_id, time) in heartbeats {
            self.entries += 1;
            if let Some(agent) = self.agents.get_mut(agent_id) {
                agent.millis = agent.millis.max(time.unix_millis());
            }
        }
    }

    /// Applies events that were committed.
    pub(super) fn apply_events(&mut self, events: &[Event]) {
        for Event { kind, agent } in events {
            if *kind == EventKind::Deregistered {
                self.agents.remove(&agent.agent_id);
            } else {
                self.agents.insert(agent.agent_id.clone(), LastHeartbeat::new(agent));
            }
        }
    }

    pub(super) fn needs_compaction(&self) -> bool {
        self.entries >= MAX_ENTRIES.max(MAX_ENTRIES_PER_AGENT * self.agents.len())
    }

    /// Returns the rows of a compacted log.
    pub(super) fn compacted_rows(&self) -> Result<Vec<String>> {
        let all: Vec<_> = self.agents.iter().map(|(agent_id, agent)| (&**agent_id, agent.millis)).collect();
        all.chunks(AGENTS_PER_ROW).map(|chunk| encode_batch(chunk.iter().copied())).collect()
    }

    /// Records that the log was replaced by its compacted rows.
    pub(super) fn mark_compacted(&mut self) {
        self.entries = 0;
    }
}

impl LastHeartbeat {
    fn new(agent: &StoredAgent) -> Self {
        Self { revision: agent.revision, millis: agent.last_heartbeat.unix_millis() }
    }
}

/// Appends a batch to the log.
pub(super) async fn append<'a>(
    connection: &mut SqliteConnection,
    heartbeats: impl Iterator<Item = (&'a str, Timestamp)>,
) -> Result<()> {
    let times = encode_batch(heartbeats.map(|(agent_id, time)| (agent_id, time.unix_millis())))?;
    sqlx::query("INSERT INTO agent_registry_heartbeat (heard) VALUES (?)")
        .bind(times)
        .execute(connection)
        .await?;
    Ok(())
}

/// Replaces the log by the given rows.
pub(super) async fn replace_log(connection: &mut SqliteConnection, rows: &[String]) -> Result<()> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("DELETE FROM agent_registry_heartbeat").execute(&mut *transaction).await?;
    for times in rows {
        sqlx::query("INSERT INTO agent_registry_heartbeat (heard) VALUES (?)")
            .bind(times)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

fn encode_batch<'a>(heartbeats: impl Iterator<Item = (&'a str, i64)>) -> Result<String> {
    let mut json = serde_json::Serializer::new(Vec::new());
    json.collect_map(heartbeats).map_err(|error| sqlx::Error::Encode(error.into()))?;
    String::from_utf8(json.into_inner()).map_err(|error| sqlx::Error::Encode(error.into()))
}
