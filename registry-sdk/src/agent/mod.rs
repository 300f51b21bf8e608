//! An agent's life: registration, heartbeats, registering again, and an orderly end.

mod heartbeat;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::RegistryClient;
use crate::contract::{AgentRecord, AgentStatus, Capability, Registration, Timestamp, limits};
use crate::error::Error;
use crate::retry::RetryPolicy;
pub use state::{AgentState, RegistrationOutcome};

/// How long [`Agent::shutdown`] may take unless told otherwise.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// An agent, as its registry sees it: a [`RegistryClient`] with an identity.
///
/// Cheap to clone; all clones are one agent. The registry never takes the agent down: whatever it does, the
/// heartbeat loop goes on, and [`Agent::watch`] tells how it stands. When the last clone is dropped, the loop
/// ends; [`Agent::shutdown`] ends it in good order and says `offline`.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use std::time::Duration;
/// use registry_sdk::contract::{Capability, Registration};
/// use registry_sdk::{Agent, RegistryClient};
///
/// let client = RegistryClient::new("http://127.0.0.1:8009")?;
/// let registration = Registration::new("feature-dev", "Feature Development Agent", "http://feature-dev:8002")
///     .capability(Capability::new("code_generation").tag("python"));
///
/// let agent = Agent::new(client, registration);
/// agent.register_with_retry().await?;
/// agent.start_heartbeat(Duration::from_secs(30))?;
/// // … the agent's own work …
/// agent.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Agent {
    handle: Arc<Handle>,
}

/// What all clones of an agent share. When it is dropped, the loop is told to end.
#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    heartbeats: Mutex<Option<Heartbeats>>,
}

/// A running heartbeat loop.
#[derive(Debug)]
struct Heartbeats {
    /// Tells it to end.
    stop: DropGuard,
    /// Tells when it has.
    task: JoinHandle<()>,
}

/// What the heartbeat loop needs of an agent.
#[derive(Debug)]
struct Core {
    agent_id: String,
    client: RegistryClient,
    /// As it is to be registered (again): with the latest capabilities and status.
    registration: Mutex<Registration>,
    /// The status that the agent said itself, which its heartbeats carry. `None` until it says one: then
    /// heartbeats leave alone what others may have set.
    said: Mutex<Option<AgentStatus>>,
    state: watch::Sender<AgentState>,
}

impl Agent {
    /// An agent that is not registered yet. Nothing is sent.
    #[must_use]
    pub fn new(client: RegistryClient, registration: Registration) -> Self {
        let said = (registration.status != AgentStatus::Active).then_some(registration.status);
        let core = Core {
            agent_id: registration.agent_id.clone(),
            client,
            registration: Mutex::new(registration),
            said: Mutex::new(said),
            state: watch::Sender::new(AgentState::Registering),
        };
        Self { handle: Arc::new(Handle { core: Arc::new(core), heartbeats: Mutex::new(None) }) }
    }

    /// Its id.
    #[must_use]
    pub fn agent_id(&self) -> &str {
        &self.core().agent_id
    }

