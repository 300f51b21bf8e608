//! Whether the record of an agent is linearizable (Herlihy and Wing, 1990): what clients saw, at the same time and over
//! kills, has to be what one of them after another could have seen, in an order that agrees with the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use registry_sdk::contract::{AgentRecord, AgentStatus};
use registry_sdk::{Error, RegistryClient};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use crate::support::{Server, Store, agent, is_long, length, on_both};

on_both!(history);

const CLIENTS: usize = 16;
const IDS: usize = 4;
/// Of one client in one round.
const OPERATIONS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    /// With a capability that no other registration has.
    Register(usize),
    SetStatus(AgentStatus),
    Heartbeat,
    Get,
    Remove,
}

#[derive(Clone, Debug, PartialEq)]
enum Ret {
    Record { capability: usize, status: AgentStatus, revision: u64 },
    Alive(AgentStatus),
    Removed,
    NotFound,
}

/// An agent, as it should be.
#[derive(Clone, Debug, Default)]
struct Model {
    agent: Option<(usize, AgentStatus)>,
    /// The last change's, or one before it where that is not known.
    revision: u64,
    is_known: bool,
}

impl Model {
    fn becomes(&mut self, agent: Option<(usize, AgentStatus)>) {
        (self.agent, self.is_known) = (agent, false);
    }
}

impl SequentialSpec for Model {
    type Op = Op;
    type Ret = Ret;

    /// Without knowing what was answered: which revision it got is not known.
    fn invoke(&mut self, op: &Op) -> Ret {
        match (*op, self.agent) {
            (Op::Register(capability), _) => self.becomes(Some((capability, AgentStatus::Active))),
            (Op::SetStatus(status), Some((capability, _))) => self.becomes(Some((capability, status))),
            (Op::Remove, Some(_)) => self.becomes(None),
            _ => {}
        }
        Ret::NotFound
    }

    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        let before = self.clone();
        self.invoke(op);
        match (op, ret, before.agent) {
            (
                Op::Register(_) | Op::SetStatus(_) | Op::Get,
                Ret::Record { capability, status, revision },
                _,
            ) => {
                let changed = matches!(op, Op::Register(_)) || before.agent != self.agent;
                let fits = if changed || !before.is_known {
                    // Something that was not answered may have come between.
                    *revision > before.revision
                } else {
                    *revision == before.revision
                };
                (self.revision, self.is_known) = (*revision, true);
                fits && self.agent == Some((*capability, *status))
            }
            (Op::Heartbeat, Ret::Alive(status), Some((_, known))) => *status == known,
            (Op::Remove, Ret::Removed, before) => before.is_some(),
            (_, Ret::NotFound, before) => before.is_none(),
            _ => false,
        }
    }
}

/// What one client did: the beginning and the end of each operation, in the order in which they happened.
#[derive(Debug)]
enum Step {
    Begin(usize, Op),
    End(usize, Ret),
}

type History = Arc<Mutex<Vec<Step>>>;

async fn history(store: Store) {
    let mut server = Server::running(&store.url, &[]).await;
    // How many orders there are to try grows fast with what was not answered: not for a test that has to be soon over.
    let with_kills = is_long();
    let (rounds, mut checked, mut unknown, mut kills) = (length(400, 12), 0, 0, 0);
    for round in 0..rounds {
        let histories: Vec<History> = (0..IDS).map(|_| History::default()).collect();
        let client = server.client();
        let clients = (0..CLIENTS).map(|number| {
            let (client, histories) = (client.clone(), histories.clone());
            tokio::spawn(async move { act(&client, round, number, &histories).await })
        });
        let clients: Vec<_> = clients.collect();
        if with_kills && round % 3 == 2 {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(500..6_000))).await;
            server.kill();
            kills += 1;
        }
        for client in clients {
            client.await.unwrap();
        }
        if with_kills && round % 3 == 2 {
            server.start().await;
        }
        for (id, history) in histories.iter().enumerate() {
            // What is there in the end has to be of the same history.
            let done = perform(&server.client(), &name(round, id), Op::Get).await.unwrap();
            let mut history = std::mem::take(&mut *history.lock());
            history.extend([Step::Begin(usize::MAX, Op::Get), Step::End(usize::MAX, done)]);
            let (operations, open) = check(&history);
            checked += operations;
            unknown += open;
        }
    }
    println!(
        "{rounds} rounds of {CLIENTS} clients on {IDS} ids, {kills} kills: {checked} operations that were answered and \
         {unknown} that were not, every history linearizable"
    );
}

