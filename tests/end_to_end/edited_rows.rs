//! Rows edited with SQL while servers are running.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use registry_sdk::contract::{AgentRecord, AgentStatus, Capability};
use registry_sdk::{ListQuery, RegistryClient, Watch, WatchEvent};
use serde_json::{Map, Value};
use sqlx::{Connection, PgConnection, SqliteConnection};
use tokio::time::{Instant, timeout};

use crate::support::{Database, LONG, Registry, agent, client, eventually, on_both_databases};

on_both_databases!(
    edited_rows_are_shown_and_announced_within_a_minute,
    agent_with_a_deleted_row_can_be_deregistered,
    agent_with_a_deleted_row_is_forgotten_at_its_next_heartbeat,
    status_change_adopts_an_edited_row_at_once,
);

/// Starts two servers on PostgreSQL, or one on SQLite.
async fn start_all(database: &Database) -> Vec<Registry> {
    let mut servers = vec![database.start().await];
    if is_postgres(database) {
        servers.push(database.start().await);
    }
    servers
}

async fn stop_all(servers: Vec<Registry>) {
    for server in servers {
        server.shutdown().await;
    }
}

fn is_postgres(database: &Database) -> bool {
    database.url.starts_with("postgres")
}

/// Agents registered before the edits. Each is named after its edit.
const REGISTERED: [&str; 9] = [
    "deleted",
    "made-busy",
    "made-offline",
    "new-capabilities",
    "new-interval",
    "new-metadata",
    "new-name",
    "new-url",
    "untouched",
];

const EDITS: &str = r#"
    DELETE FROM agent_registry WHERE agent_id = 'deleted';
    UPDATE agent_registry SET status = 'busy' WHERE agent_id = 'made-busy';
    UPDATE agent_registry SET status = 'offline' WHERE agent_id = 'made-offline';
    UPDATE agent_registry SET capabilities = '[{"name": "edited"}]' WHERE agent_id = 'new-capabilities';
    UPDATE agent_registry SET heartbeat_interval_seconds = 7200.5 WHERE agent_id = 'new-interval';
    UPDATE agent_registry SET metadata = '{"edited": {"ratio": 0.1}}' WHERE agent_id = 'new-metadata';
    UPDATE agent_registry SET agent_name = 'Edited Ä' WHERE agent_id = 'new-name';
    UPDATE agent_registry SET base_url = 'http://edited.example:9000' WHERE agent_id = 'new-url';
"#;

/// Rows inserted by a service that only knows the table's first six columns, and by one that knows the others as well. Neither sets
/// a revision.
const POSTGRES_INSERTS: &str = r#"
    INSERT INTO agent_registry (agent_id, agent_name, base_url, status, capabilities, last_heartbeat)
    VALUES ('inserted-brief', 'Brief', 'http://brief.example', 'active', '[{"name": "inserted"}]', now());
    INSERT INTO agent_registry (agent_id, agent_name, base_url, status, capabilities, last_heartbeat, metadata,
        heartbeat_interval_seconds, registered_at)
    VALUES ('inserted-full', 'Full', 'http://full.example', 'busy', '[]', now(), '{"a": 1}', 45.5, now());
"#;

/// The same rows for SQLite, where some columns have no default.
const SQLITE_INSERTS: &str = r#"
    INSERT INTO agent_registry (agent_id, agent_name, base_url, status, capabilities, last_heartbeat, registered_at,
        revision)
    VALUES ('inserted-brief', 'Brief', 'http://brief.example', 'active', '[{"name": "inserted"}]',
        unixepoch() * 1000, unixepoch() * 1000, 0);
    INSERT INTO agent_registry (agent_id, agent_name, base_url, status, capabilities, last_heartbeat, metadata,
        heartbeat_interval_seconds, registered_at, revision)
    VALUES ('inserted-full', 'Full', 'http://full.example', 'busy', '[]', unixepoch() * 1000, '{"a": 1}', 45.5,
        unixepoch() * 1000, 0);
"#;

