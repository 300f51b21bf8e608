//! Metrics of the database: waits, batches, latencies and outages.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{join_all, join3};
use registry_sdk::testing::Fault;
use sqlx::Executor;
use tokio::time::timeout;

use crate::metrics::{by_label, scrape};
use crate::support::{
    Database, LONG, agent, client, eventually, on_both_databases, on_postgres, proxy_before,
};

on_both_databases!(transactions_and_waits_of_writes_are_measured);

/// Tests that need a lock or a proxy.
mod faults {
    use super::*;

    on_postgres!(change_that_waits_behind_another_is_measured, every_outage_is_counted_with_its_length);
}

/// Returns the count and the sum of a histogram.
fn histogram(samples: &HashMap<String, f64>, name: &str, label: &str) -> (f64, f64) {
    let value = |kind: &str| samples[&format!("agent_registry_{name}_{kind}{{{label}}}")];
    (value("count"), value("sum"))
}

async fn transactions_and_waits_of_writes_are_measured(database: Database) {
    const AGENTS: u32 = 20;
    let server = database.start().await;
    let (client, agents) = (client(&server), f64::from(AGENTS));
    let agents_ids: Vec<_> = (0..AGENTS).map(|number| format!("agent-{number}")).collect();
    let registrations: Vec<_> = agents_ids.iter().map(|agent_id| agent(agent_id, "work")).collect();
    join_all(registrations.iter().map(|registration| async { client.register(registration).await.unwrap() }))
        .await;
    join_all(agents_ids.iter().map(|agent_id| async { client.heartbeat(agent_id).await.unwrap() })).await;
    let found = scrape(&server).await;
    for queue in ["changes", "heartbeats"] {
        let label = format!("queue=\"{queue}\"");
        let (flushes, writes) = histogram(&found, "flush_size", &label);
        assert!(flushes >= 1.0 && flushes <= writes && writes >= agents, "{queue}: {flushes} {writes}");
        let (waits, waited) = histogram(&found, "queue_wait_seconds", &label);
        assert!(waits >= flushes && waited > 0.0, "{queue}: {waits} {waited} s");
        let (operations, took) = histogram(&found, "database_latency_seconds", &format!("part=\"{queue}\""));
        assert!((operations - flushes).abs() < 0.5 && took > 0.0, "{queue}: {operations} {took} s");
    }
    let (polls, took) = histogram(&found, "database_latency_seconds", "part=\"follower\"");
    assert!(polls >= 1.0 && took > 0.0, "{polls} {took} s");
    assert!(found.contains_key("agent_registry_database_latency_seconds_count{part=\"reads\"}"));
    assert!(found.contains_key("agent_registry_database_outages_total"));
    server.shutdown().await;
}

async fn change_that_waits_behind_another_is_measured(database: Database) {
    const HELD: Duration = Duration::from_millis(200);
    /// Transactions time out soon after that.
    const MOST: Duration = Duration::from_secs(1);
    let server = database.start().await;
    let client = client(&server);
    let blocked = "SELECT min(pid)::text FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let is_blocked = async || database.value::<Option<String>>(blocked).await.is_some();
    let is_queued = async || by_label(&scrape(&server).await, "agent_registry_queue_length")["changes"] > 0;
    // Another program locks the state row, so the transaction of the first change takes as long. On a busy machine it may fail, or
    // include the second change.
    let mut rounds = 0;
    let mut round = async || {
        rounds += 1;
        let [first, second] = ["first", "second"].map(|name| agent(&format!("{name}-{rounds}"), "work"));
        let mut holder = database.connect().await;
        holder.execute("BEGIN; SELECT FROM agent_registry_state FOR UPDATE").await.unwrap();
        let sending_second = async {
            let _ = timeout(MOST, eventually("the first change is blocked", is_blocked)).await;
            client.register(&second).await
        };
        let holding = async {
            let _ = timeout(MOST, eventually("the second change waits", is_queued)).await;
            tokio::time::sleep(HELD).await;
            holder.execute("ROLLBACK").await.unwrap();
        };
        let _ = join3(client.register(&first), sending_second, holding).await;
        let found = scrape(&server).await;
        let (_, waited) = histogram(&found, "queue_wait_seconds", "queue=\"changes\"");
        let (_, took) = histogram(&found, "database_latency_seconds", "part=\"changes\"");
        let held = HELD.as_secs_f64();
        waited >= held && took >= held
    };
    let seen = async { while !round().await {} };
    timeout(LONG, seen).await.expect("the wait and the latency are measured");
    server.shutdown().await;
}

async fn every_outage_is_counted_with_its_length(database: Database) {
    let proxy = proxy_before(&database).await;
    let server = database.through(&proxy).start().await;
    let outages = async || {
        let found = scrape(&server).await;
        let is_up = found["agent_registry_database_up"] > 0.5;
        let count = found["agent_registry_database_outages_total"];
        (is_up, count, found["agent_registry_database_outage_seconds_total"])
    };
    let (_, before, _) = outages().await;
    for round in [1.0, 2.0] {
        proxy.set(Fault::Refuse);
        eventually("an outage has begun", async || {
            let (is_up, count, _) = outages().await;
            !is_up && count >= before + round
        })
        .await;
        let (_, _, seconds) = outages().await;
        eventually("an ongoing outage is counted", async || {
            let (is_up, _, later) = outages().await;
            !is_up && later > seconds + 0.1
        })
        .await;
        proxy.set(Fault::None);
        eventually("the outage is over", async || outages().await.0).await;
    }
    server.shutdown().await;
}