fn name(round: usize, id: usize) -> String {
    format!("round-{round}-{id}")
}

async fn act(client: &RegistryClient, round: usize, number: usize, histories: &[History]) {
    for operation in 0..OPERATIONS {
        let id = fastrand::usize(..IDS);
        let op = match fastrand::u8(..10) {
            0..3 => Op::Register((round * CLIENTS + number) * OPERATIONS + operation),
            3..5 => Op::SetStatus(if fastrand::bool() { AgentStatus::Busy } else { AgentStatus::Active }),
            5..6 => Op::Heartbeat,
            6..7 => Op::Remove,
            _ => Op::Get,
        };
        histories[id].lock().push(Step::Begin(number, op));
        match perform(client, &name(round, id), op).await {
            Ok(ret) => histories[id].lock().push(Step::End(number, ret)),
            // Whether it happened is not known, and this client does nothing more in this history.
            Err(_) => return,
        }
    }
}

async fn perform(client: &RegistryClient, id: &str, op: Op) -> Result<Ret, Error> {
    let outcome = match op {
        Op::Register(number) => {
            client.register(&agent(id, &number.to_string())).await.map(|record| seen(&record))
        }
        Op::SetStatus(status) => client.update_status(id, status).await.map(|record| seen(&record)),
        Op::Get => client.get_agent(id).await.map(|record| seen(&record)),
        Op::Heartbeat => client.heartbeat(id).await.map(|ack| Ret::Alive(ack.status)),
        Op::Remove => client.deregister(id).await.map(|()| Ret::Removed),
    };
    match outcome {
        Err(error) if error.is_not_found() => Ok(Ret::NotFound),
        outcome => outcome,
    }
}

fn seen(record: &AgentRecord) -> Ret {
    let capability = record.capabilities[0].name.parse().unwrap();
    Ret::Record { capability, status: record.status, revision: record.revision.unwrap() }
}

/// How many operations were answered, and how many were not. Fails where no order explains them.
fn check(history: &[Step]) -> (usize, usize) {
    let mut tester = LinearizabilityTester::new(Model::default());
    let (mut begun, mut ended) = (0, 0);
    let is_answered = |client: &usize, after: usize| {
        history[after..].iter().any(|step| matches!(step, Step::End(who, _) if who == client))
    };
    for (place, step) in history.iter().enumerate() {
        match step {
            // What changes nothing and was not answered explains nothing, and there would be many more orders to try.
            Step::Begin(client, Op::Get | Op::Heartbeat) if !is_answered(client, place) => {}
            Step::Begin(client, op) => {
                tester.on_invoke(*client, *op).unwrap();
                begun += 1;
            }
            Step::End(client, ret) => {
                tester.on_return(*client, ret.clone()).unwrap();
                ended += 1;
            }
        }
    }
    assert!(tester.is_consistent(), "no order explains this history: {history:#?}");
    (ended, begun - ended)
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let record = |capability, revision| Ret::Record { capability, status: AgentStatus::Active, revision };
    let one_by_one = |steps: Vec<(Op, Ret)>| {
        let history: Vec<_> =
            steps.into_iter().flat_map(|(op, ret)| [Step::Begin(0, op), Step::End(0, ret)]).collect();
        std::panic::catch_unwind(|| check(&history)).is_ok()
    };
    assert!(one_by_one(vec![
        (Op::Register(1), record(1, 5)),
        (Op::Get, record(1, 5)),
        (Op::Remove, Ret::Removed)
    ]));
    assert!(!one_by_one(vec![
        (Op::Register(1), record(1, 5)),
        (Op::Register(2), record(2, 6)),
        (Op::Get, record(1, 5))
    ]));
    assert!(!one_by_one(vec![(Op::Register(1), record(1, 5)), (Op::Get, Ret::NotFound)]));
    assert!(!one_by_one(vec![
        (Op::Register(1), record(1, 5)),
        (Op::Remove, Ret::Removed),
        (Op::Get, record(1, 5))
    ]));
}