    /// The client it speaks through.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.core().client
    }

    /// How it stands with the registry now.
    #[must_use]
    pub fn state(&self) -> AgentState {
        self.core().state.borrow().clone()
    }

    /// Follows how it stands with the registry.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<AgentState> {
        self.core().state.subscribe()
    }

    /// Registers, and tries again as the client's own [`RetryPolicy`] says.
    ///
    /// # Errors
    /// Whatever kept it from registering. Where the registry could not be reached, the heartbeat loop goes on
    /// trying once it is started.
    pub async fn register(&self) -> Result<AgentRecord, Error> {
        self.register_through(&self.core().client).await
    }

    /// Registers with the patience of a service that starts: three attempts, up to 1 s and 2 s apart. Where
    /// that is of no use, because the registry is away or something in its place answers nonsense, the agent
    /// may run without it: the heartbeat loop, once it is started, goes on trying.
    ///
    /// # Errors
    /// Only what no further attempt would mend: fields out of their limits, and refused credentials.
    pub async fn register_with_retry(&self) -> Result<RegistrationOutcome, Error> {
        let client = self.core().client.with_retry(RetryPolicy::registration());
        match self.register_through(&client).await {
            Ok(record) => Ok(RegistrationOutcome::Registered(Box::new(record))),
            Err(error) if !error.is_refused() => {
                let error = Arc::new(error);
                tracing::warn!(
                    agent_id = self.agent_id(), %error,
                    "could not register: running without the registry"
                );
                self.core().set_degraded(error.clone());
                Ok(RegistrationOutcome::Degraded(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Starts sending heartbeats, the first after a random part of the interval; a loop that runs already is
    /// replaced. The loop retries what fails, and registers (again) wherever that is needed. It ends by
    /// [`Agent::stop_heartbeat`], [`Agent::shutdown`] or when the last clone of the agent is dropped.
    ///
    /// The interval is declared to the registry, which waits at least twice as long before it calls the agent
    /// offline.
    ///
    /// # Errors
    /// [`Error::Setup`] where the interval is nothing or longer than a day, or the agent was shut down.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn start_heartbeat(&self, interval: Duration) -> Result<(), Error> {
        if interval.is_zero() || interval > limits::HEARTBEAT_INTERVAL {
            return Err(Error::Setup(format!(
                "a heartbeat interval of {interval:?} is not above 0 and up to a day"
            )));
        }
        let core = self.core().clone();
        if core.state.borrow().is_stopped() {
            return Err(Error::Setup("the agent was shut down".to_owned()));
        }
        let news = {
            let mut registration = lock(&core.registration);
            registration.heartbeat_interval.replace(interval) != Some(interval)
        };
        // The interval has to be told before the default time-out passes, and costs one request.
        let register_first = news || !core.state.borrow().is_registered();
        let stop = CancellationToken::new();
        let mut heartbeats = lock(&self.handle.heartbeats);
        let before = heartbeats.take();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.end().await;
            }
            heartbeat::run(core, interval, register_first, stopped).await;
        });
        *heartbeats = Some(Heartbeats { stop: stop.drop_guard(), task });
        Ok(())
    }

    /// Stops sending heartbeats; a heartbeat under way ends first. The registry will call the agent offline
    /// when its deadline has passed.
    pub async fn stop_heartbeat(&self) {
        let running = lock(&self.handle.heartbeats).take();
        if let Some(running) = running {
            running.end().await;
        }
    }

    /// Sets the agent's status, at the registry and for its next heartbeats.
    ///
    /// # Errors
    /// Where it could not be told now. The next heartbeat tells it all the same.
    pub async fn update_status(&self, status: AgentStatus) -> Result<(), Error> {
        let core = self.core();
        *lock(&core.said) = Some(status);
        lock(&core.registration).status = status;
        match core.client.update_status(self.agent_id(), status).await {
            // A registry without the operation may still take the status with a heartbeat.
            Err(Error::Unsupported { .. }) if status != AgentStatus::Offline => {
                core.client.heartbeat_with_status(self.agent_id(), status).await.map(|_| ())
            }
            told => told.map(|_| ()),
        }
    }

    /// Sets what the agent can do, and registers it anew. Whenever it registers again, that is what it says.
    ///
    /// # Errors
    /// Where it could not be told now: fields out of their limits, or a registry that does not answer.
    pub async fn update_capabilities(&self, capabilities: Vec<Capability>) -> Result<AgentRecord, Error> {
        let mut changed = self.registration();
        changed.capabilities = capabilities;
        changed.validate()?;
        lock(&self.core().registration).capabilities = changed.capabilities;
        self.register().await
    }

    /// What the agent says of itself when it registers.
    #[must_use]
    pub fn registration(&self) -> Registration {
        lock(&self.core().registration).clone()
    }

    /// Ends the agent's life at the registry within five seconds: see [`Agent::shutdown_within`].
    pub async fn shutdown(&self) {
        self.shutdown_within(SHUTDOWN_LIMIT).await;
    }

    /// Ends the agent's life at the registry, in order and in bounded time: the loop stops, the heartbeat
    /// under way ends, then `offline` is said. No heartbeat follows. What could not be told is logged; the
    /// registry finds out by itself when the deadline has passed.
    pub async fn shutdown_within(&self, limit: Duration) {
        let core = self.core();
        let began = Instant::now();
        let before = core.state.send_replace(AgentState::Stopped);
        let is_beating = lock(&self.handle.heartbeats).is_some();
        // Half of the time at the most, so that there is some left to say it.
        if timeout(limit / 2, self.stop_heartbeat()).await.is_err() {
            tracing::warn!(agent_id = core.agent_id, "the last heartbeat was cut off");
        }
        // Who never registered, or has said it already, has nothing to say.
        if before.is_stopped() || (matches!(before, AgentState::Registering) && !is_beating) {
            return;
        }
        let left = limit.saturating_sub(began.elapsed());
        let told = timeout(left, core.client.update_status(&core.agent_id, AgentStatus::Offline)).await;
        match told {
            Ok(Ok(_) | Err(Error::Unsupported { .. } | Error::NotFound { .. })) => {
                tracing::info!(agent_id = core.agent_id, "shut down");
            }
            Ok(Err(error)) => {
                tracing::warn!(agent_id = core.agent_id, %error, "shut down without telling the registry");
            }
            Err(_) => {
                tracing::warn!(agent_id = core.agent_id, "shut down; the registry did not answer in time");
            }
        }
    }

    async fn register_through(&self, client: &RegistryClient) -> Result<AgentRecord, Error> {
        let record = client.register(&self.registration()).await?;
        self.core().set_registered(record.last_heartbeat);
        tracing::info!(agent_id = self.agent_id(), "registered");
        Ok(record)
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }
}

