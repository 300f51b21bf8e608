//! The registry: its rules, and the view of every agent in memory. Writes go to the database first; reads
//! come from memory.

mod availability;
mod clock;
mod core;
mod events;
mod follow;
mod group_commit;
mod probe;
mod reports;
mod rules;
mod sweep;
mod view;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join;
use parking_lot::Mutex;
use registry_sdk::contract::{
    AgentHealth, AgentStatus, Heartbeat, HeartbeatAck, Owner, Registration, RegistryStats, ServerHealth,
    StatusUpdate, Timestamp, heartbeat_timeout, is_agent_id,
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::bulkhead::Bulkhead;
use crate::config::Config;
use crate::metrics::{Gauges, Metrics};
use crate::store::{HeartbeatWrite, Store, StoreError, StoredAgent};
use availability::Availability;
use clock::Clock;
use core::Core;
use events::EventLog;
pub(crate) use events::{Place, Step};
use group_commit::WriteQueues;
use reports::{Report, Untold};
use rules::{Change, Outcome, is_instance};
use view::{Held, Moment, Read, View};
pub(crate) use view::{Json, ListQuery, Page, SearchQuery};

/// How long the figures for Prometheus are good.
const FIGURES_FOR: Duration = Duration::from_secs(1);

/// What the registry could not do.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such agent.
    #[error("no agent {0:?} is registered")]
    NotFound(String),
    /// Another process owns the agent's id.
    #[error(
        "agent {agent_id:?} is owned by another process ({}): if this is a different agent, give it its own id",
        describe(owner)
    )]
    Superseded { agent_id: String, owner: Owner },
    /// The process that asked was shut down, by its own word.
    #[error(
        "this instance of agent {agent_id:?} was shut down: a process that started after that has to register first, \
         with its age"
    )]
    ShutDown { agent_id: String, owner: Owner },
    /// The database is away.
    #[error("the registry's database does not answer, nothing was changed; try again")]
    Unavailable,
    /// Too many requests wait already.
    #[error("too many requests are waiting, nothing was changed; try again")]
    Overloaded,
    /// The server is shutting down.
    #[error("the server is shutting down, nothing was changed; try again")]
    Stopping,
    /// A defect: the database refused what passed the checks, for example.
    #[error("the registry failed at this")]
    Internal,
}

