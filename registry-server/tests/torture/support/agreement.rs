//! Checks that servers match their database, accept writes, and follow each other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::ListQuery;
use registry_sdk::contract::{AgentRecord, AgentStatus};
use sqlx::{FromRow, PgConnection};

use super::{Server, agent, is_long, recovery, within};

/// The values of an agent that every server must show.
#[derive(Debug, FromRow)]
struct Row {
    agent_id: String,
    agent_name: String,
    base_url: String,
    status: String,
    revision: i64,
    /// Seconds since the last heartbeat, by the database's clock.
    silence: f64,
}

impl Row {
    fn is_shown_as(&self, record: &AgentRecord) -> bool {
        let timeout = record.heartbeat_timeout.map_or(f64::MAX, |timeout| timeout.as_secs_f64());
        // Past its deadline, an agent is offline for every reader at once, but in its row only after the next
        // sweep.
        let is_overdue = record.status == AgentStatus::Offline && self.silence >= timeout;
        (&self.agent_name, &self.base_url) == (&record.agent_name, &record.base_url)
            && record.revision == u64::try_from(self.revision).ok()
            && (record.status.to_string() == self.status || is_overdue)
    }
}

/// Waits until each server shows all agents as they are in the database. Only sweepers may write meanwhile.
pub(crate) async fn equal_the_database(servers: &[Server], database: &mut PgConnection) {
    let database = tokio::sync::Mutex::new(database);
    for (place, server) in servers.iter().enumerate() {
        let last = Mutex::new(Vec::new());
        let equal = async || {
            let differences = differences(server, *database.lock().await).await;
            let is_equal = differences.is_empty();
            *last.lock() = differences;
            is_equal
        };
        let what = || format!("server {place} equals the database: {:#?}", last.lock());
        within(recovery(), what, equal).await;
    }
}

async fn differences(server: &Server, database: &mut PgConnection) -> Vec<String> {
    let query = "SELECT agent_id, agent_name, base_url, status, revision,
                     extract(epoch FROM now() - last_heartbeat)::float8 AS silence
                 FROM agent_registry";
    let rows: Vec<Row> = sqlx::query_as(query).fetch_all(database).await.unwrap();
    let mut shown: HashMap<String, AgentRecord> = match server.client().list_agents(ListQuery::all()).await {
        Ok(page) => page.agents.into_iter().map(|record| (record.agent_id.clone(), record)).collect(),
        Err(error) => return vec![error.to_string()],
    };
    let mut differences = Vec::new();
    for row in &rows {
        match shown.remove(&row.agent_id) {
            Some(record) if row.is_shown_as(&record) => {}
            record => differences.push(format!("{row:?} is shown as {record:?}")),
        }
    }
    differences.extend(shown.into_values().map(|record| format!("not in the database: {record:?}")));
    differences
}

/// Waits until each server is healthy and accepts writes.
pub(crate) async fn recovered(servers: &[Server]) -> Duration {
    let began = Instant::now();
    for (place, server) in servers.iter().enumerate() {
        let (client, error) = (server.client(), Mutex::new(String::new()));
        let well = async || {
            let outcome = match client.get_server_health().await {
                Ok(_) => client.register(&agent("well", "recover")).await.map(drop),
                Err(error) => Err(error),
            };
            *error.lock() = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
            outcome.is_ok()
        };
        // The limit applies to all servers together.
        let left = recovery().saturating_sub(began.elapsed());
        within(left, || format!("server {place} is well again: {}", error.lock()), well).await;
    }
    began.elapsed()
}

/// Changes an agent on each server, and waits until the others show the change.
///
/// At full length, no server may lag by more than a second, and the median must be shorter than polling twice
/// a second would allow.
pub(crate) async fn follow_each_other(servers: &[Server]) {
    let mut delays = Vec::new();
    for (place, server) in servers.iter().enumerate() {
        let client = server.client();
        let id = format!("followed-{place}");
        client.register(&agent(&id, "follow")).await.unwrap();
        for round in 0..20 {
            let next = if round % 2 == 0 { AgentStatus::Busy } else { AgentStatus::Active };
            let revision = client.update_status(&id, next).await.unwrap().revision;
            for (reader, _) in servers.iter().enumerate().filter(|(reader, _)| *reader != place) {
                let reading = servers[reader].client();
                let shown = async || {
                    let record = reading.get_agent(&id).await;
                    record.is_ok_and(|record| record.revision >= revision)
                };
                let what = || format!("server {reader} shows a change of server {place}");
                delays.push(within(recovery(), what, shown).await);
            }
        }
    }
    delays.sort_unstable();
    let (median, longest) = (delays[delays.len() / 2], delays[delays.len() - 1]);
    println!("a change is on the other server after {median:.3?} (median), {longest:.3?} (longest)");
    assert!(!is_long() || longest < Duration::from_secs(1), "a change took {longest:?}");
    assert!(!is_long() || median < Duration::from_millis(150), "half of the changes took {median:?}");
}
