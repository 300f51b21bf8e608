//! Ownership on two servers that share a database.

use registry_sdk::contract::{AgentStatus, Capability, Heartbeat, StatusUpdate};

use super::{accepts_requests_of, is_accepted, owner_of, process, register_many_at_once, visible};
use crate::support::{Database, agent, client, eventually, on_postgres};

on_postgres!(
    ownership_is_the_same_on_both_replicas,
    youngest_of_many_processes_on_two_replicas_owns_the_id,
    shutdown_on_one_replica_is_not_undone_by_a_delayed_request_on_the_other,
);

async fn ownership_is_the_same_on_both_replicas(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    let (one_client, two_client) = (client(&one), client(&two));
    assert!(is_accepted(&one_client, &process("young", 10)).await);
    // At once, whether or not the other server has the change yet.
    assert!(!is_accepted(&two_client, &process("old", 60)).await);
    assert!(
        !is_accepted(&one_client, &process("old", 0)).await,
        "the other server recorded its start with a different age"
    );
    let known =
        async || two_client.get_agent("a").await.is_ok_and(|agent| agent.status == AgentStatus::Active);
    eventually("the other server has the owner", known).await;
    assert!(accepts_requests_of(&two_client, "young").await);

    let ended = one_client.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    assert!(!is_accepted(&two_client, &process("young", 10)).await);
    let beat = Heartbeat::default().instance_id("young");
    assert!(two_client.heartbeat_with("a", &beat).await.unwrap_err().is_superseded());
    let same = async || visible(&two_client).await == ended;
    eventually("both servers have the shutdown and no other change", same).await;
    assert!(is_accepted(&two_client, &process("old", 60)).await);
    assert!(!is_accepted(&one_client, &process("young", 10)).await);
    let taken = async || owner_of(&one_client, "a").await.as_deref() == Some("old");
    eventually("the first server has the new owner", taken).await;
    one.shutdown().await;
    two.shutdown().await;
}

async fn youngest_of_many_processes_on_two_replicas_owns_the_id(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    let clients = [client(&one), client(&two)];
    for _ in 0..10 {
        register_many_at_once(&clients).await;
        for client in &clients {
            let owned = async || {
                client.get_agent("a").await.is_ok_and(|a| a.instance_id.as_deref() == Some("aged-1"))
            };
            eventually("the youngest process owns the id", owned).await;
        }
        clients[0].deregister("a").await.unwrap();
        let gone = async || clients[1].get_agent("a").await.is_err_and(|error| error.is_not_found());
        eventually("the agent is gone from the other server", gone).await;
    }
    one.shutdown().await;
    two.shutdown().await;
}

async fn shutdown_on_one_replica_is_not_undone_by_a_delayed_request_on_the_other(database: Database) {
    let (one, two) = (database.start().await, database.start().await);
    let (one_client, two_client) = (client(&one), client(&two));
    // Changes on both servers, so that transactions wait for each other.
    let busy: Vec<_> = [&one_client, &two_client, &one_client, &two_client, &one_client, &two_client]
        .into_iter()
        .zip(0..)
        .map(|(client, number)| {
            let client = client.clone();
            tokio::spawn(async move {
                for round in 0_u64.. {
                    let other = agent(&format!("busy-{number}"), &format!("work-{round}"));
                    if client.register(&other).await.is_err() {
                        break;
                    }
                }
            })
        })
        .collect();
    for round in 0..100 {
        let instance_id = format!("i{round}");
        // Older than a round takes, so that a request after the shutdown does not count as a new start.
        let process = process(&instance_id, 1_000);
        one_client.deregister("a").await.ok();
        one_client.register(&process).await.unwrap();
        let late = process.clone().capability(Capability::new("more"));
        let end = StatusUpdate::shut_down(&instance_id);
        let (_, ended) =
            tokio::join!(is_accepted(&one_client, &late), two_client.update_status_with("a", &end));
        ended.unwrap();
        assert!(!is_accepted(&one_client, &process).await, "round {round}");
        // The server that stored the shutdown shows it at once.
        assert_eq!(visible(&two_client).await.status, AgentStatus::Offline, "round {round}");
    }
    for task in busy {
        task.abort();
    }
    one.shutdown().await;
    two.shutdown().await;
}
