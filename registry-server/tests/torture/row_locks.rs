//! Another session holds an agent's row, such as that of a person who forgot an open transaction. Only that
//! agent may be affected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{Error, RegistryClient};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::task::JoinSet;

use crate::support::{
    Server, Store, Witnesses, agent, equal_the_database, eventually, follow_each_other, is_long, length,
    recovered, within,
};

/// At full length, a row is locked for several timeouts.
fn timeout() -> Duration {
    Duration::from_secs(length(6, 2))
}

fn flags() -> [&'static str; 4] {
    ["--heartbeat-timeout", length("6s", "2s"), "--sweep-interval", "500ms"]
}

const WITNESSES: usize = 10;

/// The kinds of requests. `new` registers another agent.
const KINDS: [&str; 4] = ["heartbeat", "register", "status", "new"];

/// Number of agents per server that register, set their status and send heartbeats, one after another.
const BUSY: usize = 4;

/// Number of responses to each kind of request, per server, while the row is locked.
fn rounds() -> u64 {
    length(60, 20)
}

/// Minimum duration of the lock, and maximum time for the rounds of the other agents.
fn times() -> (Duration, Duration) {
    (Duration::from_secs(length(30, 4)), Duration::from_secs(60))
}

#[tokio::test(flavor = "multi_thread")]
async fn updated_row_only_blocks_its_agent() {
    hold("UPDATE agent_registry SET agent_name = agent_name WHERE agent_id = 'locked'", End::Commit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn selected_row_only_blocks_its_agent() {
    hold("SELECT agent_id FROM agent_registry WHERE agent_id = 'locked' FOR UPDATE", End::Commit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_row_that_is_rolled_back_only_blocks_its_agent() {
    hold("DELETE FROM agent_registry WHERE agent_id = 'locked'", End::Rollback).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inserted_row_only_blocks_its_agent() {
    const INSERT: &str = "INSERT INTO agent_registry (agent_id, agent_name, base_url)
                          VALUES ('new', 'new', 'http://agents.example:8000')";
    hold(INSERT, End::Commit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inserted_row_that_is_rolled_back_only_blocks_its_agent() {
    const INSERT: &str = "INSERT INTO agent_registry (agent_id, agent_name, base_url)
                          VALUES ('new', 'new', 'http://agents.example:8000')";
    hold(INSERT, End::Rollback).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_locks_do_not_delay_a_shutdown() {
    let (store, mut servers) = start().await;
    let mut holder = lock(&store, "UPDATE agent_registry SET agent_name = agent_name").await;
    // Every kind of write waits for a row.
    let victims = Victims::start(&servers, "locked");
    tokio::time::sleep(Duration::from_millis(length(3_000, 1_000))).await;
    for server in &mut servers {
        let took = server.stop_within(Duration::from_secs(length(10, 30))).await;
        println!("all rows are locked: ended {took:.2?} after SIGTERM");
    }
    victims.end().await;
    holder.execute("ROLLBACK").await.unwrap();
    holder.close().await.unwrap();
}

#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    Rollback,
}

/// Runs a statement on the row of `locked` or `new`, in a transaction that stays open for some time.
async fn hold(statement: &'static str, end: End) {
    let victim = if statement.starts_with("INSERT") { "new" } else { "locked" };
    let (store, servers) = start().await;
    let witnesses = Witnesses::start(&servers, WITNESSES, timeout()).await;
    let busy = Busy::start(&servers).await;

    let reader = tokio::sync::Mutex::new(store.connect().await);
    servers[0].patient_client().register(&agent("silent", "expire")).await.unwrap();
    let mut holder = lock(&store, statement).await;
    let victims = Victims::start(&servers, victim);
    let began = Instant::now();
    // Requests that are queued together with the victim's are the ones that could be delayed.
    eventually("the agent's requests wait", async || victims.started() >= 2 * servers.len() as u64).await;
    let (least, most) = times();
    let goal = busy.done().into_iter().map(|(who, rounds)| (who, rounds + self::rounds())).collect();
    within(most, || format!("everybody else goes on: {}", busy.report()), async || busy.has_done(&goal))
        .await;
    let expired = within(
        most,
        || "an agent that fell silent expires".to_owned(),
        async || {
            let query = "SELECT missed_deadline FROM agent_registry WHERE agent_id = 'silent'";
            sqlx::query_scalar(query).fetch_one(&mut *reader.lock().await).await.unwrap()
        },
    );
    expired.await;
    tokio::time::sleep(least.saturating_sub(began.elapsed())).await;
    println!("{statement}: locked for {:.1?}, {}", began.elapsed(), busy.report());
    busy.end().await;

    holder.execute(AssertSqlSafe(format!("{end:?}"))).await.unwrap();
    let healed = recovered(&servers).await;
    // Also on the other server, which has to learn of a change that its memory does not contain.
    for server in &servers {
        let client = server.patient_client();
        client.register(&agent(victim, "wait")).await.unwrap();
        client.heartbeat(victim).await.unwrap();
        client.update_status(victim, AgentStatus::Busy).await.unwrap();
    }
    println!("{victim}: {}, well again after {healed:.2?}", victims.end().await);
    witnesses.end().await;
    equal_the_database(&servers, &mut holder).await;
    follow_each_other(&servers).await;
    holder.close().await.unwrap();
    for mut server in servers {
        server.stop().await;
    }
}

async fn start() -> (Store, Vec<Server>) {
    let store = Store::postgres().await;
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Server::running(&store.url, &flags()).await);
    }
    servers[0].patient_client().register(&agent("locked", "wait")).await.unwrap();
    (store, servers)
}

async fn lock(store: &Store, statement: &'static str) -> PgConnection {
    let mut connection = store.connect().await;
    connection.execute("BEGIN").await.unwrap();
    connection.execute(statement).await.unwrap();
    connection
}

/// Continuous requests of the agent whose row is locked, on every server. They may get 503.
struct Victims {
    started: Arc<AtomicU64>,
    answers: Arc<Mutex<BTreeMap<String, u64>>>,
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Victims {
    fn start(servers: &[Server], id: &'static str) -> Self {
        let mut victims = Self {
            started: Arc::default(),
            answers: Arc::default(),
            is_over: Arc::default(),
            tasks: JoinSet::new(),
        };
        for server in servers {
            for kind in ["heartbeat", "register", "status"] {
                let (client, started, is_over) =
                    (server.client(), victims.started.clone(), victims.is_over.clone());
                let answers = victims.answers.clone();
                victims.tasks.spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        started.fetch_add(1, Ordering::Relaxed);
                        let answer = match request(&client, kind, id).await {
                            Ok(()) => "200".to_owned(),
                            Err(Error::Unavailable { status, .. }) => status.to_string(),
                            // The agent was never registered.
                            Err(Error::NotFound { .. }) if id == "new" => "404".to_owned(),
                            // The server was stopped.
                            Err(Error::Unreachable { .. }) => return,
                            Err(error) => panic!("{kind}: {error:?}"),
                        };
                        *answers.lock().entry(format!("{kind} {answer}")).or_default() += 1;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                });
            }
        }
        victims
    }

    fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Ends the requests, and returns their responses.
    async fn end(mut self) -> String {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let answers = self.answers.lock();
        assert!(
            answers.keys().all(|answer| ["200", "404", "503"].iter().any(|status| answer.ends_with(status))),
            "{answers:?}"
        );
        format!("{answers:?}")
    }
}

async fn request(client: &RegistryClient, kind: &str, id: &str) -> Result<(), Error> {
    match kind {
        "heartbeat" => client.heartbeat(id).await.map(drop),
        "register" => client.register(&agent(id, "go on")).await.map(drop),
        "new" => client.register(&agent(&format!("{id}-{:x}", fastrand::u64(..)), "go on")).await.map(drop),
        _ => {
            let status = if fastrand::bool() { AgentStatus::Busy } else { AgentStatus::Active };
            client.update_status(id, status).await.map(drop)
        }
    }
}

/// Agents whose rows are not locked: the number of responses to each kind of request, and the failures.
struct Busy {
    done: Arc<Mutex<BTreeMap<String, u64>>>,
    failed: Arc<Mutex<Vec<String>>>,
    longest: Arc<Mutex<Duration>>,
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Busy {
    async fn start(servers: &[Server]) -> Self {
        let mut busy = Self {
            done: Arc::default(),
            failed: Arc::default(),
            longest: Arc::default(),
            is_over: Arc::default(),
            tasks: JoinSet::new(),
        };
        for (place, server) in servers.iter().enumerate() {
            for number in 0..BUSY {
                let id = format!("busy-{place}-{number}");
                server.patient_client().register(&agent(&id, "go on")).await.unwrap();
                busy.spawn(place, server.client(), id);
            }
        }
        let all = KINDS.len() * servers.len();
        eventually("each request is answered", async || busy.done.lock().len() == all).await;
        busy
    }

    fn spawn(&mut self, place: usize, client: RegistryClient, id: String) {
        let (done, failed, longest) = (self.done.clone(), self.failed.clone(), self.longest.clone());
        let is_over = self.is_over.clone();
        self.tasks.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                for kind in KINDS {
                    let began = Instant::now();
                    match request(&client, kind, &id).await {
                        Ok(()) => *done.lock().entry(format!("{kind} on {place}")).or_default() += 1,
                        Err(error) => failed.lock().push(format!("{kind} on {place}: {error}")),
                    }
                    let mut longest = longest.lock();
                    *longest = (*longest).max(began.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }

    fn done(&self) -> BTreeMap<String, u64> {
        self.done.lock().clone()
    }

    fn has_done(&self, goal: &BTreeMap<String, u64>) -> bool {
        let done = self.done.lock();
        goal.iter().all(|(who, rounds)| done.get(who) >= Some(rounds))
    }

    fn report(&self) -> String {
        let failed = self.failed.lock();
        format!(
            "done {:?}, {} failed ({}), longest {:.2?}",
            self.done.lock(),
            failed.len(),
            failed.last().map_or("none", String::as_str),
            self.longest.lock()
        )
    }

    /// Ends the requests. None may have failed, except that a busy machine may reject one in ten.
    async fn end(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let (failed, done) = (self.failed.lock(), self.done.lock().values().sum::<u64>());
        let most = if is_long() { 0 } else { done / 10 };
        assert!(failed.len() as u64 <= most, "{} of {done} failed: {failed:#?}", failed.len());
    }
}
