//! Servers with different settings that share a database.

use registry_sdk::contract::Heartbeat;
use registry_server::Config;
use sqlx::{AssertSqlSafe, Executor};

use crate::metrics::{by_label, scrape};
use crate::support::{Database, NEVER, Registry, agent, client, eventually, on_both_databases, on_postgres};

on_both_databases!(single_server_does_not_differ);

/// Tests that need several servers.
mod replicas {
    use super::*;

    on_postgres!(
        servers_with_a_different_timeout_are_counted,
        server_of_a_different_version_is_counted,
        two_registries_in_one_database_are_independent,
    );
}

/// Returns the number of servers, of those with a different version, and of those with a different heartbeat timeout.
async fn counted(server: &Registry) -> (u64, u64, u64) {
    let found = scrape(server).await;
    let differing = by_label(&found, "agent_registry_differing_replicas");
    let replicas = format!("{}", found["agent_registry_replicas"]).parse().unwrap();
    (replicas, differing["version"], differing["heartbeat_timeout"])
}

async fn eventually_counted(server: &Registry, expected: (u64, u64, u64)) {
    eventually(&format!("counted {expected:?}"), async || counted(server).await == expected).await;
}

async fn single_server_does_not_differ(database: Database) {
    let server = database.start().await;
    assert_eq!(counted(&server).await, (1, 0, 0));
    server.shutdown().await;
}

async fn servers_with_a_different_timeout_are_counted(database: Database) {
    let shorter = |config: &mut Config| config.heartbeat_timeout = NEVER / 2;
    let (one, two) = (database.start().await, database.start().await);
    eventually_counted(&one, (2, 0, 0)).await;
    eventually_counted(&two, (2, 0, 0)).await;
    let other = database.start_with(shorter).await;
    eventually_counted(&one, (3, 0, 1)).await;
    eventually_counted(&two, (3, 0, 1)).await;
    eventually_counted(&other, (3, 0, 2)).await;
    for server in [one, two, other] {
        server.shutdown().await;
    }
}

async fn server_of_a_different_version_is_counted(database: Database) {
    let server = database.start().await;
    eventually_counted(&server, (1, 0, 0)).await;
    // The message of such a server, which is repeated: the other one may not be listening yet.
    let message = "SELECT pg_notify(
        'agent_registry_news_' || 'agent_registry_state'::regclass::oid,
        '{\"from\":7,\"settings\":{\"version\":\"0.0.1\",\"heartbeat_timeout_millis\":3600000},\"later\":1}'
    )";
    let is_counted = async || {
        database.execute(message).await;
        counted(&server).await == (2, 1, 0)
    };
    eventually("the other server is counted", is_counted).await;
    server.shutdown().await;
}

async fn two_registries_in_one_database_are_independent(database: Database) {
    let mut servers = Vec::new();
    for schema in ["one", "two", "two"] {
        let mut connection = database.connect().await;
        connection.execute(AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS {schema}"))).await.unwrap();
        let timeout = if schema == "one" { NEVER } else { NEVER / 2 };
        let in_schema = |config: &mut Config| {
            config.database_url = format!("{}?options=-csearch_path%3D{schema}", config.database_url);
            config.heartbeat_timeout = timeout;
        };
        let server = database.start_with(in_schema).await;
        client(&server).register(&agent("a", "work")).await.unwrap();
        servers.push(server);
    }
    let load = async |server: &Registry| client(server).get_agent("a").await.unwrap().load;
    for (server, its_load) in [(&servers[0], 0.25), (&servers[1], 0.75)] {
        let heartbeat = Heartbeat::default().load(its_load);
        client(server).heartbeat_with("a", &heartbeat).await.unwrap();
    }
    eventually("the replica knows the load", async || load(&servers[2]).await == Some(0.75)).await;
    assert_eq!(load(&servers[0]).await, Some(0.25));
    assert_eq!(counted(&servers[0]).await, (1, 0, 0));
    eventually_counted(&servers[1], (2, 0, 0)).await;
    for server in servers {
        server.shutdown().await;
    }
}
