//! An agent of the SDK against the real server.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Capability, Heartbeat};
use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{Agent, AgentState, Error, RegistrationOutcome};

use crate::support::{
    Database, LONG, agent, client, client_builder, eventually, impatient_client, lasting_address,
    on_both_databases, on_every_registry, status_of,
};

on_every_registry!(
    heartbeats_keep_an_agent_alive,
    forgotten_agent_registers_again_with_its_latest_capabilities,
    agent_stays_offline_after_shutdown,
    dropped_agent_stops_sending_heartbeats,
    invalid_registration_is_not_retried,
    newest_process_with_an_id_wins,
    process_without_an_instance_id_is_accepted,
);

/// Tests that need a database or a restart.
mod lasting {
    use super::*;

    on_both_databases!(
        agent_survives_a_restart_of_its_registry,
        agent_survives_every_fault_of_the_network,
        agent_that_starts_before_its_registry_registers_later,
        status_survives_a_restart_of_the_registry,
    );
}

const INTERVAL: Duration = Duration::from_millis(200);

async fn heartbeats_keep_an_agent_alive(database: Database) {
    const TIMEOUT: Duration = Duration::from_millis(1_000);
    let server = database.start_with(|config| config.heartbeat_timeout = TIMEOUT).await;
    let client = client(&server);
    client.register(&agent("silent", "work")).await.unwrap();
    let alive = Agent::new(client.clone(), agent("alive", "work"));
    alive.register().await.unwrap();
    alive.start_heartbeat(INTERVAL).unwrap();
    // On a busy machine a heartbeat may be late: then the next attempt counts.
    let outlives_its_deadline = async || {
        let before = client.get_agent("alive").await.unwrap();
        let deadline = before.last_heartbeat.unwrap();
        let mut after = before.clone();
        while after.last_heartbeat.unwrap().since(deadline) <= 2 * TIMEOUT {
            tokio::time::sleep(INTERVAL / 10).await;
            after = client.get_agent("alive").await.unwrap();
        }
        assert_eq!(after.heartbeat_interval, Some(INTERVAL));
        before.status == AgentStatus::Active && after.revision == before.revision
    };
    eventually("it stays active for twice its timeout", outlives_its_deadline).await;
    eventually("the silent agent is offline", async || {
        status_of(&client, "silent").await == AgentStatus::Offline
    })
    .await;
    alive.shutdown().await;
    server.shutdown().await;
}

async fn forgotten_agent_registers_again_with_its_latest_capabilities(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let forgotten = Agent::new(client.clone(), agent("a", "work"));
    forgotten.register().await.unwrap();
    forgotten.start_heartbeat(INTERVAL).unwrap();
    forgotten.update_capabilities(vec![Capability::new("rest")]).await.unwrap();
    client.deregister("a").await.unwrap();
    eventually("the agent is registered again", async || client.get_agent("a").await.is_ok()).await;
    assert_eq!(client.get_agent("a").await.unwrap().capabilities, [Capability::new("rest")]);
    forgotten.shutdown().await;
    server.shutdown().await;
}

async fn agent_survives_a_restart_of_its_registry(database: Database) {
    let address = lasting_address();
    let server = database.start_with(|config| config.listen = address.into()).await;
    let agent = Agent::new(client(&server), agent("a", "work"));
    agent.register().await.unwrap();
    agent.start_heartbeat(INTERVAL).unwrap();
    let mut state = agent.watch();
    server.shutdown().await;
    state.wait_for(AgentState::is_degraded).await.unwrap();

    let server = database.start_with(|config| config.listen = address.into()).await;
    state.wait_for(AgentState::is_registered).await.unwrap();
    assert_eq!(status_of(&client(&server), "a").await, AgentStatus::Active);
    agent.shutdown().await;
    server.shutdown().await;
}

async fn agent_survives_every_fault_of_the_network(database: Database) {
    let server = database.start().await;
    let proxy = FaultProxy::start(server.local_addr().to_string()).await;
    let through = client_builder(format!("http://{}", proxy.address())).timeout(INTERVAL).build().unwrap();
    let agent = Agent::new(through, agent("a", "work").heartbeat_interval(INTERVAL));
    eventually("the agent is registered in time", async || agent.register().await.is_ok()).await;
    agent.start_heartbeat(INTERVAL).unwrap();
    let mut state = agent.watch();
    for fault in
        [Fault::Refuse, Fault::Hang, Fault::ResetAfter(0), Fault::ResetAfter(50), Fault::Slow(INTERVAL)]
    {
        proxy.set(fault);
        state.wait_for(AgentState::is_degraded).await.unwrap();
        proxy.set(Fault::None);
        state.wait_for(AgentState::is_registered).await.unwrap();
        let direct = client(&server).check_health("a").await.unwrap();
        assert!(direct.is_healthy(), "after {fault:?}");
    }
    agent.shutdown().await;
    server.shutdown().await;
}

