//! Many watchers and many changes: whether every watcher sees every change, in order for each agent, on two replicas and over
//! interrupted connections, and how fast.
//!
//! `cargo bench --bench watchers` uses SQLite in memory, `./scripts/watchers` PostgreSQL. The servers are child processes that run
//! this same program.
//!
//! With `SET_BACK=1`, the database is set back to an earlier state halfway, as by a restore. Then no watcher may miss a change of the
//! surviving history.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::{StreamExt, stream};
use registry_sdk::contract::{AgentRecord, Capability, Registration};
use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{RegistryClient, Watch, WatchEvent};
use registry_server::{Config, Server};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use test_support::ServerProcess;
use tokio::sync::Semaphore;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const AGENTS: usize = 500;
const LAST: &str = "the-last";

fn main() -> Outcome {
    let runtime = tokio::runtime::Runtime::new()?;
    match ServerProcess::listen_address() {
        Some(address) => runtime.block_on(serve(address)),
        None => runtime.block_on(measure()),
    }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

async fn serve(address: SocketAddr) -> Outcome {
    let database_url = setting("DATABASE_URL", "sqlite::memory:");
    let config = Config { listen: address.into(), database_url, ..Config::default() };
    let _server = Server::bind(config).await?;
    std::future::pending().await
}

async fn measure() -> Outcome {
    let watchers: usize = setting("WATCHERS", "1000").parse()?;
    let changes: usize = setting("CHANGES", "10000").parse()?;
    let replicas = if setting("DATABASE_URL", "sqlite::memory:").starts_with("postgres") { 2 } else { 1 };
    let servers: Vec<_> = (0..replicas).map(|_| ServerProcess::start()).collect();
    let mut clients = Vec::new();
    let mut proxies = Vec::new();
    let mut through = Vec::new();
    for server in &servers {
        clients.push(RegistryClient::new(server.url())?);
        let proxy = FaultProxy::start(server.address().to_string()).await;
        through.push(RegistryClient::new(format!("http://{}", proxy.address()))?);
        proxies.push(proxy);
    }
    // Every tenth watcher connects through a proxy that cuts its connections.
    let there = Arc::new(Semaphore::new(0));
    let watching = (0..watchers).map(|number| {
        let side = if number % 10 == 0 { &through } else { &clients };
        tokio::spawn(follow(side[number % replicas].watch(), there.clone()))
    });
    let watching: Vec<_> = watching.collect();
    let _all = there.acquire_many(u32::try_from(watchers)?).await?;

    let began = Instant::now();
    let proxies = Arc::new(proxies);
    let cutting = tokio::spawn(cut(proxies.clone()));
    let is_set_back = setting("SET_BACK", "0") == "1";
    let surviving = if is_set_back {
        set_back(&clients, changes).await?
    } else {
        make(&clients, 0..changes).await?;
        Vec::new()
    };
    let made_after = began.elapsed();
    cutting.abort();
    for proxy in proxies.iter() {
        proxy.set(Fault::None);
    }
    // All other changes are done by now, so this is the last one.
    register(&clients[0], LAST, "last").await?;
    let seen = try_join_all(watching).await?.into_iter().collect::<Outcome<Vec<_>>>()?;
    let seen_after = began.elapsed();
    if is_set_back {
        return judge(&seen, &surviving, made_after, seen_after);
    }

    let expected =
        &seen.iter().find(|seen| seen.lists == 1).ok_or("all watchers had to start over")?.revisions;
    let total: usize = expected.values().map(Vec::len).sum();
    let in_order = seen.iter().all(|seen| seen.revisions.values().all(|revisions| revisions.is_sorted()));
    let complete = seen.iter().filter(|seen| seen.revisions == *expected).count();
    let events = seen.iter().map(|seen| seen.revisions.values().map(Vec::len).sum::<usize>()).sum::<usize>();
    println!(
        "{replicas} server(s), {watchers} watchers, {changes} changes of {AGENTS} agents ({total} with the last)"
    );
    println!("all changes made after {made_after:.1?}, seen by all after {seen_after:.1?}");
    #[expect(clippy::cast_precision_loss, reason = "it is a rate")]
    let rate = events as f64 / seen_after.as_secs_f64();
    println!("{events} events were seen, {rate:.0} a second");
    println!("in order for each agent: {in_order}; watchers that saw every change: {complete} of {watchers}");
    println!("watchers that had to start over: {}", seen.iter().map(|seen| seen.lists - 1).sum::<usize>());
    if !in_order || complete != watchers {
        return Err("not every watcher saw every change in order".into());
    }
    Ok(())
}

/// Changes that a watcher has seen.
struct Told {
    /// Revisions of each agent's changes, in the order received, since the last list.
    revisions: HashMap<String, Vec<u64>>,
    /// Revisions in the last list.
    listed: HashMap<String, u64>,
    /// Number of lists: one at the beginning, and one each time after changes were missed.
    lists: usize,
}

impl Told {
    fn has(&self, agent_id: &str, revision: u64) -> bool {
        self.listed.get(agent_id).is_some_and(|listed| *listed >= revision)
            || self.revisions.get(agent_id).is_some_and(|told| told.contains(&revision))
    }
}

/// A successful change: the agent's id and the revision.
type Change = (String, u64);

/// Makes some of the changes. Changes of one agent are sequential.
async fn make(clients: &[RegistryClient], numbers: std::ops::Range<usize>) -> Outcome<Vec<Change>> {
    let made = stream::iter(numbers).map(|number| change(&clients[number % clients.len()], number));
    made.buffer_unordered(64).collect::<Vec<_>>().await.into_iter().collect()
}

/// Makes the changes, and sets the database back by a fifth of them halfway. Returns the changes of the surviving history that were
/// made afterwards.
async fn set_back(clients: &[RegistryClient], changes: usize) -> Outcome<Vec<Change>> {
    const TABLES: [&str; 3] = ["agent_registry", "agent_registry_event", "agent_registry_state"];
    let url = setting("DATABASE_URL", "");
    let mut database = PgConnection::connect(&url).await.map_err(|_| "only PostgreSQL can be set back")?;
    make(clients, 0..changes / 5 * 2).await?;
    for table in TABLES {
        database.execute(AssertSqlSafe(format!("CREATE TABLE {table}_copy AS TABLE {table}"))).await?;
    }
    let lost = make(clients, changes / 5 * 2..changes / 5 * 3).await?;
    let mut restore = database.begin().await?;
    for table in TABLES {
        restore.execute(AssertSqlSafe(format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))).await?;
        restore.execute(AssertSqlSafe(format!("DELETE FROM {table}"))).await?;
        restore.execute(AssertSqlSafe(format!("INSERT INTO {table} SELECT * FROM {table}_copy"))).await?;
    }
    restore.commit().await?;
    println!("the database was set back by {} changes", lost.len());
    make(clients, changes / 5 * 3..changes).await
}

