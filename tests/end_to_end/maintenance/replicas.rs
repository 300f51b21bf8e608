//! Maintenance on several servers that share a database.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Heartbeat};
use registry_sdk::discovery::SkipReason;
use registry_sdk::{Directory, Orchestrator};

use super::{SHORT, finds, maintenance_of, next_change, owned, request, watch};
use crate::support::{Database, Registry, agent, client, eventually, on_postgres};

on_postgres!(replicas_agree_about_maintenance, write_by_an_older_server_keeps_the_maintenance_in_the_row);

async fn pair(database: &Database) -> (Registry, Registry) {
    (database.start().await, database.start().await)
}

async fn replicas_agree_about_maintenance(database: Database) {
    let (one, two) = pair(&database).await;
    let (first, second) = (client(&one), client(&two));
    first.register(&owned("one", Duration::from_secs(10))).await.unwrap();
    eventually("the other server has the agent", async || second.get_agent("a").await.is_ok()).await;
    let mut watch = watch(&second).await;
    let directory = Directory::follow(&second);
    directory.ready().await.unwrap();
    let set = first.set_maintenance("a", &request().duration(SHORT)).await.unwrap();
    let announced = next_change(&mut watch).await;
    assert_eq!((&announced.maintenance, announced.healthy), (&set.maintenance, Some(false)));
    let is_out = async || second.get_agent("a").await.unwrap().maintenance == set.maintenance;
    eventually("the other server shows the maintenance", is_out).await;
    let is_told = async || directory.get("a").is_some_and(|agent| agent.maintenance.is_some());
    eventually("the directory shows the maintenance", is_told).await;
    assert_eq!((finds(&second).await, directory.search("work").len()), (0, 0));
    let orchestrator = Orchestrator::builder(second.clone()).directory(directory.clone()).build();
    let error = orchestrator.find_best_agent("work").await.unwrap_err();
    assert_eq!(error.skipped()[0].reason, SkipReason::Maintenance);
    // Heartbeats through the other server do not end it.
    second.heartbeat_with("a", &Heartbeat::default().instance_id("one")).await.unwrap();

    let over = next_change(&mut watch).await;
    assert_eq!((&over.maintenance, over.healthy), (&None, Some(true)));
    let is_back = async || directory.get("a").is_some_and(|agent| agent.maintenance.is_none());
    eventually("the directory shows the end", is_back).await;
    orchestrator.find_best_agent("work").await.unwrap();
    let busy = first.update_status("a", AgentStatus::Busy).await.unwrap();
    assert_eq!(over.revision, set.revision.map(|revision| revision + 1));
    assert_eq!(next_change(&mut watch).await.revision, busy.revision, "the end is announced once");
    one.shutdown().await;
    two.shutdown().await;
}

/// A rolling upgrade.
async fn write_by_an_older_server_keeps_the_maintenance_in_the_row(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    let set = client.set_maintenance("a", &request()).await.unwrap();
    database.make_busy_as_an_older_server().await;
    let is_busy = async || client.get_agent("a").await.unwrap().status == AgentStatus::Busy;
    eventually("the change is followed", is_busy).await;
    // The next change of the agent adopts its row. Without a change, reconciliation adopts it within a minute.
    client.register(&agent("a", "work")).await.unwrap();
    assert_eq!(maintenance_of(&client).await, set.maintenance);
    server.shutdown().await;
}
