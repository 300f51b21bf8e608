//! Whether an agent's record is linearizable: the observations of concurrent clients, even over kills, must
//! be possible for clients that act one after another.

mod linearizability;
mod model;
mod replicas;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{Error, RegistryClient};

use crate::support::{Server, Store, agent, length, on_both};
use linearizability::{History, Verdict};
use model::{Answer, Op, Record};

on_both!(records_are_linearizable);

const CLIENTS: usize = 16;
const IDS: usize = 4;
/// Number of operations of one client in one round.
const OPERATIONS: usize = 4;

/// Far more than any history here needs: the longest runs visited a few hundred.
const MAX_STATES: usize = 200_000;

type Histories = Vec<Arc<Mutex<History<Record>>>>;

async fn records_are_linearizable(store: Store) {
    let mut server = Server::running(&store.url, &[]).await;
    let (rounds, mut answered, mut unanswered, mut states, mut kills) = (length(400, 12), 0, 0, 0, 0);
    for round in 0..rounds {
        let histories: Histories = (0..IDS).map(|_| Arc::default()).collect();
        let client = server.client();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (client, histories) = (client.clone(), histories.clone());
                tokio::spawn(async move { act(&client, round, number, &histories).await })
            })
            .collect();
        let is_killed = round % 3 == 2;
        if is_killed {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(500..6_000))).await;
            server.kill();
            kills += 1;
        }
        for client in clients {
            client.await.unwrap();
        }
        if is_killed {
            server.start().await;
        }
        for (id, history) in histories.iter().enumerate() {
            let mut history = std::mem::take(&mut *history.lock());
            // The final state must belong to the same history.
            let number = history.call(Op::Get);
            history
                .answer(number, perform(&server.patient_client(), &name(round, id), Op::Get).await.unwrap());
            states = states.max(check(&history));
            let count = history.count();
            (answered, unanswered) = (answered + count.0, unanswered + count.1);
        }
    }
    println!(
        "{rounds} rounds of {CLIENTS} clients on {IDS} ids, {kills} kills: {answered} operations that were answered and \
         {unanswered} that were not, every history linearizable, with at most {states} states to look at"
    );
}

/// Returns the number of states visited.
fn check(history: &History<Record>) -> usize {
    let check = history.check(MAX_STATES);
    match check.verdict {
        Verdict::Linearizable => check.states,
        Verdict::NotLinearizable => panic!("no order explains this history: {history:#?}"),
        Verdict::GaveUp => panic!(
            "this history is neither explained nor refuted by the first {MAX_STATES} states: {history:#?}"
        ),
    }
}

fn name(round: usize, id: usize) -> String {
    format!("round-{round}-{id}")
}

async fn act(client: &RegistryClient, round: usize, number: usize, histories: &Histories) {
    for operation in 0..OPERATIONS {
        let id = fastrand::usize(..IDS);
        let op = match fastrand::u8(..10) {
            0..3 => Op::Register((round * CLIENTS + number) * OPERATIONS + operation),
            3..5 => Op::SetStatus(if fastrand::bool() { AgentStatus::Busy } else { AgentStatus::Active }),
            5..6 => Op::Heartbeat,
            6..7 => Op::Remove,
            _ => Op::Get,
        };
        let number = histories[id].lock().call(op);
        match perform(client, &name(round, id), op).await {
            Ok(answer) => histories[id].lock().answer(number, answer),
            // The server is gone for the rest of the round.
            Err(_) => return,
        }
    }
}

async fn perform(client: &RegistryClient, id: &str, op: Op) -> Result<Answer, Error> {
    let outcome = match op {
        Op::Register(number) => {
            client.register(&agent(id, &number.to_string())).await.map(|record| Answer::of(&record))
        }
        Op::SetStatus(status) => client.update_status(id, status).await.map(|record| Answer::of(&record)),
        Op::Get => client.get_agent(id).await.map(|record| Answer::of(&record)),
        Op::Heartbeat => client.heartbeat(id).await.map(|ack| Answer::Alive(ack.status)),
        Op::Remove => client.deregister(id).await.map(|()| Answer::Removed),
    };
    match outcome {
        Err(error) if error.is_not_found() => Ok(Answer::NotFound),
        outcome => outcome,
    }
}
