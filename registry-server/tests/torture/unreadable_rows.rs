//! Rows and events that the server cannot decode. Their agents are skipped and logged, and all others are
//! served.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, RegistryClient, WatchEvent};

use crate::support::{Server, Store, agent, eventually, on_both};

on_both!(rows_unreadable_at_startup_only_affect_their_agents);
on_both!(rows_that_become_unreadable_only_affect_their_agents);

const READABLE: [&str; 4] = ["eventful", "readable-1", "readable-2", "strange-kind"];

const UNREADABLE: [&str; 5] = [
    "unreadable-capabilities",
    "unreadable-instances",
    "unreadable-metadata",
    "unreadable-status",
    "unreadable-text",
];

/// JSON of the wrong shape, and a status that no version knows.
const DAMAGE: &str = r#"
    UPDATE agent_registry SET capabilities = '"garbage"' WHERE agent_id = 'unreadable-capabilities';
    UPDATE agent_registry SET instances = '{"garbage": 1}' WHERE agent_id = 'unreadable-instances';
    UPDATE agent_registry SET metadata = '["garbage"]' WHERE agent_id = 'unreadable-metadata';
    UPDATE agent_registry SET status = 'garbage' WHERE agent_id = 'unreadable-status';
"#;

/// PostgreSQL only accepts JSON, but SQLite accepts any text.
const DAMAGE_POSTGRES: &str =
    r#"UPDATE agent_registry SET capabilities = '[{"name": 1}]' WHERE agent_id = 'unreadable-text'"#;
const DAMAGE_SQLITE: &str =
    "UPDATE agent_registry SET capabilities = '[garbage' WHERE agent_id = 'unreadable-text'";

const DAMAGE_EVENTS: &str = r#"
    UPDATE agent_registry_event SET agent = '{"garbage": 1}' WHERE agent_id = 'eventful';
    UPDATE agent_registry_event SET kind = 'garbage' WHERE agent_id = 'strange-kind';
"#;

async fn damage(store: &Store) {
    store.execute(DAMAGE).await;
    store.execute(if store.is_postgres() { DAMAGE_POSTGRES } else { DAMAGE_SQLITE }).await;
}

async fn rows_unreadable_at_startup_only_affect_their_agents(store: Store) {
    let mut server = Server::running(&store.url, &[]).await;
    register_all(&server.patient_client()).await;
    server.stop().await;
    damage(&store).await;
    store.execute(DAMAGE_EVENTS).await;
    let earlier = server.log().len();
    server.start().await;

    let log = server.log().split_off(earlier);
    for id in UNREADABLE {
        assert!(log.lines().any(|line| line.contains(id)), "{id}:\n{log}");
    }
    let client = server.patient_client();
    assert_eq!(ids(&client).await, READABLE.map(str::to_owned).into());
    other_agents_are_served(&client).await;
    registering_heals_agents(&client).await;
    remaining_agent_can_be_removed(&store, &client).await;

    // Healed agents are also readable after the next start.
    server.stop().await;
    server.start().await;
    assert_eq!(
        ids(&client).await,
        [&READABLE[..], &UNREADABLE[..4]].concat().into_iter().map(str::to_owned).collect()
    );
}

async fn rows_that_become_unreadable_only_affect_their_agents(store: Store) {
    let mut servers = vec![Server::running(&store.url, &[]).await];
    register_all(&servers[0].patient_client()).await;
    if store.is_postgres() {
        servers.push(Server::running(&store.url, &[]).await);
        // The second server has to read undecodable events.
        servers[1].signal("STOP");
    }
    let client = servers[0].patient_client();
    client.update_status("eventful", AgentStatus::Busy).await.unwrap();
    client.update_status("strange-kind", AgentStatus::Busy).await.unwrap();
    damage(&store).await;
    store.execute(DAMAGE_EVENTS).await;
    if let Some(second) = servers.get(1) {
        second.signal("CONT");
    }
    for server in &servers {
        let client = server.patient_client();
        eventually("the change is known", async || {
            client.get_agent("eventful").await.unwrap().status == AgentStatus::Busy
                && client.get_agent("strange-kind").await.unwrap().status == AgentStatus::Busy
        })
        .await;
        other_agents_are_served(&client).await;
    }
    registering_heals_agents(&client).await;
    remaining_agent_can_be_removed(&store, &client).await;
    for server in &servers {
        let client = server.patient_client();
        let expected = [&READABLE[..], &UNREADABLE[..4]].concat().into_iter().map(str::to_owned).collect();
        eventually("all servers know the same", async || ids(&client).await == expected).await;
    }
}

