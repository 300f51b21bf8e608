//! Probing by one of several servers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use registry_sdk::contract::UnhealthyReason;

use super::agents::Agents;
use super::{health, probing};
use crate::support::{Database, client, eventually, on_postgres};

on_postgres!(
    one_replica_probes_and_all_have_the_results,
    another_server_takes_over_when_the_probing_one_stops,
    another_server_takes_over_when_the_lease_of_a_lost_one_expires,
);

async fn one_replica_probes_and_all_have_the_results(database: Database) {
    let every = Duration::from_millis(200);
    let start = || {
        database.start_with(|config| {
            probing(config);
            config.probe_interval = Some(every);
        })
    };
    let (one, two) = (start().await, start().await);
    let clients = [client(&one), client(&two)];
    let agents = Agents::start().await;
    agents.register(&clients[0], "well").await;
    for client in &clients {
        let knows = async || {
            let health = client.check_health("well").await;
            health.is_ok_and(|health| health.probe.is_some_and(|probe| probe.ok))
        };
        eventually("the server has the result", knows).await;
    }
    let before = agents.probes();
    let began = std::time::Instant::now();
    tokio::time::sleep(10 * every).await;
    let most = began.elapsed().as_millis() / every.as_millis() + 2;
    assert!(((agents.probes() - before) as u128) <= most, "probed by both: {}", agents.probes() - before);
    agents.ill.store(503, Ordering::SeqCst);
    for client in &clients {
        let knows = async || {
            let health = health(client, "well").await;
            health.reason == Some(UnhealthyReason::ProbeFailed) && health.probe.is_some_and(|probe| !probe.ok)
        };
        eventually("the server knows that the agent is unhealthy", knows).await;
    }
    one.shutdown().await;
    two.shutdown().await;
}

async fn another_server_takes_over_when_the_probing_one_stops(database: Database) {
    let one = database.start_with(probing).await;
    let agents = Agents::start().await;
    agents.register(&client(&one), "well").await;
    eventually("the agent was probed", async || agents.probes() > 0).await;
    let two = database.start_with(probing).await;
    one.shutdown().await;
    let before = agents.probes();
    eventually("the agent is probed again", async || agents.probes() > before + 3).await;
    two.shutdown().await;
}

async fn another_server_takes_over_when_the_lease_of_a_lost_one_expires(database: Database) {
    let lost = "INSERT INTO agent_registry_lease VALUES ('probe', 'lost', now() + interval '1 second')
                RETURNING extract(epoch FROM until)::float8";
    let server = database.start_with(probing).await;
    server.shutdown().await;
    let mut connection = database.connect().await;
    sqlx::query("DELETE FROM agent_registry_lease").execute(&mut connection).await.unwrap();
    let until: f64 = sqlx::query_scalar(lost).fetch_one(&mut connection).await.unwrap();
    let server = database.start_with(probing).await;
    let agents = Agents::start().await;
    agents.register(&client(&server), "well").await;
    eventually("the agent is probed", async || agents.probes() > 0).await;
    let now = "SELECT extract(epoch FROM now())::float8";
    let now: f64 = sqlx::query_scalar(now).fetch_one(&mut connection).await.unwrap();
    assert!(now > until, "probed {} s before the lease expired", until - now);
    server.shutdown().await;
}