fn describe(Owner { instance_id, base_url, .. }: &Owner) -> String {
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

/// The registry. Its tasks end by the token of [`Registry::start`] and by [`Registry::close`].
pub(crate) struct Registry {
    core: Arc<Core>,
    queues: WriteQueues,
    /// No more writes are taken.
    closing: CancellationToken,
    /// The server is about to stop: what never ends by itself has to.
    shutdown: CancellationToken,
}

impl Registry {
    /// Reads all agents and starts the registry's tasks: those that follow and sweep end by `stop`.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        config: Config,
        metrics: Metrics,
        bulkhead: Bulkhead,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let snapshot = store.load().await?;
        let (revision, now) = (snapshot.revision, snapshot.now);
        tracing::info!(agents = snapshot.agents.len(), revision, store = store.name(), "read the registry");
        // Both take their time, and neither needs the other.
        let (view, recent) =
            join(spawn_blocking(|| View::new(snapshot)), follow::recent(&*store, revision)).await;
        let (recent, view) = (recent?, view.map_err(|error| StoreError::Unavailable(error.into()))?);
        let core = Arc::new(Core {
            store,
            clock: Clock::new(now),
            availability: Availability::new(now),
            events: EventLog::new(recent.first().map_or(revision, |oldest| oldest.agent.revision - 1)),
            view,
            admission: Admission::new(config.rate_limit),
            bulkhead,
            config,
            started: Instant::now(),
            untold: Untold::default(),
            metrics,
            figures: Mutex::default(),
            server_id: RandomState::new().hash_one(std::process::id()),
        });
        core.publish(&recent);
        if core.events.head() != revision {
            core.events.break_off(revision);
        }
        let (queues, heartbeats, changes) = WriteQueues::new();
        let closing = CancellationToken::new();
        tasks.spawn(group_commit::run_heartbeats(core.clone(), heartbeats, closing.clone()));
        tasks.spawn(group_commit::run_changes(core.clone(), changes, closing.clone()));
        let registry = Arc::new(Self { core: core.clone(), queues, closing, shutdown: shutdown.clone() });
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(follow::run(core.clone())));
        if core.store.is_shared() {
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(reports::tell(core.clone())));
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(reports::listen(core)));
        }
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(sweep::run(registry.clone())));
        if let Some(interval) = registry.core.config.probe_interval {
            tasks.spawn(probe::run(registry.clone(), interval, shutdown.clone()));
        }
        Ok(registry)
    }

    /// Takes no more writes, and lets those end that were asked for.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Creates or updates an agent. One that says again what is known already costs no more than a heartbeat.
    pub(crate) async fn register(&self, registration: Registration) -> Result<Json, Error> {
        let arrived = Instant::now();
        let instance_age = registration.instance_age;
        let draft = StoredAgent::from_registration(registration).map_err(|error| {
            tracing::error!(%error, "a registration cannot be encoded");
            Error::Internal
        })?;
        if let Some(held) = self.core.view.held(&draft.agent_id)
            && held.agent.has_same_registration(&draft)
            // Not the first sight of a process, whose start has to be noted, nor a late request of one that was shut down.
            && draft.instance_id.as_deref().is_none_or(|id| {
                held.agent.instances.is_noted(id, instance_age, self.core.clock.now())
            })
            && let Some(heard) = self.write_heartbeat(&held, arrived).await?
        {
            return Ok(held.record(&self.core.moment(), heard));
        }
        let agent_id = draft.agent_id.clone();
        let agent = self
            .change(&agent_id, Change::Register { draft: Box::new(draft), instance_age }, arrived)
            .await?;
        Ok(self.core.record(&agent))
    }

    /// An agent is alive, and may say its status.
    pub(crate) async fn heartbeat(&self, agent_id: &str, beat: Heartbeat) -> Result<HeartbeatAck, Error> {
        let arrived = Instant::now();
        let report = Report { load: beat.load, active_tasks: beat.active_tasks, probe: None };
        let timeout = |interval| heartbeat_timeout(self.core.config.heartbeat_timeout, interval);
        if let Some(held) = self.core.view.held(agent_id)
            && held.agent.status != AgentStatus::Offline
            && beat.status.is_none_or(|status| status == held.agent.status)
            && is_instance(&held.agent, beat.instance_id.as_deref())
            && let Some(heard) = self.write_heartbeat(&held, arrived).await?
        {
            self.core.report(agent_id, report);
            let (status, interval) = (held.agent.status, held.agent.heartbeat_interval);
            let ack = HeartbeatAck::new(agent_id.to_owned(), status, heard, timeout(interval));
            return Ok(ack.registration_tag(held.registration_tag().to_string()));
        }
        let agent = self.change(agent_id, Change::Heartbeat(beat), arrived).await?;
        self.core.report(agent_id, report);
        let timeout = timeout(agent.heartbeat_interval);
        let ack = HeartbeatAck::new(agent_id.to_owned(), agent.status, agent.last_heartbeat, timeout);
        Ok(ack.registration_tag(agent.registration_tag().to_string()))
    }

    pub(crate) async fn set_status(&self, agent_id: &str, update: StatusUpdate) -> Result<Json, Error> {
        let agent = self.change(agent_id, Change::SetStatus(update), Instant::now()).await?;
        Ok(self.core.record(&agent))
    }

    pub(crate) async fn remove(&self, agent_id: &str) -> Result<(), Error> {
        match self.submit(agent_id, Change::Remove, Instant::now()).await? {
            Outcome::NotFound => Err(Error::NotFound(agent_id.to_owned())),
            Outcome::Applied(_) | Outcome::Removed | Outcome::Superseded { .. } => Ok(()),
        }
    }

    pub(crate) async fn get(&self, agent_id: &str) -> Result<Json, Error> {
        let found = self.read(|moment| self.core.view.get(agent_id, moment)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    pub(crate) async fn health(&self, agent_id: &str) -> Result<AgentHealth, Error> {
        let found = self.read(|moment| self.core.view.health(agent_id, moment)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    /// The first part of a list.
    pub(crate) async fn list(&self, query: ListQuery) -> Result<Page, Error> {
        self.read_aside(move |view, moment| view.list(&query, moment)).await
    }

    /// A further part, which is short.
    pub(crate) async fn list_on(&self, query: &ListQuery) -> Page {
        self.read(|moment| self.core.view.list(query, moment)).await
    }

    pub(crate) async fn search(&self, query: SearchQuery) -> Result<Json, Error> {
        self.read_aside(move |view, moment| view.search(&query, moment)).await
    }

    pub(crate) async fn stats(&self) -> Result<RegistryStats, Error> {
        self.read_aside(View::stats).await
    }

    /// Who may ask for how much.
    pub(crate) fn admission(&self) -> &Admission {
        &self.core.admission
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// The metrics, in Prometheus' text format.
    pub(crate) async fn metrics_text(&self) -> Result<String, Error> {
        let core = &self.core;
        let known = *core.figures.lock();
        let stats = if let Some((stats, _)) = known.filter(|(_, read)| read.elapsed() < FIGURES_FOR) {
            stats
        } else {
            let stats = self.read(|moment| core.view.stats(moment)).await;
            *core.figures.lock() = Some((stats, Instant::now()));
            stats
        };
        let last_sweep_age = core.availability.last_sweep_age();
        let is_database_up = core.availability.away_for().is_none();
        core.metrics.encode(&Gauges { stats, last_sweep_age, is_database_up }).map_err(|error| {
            tracing::error!(%error, "cannot encode the metrics, answering 500");
            Error::Internal
        })
    }

    /// The health of the registry itself.
    pub(crate) fn server_health(&self) -> ServerHealth {
        let core = &self.core;
        let status = core.availability.health(core.config.sweep_interval);
        let uptime =
            Duration::from_millis(u64::try_from(core.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        ServerHealth::new(status, env!("CARGO_PKG_VERSION"), core.store.name(), uptime)
    }

    /// The changes, for those who watch.
    pub(crate) fn events(&self) -> &EventLog {
        &self.core.events
    }

    /// Waits until the server is about to stop.
    pub(crate) async fn shutdown_requested(&self) {
        self.shutdown.cancelled().await;
    }

    /// For how long the database has been away, where it is.
    pub(crate) fn stale_for(&self) -> Option<Duration> {
        self.core.availability.away_for()
    }

    /// Answers from the view, after asking the database about agents that seem to have missed their deadline.
    async fn read<T>(&self, read: impl Fn(&Moment) -> Read<T>) -> T {
        let first = read(&self.core.moment());
        if first.doubts.is_empty() {
            return first.answer;
        }
        // By now the database has been asked, or it is away and no deadline counts.
        self.core.confirm(&first.doubts).await;
        read(&self.core.moment()).answer
    }

    /// The same for what costs much, which does not run among the heartbeats.
    async fn read_aside<T, R>(&self, read: R) -> Result<T, Error>
    where
        T: Send + 'static,
        R: Fn(&View, &Moment) -> Read<T> + Send + Sync + 'static,
    {
        let read = Arc::new(read);
        let aside = async || {
            let (core, read) = (self.core.clone(), read.clone());
            let done = self.core.bulkhead.run(move || read(&core.view, &core.moment())).await;
            done.ok_or(Error::Internal)
        };
        let first = aside().await?;
        if first.doubts.is_empty() {
            return Ok(first.answer);
        }
        self.core.confirm(&first.doubts).await;
        Ok(aside().await?.answer)
    }

    /// Writes a heartbeat that changes nothing else, where that is all there is to it, and tells its time.
    async fn write_heartbeat(&self, held: &Held, arrived: Instant) -> Result<Option<Timestamp>, Error> {
        let (heard, interval) = (held.pulse.heard(), held.agent.heartbeat_interval);
        let now = self.core.clock.now();
        if held.agent.missed_deadline || self.core.patience().is_nearly_overdue(heard, interval, now) {
            return Ok(None);
        }
        self.core.check_database()?;
        let heartbeat = HeartbeatWrite { agent: held.agent.clone(), arrived };
        self.queues.heartbeat(heartbeat, held.pulse.clone()).await
    }

    async fn change(
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
        // No such id can have been registered, so the database need not be asked.
        if !is_agent_id(agent_id) {
            return Ok(Outcome::NotFound);
        }
        self.core.check_database()?;
        self.queues.change(agent_id.to_owned(), change, arrived).await
    }
}
