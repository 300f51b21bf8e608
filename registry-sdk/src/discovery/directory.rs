//! A directory: a snapshot of the registry that a watch keeps up to date.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::candidate::Candidate;
use super::directory_state::DirectoryState;
use super::freshness::Freshness;
use super::snapshot::Snapshot;
use crate::beside::beside;
use crate::client::RegistryClient;
use crate::contract::{AgentRecord, CapabilityMatch};
use crate::error::Error;
use crate::query::{ListQuery, SearchQuery};
use crate::watch::{Known, Report, Watch, WatchEvent};

/// A copy of all agents of a registry, kept up to date by a watch (like a Kubernetes reflector).
///
/// Searches and look-ups need no request, and work while the registry is unavailable.
///
/// A directory is cheap to clone, and all clones share the snapshot. The background task ends with the last clone. Watches do
/// not report plain heartbeats, so an agent's last heartbeat and its load are as of its last change.
///
/// A new list of all agents is indexed on a blocking thread, and then replaces the previous one in a single step.
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
    snapshot: SharedSnapshot,
    status: watch::Receiver<Status>,
    _stop: Arc<DropGuard>,
}

/// Most changes concern one agent and are made in place. A whole new snapshot is built before the lock is taken.
type SharedSnapshot = Arc<RwLock<Snapshot>>;

/// Whether there is a snapshot, and whether it is up to date.
#[derive(Clone, Debug)]
struct Status {
    state: DirectoryState,
    has_snapshot: bool,
    /// Age of the snapshot, if it is out of date.
    outdated: Option<Known>,
}

impl Directory {
    /// Begins to follow a registry.
    ///
    /// # Panics
    /// If called outside of a Tokio runtime.
    #[must_use]
    pub fn follow(client: &RegistryClient) -> Self {
        let snapshot = SharedSnapshot::default();
        let status = Status { state: DirectoryState::Connecting, has_snapshot: false, outdated: None };
        let (statuses, status) = watch::channel(status);
        let stop = CancellationToken::new();
        let keeper = Keeper { snapshot: snapshot.clone(), statuses };
        tokio::spawn(stop.clone().run_until_cancelled_owned(keeper.keep(client.watch())));
        Self { snapshot, status, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Waits for the first snapshot, however long the registry is unavailable or refuses to be watched.
    ///
    /// Use a timeout, and [`Directory::state`] for the reason.
    ///
    /// ```no_run
    /// # async fn example(client: &registry_sdk::RegistryClient) -> Result<(), registry_sdk::Error> {
    /// use std::time::Duration;
    /// use registry_sdk::Directory;
    /// use tokio::time::timeout;
    ///
    /// let directory = Directory::follow(client);
    /// match timeout(Duration::from_secs(10), directory.ready()).await {
    ///     Ok(ready) => ready?,
    ///     Err(_) => println!("going on without the registry: {:?}", directory.state()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::Config`] if the client is configured wrongly.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut status = self.status.clone();
        let is_settled = |status: &Status| status.has_snapshot || status.state.is_ended();
        let ended = || Error::Config("the task that follows the registry has ended".to_owned());
        let status = status.wait_for(is_settled).await.map_err(|_| ended())?;
        match &status.state {
            DirectoryState::Ended { error } => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Returns whether the registry is followed, and if not, why and since when.
    #[must_use]
    pub fn state(&self) -> DirectoryState {
        self.status.borrow().state.clone()
    }

    /// Returns how fresh the snapshot is; `None` if there is none yet.
    ///
    /// The age counts from the registry's last sign of life, and includes the time for which the registry's database had been
    /// unavailable then.
    #[must_use]
    pub fn freshness(&self) -> Option<Freshness> {
        let status = self.status.borrow();
        let outdated = status.outdated.map(|known| Freshness::Stale { age: known.age() });
        status.has_snapshot.then(|| outdated.unwrap_or(Freshness::Fresh))
    }

    /// Returns the number of agents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Returns whether there are no agents.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all agents, ordered by id.
    #[must_use]
    pub fn agents(&self) -> Vec<Arc<AgentRecord>> {
        self.read().agents()
    }

    /// Lists agents like the registry: ordered by id, up to the query's limit, or all of them.
    #[must_use]
    pub fn list(&self, query: &ListQuery) -> Vec<Arc<AgentRecord>> {
        let after =
            |agent: &AgentRecord| query.cursor.as_deref().is_none_or(|cursor| *agent.agent_id > *cursor);
        let agents =
            self.agents().into_iter().filter(|agent| after(agent) && query.filter.accepts_record(agent));
        agents.take(query.limit.unwrap_or(usize::MAX)).collect()
    }

    /// Returns the record of an agent.
    #[must_use]
    pub fn get(&self, agent_id: &str) -> Option<Arc<AgentRecord>> {
        self.read().get(agent_id)
    }

    /// Searches for agents like the registry: best match first, up to the query's limit, or all of them.
    #[must_use]
    pub fn search(&self, query: impl Into<SearchQuery>) -> Vec<CapabilityMatch> {
        let found = self.read().candidates(&query.into(), false);
        found.into_iter().filter_map(Candidate::into_match).collect()
    }

    /// The same before the matches are created, and including agents in maintenance.
    pub(super) fn candidates(&self, query: &SearchQuery) -> Vec<Candidate> {
        self.read().candidates(query, true)
    }

    fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that keeps a directory's snapshot up to date.
struct Keeper {
    snapshot: SharedSnapshot,
    statuses: watch::Sender<Status>,
}

impl Keeper {
    /// Runs until it is cancelled or the watch has ended.
    async fn keep(self, mut watch: Watch) {
        while let Some(Report { event, known }) = watch.next_report().await {
            match event {
                WatchEvent::Listed(agents) => {
                    // The previous snapshot is dropped there, too, which takes as long.
                    let snapshot = self.snapshot.clone();
                    if beside(move || replace(&snapshot, agents)).await.is_none() {
                        return;
                    }
                    self.set(DirectoryState::Following, None);
                }
                WatchEvent::Registered(agent) | WatchEvent::StatusChanged(agent) => {
                    self.write().insert(agent);
                }
                WatchEvent::Deregistered(agent) => self.write().remove(&agent.agent_id),
                WatchEvent::Resumed => self.set(DirectoryState::Following, None),
                WatchEvent::Interrupted(error) => self.interrupted(error, known),
            }
        }
        self.statuses.send_modify(|status| status.state.end());
    }

    fn interrupted(&self, error: Error, known: Known) {
        let since = SystemTime::now().checked_sub(known.age()).unwrap_or(SystemTime::UNIX_EPOCH);
        self.set(DirectoryState::interrupted(since, error), Some(known));
    }

    fn set(&self, state: DirectoryState, outdated: Option<Known>) {
        self.statuses.send_modify(|status| {
            status.has_snapshot |= outdated.is_none();
            (status.state, status.outdated) = (state, outdated);
        });
    }

    fn write(&self) -> RwLockWriteGuard<'_, Snapshot> {
        self.snapshot.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a snapshot. Readers only wait for a moment.
fn replace(snapshot: &RwLock<Snapshot>, agents: Vec<Arc<AgentRecord>>) {
    let mut other = Snapshot::default();
    for agent in agents {
        other.insert(agent);
    }
    std::mem::swap(&mut *snapshot.write().unwrap_or_else(PoisonError::into_inner), &mut other);
}
