//! The heartbeats: a log in the file, and what it amounts to in memory.
//!
//! Heartbeats come in batches of different agents, whose rows are on as many pages, and SQLite writes whole pages.
//! As a log a batch is one short row at the end of a table. Nobody else writes to the file, so memory says which agents
//! there are, and when each was heard.

use std::collections::HashMap;

use registry_sdk::contract::Timestamp;
use serde::Serializer;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use crate::store::{Event, EventKind, StoredAgent, Touch};

/// How many heartbeats the log may have before it is replaced by what it amounts to; where there are more agents, a few of
/// each. What is logged has to be read at the next start.
const MOST_LOGGED: usize = 4_096;
const MOST_LOGGED_EACH: usize = 4;

/// How many agents one row then has.
const AGENTS_A_ROW: usize = 1_000;

type Result<T> = std::result::Result<T, sqlx::Error>;

/// What is known of each agent. Only to be changed by who has the connection, so that it agrees with the file.
#[derive(Debug, Default)]
pub(super) struct Heartbeats {
    known: HashMap<String, Known>,
    logged: usize,
}

#[derive(Debug)]
struct Known {
    revision: i64,
    /// In milliseconds since the Unix epoch.
    heard: i64,
}

impl Heartbeats {
    /// Reads the log, and tells the agents what it has of them. Nobody was heard after `now`: where the host's clock went
    /// back between two runs, times in the future would keep the dead alive.
    pub(super) async fn read(
        connection: &mut SqliteConnection,
        agents: &mut [StoredAgent],
        now: Timestamp,
    ) -> Result<Self> {
        let log = sqlx::query("SELECT heard FROM agent_registry_heartbeat ORDER BY batch")
            .fetch_all(connection)
            .await?;
        let mut heard: HashMap<String, i64> = HashMap::with_capacity(agents.len());
        let mut logged = 0;
        for row in &log {
            let batch: HashMap<String, i64> = serde_json::from_str(row.try_get(0)?)
                .map_err(|error| crate::store::undecodable("heard", error))?;
            logged += batch.len();
            heard.extend(batch);
        }
        for agent in &mut *agents {
            let logged = heard.get(&agent.agent_id).copied().map(Timestamp::from_unix_millis);
            agent.last_heartbeat = agent.last_heartbeat.max(logged.unwrap_or(agent.last_heartbeat)).min(now);
        }
        let known = agents.iter().map(|agent| (agent.agent_id.clone(), Known::of(agent))).collect();
        Ok(Self { known, logged })
    }

    /// When an agent was last heard, where it is there.
    pub(super) fn heard(&self, agent_id: &str) -> Option<Timestamp> {
        Some(Timestamp::from_unix_millis(self.known.get(agent_id)?.heard))
    }

    /// The times of heartbeats, where the agents' revisions are those that their senders know. They do not count before
    /// they are written and [`Heartbeats::took`].
    pub(super) fn judge(&self, touches: &[Touch], now: Timestamp) -> Vec<Option<Timestamp>> {
        let time = |touch: &Touch| {
            let known = self
                .known
                .get(&touch.agent.agent_id)
                .filter(|known| known.revision == touch.agent.revision)?;
            let age = i64::try_from(touch.arrived.elapsed().as_millis()).unwrap_or(i64::MAX);
            Some(Timestamp::from_unix_millis(known.heard.max(now.unix_millis() - age)))
        };
        touches.iter().map(time).collect()
    }

    /// Takes over heartbeats that were written.
    pub(super) fn took<'a>(&mut self, beats: impl IntoIterator<Item = (&'a str, Timestamp)>) {
        for (agent_id, time) in beats {
            self.logged += 1;
            if let Some(known) = self.known.get_mut(agent_id) {
                known.heard = known.heard.max(time.unix_millis());
            }
        }
    }

    /// Takes over changes that were written.
    pub(super) fn changed(&mut self, events: &[Event]) {
        for Event { kind, agent } in events {
            if *kind == EventKind::Deregistered {
                self.known.remove(&agent.agent_id);
            } else {
                self.known.insert(agent.agent_id.clone(), Known::of(agent));
            }
        }
    }

    pub(super) fn is_long(&self) -> bool {
        self.logged >= MOST_LOGGED.max(MOST_LOGGED_EACH * self.known.len())
    }

    /// What the log amounts to, as rows of a new one.
    pub(super) fn rows(&self) -> Result<Vec<String>> {
        let all: Vec<_> = self.known.iter().map(|(agent_id, known)| (&**agent_id, known.heard)).collect();
        all.chunks(AGENTS_A_ROW).map(|some| object(some.iter().copied())).collect()
    }

    /// The log was replaced by what it amounts to.
    pub(super) fn replaced(&mut self) {
        self.logged = 0;
    }
}

impl Known {
    fn of(agent: &StoredAgent) -> Self {
        Self { revision: agent.revision, heard: agent.last_heartbeat.unix_millis() }
    }
}

/// Writes a batch at the end of the log.
pub(super) async fn append<'a>(
    connection: &mut SqliteConnection,
    beats: impl Iterator<Item = (&'a str, Timestamp)>,
) -> Result<()> {
    let heard = object(beats.map(|(agent_id, time)| (agent_id, time.unix_millis())))?;
    sqlx::query("INSERT INTO agent_registry_heartbeat (heard) VALUES (?)")
        .bind(heard)
        .execute(connection)
        .await?;
    Ok(())
}

/// Replaces the log.
pub(super) async fn replace(connection: &mut SqliteConnection, rows: &[String]) -> Result<()> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("DELETE FROM agent_registry_heartbeat").execute(&mut *transaction).await?;
    for heard in rows {
        sqlx::query("INSERT INTO agent_registry_heartbeat (heard) VALUES (?)")
            .bind(heard)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

fn object<'a>(beats: impl Iterator<Item = (&'a str, i64)>) -> Result<String> {
    let mut json = serde_json::Serializer::new(Vec::new());
    json.collect_map(beats).map_err(|error| sqlx::Error::Encode(error.into()))?;
    String::from_utf8(json.into_inner()).map_err(|error| sqlx::Error::Encode(error.into()))
}
