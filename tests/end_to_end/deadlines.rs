//! Deadlines: an agent is offline for every reader at once, the sweeper stores that, and there is a grace period after a restart.

use std::time::{Duration, SystemTime};

use registry_sdk::contract::{AgentStatus, HealthStatus, UnhealthyReason};
use registry_sdk::{ListQuery, SearchQuery};
use tokio::time::Instant;

use crate::support::{
    Database, NEVER, agent, client, eventually, on_both_databases, on_every_registry, status_of,
};

on_every_registry!(
    agent_past_its_deadline_is_offline_for_every_reader_before_any_sweep,
    longer_interval_of_an_agent_extends_its_deadline,
    heartbeat_makes_a_silent_agent_active_again,
    status_does_not_make_a_silent_agent_active,
    silent_busy_agent_comes_back_active,
);

/// Tests that need a database or a restart.
mod lasting {
    use super::*;

    on_both_databases!(
        sweeper_stores_a_missed_deadline,
        no_agent_goes_offline_within_a_timeout_after_a_restart,
        offline_agent_is_removed_after_remove_after,
    );
}

const TIMEOUT: Duration = Duration::from_millis(700);

async fn agent_past_its_deadline_is_offline_for_every_reader_before_any_sweep(database: Database) {
    let server = database
        .start_with(|config| (config.heartbeat_timeout, config.sweep_interval) = (TIMEOUT, NEVER))
        .await;
    let client = client(&server);
    client.register(&agent("silent", "work")).await.unwrap();
    eventually("the agent is unhealthy", async || !client.check_health("silent").await.unwrap().is_healthy())
        .await;

    let health = client.check_health("silent").await.unwrap();
    assert_eq!(health.reason, Some(UnhealthyReason::HeartbeatMissed));
    assert_eq!(health.agent_status, Some(AgentStatus::Offline));
    assert!(health.since_heartbeat.unwrap() > TIMEOUT);
    assert_eq!(status_of(&client, "silent").await, AgentStatus::Offline);
    let list = async |status| client.list_agents(ListQuery::all().status(status)).await.unwrap().agents.len();
    assert_eq!((list(AgentStatus::Offline).await, list(AgentStatus::Active).await), (1, 0));
    let found = client.search_capabilities("work").await.unwrap();
    assert_eq!((found[0].status, found[0].healthy), (AgentStatus::Offline, Some(false)));
    let search = async |healthy| {
        client.search_capabilities(SearchQuery::new("work").healthy(healthy)).await.unwrap().len()
    };
    assert_eq!((search(false).await, search(true).await), (1, 0));
    let stats = client.get_stats().await.unwrap();
    assert_eq!((stats.active_agents, stats.offline_agents, stats.stale_agents), (0, 1, 1));
    server.shutdown().await;
}

async fn sweeper_stores_a_missed_deadline(database: Database) {
    let server = database.start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    client(&server).register(&agent("silent", "work")).await.unwrap();
    eventually("the missed deadline is stored", async || database.has_missed_deadline("silent").await).await;
    assert_eq!(client(&server).get_stats().await.unwrap().stale_agents, 1);
    server.shutdown().await;

    // A server with a longer timeout goes by the stored status.
    let server = database.start_with(|config| config.heartbeat_timeout = NEVER).await;
    let health = client(&server).check_health("silent").await.unwrap();
    assert_eq!(
        (health.status, health.reason),
        (HealthStatus::Unhealthy, Some(UnhealthyReason::HeartbeatMissed))
    );
    server.shutdown().await;
}

async fn longer_interval_of_an_agent_extends_its_deadline(database: Database) {
    let server = database.start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    let client = client(&server);
    client.register(&agent("short", "work")).await.unwrap();
    let slow = agent("slow", "work").heartbeat_interval(Duration::from_secs(600));
    let record = client.register(&slow).await.unwrap();
    assert_eq!(record.heartbeat_timeout, Some(Duration::from_secs(1_200)));
    eventually("the other agent is offline", async || {
        status_of(&client, "short").await == AgentStatus::Offline
    })
    .await;
    assert_eq!(status_of(&client, "slow").await, AgentStatus::Active);
    server.shutdown().await;
}

