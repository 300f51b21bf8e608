//! The registry: its rules, and a view of every agent in memory.
//!
//! Writes go to the database first; reads come from memory.

mod availability;
mod clock;
mod events;
mod follower;
mod group_commit;
mod probe;
mod reports;
mod rules;
mod shared;
mod sweeper;
mod view;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join;
use parking_lot::Mutex;
use registry_sdk::contract::{
    AgentHealth, AgentStatus, Heartbeat, HeartbeatAck, Owner, Registration, RegistryStats, ServerHealth,
    StatusUpdate, Timestamp, heartbeat_timeout, is_valid_agent_id,
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::config::Config;
use crate::metrics::{Gauges, Metrics};
use crate::store::{HeartbeatWrite, Store, StoreError, StoredAgent};
use availability::Availability;
use clock::DatabaseClock;
use events::EventLog;
pub(crate) use events::{Cursor, LogRead};
use group_commit::WriteQueues;
use reports::{DirtyReports, Report};
use rules::{Change, Outcome, accepts_instance};
use shared::Shared;
pub(crate) use view::{CHUNK_BYTES, Chunk, Filter, Json, ListQuery, Page, Rest, SearchQuery};
use view::{Entry, Read, ReadContext, View};

/// Time for which the statistics of `GET /metrics` are cached.
const STATS_TTL: Duration = Duration::from_secs(1);

/// An error of a registry operation.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The agent is not registered.
    #[error("no agent {0:?} is registered")]
    NotFound(String),
    /// Another process owns the agent's id.
    #[error(
        "agent {agent_id:?} is owned by another process ({}): if this is a different agent, give it its own id",
        describe_owner(owner)
    )]
    Superseded { agent_id: String, owner: Owner },
    /// The calling process has reported its own shutdown.
    #[error(
        "this instance of agent {agent_id:?} was shut down: a process that started after that has to register first, \
         with its age"
    )]
    ShutDown { agent_id: String, owner: Owner },
    /// The database is unavailable.
    #[error("the registry's database does not answer, nothing was changed; try again")]
    Unavailable,
    /// A queue is full, or there are no permits left.
    #[error("too many requests are waiting, nothing was changed; try again")]
    Overloaded,
    /// The server is shutting down.
    #[error("the server is shutting down, nothing was changed; try again")]
    ShuttingDown,
    /// A bug, for example if the database rejects data that passed validation.
    #[error("the request failed because of an internal error")]
    Internal,
}

fn describe_owner(Owner { instance_id, base_url, .. }: &Owner) -> String {
    match instance_id {
        Some(instance_id) => format!("instance {instance_id} at {base_url}"),
        None => format!("at {base_url}"),
    }
}

impl From<&StoreError> for Error {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable,
            StoreError::Rejected(_) => Self::Internal,
        }
    }
}

/// The registry. Its tasks end with the token passed to [`Registry::start`] and with [`Registry::close`].
pub(crate) struct Registry {
    shared: Arc<Shared>,
    queues: WriteQueues,
    /// Closes the write queues.
    closing: CancellationToken,
    /// Ends the tasks and streams that never end on their own.
    shutdown: CancellationToken,
}