async fn agent_that_starts_before_its_registry_registers_later(database: Database) {
    let address = lasting_address();
    let client = client_builder(format!("http://{address}")).build().unwrap();
    let early = Agent::new(client.clone(), agent("early", "work"));
    let outcome = early.register_with_retry().await.unwrap();
    assert!(matches!(outcome, RegistrationOutcome::Degraded(_)), "{outcome:?}");
    assert!(early.state().is_degraded());
    early.start_heartbeat(INTERVAL).unwrap();
    let server = database.start_with(|config| config.listen = address.into()).await;
    early.watch().wait_for(AgentState::is_registered).await.unwrap();
    assert_eq!(status_of(&client, "early").await, AgentStatus::Active);
    early.shutdown().await;
    server.shutdown().await;
}

async fn agent_stays_offline_after_shutdown(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let ending = Agent::new(client.clone(), agent("a", "work"));
    ending.register().await.unwrap();
    ending.start_heartbeat(Duration::from_millis(1)).unwrap();
    let registered = client.get_agent("a").await.unwrap().last_heartbeat;
    let beating = async || client.get_agent("a").await.unwrap().last_heartbeat > registered;
    eventually("the agent sends heartbeats", beating).await;
    ending.shutdown_within(LONG).await;
    let last = client.get_agent("a").await.unwrap();
    assert_eq!(last.status, AgentStatus::Offline);
    assert!(matches!(ending.state(), AgentState::Stopped));
    assert!(matches!(ending.start_heartbeat(INTERVAL), Err(Error::ShutDown)));
    // The agent has no task left that could change this.
    assert_eq!(client.get_agent("a").await.unwrap(), last);
    server.shutdown().await;
}

async fn dropped_agent_stops_sending_heartbeats(database: Database) {
    let server = database.start_with(|config| config.heartbeat_timeout = 5 * INTERVAL).await;
    let client = client(&server);
    let dropped = Agent::new(client.clone(), agent("a", "work"));
    dropped.register().await.unwrap();
    dropped.start_heartbeat(INTERVAL / 4).unwrap();
    let clone = dropped.clone();
    drop(dropped);
    let before = client.get_agent("a").await.unwrap().last_heartbeat;
    let beats = async || client.get_agent("a").await.unwrap().last_heartbeat > before;
    eventually("the other handle keeps the agent alive", beats).await;
    drop(clone);
    eventually("the agent is offline", async || status_of(&client, "a").await == AgentStatus::Offline).await;
    server.shutdown().await;
}

async fn status_survives_a_restart_of_the_registry(database: Database) {
    let address = lasting_address();
    let server = database.start_with(|config| config.listen = address.into()).await;
    let client = client(&server);
    let busy = Agent::new(impatient_client(&server), agent("a", "work"));
    busy.register().await.unwrap();
    busy.start_heartbeat(INTERVAL).unwrap();
    server.shutdown().await;
    // The registry is down, so the next successful heartbeat carries the status.
    assert!(busy.update_status(AgentStatus::Busy).await.unwrap_err().is_retryable());
    let server = database.start_with(|config| config.listen = address.into()).await;
    eventually("the agent is busy", async || status_of(&client, "a").await == AgentStatus::Busy).await;
    busy.shutdown().await;
    server.shutdown().await;
}

async fn invalid_registration_is_not_retried(database: Database) {
    let server = database.start().await;
    let bad = Agent::new(client(&server), agent("a", ""));
    let error = bad.register_with_retry().await.unwrap_err();
    assert_eq!(error.fields()[0].field, "capabilities[0].name");
    assert!(matches!(bad.start_heartbeat(Duration::ZERO), Err(Error::Config(_))));
    server.shutdown().await;
}

async fn newest_process_with_an_id_wins(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let old = Agent::new(client.clone(), agent("a", "old").heartbeat_interval(INTERVAL));
    old.register().await.unwrap();
    old.start_heartbeat(INTERVAL).unwrap();
    let new = Agent::new(client.clone(), agent("a", "new").heartbeat_interval(INTERVAL));
    new.register().await.unwrap();
    new.start_heartbeat(INTERVAL).unwrap();
    old.watch().wait_for(AgentState::is_superseded).await.unwrap();
    // The end of a superseded process does not take its successor offline, whether or not the process knows that it is superseded.
    assert!(old.update_status(AgentStatus::Offline).await.unwrap_err().is_superseded());
    old.shutdown_within(LONG).await;
    let record = client.get_agent("a").await.unwrap();
    assert_eq!((record.status, record.capabilities[0].name.as_str()), (AgentStatus::Active, "new"));
    assert_eq!(record.instance_id.as_deref(), Some(new.instance_id()));
    // On a busy machine a heartbeat may be late.
    new.watch().wait_for(AgentState::is_registered).await.unwrap();
    new.shutdown_within(LONG).await;
    assert_eq!(status_of(&client, "a").await, AgentStatus::Offline);
    server.shutdown().await;
}

async fn process_without_an_instance_id_is_accepted(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "work").instance_id("one")).await.unwrap();
    client.heartbeat("a").await.unwrap();
    client.heartbeat_with("a", &Heartbeat::default().instance_id("one")).await.unwrap();
    let other = client.heartbeat_with("a", &Heartbeat::default().instance_id("other")).await;
    assert!(other.unwrap_err().is_superseded());
    // A registration without an instance id: requests of any process are accepted.
    client.register(&agent("a", "work")).await.unwrap();
    client.heartbeat_with("a", &Heartbeat::default().instance_id("other")).await.unwrap();
    server.shutdown().await;
}
