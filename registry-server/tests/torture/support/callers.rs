//! Callers and watchers of the SDK, for tests that kill and restart servers.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::AgentStatus;
use registry_sdk::{RegistryClient, WatchEvent};
use tokio::task::JoinSet;

use super::{agent, eventually};

/// Number of callers.
const CALLERS: usize = 20;

/// Callers of the SDK with several URLs, which must not see any error.
pub(crate) struct Callers {
    errors: Arc<Mutex<Vec<String>>>,
    calls: Arc<AtomicU64>,
    /// Acknowledged status changes, by the revision of the response. In order for each agent.
    done: Arc<Mutex<BTreeMap<u64, (String, AgentStatus)>>>,
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Callers {
    /// Registers the agents whose statuses change and one to search for, and starts the calls.
    pub(crate) async fn start(client: &RegistryClient) -> Self {
        for number in 0..CALLERS {
            let registration = agent(&format!("changing-{number}"), "change");
            client.register(&registration.heartbeat_interval(Duration::from_secs(3_600))).await.unwrap();
        }
        let mut callers = Self {
            errors: Arc::default(),
            calls: Arc::default(),
            done: Arc::default(),
            is_over: Arc::default(),
            tasks: JoinSet::new(),
        };
        for caller in 0..CALLERS {
            let (client, errors, calls) = (client.clone(), callers.errors.clone(), callers.calls.clone());
            let (done, is_over) = (callers.done.clone(), callers.is_over.clone());
            callers.tasks.spawn(async move {
                let note = |outcome: Result<(), registry_sdk::Error>| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    errors.lock().extend(outcome.err().map(|error| error.to_string()));
                };
                let id = format!("changing-{caller}");
                let mut next = AgentStatus::Busy;
                while !is_over.load(Ordering::Relaxed) {
                    let changed = client.update_status(&id, next).await;
                    if let Ok(record) = &changed {
                        done.lock().insert(record.revision.unwrap(), (id.clone(), next));
                    }
                    note(changed.map(drop));
                    next = if next == AgentStatus::Busy { AgentStatus::Active } else { AgentStatus::Busy };
                    note(client.get_agent(&id).await.map(drop));
                    note(client.search_capabilities("endure").await.map(drop));
                    note(client.check_health("agent-7").await.map(|health| assert!(health.is_healthy())));
                    note(client.heartbeat(&id).await.map(drop));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
        callers
    }

    /// Waits for some time, and for at least ten calls of each caller.
    pub(crate) async fn go_on_for(&self, time: Duration) {
        let enough = self.calls.load(Ordering::Relaxed) + 10 * CALLERS as u64;
        tokio::time::sleep(time).await;
        eventually("the callers go on", async || self.calls.load(Ordering::Relaxed) >= enough).await;
    }

    pub(crate) fn report(&self, what: &str) {
        let errors = self.errors.lock().clone();
        println!(
            "{what}: {} calls through the SDK with several URLs, {} errors",
            self.calls.load(Ordering::Relaxed),
            errors.len()
        );
        assert!(errors.is_empty(), "{errors:?}");
    }

    pub(crate) async fn end(mut self) -> BTreeMap<u64, (String, AgentStatus)> {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.done.lock())
    }
}

/// Observations of one event stream.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) began: AtomicBool,
    lists: AtomicU64,
    revisions: Mutex<HashSet<u64>>,
    pub(crate) twice: AtomicU64,
    pub(crate) offline: Mutex<HashSet<String>>,
    pub(crate) interruptions: AtomicU64,
}

impl Seen {
    pub(crate) fn by(client: &RegistryClient) -> Arc<Self> {
        let seen = Arc::<Self>::default();
        let (mut watch, told) = (client.watch(), seen.clone());
        tokio::spawn(async move {
            while let Some(event) = watch.next().await {
                match event {
                    WatchEvent::Listed(_) => {
                        told.lists.fetch_add(1, Ordering::Relaxed);
                        told.began.store(true, Ordering::Relaxed);
                    }
                    WatchEvent::Registered(agent) | WatchEvent::Deregistered(agent) => {
                        told.note(agent.revision);
                    }
                    WatchEvent::StatusChanged(agent) => {
                        told.note(agent.revision);
                        if agent.status == AgentStatus::Offline {
                            told.offline.lock().insert(agent.agent_id.clone());
                        }
                    }
                    WatchEvent::Interrupted(_) => drop(told.interruptions.fetch_add(1, Ordering::Relaxed)),
                    _ => {}
                }
            }
        });
        seen
    }

    fn note(&self, revision: Option<u64>) {
        if !self.revisions.lock().insert(revision.unwrap()) {
            self.twice.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    pub(crate) fn revisions(&self) -> HashSet<u64> {
        self.revisions.lock().clone()
    }
}
