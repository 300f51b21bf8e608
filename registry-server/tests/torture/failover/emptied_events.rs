//! Another program empties the table of events under running servers.

use std::time::Instant;

use registry_sdk::Error;
use registry_sdk::contract::AgentRecord;
use registry_sdk::contract::AgentStatus::{Active, Busy};
use sqlx::Executor;

use super::scene::{Position, resumes};
use super::truth::Truth;
use super::{SOON, end, register};
use crate::support::{Change, Cluster, EventStream, Server, agent, is_long, length, settled};

/// Number of changes before each time the table is emptied.
const CHANGES: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_streams_survive_an_emptied_table_of_events() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Server::running(&cluster.url(), &[]).await);
    }
    for number in 0..CHANGES {
        register(format!("agent-{number}")).make(&servers[0]).await;
    }
    let truth = Truth::of(&cluster).await;
    let mut streams = Vec::new();
    for server in &servers {
        settled("the servers agree before the fault", async || truth.is_shown_by(server).await).await;
        streams.push(EventStream::open(server, truth.revision).await);
    }
    // Kept here, since the table will no longer contain it.
    let mut history = truth.changes;
    let mut connection = cluster.connect().await.unwrap();
    for round in 0..length(50, 5) {
        let client = servers[round % 2].patient_client();
        let to = if round % 2 == 0 { Busy } else { Active };
        for number in 1..CHANGES {
            history
                .push(change("status_changed", &client.update_status(&format!("agent-{number}"), to).await));
        }
        // TRUNCATE waits for the change, and followers wait for TRUNCATE: the change is gone before another
        // server reads it.
        let (last, emptied) = tokio::join!(
            client.update_status("agent-0", to),
            connection.execute("TRUNCATE agent_registry_event")
        );
        emptied.unwrap();
        let ended = Instant::now();
        history.push(change("status_changed", &last));
        history
            .push(change("registered", &client.register(&agent(&format!("later-{round}"), "endure")).await));
        for (server, stream) in servers.iter().zip(&streams) {
            let equal = async || Truth::of(&cluster).await.is_shown_by(server).await;
            settled("the servers equal the database", equal).await;
            let whole = async || stream.has(&history);
            settled("the streams have a reset or every change once", whole).await;
        }
        let took = ended.elapsed();
        println!("round {round}: both servers follow after {took:.2?}");
        assert!(!is_long() || took < SOON, "round {round}: both servers follow after {took:?}");
    }
    let positions: Vec<_> = streams[0]
        .blocks()
        .into_iter()
        .filter_map(|block| {
            block.change().map(|change| Position { id: block.id.unwrap(), revision: change.revision })
        })
        .collect();
    for server in &servers {
        resumes(server, &history, &positions, &[]).await;
    }
    // A server started now does not know the emptied events.
    let mut late = Server::running(&cluster.url(), &[]).await;
    resumes(&late, &history, &positions, &[]).await;
    late.stop().await;
    for server in &mut servers {
        end(server, "after the last round").await;
    }
}

fn change(kind: &str, answer: &Result<AgentRecord, Error>) -> Change {
    let record = answer.as_ref().unwrap();
    Change { revision: record.revision.unwrap(), kind: kind.to_owned(), agent_id: record.agent_id.clone() }
}