async fn heartbeat_makes_a_silent_agent_active_again(database: Database) {
    for sweep in [Duration::from_millis(50), NEVER] {
        let server = database
            .start_with(|config| (config.heartbeat_timeout, config.sweep_interval) = (TIMEOUT, sweep))
            .await;
        let client = client(&server);
        client.register(&agent("a", "work")).await.unwrap();
        eventually("the agent is offline", async || status_of(&client, "a").await == AgentStatus::Offline)
            .await;
        assert_eq!(client.heartbeat("a").await.unwrap().status, AgentStatus::Active);
        // Only until the next deadline, which is soon.
        let is_well = async || {
            client.heartbeat("a").await.unwrap();
            let health = client.check_health("a").await.unwrap();
            let stats = client.get_stats().await.unwrap();
            (health.status, health.reason, stats.stale_agents) == (HealthStatus::Healthy, None, 0)
        };
        eventually("the agent is healthy", is_well).await;
        server.shutdown().await;
    }
}

async fn status_does_not_make_a_silent_agent_active(database: Database) {
    let server = database.start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    let client = client(&server);
    client.register(&agent("a", "work")).await.unwrap();
    eventually("the agent is offline", async || status_of(&client, "a").await == AgentStatus::Offline).await;
    assert_eq!(client.update_status("a", AgentStatus::Busy).await.unwrap().status, AgentStatus::Offline);
    assert_eq!(status_of(&client, "a").await, AgentStatus::Offline);
    assert_eq!(client.get_stats().await.unwrap().stale_agents, 1);
    // If the agent sets itself offline, it is no longer stale.
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    assert_eq!(client.check_health("a").await.unwrap().reason, Some(UnhealthyReason::Offline));
    server.shutdown().await;
}

async fn silent_busy_agent_comes_back_active(database: Database) {
    let server = database
        .start_with(|config| (config.heartbeat_timeout, config.sweep_interval) = (TIMEOUT, NEVER))
        .await;
    let client = client(&server);
    client.register(&agent("a", "work").status(AgentStatus::Busy)).await.unwrap();
    eventually("the agent is offline", async || status_of(&client, "a").await == AgentStatus::Offline).await;
    assert_eq!(client.heartbeat("a").await.unwrap().status, AgentStatus::Active);
    server.shutdown().await;
}

async fn no_agent_goes_offline_within_a_timeout_after_a_restart(database: Database) {
    let patient = database.start_with(|config| config.heartbeat_timeout = NEVER).await;
    let last_heartbeat =
        client(&patient).register(&agent("a", "work")).await.unwrap().last_heartbeat.unwrap();
    patient.shutdown().await;
    let age = || SystemTime::now().duration_since(last_heartbeat.into()).unwrap_or_default();
    eventually("the last heartbeat is older than the timeout of the next server", async || age() > TIMEOUT)
        .await;

    let began = Instant::now();
    let server = database.start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    let client = client(&server);
    while status_of(&client, "a").await == AgentStatus::Active {
        assert!(client.check_health("a").await.unwrap().is_healthy() || began.elapsed() >= TIMEOUT);
        tokio::task::yield_now().await;
    }
    assert!(began.elapsed() >= TIMEOUT, "marked offline after {:?}", began.elapsed());
    server.shutdown().await;
}

async fn offline_agent_is_removed_after_remove_after(database: Database) {
    let server = database
        .start_with(|config| {
            config.heartbeat_timeout = TIMEOUT;
            config.remove_after = Some(Duration::from_millis(200));
        })
        .await;
    let client = client(&server);
    client.register(&agent("silent", "work")).await.unwrap();
    client.register(&agent("resting", "work")).await.unwrap();
    client.update_status("resting", AgentStatus::Offline).await.unwrap();
    client.register(&agent("lasting", "work").heartbeat_interval(NEVER)).await.unwrap();
    eventually("both are removed", async || client.get_stats().await.unwrap().total_agents == 1).await;
    assert_eq!(status_of(&client, "lasting").await, AgentStatus::Active);
    server.shutdown().await;
}
