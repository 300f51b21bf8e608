//! A directory: a snapshot of the registry that a watch keeps up to date.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::candidate::Candidate;
use super::freshness::Freshness;
use crate::client::RegistryClient;
use crate::contract::{AgentRecord, CapabilityMatch};
use crate::error::Error;
use crate::query::SearchQuery;
use crate::search::{Hit, SearchIndex};
use crate::watch::WatchEvent;

/// Every agent of a registry, kept up to date by watching it (as a Kubernetes reflector does): searches and look-ups
/// cost no request, and go on while the registry is away.
///
/// Cheap to clone; clones share the snapshot, and the task that keeps it ends with the last of them. Heartbeats alone are
/// not told to those who watch, so an agent's last heartbeat and its load are as of its last change.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use registry_sdk::RegistryClient;
/// use registry_sdk::discovery::{Directory, Orchestrator};
///
/// let client = RegistryClient::new("http://127.0.0.1:8009")?;
/// let directory = Directory::follow(&client);
/// directory.ready().await?;
/// let orchestrator = Orchestrator::builder(client).directory(directory).build();
/// // Not a single request:
/// println!("{}", orchestrator.find_best_agent("code_review").await?.agent.base_url);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Directory {
    snapshot: Arc<RwLock<Snapshot>>,
    state: watch::Receiver<State>,
    _stop: Arc<DropGuard>,
}

/// State of the snapshot.
#[derive(Clone, Debug)]
enum State {
    /// There is none yet.
    Empty,
    /// It is kept up to date.
    Current,
    /// It is as it was then.
    Old(Instant),
    /// There is none, and there will be none.
    Ended(Error),
}

/// The agents, and the index by which they are found.
#[derive(Debug, Default)]
struct Snapshot {
    agents: BTreeMap<String, (u32, Arc<AgentRecord>)>,
    by_slot: Vec<Option<Arc<AgentRecord>>>,
    index: SearchIndex,
}

impl Directory {
    /// Begins to follow a registry.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn follow(client: &RegistryClient) -> Self {
        let snapshot = Arc::<RwLock<Snapshot>>::default();
        let (states, state) = watch::channel(State::Empty);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow(
            client.clone(),
            snapshot.clone(),
            states,
        )));
        Self { snapshot, state, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Waits until there is a snapshot: as long as the registry is away, if nobody sets a time limit.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// Where there will be none: the registry cannot be watched, or refuses the credentials.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut state = self.state.clone();
        let there = state.wait_for(|state| !matches!(state, State::Empty)).await;
        match there.as_deref() {
            Ok(State::Ended(error)) => Err(error.clone()),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Config("the task that follows the registry has ended".to_owned())),
        }
    }

    /// How fresh the snapshot is; `None` if there is none yet.
    #[must_use]
    pub fn freshness(&self) -> Option<Freshness> {
        match &*self.state.borrow() {
            State::Current => Some(Freshness::Fresh),
            State::Old(since) => Some(Freshness::Stale { age: since.elapsed() }),
            State::Empty | State::Ended(_) => None,
        }
    }

    /// How many agents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().agents.len()
    }

    /// Whether there are no agents.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All agents, by id.
    #[must_use]
    pub fn agents(&self) -> Vec<Arc<AgentRecord>> {
        self.read().agents.values().map(|(_, agent)| agent.clone()).collect()
    }

    /// The record of one agent.
    #[must_use]
    pub fn get(&self, agent_id: &str) -> Option<Arc<AgentRecord>> {
        self.read().agents.get(agent_id).map(|(_, agent)| agent.clone())
    }

    /// Finds agents as the registry would: the best match first, up to the query's limit, or all of them.
    #[must_use]
    pub fn search(&self, query: impl Into<SearchQuery>) -> Vec<CapabilityMatch> {
        let query = query.into();
        let mut found = self.candidates(&query.q);
        found.retain(|one| query.status.is_none_or(|status| status == one.status()));
        let matches = found.into_iter().filter_map(Candidate::into_match);
        let accepted = matches.filter(|found| query.accepts_health(found));
        accepted.take(query.limit.unwrap_or(usize::MAX)).collect()
    }

    /// The same, before the matches are written out.
    pub(super) fn candidates(&self, q: &str) -> Vec<Candidate> {
        let snapshot = self.read();
        let candidate = |hit: Hit| {
            let agent = snapshot.by_slot.get(hit.slot as usize)?.clone()?;
            Some(Candidate::FromDirectory { agent, position: hit.position, score: hit.score })
        };
        let mut found: Vec<_> = snapshot.index.search(q).into_iter().filter_map(candidate).collect();
        found.sort_unstable_by(|one, other| one.rank().cmp(&other.rank()));
        found
    }

    fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the snapshot up to date until it is cancelled or the watch has ended.
async fn follow(client: RegistryClient, snapshot: Arc<RwLock<Snapshot>>, states: watch::Sender<State>) {
    let mut watch = client.watch();
    let mut last_error = None;
    while let Some(event) = watch.next().await {
        let mut snapshot = snapshot.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            WatchEvent::Listed(agents) => {
                *snapshot = Snapshot::default();
                for agent in agents {
                    snapshot.insert(agent);
                }
                states.send_replace(State::Current);
            }
            WatchEvent::Registered(agent) | WatchEvent::StatusChanged(agent) => snapshot.insert(agent),
            WatchEvent::Deregistered(agent) => snapshot.remove(&agent.agent_id),
            WatchEvent::Resumed => {
                states.send_replace(State::Current);
            }
            WatchEvent::Interrupted(error) => {
                last_error = Some(error);
                states.send_if_modified(|state| {
                    let is_current = matches!(state, State::Current);
                    if is_current {
                        *state = State::Old(Instant::now());
                    }
                    is_current
                });
            }
        }
    }
    if let Some(error) = last_error {
        states.send_if_modified(|state| {
            let is_empty = matches!(state, State::Empty);
            if is_empty {
                *state = State::Ended(error);
            }
            is_empty
        });
    }
    // The snapshot stays, as old as it is.
    states.closed().await;
}

impl Snapshot {
    fn insert(&mut self, agent: Arc<AgentRecord>) {
        self.remove(&agent.agent_id);
        let slot = self.index.insert(&agent.capabilities);
        if self.by_slot.len() <= slot as usize {
            self.by_slot.resize(slot as usize + 1, None);
        }
        if let Some(entry) = self.by_slot.get_mut(slot as usize) {
            *entry = Some(agent.clone());
        }
        self.agents.insert(agent.agent_id.clone(), (slot, agent));
    }

    fn remove(&mut self, agent_id: &str) {
        let Some((slot, _)) = self.agents.remove(agent_id) else { return };
        self.index.remove(slot);
        if let Some(entry) = self.by_slot.get_mut(slot as usize) {
            *entry = None;
        }
    }
}
