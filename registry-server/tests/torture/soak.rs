//! A long run: agents with heartbeats, changes, searches and events, and occasional faults. The server's
//! resource usage must not grow.

use std::time::{Duration, Instant};

use registry_sdk::testing::{Fault, FaultProxy};
use registry_sdk::{Agent, RegistryClient};
use tokio::task::JoinSet;

use crate::support::{Load, Server, Store, agent, eventually, is_long, length, on_both};

on_both!(resource_usage_does_not_grow);

const INTERVAL: Duration = Duration::from_secs(5);
const WATCHERS: usize = 20;

/// Memory that an open connection takes, in KiB: fitted to a run with between 200 and 900 of them.
const CONNECTION_MEMORY: u64 = 20;

/// Resource usage of the server at one moment.
#[derive(Clone, Copy, Debug)]
struct Taken {
    memory: u64,
    files: usize,
    bytes: u64,
}

impl Taken {
    /// Returns the memory that does not depend on the number of connections, which varies with the machine's load.
    fn lasting_memory(&self) -> u64 {
        self.memory.saturating_sub(self.files as u64 * CONNECTION_MEMORY)
    }
}

async fn resource_usage_does_not_grow(store: Store) {
    let agents: usize = length(5_000, 100);
    let time = Duration::from_secs(length(1_800, 6));
    let flags = ["--heartbeat-timeout", length("15s", "1h"), "--sweep-interval", "1s"];
    let server = Server::running(&store.url, &flags).await;
    let files_before = server.open_files();
    // A tenth of the agents and half of the watchers repeatedly lose their connections.
    let proxy = FaultProxy::start(server.address()).await;
    let direct = server.patient_client();
    let cut = RegistryClient::new(format!("http://{}", proxy.address())).unwrap();
    let mut live = Vec::new();
    for number in 0..agents {
        let client = if number % 10 == 0 { &cut } else { &direct };
        let registration = agent(&format!("agent-{number}"), &format!("kind-{}", number % 50));
        live.push(Agent::new(client.clone(), registration));
    }
    for agent in &live {
        agent.register().await.unwrap();
        agent.start_heartbeat(INTERVAL).unwrap();
    }
    let mut watching = JoinSet::new();
    for number in 0..WATCHERS {
        let mut watch = if number % 2 == 0 { &cut } else { &direct }.watch();
        watching.spawn(async move { while watch.next().await.is_some() {} });
    }
    let search = |number: u64| ("GET", format!("/capabilities/search?q=kind-{}", number % 50), String::new());
    let searches = Load::start(&server.address(), 8, 200.0, search);
    let changes = Load::start(&server.address(), 4, 60.0, change);

    let (mut seen, began): (Vec<Taken>, _) = (Vec::new(), Instant::now());
    while began.elapsed() < time {
        tokio::time::sleep(time / 180).await;
        let taken = Taken { memory: server.memory(), files: server.open_files(), bytes: store.bytes().await };
        seen.push(taken);
        throw_faults(&store, &proxy, seen.len()).await;
        if seen.len().is_multiple_of(30) {
            println!("{:.0?}: {taken:?}", began.elapsed());
        }
    }
    let stats = direct.get_stats().await.unwrap();
    println!(
        "{:.0?}, {agents} agents: {} searches, {} changes; {stats:?}",
        began.elapsed(),
        searches.good.count(),
        changes.good.count(),
    );
    assert!(stats.active_agents >= agents as u64, "{stats:?}");
    drop((watching, searches, changes));
    for agent in live {
        agent.shutdown_within(Duration::from_secs(1)).await;
    }
    drop((direct, cut, proxy));
    check(&seen);
    eventually("all files are closed again", async || server.open_files() <= files_before + 5).await;
    println!("open files {files_before} before, {} after", server.open_files());
}

/// Agents that come, change and go.
fn change(number: u64) -> (&'static str, String, String) {
    let id = format!("passing-{}", number / 4 % 1_000);
    if number % 4 == 3 {
        return ("DELETE", format!("/agents/{id}"), String::new());
    }
    let body = serde_json::to_string(&agent(&id, &format!("capability-{}", number % 4))).unwrap();
    ("POST", "/register".to_owned(), body)
}

async fn throw_faults(store: &Store, proxy: &FaultProxy, moment: usize) {
    if moment.is_multiple_of(6) {
        proxy.set(Fault::Refuse);
        tokio::time::sleep(Duration::from_millis(200)).await;
        proxy.set(Fault::None);
    }
    if store.is_postgres() && moment.is_multiple_of(15) {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        sqlx::Executor::execute(&mut store.connect().await, cut).await.unwrap();
    }
}

/// Compares the last third of the time with the second third.
fn check(seen: &[Taken]) {
    let third = seen.len() / 3;
    let mean = |part: &[Taken], what: fn(&Taken) -> u64| {
        part.iter().map(what).sum::<u64>() as f64 / part.len() as f64
    };
    let ratio = |what| mean(&seen[2 * third..], what) / mean(&seen[third..2 * third], what);
    let (memory, bytes) = (ratio(Taken::lasting_memory), ratio(|taken| taken.bytes));
    let most = seen.iter().map(|taken| taken.files).max();
    println!(
        "the last third against the second: memory without connections {memory:.3}, database {bytes:.3}; open files at most {most:?}"
    );
    assert!(!is_long() || memory <= 1.03, "memory grows: {seen:?}");
    assert!(!is_long() || bytes <= 1.1, "the database grows: {seen:?}");
}
