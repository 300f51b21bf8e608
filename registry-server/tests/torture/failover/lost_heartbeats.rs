//! PostgreSQL is killed right after accepting heartbeats. It may lose them, since no commit waits until they
//! are on disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, RegistryClient};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::truth::Truth;
use super::{end, register};
use crate::support::{Cluster, EventStream, Server, eventually, is_long, length, settled};

const RETRY: Duration = Duration::from_millis(200);

const AGENTS: usize = 50;

/// Maximum time between two heartbeats of an agent. It is longer in the short run, in which a busy machine may keep the servers from
/// noticing for a second that their database is unavailable.
fn interval() -> Duration {
    Duration::from_secs(if is_long() { 2 } else { 6 })
}

#[tokio::test(flavor = "multi_thread")]
async fn database_is_killed_right_after_heartbeats() {
    let Some(cluster) = Cluster::start(&[]).await else { return };
    let timeout = format!("{}s", (interval() * 2).as_secs());
    let flags = ["--heartbeat-timeout", &timeout, "--sweep-interval", "200ms"];
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Server::running(&cluster.url(), &flags).await);
    }
    let revision = Truth::of(&cluster).await.revision;
    let agents = Agents::start(&servers).await;
    let mut streams = Vec::new();
    for server in &servers {
        streams.push(EventStream::open(server, revision).await);
    }
    for _ in 0..length(20, 2) {
        agents.were_all_heard().await;
        cluster.kill();
        sleep(interval().mul_f64(fastrand::f64() * 1.5)).await;
        cluster.begin().await;
        // A heartbeat in each of two intervals, with a deadline that would have passed in between.
        agents.were_all_heard().await;
        agents.were_all_heard().await;
    }
    for server in &servers {
        let equal = async || Truth::of(&cluster).await.is_shown_by(server).await;
        settled("the servers equal the database", equal).await;
    }
    let mut offline = agents.offline.lock().clone();
    for block in streams.iter().flat_map(EventStream::blocks) {
        if block.data["status"] == "offline" {
            offline.insert(block.data["agent_id"].as_str().unwrap().to_owned());
        }
    }
    let late = agents.late.lock().clone();
    println!("{} agents were shown offline; {} of {AGENTS} were late", offline.len(), late.len());
    let wrongly: Vec<_> = offline.difference(&late).collect();
    assert!(wrongly.is_empty(), "shown offline, and kept their interval: {wrongly:?}");
    drop(agents);
    for server in &mut servers {
        end(server, "after the last fault").await;
    }
}

/// Agents that send their heartbeats at the same time, and readers of their status.
struct Agents {
    /// Number of heartbeats answered with 200, per agent.
    heard: Arc<Vec<AtomicUsize>>,
    /// Agents that a busy machine made late.
    late: Arc<Mutex<BTreeSet<String>>>,
    /// Agents that a list showed as offline.
    offline: Arc<Mutex<BTreeSet<String>>>,
    _tasks: JoinSet<()>,
}

impl Agents {
    async fn start(servers: &[Server]) -> Self {
        for number in 0..AGENTS {
            register(format!("agent-{number}")).make(&servers[number % servers.len()]).await;
        }
        let heard = Arc::new((0..AGENTS).map(|_| AtomicUsize::new(0)).collect::<Vec<_>>());
        let (late, offline) = (Arc::<Mutex<BTreeSet<String>>>::default(), Arc::default());
        let mut tasks = JoinSet::new();
        let first = Instant::now();
        for number in 0..AGENTS {
            let client = servers[number % servers.len()].client();
            tasks.spawn(send(client, number, first, heard.clone(), late.clone()));
        }
        for server in servers {
            tasks.spawn(look(server.client(), Arc::clone(&offline)));
        }
        Self { heard, late, offline, _tasks: tasks }
    }

    /// Waits until one more heartbeat of each agent was answered.
    async fn were_all_heard(&self) {
        let count = || self.heard.iter().map(|one| one.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = count();
        eventually("every agent is heard", async || {
            count().iter().zip(&before).all(|(now, before)| now > before)
        })
        .await;
    }
}

/// Sends the heartbeats of an agent, and records when the agent itself was late.
async fn send(
    client: RegistryClient,
    number: usize,
    first: Instant,
    heard: Arc<Vec<AtomicUsize>>,
    late: Arc<Mutex<BTreeSet<String>>>,
) {
    let id = format!("agent-{number}");
    let (mut last, mut next) = (first, first);
    loop {
        sleep_until(next).await;
        let began = Instant::now();
        let answer = client.heartbeat(&id).await;
        // A slow response only excuses the server in the short run: at full length, nothing else runs on the
        // machine.
        let is_slow = !is_long() && began.elapsed() > interval() / 4;
        if began - last > interval() || is_slow {
            late.lock().insert(id.clone());
        }
        last = began;
        if answer.is_ok() {
            heard[number].fetch_add(1, Ordering::Relaxed);
            // Slightly shorter than the interval, since timers are not exact.
            next += interval().mul_f64(0.95);
        } else {
            next = Instant::now() + RETRY;
        }
    }
}

/// Reads the list repeatedly.
async fn look(client: RegistryClient, offline: Arc<Mutex<BTreeSet<String>>>) {
    loop {
        let listed = client.list_agents(ListQuery::all()).await.map(|page| page.agents).unwrap_or_default();
        let found = listed.into_iter().filter(|record| record.status == AgentStatus::Offline);
        offline.lock().extend(found.map(|record| record.agent_id));
        sleep(Duration::from_millis(20)).await;
    }
}
