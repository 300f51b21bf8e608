//! A server is suspended while the database fails over twice, losing changes each time.

use registry_sdk::contract::AgentStatus;

use crate::support::{Cluster, Server, Switch, agent, equal_the_database, recovered};

#[tokio::test(flavor = "multi_thread")]
async fn suspended_server_recovers_from_two_missed_failovers() {
    let Some(mut primary) = Cluster::start(&[]).await else { return };
    let switch = Switch::to(primary.port()).await;
    let servers = [
        Server::running(&switch.database_url(), &[]).await,
        Server::running(&switch.database_url(), &[]).await,
    ];
    let [awake, suspended] = [servers[0].patient_client(), servers[1].patient_client()];
    for number in 0..20 {
        awake.register(&agent(&format!("agent-{number}"), "kept")).await.unwrap();
    }
    for failover in 0..2 {
        let standby = primary.standby().await;
        standby.stop_receiving().await;
        if failover == 0 {
            servers[1].signal("STOP");
        }
        for number in 0..30 {
            awake.register(&agent(&format!("lost-{failover}-{number}"), "lost")).await.unwrap();
            awake.update_status(&format!("agent-{}", number % 20), AgentStatus::Busy).await.unwrap();
        }
        // The old primary keeps running, but is unreachable.
        switch.hang();
        standby.promote().await;
        switch.switch_to(standby.port());
        // As many changes as were lost, and one more, so that revisions alone do not reveal the difference.
        for number in 0..61 {
            awake.register(&agent(&format!("new-{failover}-{number}"), "new")).await.unwrap();
        }
        primary = standby;
    }
    servers[1].signal("CONT");
    equal_the_database(&servers, &mut primary.connect().await.unwrap()).await;
    for number in 0..20 {
        suspended.heartbeat(&format!("agent-{number}")).await.unwrap();
    }
    recovered(&servers).await;
}
