//! Rows with values that the server never writes, written by another program.

use std::collections::BTreeMap;
use std::time::Duration;

use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, RegistryClient};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{Server, Store, agent, eventually, settled};

/// Names of agents by id.
type Names = BTreeMap<String, String>;

/// Inserts seven pages of agents whose ids differ in case and punctuation, and one with an id that no client
/// may use.
macro_rules! insert_agents {
    ($now:literal) => {
        concat!(
            "WITH RECURSIVE number (n) AS (
                 SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 700
             ), prefix (prefix) AS (
                 VALUES ('agent-'), ('Agent-'), ('a'), ('b-'), ('B')
             ), id (id) AS (
                 SELECT prefix || n FROM prefix CROSS JOIN number UNION ALL SELECT 'team:agent'
             )
             INSERT INTO agent_registry (agent_id, agent_name, base_url, last_heartbeat, registered_at, revision)
             SELECT id, 'inserted', 'http://agent.example:1', ",
            $now,
            ", ",
            $now,
            ", 0 FROM id"
        )
    };
}

const EDITS: &str = "
    UPDATE agent_registry SET agent_name = 'edited' WHERE agent_id LIKE '%3';
    DELETE FROM agent_registry WHERE agent_id LIKE '%7' OR agent_id = 'team:agent'";

#[tokio::test(flavor = "multi_thread")]
async fn edits_are_adopted_for_all_kinds_of_ids_on_sqlite() {
    adopts_edits(&Store::sqlite()).await;
}

/// Most locales do not sort ids by their bytes.
#[tokio::test(flavor = "multi_thread")]
async fn edits_are_adopted_for_all_kinds_of_ids_and_locales_on_postgres() {
    let store = natural_store().await;
    adopts_edits(&store).await;
}

async fn natural_store() -> Store {
    let store = Store::postgres().await;
    let name = store.url.rsplit('/').next().unwrap();
    let mut administrator = store.administrator().await;
    for sql in [
        format!("DROP DATABASE {name}"),
        format!("CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"),
    ] {
        administrator.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    store
}

async fn adopts_edits(store: &Store) {
    let mut server = Server::running(&store.url, &[]).await;
    server.stop().await;
    let insert =
        if store.is_postgres() { insert_agents!("now()") } else { insert_agents!("unixepoch() * 1000") };
    store.execute(insert).await;
    server.start().await;
    let client = server.client();
    let inserted = names(&client).await;
    assert_eq!(inserted.len(), 3_501);
    let revision = store.revision().await;
    store.execute(EDITS).await;

    let (mut expected, mut edits) = (inserted, 0);
    expected.retain(|id, _| !id.ends_with('7') && id != "team:agent");
    edits += 3_501 - expected.len();
    for (_, name) in expected.iter_mut().filter(|(id, _)| id.ends_with('3')) {
        "edited".clone_into(name);
        edits += 1;
    }
    settled("the edits are shown", async || {
        let shown = names(&client).await;
        let differing = shown.iter().filter(|(id, name)| expected.get(*id) != Some(*name)).count();
        let is_equal = shown == expected;
        is_equal.then_some(()).ok_or_else(|| {
            format!("{differing} of {} agents differ, {} expected", shown.len(), expected.len())
        })
    })
    .await;
    let changes = store.revision().await - revision;
    assert_eq!(usize::try_from(changes), Ok(edits), "one change for each edit: {}", server.log());
    client.get_server_health().await.unwrap();
}

async fn names(client: &RegistryClient) -> Names {
    let agents = client.list_agents(ListQuery::all()).await.unwrap().agents;
    agents.into_iter().map(|record| (record.agent_id, record.agent_name)).collect()
}

/// Times that PostgreSQL accepts, but the server cannot represent: infinite, or in far away years.
const ODD_TIMES: [(&str, &str); 3] = [
    ("heard", "UPDATE agent_registry SET last_heartbeat = 'infinity' WHERE agent_id = 'heard'"),
    ("registered", "UPDATE agent_registry SET registered_at = '-infinity' WHERE agent_id = 'registered'"),
    (
        "offline",
        "UPDATE agent_registry SET status = 'offline', offline_since = '290000-01-01' WHERE agent_id = 'offline'",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn time_out_of_range_only_affects_its_agent() {
    let store = Store::postgres().await;
    let first = Server::running(&store.url, &[]).await;
    let client = first.patient_client();
    client.register(&agent("other", "work")).await.unwrap();
    for (id, edit) in ODD_TIMES {
        client.register(&agent(id, "work")).await.unwrap();
        store.execute(edit).await;
        let odd = client.update_status(id, AgentStatus::Busy).await;
        assert!(odd.as_ref().is_err_and(registry_sdk::Error::is_not_found), "{id}: {odd:?}");
        client.update_status("other", AgentStatus::Busy).await.unwrap();
    }
    let second = Server::running(&store.url, &[]).await;
    for client in [client, second.patient_client()] {
        client.update_status("other", AgentStatus::Active).await.unwrap();
        client.heartbeat("other").await.unwrap();
        client.get_server_health().await.unwrap();
    }
    for (id, _) in ODD_TIMES {
        second.patient_client().register(&agent(id, "work")).await.unwrap();
        second.patient_client().heartbeat(id).await.unwrap();
    }
}

/// A duration that can be represented, but overflows as soon as anything is added to it.
#[tokio::test(flavor = "multi_thread")]
async fn overlong_heartbeat_interval_is_ignored() {
    let store = Store::postgres().await;
    let server =
        Server::running(&store.url, &["--heartbeat-timeout", "1s", "--sweep-interval", "200ms"]).await;
    let client = server.patient_client();
    client.register(&agent("odd", "work").heartbeat_interval(Duration::from_secs(3_600))).await.unwrap();
    store.execute("UPDATE agent_registry SET heartbeat_interval_seconds = 1.8e19").await;
    client.update_status("odd", AgentStatus::Busy).await.unwrap();
    client.register(&agent("silent", "work")).await.unwrap();
    for id in ["odd", "silent"] {
        eventually("the sweeper marks it offline", async || store.has_missed_deadline(id).await).await;
    }
    eventually("the server is healthy", async || client.get_server_health().await.is_ok()).await;
}
