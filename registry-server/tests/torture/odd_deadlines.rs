//! Deadlines while the database hangs, is written by other servers, or is used by a server of the previous
//! version.

use std::time::{Duration, Instant};

use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, RegistryClient};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{Cluster, Server, Store, agent, eventually, is_long, length};

/// Deadlines are only detected by readers, since the sweeper never runs.
const FLAGS: [&str; 4] = ["--heartbeat-timeout", "2s", "--sweep-interval", "1h"];

async fn is_offline(client: &RegistryClient, id: &str) -> bool {
    client.get_agent(id).await.unwrap().status == AgentStatus::Offline
}

/// A server of the previous version writes no mark to the state row.
#[tokio::test(flavor = "multi_thread")]
async fn missed_deadlines_are_detected_beside_a_server_of_the_previous_version() {
    let store = Store::postgres().await;
    let server = Server::running(&store.url, &FLAGS).await;
    let client = server.patient_client();
    client.register(&agent("other", "work")).await.unwrap();
    client.register(&agent("dead", "work")).await.unwrap();
    store
        .execute(
            "BEGIN;
             UPDATE agent_registry_state SET revision = revision + 1;
             UPDATE agent_registry SET revision = state.revision FROM agent_registry_state AS state
                 WHERE agent_id = 'other';
             INSERT INTO agent_registry_event (revision, kind, agent_id, agent, at)
                 SELECT state.revision, 'heard', 'other',
                     jsonb_set(agent::jsonb, '{revision}', to_jsonb(state.revision))::json, now()
                 FROM agent_registry_event, agent_registry_state AS state WHERE agent_id = 'other';
             COMMIT",
        )
        .await;
    eventually("a silent agent is offline", async || is_offline(&client, "dead").await).await;
}

/// At full length, every first read past a deadline must detect it.
#[tokio::test(flavor = "multi_thread")]
async fn missed_deadlines_are_detected_while_other_servers_change_agents() {
    let store = Store::postgres().await;
    let reader = Server::running(&store.url, &FLAGS).await;
    let mut writers = Vec::new();
    for _ in 0..length(3, 1) {
        writers.push(Server::running(&store.url, &FLAGS).await);
    }
    let _changes = change_agents(&writers, length(48, 8));
    let client = reader.patient_client();
    let (mut wrong, mut reads) = (0, 0);
    for round in 0..length(4, 1) {
        let ids: Vec<String> = (0..40).map(|number| format!("dead-{round}-{number}")).collect();
        for id in &ids {
            client.register(&agent(id, "work")).await.unwrap();
        }
        if is_long() {
            // Past the deadline by the database's clock, whatever the servers believe.
            sleep(Duration::from_millis(2_600)).await;
            for id in &ids {
                reads += 1;
                wrong += usize::from(!is_offline(&client, id).await);
            }
        }
        for id in &ids {
            eventually("a silent agent is offline", async || is_offline(&client, id).await).await;
        }
    }
    println!(
        "{wrong} of {reads} reads past the deadline said active, at revision {}",
        store.revision().await
    );
    assert_eq!(wrong, 0);
}

/// Keeps changing its own agents until the result is dropped.
fn change_agents(servers: &[Server], agents: usize) -> JoinSet<()> {
    let mut changes = JoinSet::new();
    for number in 0..agents {
        let client = servers[number % servers.len()].patient_client();
        changes.spawn(async move {
            let id = format!("busy-{number}");
            client.register(&agent(&id, "work")).await.unwrap();
            for round in 0.. {
                let status = if round % 2 == 0 { AgentStatus::Busy } else { AgentStatus::Active };
                let _ = client.update_status(&id, status).await;
                let _ = client.heartbeat(&id).await;
                sleep(Duration::from_millis(length(0, 20))).await;
            }
        });
    }
    changes
}

/// Deadlines that pass meanwhile cannot be confirmed, and readers do not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn reads_are_answered_from_memory_while_the_database_hangs() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let server =
        Server::running(&cluster.url(), &["--heartbeat-timeout", "3s", "--sweep-interval", "1h"]).await;
    let client = server.patient_client();
    // The deadlines pass one after another, some of them soon after the last poll.
    for number in 0..60 {
        client.register(&agent(&format!("agent-{number}"), "work")).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    cluster.pause();
    let before = read_times(&server).await;
    eventually("/health says so", async || server.client().get_server_health().await.is_err()).await;
    let after = read_times(&server).await;
    cluster.go_on();
    println!("reads took at most {before:.1?} at first, {after:.1?} once the outage was noticed");
    assert!(!is_long() || before.max(after) < Duration::from_secs(10), "{before:.1?}, {after:.1?}");
    eventually("the server is well again", async || client.get_server_health().await.is_ok()).await;
}

/// Returns the longest duration of many concurrent reads.
async fn read_times(server: &Server) -> Duration {
    let mut reads = JoinSet::new();
    for _ in 0..40 {
        let client = server.client();
        reads.spawn(async move {
            let began = Instant::now();
            assert_eq!(client.list_agents(ListQuery::all()).await.unwrap().agents.len(), 60);
            began.elapsed()
        });
    }
    reads.join_all().await.into_iter().max().unwrap()
}