/// One test for all edits, since reconciliation takes up to a minute.
async fn edited_rows_are_shown_and_announced_within_a_minute(database: Database) {
    let servers = start_all(&database).await;
    let clients: Vec<RegistryClient> = servers.iter().map(client).collect();
    for id in REGISTERED {
        clients[0].register(&agent(id, "work")).await.unwrap();
    }
    let mut watches = Vec::new();
    for client in &clients {
        eventually("the server shows the registered agents", async || {
            shown(client).await == stored(&database).await
        })
        .await;
        let mut watch = client.watch();
        listed(&mut watch).await;
        watches.push(watch);
    }
    let revision = list(&clients[0]).await.iter().filter_map(|record| record.revision).max().unwrap();

    let began = Instant::now();
    database.execute(EDITS).await;
    database.execute(if is_postgres(&database) { POSTGRES_INSERTS } else { SQLITE_INSERTS }).await;
    for client in &clients {
        eventually("the server equals the database", async || shown(client).await == stored(&database).await)
            .await;
    }
    report(&database, began.elapsed());
    let names = stored(&database)
        .await
        .into_iter()
        .map(|row| (row.agent_id.clone(), row))
        .collect::<BTreeMap<_, _>>();
    assert_eq!(names.len(), REGISTERED.len() - 1 + 2, "no edit was undone: {names:?}");
    assert_eq!(names["new-url"].base_url, "http://edited.example:9000");
    assert_eq!(names["made-offline"].status, "offline");
    assert_eq!(names["inserted-full"].interval, Some(Duration::from_secs_f64(45.5)));
    for client in &clients {
        assert_eq!(client.search_capabilities("edited").await.unwrap().len(), 1);
        assert_eq!(client.search_capabilities("inserted").await.unwrap().len(), 1);
        assert!(!client.check_health("made-offline").await.unwrap().is_healthy());
    }

    clients[0].register(&agent("last", "work")).await.unwrap();
    let mut expected: BTreeSet<&str> = REGISTERED.into_iter().filter(|id| *id != "untouched").collect();
    expected.extend(["inserted-brief", "inserted-full", "last"]);
    for watch in &mut watches {
        let told = told_until_last(watch, revision).await;
        let ids: Vec<&str> = told.iter().map(|(_, id)| id.as_str()).collect();
        assert_eq!(ids.iter().copied().collect::<BTreeSet<_>>(), expected);
        assert_eq!(ids.len(), expected.len(), "each change is announced once: {told:?}");
        for (kind, id) in &told {
            assert_eq!(*kind == "deregistered", id == "deleted", "{told:?}");
        }
    }
    stop_all(servers).await;
}

#[expect(clippy::print_stdout, reason = "it shows what it measured")]
fn report(database: &Database, took: Duration) {
    let kind = if is_postgres(database) { "PostgreSQL, two servers" } else { "SQLite" };
    println!("{kind}: the edits were shown {took:.1?} after they were made");
}

async fn agent_with_a_deleted_row_can_be_deregistered(database: Database) {
    let servers = start_all(&database).await;
    let client = client(&servers[0]);
    let (mut watch, revision) = with_deleted_row(&database, &client).await;
    if let Err(error) = client.deregister("a").await {
        assert!(error.is_not_found(), "{error}");
    }
    is_gone(&servers, &mut watch, revision).await;
    stop_all(servers).await;
}

async fn agent_with_a_deleted_row_is_forgotten_at_its_next_heartbeat(database: Database) {
    let servers = start_all(&database).await;
    let client = client(&servers[0]);
    let (mut watch, revision) = with_deleted_row(&database, &client).await;
    let outcome = client.heartbeat("a").await;
    assert!(outcome.as_ref().is_err_and(registry_sdk::Error::is_not_found), "{outcome:?}");
    is_gone(&servers, &mut watch, revision).await;

    // Then the agent registers again, as the SDK does automatically.
    client.register(&agent("a", "work")).await.unwrap();
    client.heartbeat("a").await.unwrap();
    let (kind, record) = next_change(&mut watch).await;
    assert_eq!((kind, record.agent_id.as_str()), ("registered", "a"));
    stop_all(servers).await;
}

/// Registers `a` and `b`, starts a watch, and deletes the row of `a`. Returns the watch and the last revision.
async fn with_deleted_row(database: &Database, client: &RegistryClient) -> (Watch, u64) {
    client.register(&agent("a", "work")).await.unwrap();
    let revision = client.register(&agent("b", "work")).await.unwrap().revision.unwrap();
    client.heartbeat("a").await.unwrap();
    let mut watch = client.watch();
    listed(&mut watch).await;
    database.execute("DELETE FROM agent_registry WHERE agent_id = 'a'").await;
    (watch, revision)
}

/// Checks that the first server has forgotten `a` and announced that, and that the others follow.
async fn is_gone(servers: &[Registry], watch: &mut Watch, revision: u64) {
    let first = client(&servers[0]);
    let ids = async |client: &RegistryClient| {
        list(client).await.into_iter().map(|record| record.agent_id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&first).await, ["b"]);
    assert!(first.get_agent("a").await.unwrap_err().is_not_found());
    assert_eq!(first.search_capabilities("work").await.unwrap().len(), 1);
    let (kind, record) = next_change(watch).await;
    assert_eq!((kind, record.agent_id.as_str()), ("deregistered", "a"));
    assert!(record.revision > Some(revision), "{:?}", record.revision);
    for server in servers {
        let client = client(server);
        eventually("the other server forgets the agent, too", async || ids(&client).await == ["b"]).await;
    }
}

