//! Simulated agents and their registry.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use registry_sdk::contract::{Capability, Heartbeat, Registration};
use registry_sdk::discovery::{Directory, TaskError};
use registry_sdk::testing::MockRegistry;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::Outcome;
use super::tasks::share;

/// The capability that all agents have.
pub(crate) const CAPABILITY: &str = "work";

/// Number of tasks that an agent works on concurrently. Further tasks wait in its queue.
pub(crate) const SLOTS: usize = 4;

/// Time until an immediate failure.
pub(crate) const QUICK_FAILURE: Duration = Duration::from_millis(5);

/// A simulated agent. It drops a task when the caller gives up, as axum drops a handler.
#[derive(Debug)]
pub(crate) struct SimulatedAgent {
    slots: Semaphore,
    conduct: Conduct,
    random: Mutex<fastrand::Rng>,
}

/// Behaviour of an agent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conduct {
    Healthy,
    /// Takes ten times as long as a healthy agent.
    Slow,
    /// Fails half of its tasks before any work.
    FailsAtOnce,
    /// Fails half of its tasks after the work.
    FailsLate,
}

impl SimulatedAgent {
    pub(crate) fn new(conduct: Conduct, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed).into();
        Self { slots: Semaphore::new(SLOTS), conduct, random }
    }

    /// Performs a task that takes a healthy agent this time.
    pub(crate) async fn work(&self, time: Duration) -> Result<(), TaskError> {
        let _slot = self.slots.acquire().await?;
        match self.conduct {
            Conduct::Slow => sleep(10 * time).await,
            Conduct::FailsAtOnce if self.fails() => {
                sleep(QUICK_FAILURE).await;
                return Err(TaskError::transient("500"));
            }
            Conduct::FailsLate if self.fails() => {
                sleep(time).await;
                return Err(TaskError::transient("500"));
            }
            Conduct::Healthy | Conduct::FailsAtOnce | Conduct::FailsLate => sleep(time).await,
        }
        Ok(())
    }

    /// Returns a heartbeat with the agent's load.
    fn heartbeat(&self) -> Heartbeat {
        let active = SLOTS - self.slots.available_permits();
        let active_tasks = u32::try_from(active).unwrap_or(u32::MAX);
        Heartbeat::default().load(share(active, SLOTS)).active_tasks(active_tasks)
    }

    fn fails(&self) -> bool {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).bool()
    }
}

/// Agents by id, and a registry in which they never miss a deadline.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) registry: MockRegistry,
    pub(crate) agents: BTreeMap<String, Arc<SimulatedAgent>>,
}

impl Fleet {
    /// Registers agents one after another. Among equal matches, the last one comes first.
    pub(crate) async fn start(conducts: impl IntoIterator<Item = Conduct>, seed: u64) -> Outcome<Self> {
        let registry = MockRegistry::builder().heartbeat_timeout(Duration::from_secs(86_400)).start().await;
        let client = registry.client();
        let mut agents = BTreeMap::new();
        for (number, conduct) in (0..).zip(conducts) {
            let id = format!("agent-{number}");
            let registration = Registration::new(&id, &id, "http://agent:8000");
            client.register(&registration.capability(Capability::new(CAPABILITY))).await?;
            agents.insert(id, Arc::new(SimulatedAgent::new(conduct, seed + number)));
            sleep(Duration::from_secs(1)).await;
        }
        Ok(Self { registry, agents })
    }

    /// Returns a directory that follows the registry, so that selections need no requests.
    pub(crate) async fn directory(&self) -> Outcome<Directory> {
        let directory = Directory::follow(&self.registry.client());
        directory.ready().await?;
        Ok(directory)
    }

    /// Sends heartbeats with the agents' loads, spread over the interval. Never returns.
    pub(crate) async fn send_heartbeats(&self, interval: Duration) -> Outcome<Infallible> {
        let (client, count) = (self.registry.client(), u32::try_from(self.agents.len())?);
        loop {
            for (id, agent) in &self.agents {
                sleep(interval / count).await;
                client.heartbeat_with(id, &agent.heartbeat()).await?;
            }
        }
    }
}