/// When an answer came, from which server, of which agent, and the revision it had.
type Seen = (Instant, usize, usize, u64);

/// Over several servers: a read never goes back in time on one server, sees what was written there before it, and after a
/// second what was written on any.
#[tokio::test(flavor = "multi_thread")]
async fn history_over_replicas() {
    // Among the tests others run beside it.
    let soon = Duration::from_secs(length(1, 10));
    let store = Store::postgres().await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::running(&store.url, &[]).await);
    }
    let clients: Vec<_> = servers.iter().map(Server::client).collect();
    for id in 0..IDS {
        clients[0].register(&agent(&name(0, id), "0")).await.unwrap();
    }
    let (wrote, mut reads): (Arc<Mutex<Vec<Seen>>>, u64) = (Arc::default(), 0);
    let incarnations: Arc<Mutex<[u64; 3]>> = Arc::default();
    let until = Instant::now() + Duration::from_secs(length(60, 4));
    let acting = (0..CLIENTS).map(|number| {
        let (clients, wrote, incarnations) = (clients.clone(), wrote.clone(), incarnations.clone());
        tokio::spawn(async move {
            let (mut reads, mut latest) = (0, BTreeMap::new());
            while Instant::now() < until {
                let (server, id) = (fastrand::usize(..3), fastrand::usize(..IDS));
                let incarnation = incarnations.lock()[server];
                let (begun, client) = (Instant::now(), &clients[server]);
                if fastrand::u8(..4) == 0 {
                    let capability = (fastrand::u32(..)).to_string();
                    if let Ok(record) = client.register(&agent(&name(0, id), &capability)).await {
                        let revision = record.revision.unwrap();
                        wrote.lock().push((Instant::now(), server, id, revision));
                        latest.insert((server, incarnation, id), revision);
                    }
                } else if let Ok(record) = client.get_agent(&name(0, id)).await {
                    let revision = record.revision.unwrap();
                    let before = latest.insert((server, incarnation, id), revision).unwrap_or_default();
                    assert!(
                        revision >= before,
                        "client {number}: {revision} after {before} on server {server}"
                    );
                    let due = wrote
                        .lock()
                        .iter()
                        .filter(|(at, on, of, _)| {
                            *of == id && *at < begun && (*on == server || begun - *at > soon)
                        })
                        .map(|(_, _, _, revision)| *revision)
                        .max()
                        .unwrap_or_default();
                    assert!(
                        revision >= due,
                        "client {number}: {revision} on server {server}, {due} was written"
                    );
                    reads += 1;
                }
                // Where a server is down, and so that there are not too many writes to look through.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            reads
        })
    });
    let acting: Vec<_> = acting.collect();
    let mut kills = 0;
    while Instant::now() + Duration::from_secs(2) < until {
        tokio::time::sleep(Duration::from_millis(length(4_000, 800))).await;
        let victim = fastrand::usize(..3);
        servers[victim].kill();
        servers[victim].start().await;
        incarnations.lock()[victim] += 1;
        kills += 1;
    }
    for ended in join_all(acting).await {
        reads += ended.unwrap();
    }
    println!(
        "three servers, {kills} kills: {} writes, and {reads} reads of which none was too old",
        wrote.lock().len()
    );
    drop(servers);
    store.remove().await;
}
