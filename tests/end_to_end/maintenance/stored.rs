//! Maintenance in the database, and across restarts.

use std::time::Duration;

use registry_sdk::Error;
use registry_sdk::contract::AgentStatus;

use super::{SHORT, finds, next_change, request, watch};
use crate::credentials::File;
use crate::support::{
    Database, NEVER, agent, client, client_builder, eventually, impatient_client, on_both_databases,
};

on_both_databases!(
    end_of_maintenance_is_stored_and_announced_once,
    maintenance_survives_a_restart,
    maintenance_ends_on_time_although_the_server_is_down,
    token_only_allows_maintenance_of_its_agents,
    edited_maintenance_is_adopted,
);

async fn stored(database: &Database) -> Option<String> {
    const QUERY: &str = "SELECT CAST(maintenance AS text) FROM agent_registry WHERE agent_id = 'a'";
    database.value::<Option<String>>(QUERY).await
}

async fn end_of_maintenance_is_stored_and_announced_once(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let mut watch = watch(&client).await;
    let set = client.set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    assert!(stored(&database).await.is_some());
    eventually("the end is stored", async || stored(&database).await.is_none()).await;
    let busy = client.update_status("a", AgentStatus::Busy).await.unwrap();
    assert!(next_change(&mut watch).await.maintenance.is_some());
    let over = next_change(&mut watch).await;
    assert_eq!((&over.maintenance, over.healthy), (&None, Some(true)));
    assert_eq!(over.revision, set.revision.map(|revision| revision + 1));
    assert_eq!(next_change(&mut watch).await.revision, busy.revision, "no change in between");
    server.shutdown().await;
}

async fn maintenance_survives_a_restart(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    let set = client(&server).set_maintenance("a", &request().duration(NEVER)).await.unwrap();
    server.shutdown().await;
    let server = database.start().await;
    let client = client(&server);
    assert_eq!(client.get_agent("a").await.unwrap(), set);
    assert_eq!(finds(&client).await, 0);
    assert_eq!(client.end_maintenance("a").await.unwrap().maintenance, None);
    server.shutdown().await;
}

async fn maintenance_ends_on_time_although_the_server_is_down(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    client(&server).set_maintenance("a", &request().duration(Duration::from_millis(1))).await.unwrap();
    client(&server).set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    server.shutdown().await;
    tokio::time::sleep(SHORT).await;
    let server = database.start_with(|config| config.sweep_interval = NEVER).await;
    assert!(client(&server).check_health("a").await.unwrap().is_healthy());
    assert_eq!(finds(&client(&server)).await, 1);
    server.shutdown().await;
}

async fn token_only_allows_maintenance_of_its_agents(database: Database) {
    let (file, tokens) =
        File::new(&["scope = \"read\"", "scope = \"agent\"\nagents = [\"a\"]", "scope = \"admin\""]);
    let server = database.start_with(|config| config.tokens_file = Some(file.path.clone())).await;
    let [reader, own, admin] =
        [0, 1, 2].map(|number: usize| client_builder(server.url()).token(&*tokens[number]).build().unwrap());
    admin.register(&agent("a", "work")).await.unwrap();
    admin.register(&agent("b", "work")).await.unwrap();
    for (client, id) in [(&reader, "a"), (&own, "b")] {
        let denied =
            [client.set_maintenance(id, &request()).await.err(), client.end_maintenance(id).await.err()];
        for error in denied {
            assert!(matches!(error, Some(Error::Denied { status: 403, .. })), "{error:?}");
        }
    }
    assert_eq!(admin.get_stats().await.unwrap().maintenance_agents, 0);
    for (client, id) in [(&own, "a"), (&admin, "b")] {
        assert!(client.set_maintenance(id, &request()).await.unwrap().maintenance.is_some());
    }
    assert!(admin.end_maintenance("a").await.unwrap().maintenance.is_none());
    server.shutdown().await;
}

/// Another program edits the column.
async fn edited_maintenance_is_adopted(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    client.register(&agent("b", "work")).await.unwrap();
    let mut watch = watch(&client).await;
    database
        .execute(
            r#"UPDATE agent_registry SET maintenance = '{"reason": "by hand", "since": "2026-11-24T09:31:00.456Z"}'
               WHERE agent_id = 'a'"#,
        )
        .await;
    // Every change of an agent compares its row.
    client.update_status("a", AgentStatus::Active).await.unwrap();
    let told = next_change(&mut watch).await;
    assert_eq!(told.maintenance.as_ref().map(|maintenance| &*maintenance.reason), Some("by hand"));
    assert_eq!(client.get_agent("a").await.unwrap(), *told);
    server.shutdown().await;

    database.execute(r#"UPDATE agent_registry SET maintenance = '{"reason": 7}' WHERE agent_id = 'a'"#).await;
    let server = database.start().await;
    let client = impatient_client(&server);
    assert!(matches!(client.get_agent("a").await, Err(Error::NotFound { .. })));
    assert_eq!(client.get_agent("b").await.unwrap().maintenance, None);
    // The agent registers again, without the unreadable maintenance.
    assert_eq!(client.register(&agent("a", "work")).await.unwrap().maintenance, None);
    server.shutdown().await;
}
