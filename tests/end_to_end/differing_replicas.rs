//! Several registries in one database.

use registry_sdk::contract::Heartbeat;
use registry_server::Config;
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{Database, NEVER, Registry, agent, client, eventually, on_postgres};

on_postgres!(two_registries_in_one_database_know_nothing_of_each_other);

async fn two_registries_in_one_database_know_nothing_of_each_other(database: Database) {
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
    for server in servers {
        server.shutdown().await;
    }
}