async fn status_change_adopts_an_edited_row_at_once(database: Database) {
    let servers = start_all(&database).await;
    let client = client(&servers[0]);
    client.register(&agent("a", "work")).await.unwrap();
    let mut watch = client.watch();
    listed(&mut watch).await;
    database
        .execute("UPDATE agent_registry SET base_url = 'http://edited.example:9000' WHERE agent_id = 'a'")
        .await;

    let record = client.update_status("a", AgentStatus::Busy).await.unwrap();
    assert_eq!((record.status, record.base_url.as_str()), (AgentStatus::Busy, "http://edited.example:9000"));
    let shown = client.get_agent("a").await.unwrap();
    assert_eq!((shown.base_url, shown.revision), (record.base_url.clone(), record.revision));
    let (kind, told) = next_change(&mut watch).await;
    assert_eq!((kind, &told.base_url, told.revision), ("status_changed", &record.base_url, record.revision));
    for server in &servers {
        let other = crate::support::client(server);
        let is_shown =
            async || other.get_agent("a").await.is_ok_and(|agent| agent.base_url == record.base_url);
        eventually("every server shows the edit", is_shown).await;
    }
    stop_all(servers).await;
}

async fn list(client: &RegistryClient) -> Vec<AgentRecord> {
    client.list_agents(ListQuery::all()).await.unwrap().agents
}

async fn next(watch: &mut Watch) -> WatchEvent {
    timeout(LONG, watch.next()).await.expect("an event").expect("the watch continues")
}

async fn listed(watch: &mut Watch) {
    while !matches!(next(watch).await, WatchEvent::Listed(_)) {}
}

async fn next_change(watch: &mut Watch) -> (&'static str, AgentRecord) {
    loop {
        let (kind, agent) = match next(watch).await {
            WatchEvent::Registered(agent) => ("registered", agent),
            WatchEvent::StatusChanged(agent) => ("status_changed", agent),
            WatchEvent::Deregistered(agent) => ("deregistered", agent),
            WatchEvent::Listed(_) => panic!("the watch had to begin anew"),
            _ => continue,
        };
        return (kind, agent.as_ref().clone());
    }
}

/// Returns the changes up to the registration of `last`, and checks that their revisions are consecutive.
async fn told_until_last(watch: &mut Watch, mut revision: u64) -> Vec<(&'static str, String)> {
    let mut told = Vec::new();
    loop {
        let (kind, record) = next_change(watch).await;
        assert!(record.revision > Some(revision), "{record:?} after {revision}");
        revision = record.revision.unwrap();
        told.push((kind, record.agent_id));
        if told.last().is_some_and(|(_, id)| id == "last") {
            return told;
        }
    }
}

/// The fields of an agent that a server shows and its row has.
#[derive(Debug, PartialEq)]
struct Row {
    agent_id: String,
    agent_name: String,
    base_url: String,
    status: String,
    capabilities: Vec<Capability>,
    metadata: Map<String, Value>,
    interval: Option<Duration>,
    instance_id: Option<String>,
    revision: u64,
}

type Columns = (String, String, String, String, String, String, Option<f64>, Option<String>, i64);

const COLUMNS: &str = "SELECT agent_id, agent_name, base_url, status, CAST(capabilities AS text),
    CAST(metadata AS text), heartbeat_interval_seconds, instance_id, revision FROM agent_registry";

impl Row {
    fn shown(agent: AgentRecord) -> Self {
        Self {
            agent_id: agent.agent_id,
            agent_name: agent.agent_name,
            base_url: agent.base_url,
            status: agent.status.to_string(),
            capabilities: agent.capabilities,
            metadata: agent.metadata,
            interval: agent.heartbeat_interval,
            instance_id: agent.instance_id,
            revision: agent.revision.unwrap(),
        }
    }

    fn stored(row: Columns) -> Self {
        let (agent_id, agent_name, base_url, status, capabilities, metadata, interval, instance_id, revision) =
            row;
        Self {
            agent_id,
            agent_name,
            base_url,
            status,
            capabilities: serde_json::from_str(&capabilities).unwrap(),
            metadata: serde_json::from_str(&metadata).unwrap(),
            interval: interval.map(Duration::from_secs_f64),
            instance_id,
            revision: revision.try_into().unwrap(),
        }
    }
}

async fn shown(client: &RegistryClient) -> Vec<Row> {
    list(client).await.into_iter().map(Row::shown).collect()
}

async fn stored(database: &Database) -> Vec<Row> {
    let rows: Vec<Columns> = if is_postgres(database) {
        let mut connection = PgConnection::connect(&database.url).await.unwrap();
        sqlx::query_as(COLUMNS).fetch_all(&mut connection).await.unwrap()
    } else {
        let mut connection = SqliteConnection::connect(&database.url).await.unwrap();
        sqlx::query_as(COLUMNS).fetch_all(&mut connection).await.unwrap()
    };
    let mut rows: Vec<Row> = rows.into_iter().map(Row::stored).collect();
    // In the order of lists, whatever the database's collation.
    rows.sort_by(|a, b| a.agent_id.cmp(&b.agent_id));
    rows
}
