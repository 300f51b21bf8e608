//! Agents that stay alive through a fault, and must not be shown as offline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{ListQuery, RegistryClient, RetryPolicy};
use tokio::task::JoinSet;

use super::{Server, agent, is_long};

const INTERVAL: Duration = Duration::from_millis(400);

/// Time within which other servers must show a write.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);

/// Times when the last acknowledged heartbeats of each agent were sent and answered, newest first.
type Heard = Arc<Vec<Mutex<VecDeque<(Instant, Instant)>>>>;

/// Number of heartbeats kept per agent.
const KEPT: usize = 16;

/// Agents that each send heartbeats to one server, and readers on every server that look for offline agents.
pub(crate) struct Witnesses {
    answered: Arc<AtomicU64>,
    violations: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl Witnesses {
    /// Registers `number` agents at servers with the heartbeat timeout `timeout`.
    pub(crate) async fn start(servers: &[Server], number: usize, timeout: Duration) -> Self {
        let heard: Heard = Arc::new((0..number).map(|_| Mutex::default()).collect());
        let mut witnesses =
            Self { answered: Arc::default(), violations: Arc::default(), tasks: JoinSet::new() };
        for position in 0..number {
            let server = &servers[position % servers.len()];
            server.patient_client().register(&agent(&id(position), "witness")).await.unwrap();
            witnesses.tasks.spawn(beat(
                impatient(server),
                position,
                heard.clone(),
                witnesses.answered.clone(),
            ));
        }
        for server in servers {
            let (heard, violations) = (heard.clone(), witnesses.violations.clone());
            witnesses.tasks.spawn(read(impatient(server), timeout, heard, violations));
        }
        witnesses
    }

    /// Returns the number of heartbeats answered with 200.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends the heartbeats, and fails if a living agent was shown as offline.
    pub(crate) async fn end(mut self) {
        self.tasks.shutdown().await;
        let violations = self.violations.lock();
        assert!(violations.is_empty(), "shown offline, and alive: {violations:#?}");
    }
}

fn id(position: usize) -> String {
    format!("witness-{position}")
}

/// Returns a client with limited time, like the SDK's own attempts.
fn impatient(server: &Server) -> RegistryClient {
    RegistryClient::builder(server.url())
        .timeout(Duration::from_secs(2))
        .retry(RetryPolicy::none())
        .build()
        .unwrap()
}

async fn beat(client: RegistryClient, position: usize, heard: Heard, answered: Arc<AtomicU64>) {
    let id = id(position);
    tokio::time::sleep(INTERVAL.mul_f64(fastrand::f64())).await;
    loop {
        let sent = Instant::now();
        if client.heartbeat(&id).await.is_ok() {
            let mut heard = heard[position].lock();
            heard.push_front((sent, Instant::now()));
            heard.truncate(KEPT);
            drop(heard);
            answered.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Reads the offline agents repeatedly.
///
/// An agent must not be among them within its timeout after a heartbeat that the server had time to learn of.
/// At full length, where no busy machine delays agents, it must never be among them.
async fn read(client: RegistryClient, timeout: Duration, heard: Heard, violations: Arc<Mutex<Vec<String>>>) {
    loop {
        let began = Instant::now();
        let offline = ListQuery::all().status(AgentStatus::Offline);
        let agents = client.list_agents(offline).await.map(|page| page.agents).unwrap_or_default();
        for record in agents {
            let position = record.agent_id.strip_prefix("witness-").and_then(|number| number.parse().ok());
            let Some(position): Option<usize> = position else { continue };
            let is_known = |(_, answered): &&(Instant, Instant)| *answered + FOLLOWED_WITHIN <= began;
            let known = heard[position].lock().iter().find(is_known).copied();
            let silence = known.map(|(sent, _)| sent.elapsed());
            if is_long() || silence.is_some_and(|silence| silence < timeout) {
                violations.lock().push(format!("{silence:?} after a heartbeat: {record:?}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
