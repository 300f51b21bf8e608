//! What an agent and its heartbeat loop share: the identity, and the one place that changes the state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::state::AgentState;
use super::tasks::TaskCounter;
use crate::client::RegistryClient;
use crate::contract::{AgentRecord, AgentStatus, Heartbeat, Registration, StatusUpdate, Timestamp};
use crate::error::Error;
use crate::metrics;

/// What the heartbeat loop needs of an agent.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) agent_id: String,
    /// Tells this process apart from others that may come up with the same id.
    pub(super) instance_id: String,
    pub(super) client: RegistryClient,
    pub(super) tasks: TaskCounter,
    latest: Mutex<Latest>,
    /// The status that the agent said itself, which its heartbeats carry. `None` until it says one: then
    /// heartbeats leave alone what others may have set.
    said: Mutex<Option<AgentStatus>>,
    pub(super) state: watch::Sender<AgentState>,
    /// When the registry last answered well, by the monotonic clock.
    heard: Mutex<Option<Instant>>,
}

/// What the agent says of itself.
#[derive(Debug)]
struct Latest {
    /// As it is to be registered (again): with the latest capabilities and status.
    registration: Registration,
    /// Counts the changes that only a registration tells.
    version: u64,
    /// The version that the registry has, as far as is known.
    told: Option<u64>,
}

impl Core {
    pub(super) fn new(client: RegistryClient, mut registration: Registration) -> Self {
        let said = (registration.status != AgentStatus::Active).then_some(registration.status);
        let instance_id =
            registration.instance_id.get_or_insert_with(|| format!("{:032x}", fastrand::u128(..))).clone();
        Self {
            agent_id: registration.agent_id.clone(),
            instance_id,
            client,
            tasks: TaskCounter::default(),
            latest: Mutex::new(Latest { registration, version: 0, told: None }),
            said: Mutex::new(said),
            state: watch::Sender::new(AgentState::Registering),
            heard: Mutex::new(None),
        }
    }

    /// Registers through a client that has its own way of repeating what fails.
    pub(super) async fn register(&self, client: &RegistryClient) -> Result<AgentRecord, Error> {
        let (registration, version) = self.latest();
        self.registered(version, client.register(&registration).await)
    }

    /// What to register, and which version of it that is.
    fn latest(&self) -> (Registration, u64) {
        let latest = lock(&self.latest);
        (latest.registration.clone(), latest.version)
    }

    pub(super) fn registration(&self) -> Registration {
        self.latest().0
    }

    /// Changes what only a registration tells.
    pub(super) fn amend(&self, change: impl FnOnce(&mut Registration)) {
        let mut latest = lock(&self.latest);
        let before = latest.registration.clone();
        change(&mut latest.registration);
        if latest.registration != before {
            latest.version += 1;
        }
    }

    /// Whether the agent has something to say that only a registration tells.
    pub(super) fn has_news(&self) -> bool {
        let latest = lock(&self.latest);
        latest.told != Some(latest.version)
    }

    /// Registers in one attempt, with what the agent can do now.
    pub(super) async fn register_once(&self, limit: Duration) -> Result<(), Error> {
        let (registration, version) = self.latest();
        self.registered(version, self.client.register_once(&registration, limit).await).map(|_| ())
    }

    fn registered(&self, version: u64, outcome: Result<AgentRecord, Error>) -> Result<AgentRecord, Error> {
        metrics::registered(&outcome);
        if let Ok(record) = &outcome {
            lock(&self.latest).told = Some(version);
            tracing::info!(agent_id = self.agent_id, "registered");
            self.set_registered(record.last_heartbeat);
        }
        outcome
    }

    /// Sends one heartbeat.
    pub(super) async fn beat(&self, limit: Duration) -> Result<(), Error> {
        let outcome = self.client.heartbeat_once(&self.agent_id, &self.heartbeat(), limit).await;
        metrics::beat(&outcome);
        let ack = outcome?;
        tracing::debug!(agent_id = self.agent_id, "heartbeat");
        self.set_registered(ack.last_heartbeat);
        Ok(())
    }