async fn register_all(client: &RegistryClient) {
    for id in READABLE.into_iter().chain(UNREADABLE) {
        client.register(&agent(id, "work")).await.unwrap();
    }
}

async fn ids(client: &RegistryClient) -> BTreeSet<String> {
    let agents = client.list_agents(ListQuery::all()).await.unwrap().agents;
    agents.into_iter().map(|record| record.agent_id).collect()
}

/// Even if their writes share a transaction with those of unreadable agents.
async fn other_agents_are_served(client: &RegistryClient) {
    let unreadable = UNREADABLE
        .into_iter()
        .flat_map(|id| [("heartbeat", id, AgentStatus::Active), ("status", id, AgentStatus::Busy)]);
    let readable = READABLE
        .into_iter()
        .flat_map(|id| [("heartbeat", id, AgentStatus::Active), ("status", id, AgentStatus::Busy)]);
    let calls = unreadable.chain(readable).map(async |(call, id, status)| {
        let outcome = match call {
            "heartbeat" => client.heartbeat(id).await.map(drop),
            _ => client.update_status(id, status).await.map(drop),
        };
        if let Err(error) = outcome {
            assert!(UNREADABLE.contains(&id) && error.is_not_found(), "{call} of {id}: {error}");
        }
    });
    join_all(calls).await;
    for id in READABLE {
        assert_eq!(client.get_agent(id).await.unwrap().status, AgentStatus::Busy);
        assert!(client.check_health(id).await.unwrap().is_healthy());
    }
    client.get_server_health().await.unwrap();
}

/// All but the last unreadable agent register, and watchers learn of it.
async fn registering_heals_agents(client: &RegistryClient) {
    let mut watch = client.watch();
    while !matches!(watch.next().await, Some(WatchEvent::Listed(_))) {}
    for id in &UNREADABLE[..4] {
        let record = client.register(&agent(id, "heal")).await.unwrap();
        assert_eq!((record.status, record.capabilities[0].name.as_str()), (AgentStatus::Active, "heal"));
        client.heartbeat(id).await.unwrap();
        assert_eq!(client.get_agent(id).await.unwrap().capabilities[0].name, "heal");
        let told = async {
            loop {
                if let Some(WatchEvent::Registered(told)) = watch.next().await {
                    return told;
                }
            }
        };
        let told = tokio::time::timeout(crate::support::LONG, told).await.expect("it is told");
        assert_eq!((told.agent_id.as_str(), told.revision), (*id, record.revision));
    }
    assert_eq!(client.search_capabilities("heal").await.unwrap().len(), 4);
}

/// Removes the row, or reports that there is none. Either way, the id can be reused.
async fn remaining_agent_can_be_removed(store: &Store, client: &RegistryClient) {
    let id = UNREADABLE[4];
    match client.deregister(id).await {
        Ok(()) => assert!(!store.has_row(id).await, "it was removed"),
        Err(error) => assert!(error.is_not_found(), "{error}"),
    }
    assert!(client.get_agent(id).await.unwrap_err().is_not_found());
    client.register(&agent(id, "work")).await.unwrap();
    client.deregister(id).await.unwrap();
    assert!(!store.has_row(id).await, "it was removed");
}