impl Heartbeats {
    /// Tells the loop to end and waits until it has. Where the wait is cut off, so is the loop.
    async fn end(self) {
        let Self { stop, task } = self;
        drop(stop);
        let abort = AbortOnDrop(task.abort_handle());
        // A loop that panicked has ended as well.
        let _ = task.await;
        drop(abort);
    }
}

/// Cuts a task off that nobody waits for any more.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Core {
    /// Sends one heartbeat.
    async fn beat(&self, limit: Duration) -> Result<(), Error> {
        let said = *lock(&self.said);
        let ack = self.client.heartbeat_once(&self.agent_id, said, limit).await?;
        tracing::debug!(agent_id = self.agent_id, "heartbeat");
        self.set_registered(ack.last_heartbeat);
        Ok(())
    }

    /// Registers with what the agent can do now.
    async fn register_again(&self, limit: Duration) -> Result<(), Error> {
        let registration = lock(&self.registration).clone();
        let record = self.client.register_once(&registration, limit).await?;
        tracing::info!(agent_id = self.agent_id, "registered");
        self.set_registered(record.last_heartbeat);
        Ok(())
    }

    fn registering(&self) {
        self.change(|_| AgentState::Registering);
    }

    fn set_registered(&self, last_heartbeat: Option<Timestamp>) {
        self.change(|before| {
            let since = match before {
                AgentState::Registered { since, .. } => *since,
                _ => Instant::now().into_std(),
            };
            AgentState::Registered { since, last_heartbeat }
        });
    }

    /// An attempt failed, and the next comes after a pause. Logged as a warning where it is news.
    fn degraded(&self, error: Error, pause: Duration) {
        if self.state.borrow().is_degraded() {
            tracing::debug!(agent_id = self.agent_id, %error, ?pause, "the registry still fails");
        } else {
            tracing::warn!(agent_id = self.agent_id, %error, ?pause, "the registry fails: running on without it");
        }
        self.set_degraded(Arc::new(error));
    }

    fn set_degraded(&self, last_error: Arc<Error>) {
        self.change(|before| {
            let (since, attempts) = match before {
                AgentState::Degraded { since, attempts, .. } => (*since, attempts.saturating_add(1)),
                _ => (Instant::now().into_std(), 1),
            };
            AgentState::Degraded { since, attempts, last_error }
        });
    }

    /// The one place that changes the state. What was stopped stays so.
    fn change(&self, next: impl FnOnce(&AgentState) -> AgentState) {
        self.state.send_if_modified(|state| {
            let changes = !state.is_stopped();
            if changes {
                *state = next(state);
            }
            changes
        });
    }
}

/// A lock that outlives a panic elsewhere: none of these is held over more than a copy.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