    /// What the next heartbeat says.
    fn heartbeat(&self) -> Heartbeat {
        let beat = self.tasks.tell(Heartbeat::default().instance_id(&self.instance_id));
        match *lock(&self.said) {
            Some(status) => beat.status(status),
            None => beat,
        }
    }

    /// Keeps a status for heartbeats and registrations to come.
    pub(super) fn say(&self, status: AgentStatus) {
        *lock(&self.said) = Some(status);
        // Heartbeats tell it as well, so it is no news.
        lock(&self.latest).registration.status = status;
    }

    /// Tells the registry a status now.
    pub(super) async fn tell(&self, status: AgentStatus) -> Result<(), Error> {
        let update = StatusUpdate::new(status).instance_id(&self.instance_id);
        let told = self.client.update_status_with(&self.agent_id, &update).await.map(|_| ());
        match told {
            // A registry without the operation may still take the status with a heartbeat.
            Err(Error::Unsupported { .. }) if status != AgentStatus::Offline => {
                let beat = Heartbeat::default().instance_id(&self.instance_id).status(status);
                self.client.heartbeat_with(&self.agent_id, &beat).await.map(|_| ())
            }
            told => told,
        }
    }

    /// Asks by a heartbeat whether this process is still the one that the registry goes by. Fails only where it
    /// is not.
    pub(super) async fn check_instance(&self) -> Result<(), Error> {
        match self.client.heartbeat_with(&self.agent_id, &self.heartbeat()).await {
            Err(error) if error.is_superseded() => {
                self.superseded();
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Another process has taken over.
    pub(super) fn superseded(&self) {
        tracing::warn!(
            agent_id = self.agent_id,
            instance_id = self.instance_id,
            "another process has registered with this agent's id: no more heartbeats are sent; \
             give each process an id of its own, or end this one"
        );
        self.change(|_| AgentState::Superseded);
    }

    pub(super) fn registering(&self) {
        self.change(|_| AgentState::Registering);
    }

    /// When the registry last answered well.
    pub(super) fn heard(&self) -> Option<Instant> {
        *lock(&self.heard)
    }

    fn set_registered(&self, last_heartbeat: Option<Timestamp>) {
        *lock(&self.heard) = Some(Instant::now());
        self.change(|before| {
            let since = match before {
                AgentState::Registered { since, .. } => *since,
                _ => Instant::now().into_std(),
            };
            AgentState::Registered { since, last_heartbeat }
        });
    }

    /// An attempt failed, and the next comes after a pause. Logged as a warning where it is news.
    pub(super) fn degraded(&self, error: Error, pause: Duration) {
        if self.state.borrow().is_degraded() {
            tracing::debug!(agent_id = self.agent_id, %error, ?pause, "the registry still fails");
        } else {
            tracing::warn!(agent_id = self.agent_id, %error, ?pause, "the registry fails: running on without it");
        }
        self.set_degraded(Arc::new(error));
    }

    pub(super) fn set_degraded(&self, last_error: Arc<Error>) {
        self.change(|before| {
            let (since, attempts) = match before {
                AgentState::Degraded { since, attempts, .. } => (*since, attempts.saturating_add(1)),
                _ => (Instant::now().into_std(), 1),
            };
            AgentState::Degraded { since, attempts, last_error }
        });
    }

    /// The agent was shut down. Answers with the state before.
    pub(super) fn stopped(&self) -> AgentState {
        let before = self.state.borrow().clone();
        self.change(|_| AgentState::Stopped);
        before
    }

    /// The one place that changes the state. What was stopped stays so.
    fn change(&self, next: impl FnOnce(&AgentState) -> AgentState) {
        self.state.send_if_modified(|state| {
            let changes = !state.is_stopped();
            if changes {
                *state = next(state);
                metrics::in_state(&self.agent_id, state);
            }
            changes
        });
    }
}

/// A lock that outlives a panic elsewhere: none of these is held over more than a copy.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