impl Registry {
    /// Loads all agents and starts the registry's tasks, most of which end when `shutdown` is cancelled.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        config: Config,
        metrics: Metrics,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let snapshot = store.load().await?;
        let (revision, now) = (snapshot.revision, snapshot.now);
        tracing::info!(agents = snapshot.agents.len(), revision, store = store.name(), "loaded all agents");
        // Both take long and are independent.
        let (view, recent) =
            join(spawn_blocking(|| View::new(snapshot)), follower::recent_events(&*store, revision)).await;
        let (recent, view) = (recent?, view.map_err(|error| StoreError::Unavailable(error.into()))?);
        let shared = Arc::new(Shared {
            store,
            clock: DatabaseClock::new(now),
            availability: Availability::new(now),
            events: EventLog::new(recent.first().map_or(revision, |oldest| oldest.agent.revision - 1)),
            view,
            admission: Admission::new(config.rate_limit),
            config,
            started_at: Instant::now(),
            dirty_reports: DirtyReports::default(),
            metrics,
            cached_stats: Mutex::default(),
            server_id: RandomState::new().hash_one(std::process::id()),
        });
        shared.publish(&recent);
        if shared.events.head() != revision {
            shared.events.reset(revision);
        }
        let (queues, heartbeats, changes) = WriteQueues::new();
        let closing = CancellationToken::new();
        tasks.spawn(group_commit::run_heartbeats(shared.clone(), heartbeats, closing.clone()));
        tasks.spawn(group_commit::run_changes(shared.clone(), changes, closing.clone()));
        let registry = Arc::new(Self { shared: shared.clone(), queues, closing, shutdown: shutdown.clone() });
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(follower::run(shared.clone())));
        if shared.store.is_shared() {
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(reports::broadcast(shared.clone())));
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(reports::receive(shared)));
        }
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(sweeper::run(registry.clone())));
        if let Some(interval) = registry.shared.config.probe_interval {
            tasks.spawn(probe::run(registry.clone(), interval, shutdown.clone()));
        }
        Ok(registry)
    }

    /// Rejects new writes, and completes those that are queued.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Creates or updates an agent. A registration that changes nothing is as cheap as a heartbeat.
    pub(crate) async fn register(&self, registration: Registration) -> Result<Json, Error> {
        let arrived = Instant::now();
        let instance_age = registration.instance_age;
        let draft = StoredAgent::from_registration(registration).map_err(|error| {
            tracing::error!(%error, "cannot encode a registration, answering 500");
            Error::Internal
        })?;
        if let Some(entry) = self.shared.view.entry(&draft.agent_id)
            && entry.agent.has_same_registration(&draft)
            // The start of a new instance has to be stored, and a late request of an ended one rejected.
            && draft.instance_id.as_deref().is_none_or(|id| {
                entry.agent.instances.is_noted(id, instance_age, self.shared.clock.now())
            })
            && let Some(last_heartbeat) = self.write_heartbeat(&entry, arrived).await?
        {
            return Ok(entry.record(&self.shared.read_context(), last_heartbeat));
        }
        let agent_id = draft.agent_id.clone();
        let agent = self
            .submit_and_get(&agent_id, Change::Register { draft: Box::new(draft), instance_age }, arrived)
            .await?;
        Ok(self.shared.record(&agent))
    }

    /// Records a heartbeat, with an optional status and load.
    pub(crate) async fn heartbeat(
        &self,
        agent_id: &str,
        heartbeat: Heartbeat,
    ) -> Result<HeartbeatAck, Error> {
        let arrived = Instant::now();
        let report = Report { load: heartbeat.load, active_tasks: heartbeat.active_tasks, probe: None };
        let timeout = |interval| heartbeat_timeout(self.shared.config.heartbeat_timeout, interval);
        if let Some(entry) = self.shared.view.entry(agent_id)
            && entry.agent.status != AgentStatus::Offline
            && heartbeat.status.is_none_or(|status| status == entry.agent.status)
            && accepts_instance(&entry.agent, heartbeat.instance_id.as_deref())
            && let Some(last_heartbeat) = self.write_heartbeat(&entry, arrived).await?
        {
            self.shared.report(agent_id, report);
            let (status, interval) = (entry.agent.status, entry.agent.heartbeat_interval);
            let ack = HeartbeatAck::new(agent_id.to_owned(), status, last_heartbeat, timeout(interval));
            return Ok(ack.registration_tag(entry.registration_tag().to_string()));
        }
        let agent = self.submit_and_get(agent_id, Change::Heartbeat(heartbeat), arrived).await?;
        self.shared.report(agent_id, report);
        let timeout = timeout(agent.heartbeat_interval);
        let ack = HeartbeatAck::new(agent_id.to_owned(), agent.status, agent.last_heartbeat, timeout);
        Ok(ack.registration_tag(agent.registration_tag().to_string()))
    }

    pub(crate) async fn update_status(&self, agent_id: &str, update: StatusUpdate) -> Result<Json, Error> {
        let agent = self.submit_and_get(agent_id, Change::SetStatus(update), Instant::now()).await?;
        Ok(self.shared.record(&agent))
    }

    pub(crate) async fn deregister(&self, agent_id: &str) -> Result<(), Error> {
        match self.submit(agent_id, Change::Remove, Instant::now()).await? {
            Outcome::NotFound => Err(Error::NotFound(agent_id.to_owned())),
            Outcome::Applied(_) | Outcome::Removed | Outcome::Superseded { .. } => Ok(()),
        }
    }

    pub(crate) async fn get_agent(&self, agent_id: &str) -> Result<Json, Error> {
        let found = self.read(|context| self.shared.view.get(agent_id, context)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    pub(crate) async fn check_health(&self, agent_id: &str) -> Result<AgentHealth, Error> {
        let found = self.read(|context| self.shared.view.health(agent_id, context)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    /// Returns the beginning of a list or a page.
    pub(crate) async fn list_agents(&self, query: ListQuery) -> Result<Page, Error> {
        self.read_expensive(move |view, context| view.list(&query, context)).await
    }

    /// Returns the next chunk of a list, a page or a search. It is short, so it needs no permit.
    pub(crate) async fn next_chunk(&self, rest: &Rest) -> Chunk {
        self.read(|context| self.shared.view.next_chunk(rest, context)).await
    }

    /// Returns the beginning of the matches.
    pub(crate) async fn search_capabilities(&self, query: SearchQuery) -> Result<Chunk, Error> {
        self.read_expensive(move |view, context| view.search(&query, context)).await
    }

    pub(crate) async fn get_stats(&self) -> Result<RegistryStats, Error> {
        self.read_expensive(View::stats).await
    }

    /// Returns the limits for expensive requests, bodies and clients.
    pub(crate) fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Returns the metrics in Prometheus' text format.
    pub(crate) async fn metrics_text(&self) -> Result<String, Error> {
        let shared = &self.shared;
        let cached = *shared.cached_stats.lock();
        let stats =
            if let Some((stats, _)) = cached.filter(|(_, computed_at)| computed_at.elapsed() < STATS_TTL) {
                stats
            } else {
                let stats = self.read(|context| shared.view.stats(context)).await;
                *shared.cached_stats.lock() = Some((stats, Instant::now()));
                stats
            };
        let last_sweep_age = shared.availability.last_sweep_age();
        let is_database_up = shared.availability.unavailable_for().is_none();
        shared.metrics.encode(&Gauges { stats, last_sweep_age, is_database_up }).map_err(|error| {
            tracing::error!(%error, "cannot encode the metrics, answering 500");
            Error::Internal
        })
    }

    /// Returns the health of the server itself.
    pub(crate) fn server_health(&self) -> ServerHealth {
        let shared = &self.shared;
        let status = shared.availability.health(shared.config.sweep_interval);
        let uptime =
            Duration::from_millis(u64::try_from(shared.started_at.elapsed().as_millis()).unwrap_or(u64::MAX));
        ServerHealth::new(status, env!("CARGO_PKG_VERSION"), shared.store.name(), uptime)
    }

    /// Returns the log of events, for watchers.
    pub(crate) fn events(&self) -> &EventLog {
        &self.shared.events
    }

    /// Waits until a shutdown is requested.
    pub(crate) async fn shutdown_requested(&self) {
        self.shutdown.cancelled().await;
    }

    /// Returns how long the database has been unavailable, if it is.
    pub(crate) fn stale_for(&self) -> Option<Duration> {
        self.shared.availability.unavailable_for()
    }

    /// Reads from the view. Missed deadlines are confirmed by the database before they are believed.
    async fn read<T>(&self, read: impl Fn(&ReadContext) -> Read<T>) -> T {
        let first = read(&self.shared.read_context());
        if first.unconfirmed.is_empty() {
            return first.value;
        }
        // Afterwards the deadlines are confirmed, or the database is unavailable and no deadline counts.
        self.shared.confirm_deadlines(&first.unconfirmed).await;
        read(&self.shared.read_context()).value
    }

    /// Like `read`, for expensive reads.
    async fn read_expensive<T, R>(&self, read: R) -> Result<T, Error>
    where
        T: Send + 'static,
        R: Fn(&View, &ReadContext) -> Read<T> + Send + Sync + 'static,
    {
        let read = Arc::new(read);
        let run = || {
            let (shared, read) = (self.shared.clone(), read.clone());
            self.shared.admission.read(move || read(&shared.view, &shared.read_context()))
        };
        let first = run().await?;
        if first.unconfirmed.is_empty() {
            return Ok(first.value);
        }
        self.shared.confirm_deadlines(&first.unconfirmed).await;
        Ok(run().await?.value)
    }

    /// Writes a plain heartbeat and returns its time, or `None` if the heartbeat changes more than the time.
    async fn write_heartbeat(&self, entry: &Entry, arrived: Instant) -> Result<Option<Timestamp>, Error> {
        let (last_heartbeat, interval) = (entry.liveness.last_heartbeat(), entry.agent.heartbeat_interval);
        let now = self.shared.clock.now();
        if entry.agent.missed_deadline
            || self.shared.deadline_policy().is_nearly_overdue(last_heartbeat, interval, now)
        {
            return Ok(None);
        }
        self.shared.check_database()?;
        let heartbeat = HeartbeatWrite { agent: entry.agent.clone(), arrived };
        self.queues.heartbeat(heartbeat, entry.liveness.clone()).await
    }

    async fn submit_and_get(
        &self,
        agent_id: &str,
        change: Change,
        arrived: Instant,
    ) -> Result<Arc<StoredAgent>, Error> {
        match self.submit(agent_id, change, arrived).await? {
            Outcome::Applied(agent) => Ok(agent),
            Outcome::Superseded { owner, has_ended: false } => {
                Err(Error::Superseded { agent_id: agent_id.to_owned(), owner })
            }
            Outcome::Superseded { owner, has_ended: true } => {
                Err(Error::ShutDown { agent_id: agent_id.to_owned(), owner })
            }
            Outcome::Removed | Outcome::NotFound => Err(Error::NotFound(agent_id.to_owned())),
        }
    }

    async fn submit(&self, agent_id: &str, change: Change, arrived: Instant) -> Result<Outcome, Error> {
        // An invalid id cannot be registered, so the database need not be asked.
        if !is_valid_agent_id(agent_id) {
            return Ok(Outcome::NotFound);
        }
        self.shared.check_database()?;
        self.queues.change(agent_id.to_owned(), change, arrived).await
    }
}