/// Fails unless every watcher has seen every change of the surviving history.
fn judge(seen: &[Told], surviving: &[Change], made_after: Duration, seen_after: Duration) -> Outcome {
    let missed = |told: &Told| surviving.iter().filter(|(id, revision)| !told.has(id, *revision)).count();
    let missed: Vec<usize> = seen.iter().map(missed).collect();
    let in_order = seen.iter().all(|seen| seen.revisions.values().all(|revisions| revisions.is_sorted()));
    let complete = missed.iter().filter(|missed| **missed == 0).count();
    println!("all changes made after {made_after:.1?}, seen by all after {seen_after:.1?}");
    println!(
        "{} changes were made after that; watchers who saw every one: {complete} of {}",
        surviving.len(),
        seen.len()
    );
    println!("in order for each agent: {in_order}; missed in all: {}", missed.iter().sum::<usize>());
    println!("lists in all: {}", seen.iter().map(|seen| seen.lists).sum::<usize>());
    if in_order && complete == seen.len() { Ok(()) } else { Err("somebody missed a change".into()) }
}

async fn follow(mut watch: Watch, there: Arc<Semaphore>) -> Outcome<Told> {
    let mut seen = Told { revisions: HashMap::new(), listed: HashMap::new(), lists: 0 };
    loop {
        match watch.next().await.ok_or("the watch has ended")? {
            WatchEvent::Listed(agents) => {
                seen.lists += 1;
                there.add_permits(1);
                let revision = |agent: &Arc<AgentRecord>| Some((agent.agent_id.clone(), agent.revision?));
                seen.listed = agents.iter().filter_map(revision).collect();
                seen.revisions.clear();
                if seen.listed.contains_key(LAST) {
                    return Ok(seen);
                }
            }
            WatchEvent::Registered(agent)
            | WatchEvent::StatusChanged(agent)
            | WatchEvent::Deregistered(agent) => {
                let revision = agent.revision.ok_or("a record without its revision")?;
                seen.revisions.entry(agent.agent_id.clone()).or_default().push(revision);
                if agent.agent_id == LAST {
                    return Ok(seen);
                }
            }
            _ => {}
        }
    }
}

/// Repeatedly cuts all connections through the proxies.
async fn cut(proxies: Arc<Vec<FaultProxy>>) {
    loop {
        for proxy in proxies.iter() {
            tokio::time::sleep(Duration::from_millis(400)).await;
            proxy.set(Fault::Refuse);
            tokio::time::sleep(Duration::from_millis(50)).await;
            proxy.set(Fault::None);
        }
    }
}

async fn change(client: &RegistryClient, number: usize) -> Outcome<Change> {
    register(client, &format!("agent-{}", number % AGENTS), &format!("capability-{number}")).await
}

async fn register(client: &RegistryClient, id: &str, capability: &str) -> Outcome<Change> {
    let registration = Registration::new(id, id, "http://agent:8000").capability(Capability::new(capability));
    let record = client.register(&registration).await?;
    Ok((record.agent_id, record.revision.ok_or("a record without its revision")?))
}
