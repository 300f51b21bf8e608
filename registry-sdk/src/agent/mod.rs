//! An agent's life: registration, heartbeats, registering again, and an orderly end.

mod core;
mod heartbeat;
mod run;
mod state;
mod tasks;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::RegistryClient;
use crate::contract::{AgentRecord, AgentStatus, Capability, Registration, limits};
use crate::error::Error;
use crate::retry::RetryPolicy;
use core::{Core, lock};
pub use run::shutdown_signal;
pub use state::{AgentState, RegistrationOutcome};
pub use tasks::{TaskCounter, TaskGuard};

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

impl Agent {
    /// An agent that is not registered yet. Nothing is sent.
    #[must_use]
    pub fn new(client: RegistryClient, registration: Registration) -> Self {
        let core = Arc::new(Core::new(client, registration));
        Self { handle: Arc::new(Handle { core, heartbeats: Mutex::new(None) }) }
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
        self.core().register(&self.core().client).await
    }

    /// Registers with the patience of a service that starts: three attempts, up to 1 s and 2 s apart. Where
    /// that is of no use, because the registry is away or something in its place answers nonsense, the agent
    /// may run without it: the heartbeat loop, once it is started, goes on trying.
    ///
    /// # Errors
    /// Only what no further attempt would mend: fields out of their limits, and refused credentials.
    pub async fn register_with_retry(&self) -> Result<RegistrationOutcome, Error> {
        let client = self.core().client.with_retry(RetryPolicy::registration());
        match self.core().register(&client).await {
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
        core.amend(|registration| registration.heartbeat_interval = Some(interval));
        let stop = CancellationToken::new();
        let mut heartbeats = lock(&self.handle.heartbeats);
        let before = heartbeats.take();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.end().await;
            }
            heartbeat::run(core, interval, stopped).await;
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
        core.say(status);
        let told = core.tell(status).await;
        if let Err(error) = &told
            && error.is_superseded()
        {
            core.superseded();
        }
        told
    }

    /// Sets the agent's status without a request of its own: the next heartbeat tells it.
    pub fn set_status(&self, status: AgentStatus) {
        self.core().say(status);
    }

    /// Sets what the agent can do, and registers it anew. Whenever it registers again, that is what it says.
    ///
    /// # Errors
    /// Where it could not be told now. Fields out of their limits change nothing; where the registry does not
    /// answer, the heartbeat loop tells it later.
    pub async fn update_capabilities(&self, capabilities: Vec<Capability>) -> Result<AgentRecord, Error> {
        let mut changed = self.registration();
        changed.capabilities.clone_from(&capabilities);
        changed.validate()?;
        self.core().amend(|registration| registration.capabilities = capabilities);
        if self.state().is_registered() {
            // A process that was superseded finds it out here, before its registration would win.
            self.core().check_instance().await?;
        }
        self.register().await
    }

    /// Counts the agent's tasks, which heartbeats then tell.
    #[must_use]
    pub fn tasks(&self) -> TaskCounter {
        self.core().tasks.clone()
    }

    /// Tells this process apart from others that come up with the same id: random, unless the registration
    /// names one.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.core().instance_id
    }

    /// What the agent says of itself when it registers.
    #[must_use]
    pub fn registration(&self) -> Registration {
        self.core().registration()
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
        let before = core.stopped();
        let is_beating = lock(&self.handle.heartbeats).is_some();
        // Half of the time at the most, so that there is some left to say it.
        if timeout(limit / 2, self.stop_heartbeat()).await.is_err() {
            tracing::warn!(agent_id = core.agent_id, "the last heartbeat was cut off");
        }
        // Who never registered has nothing to say, and neither has who has said it already or was superseded.
        let silent = match before {
            AgentState::Stopped | AgentState::Superseded => true,
            AgentState::Registering => !is_beating,
            _ => false,
        };
        if silent {
            return;
        }
        let left = limit.saturating_sub(began.elapsed());
        match timeout(left, core.tell(AgentStatus::Offline)).await {
            Ok(
                Ok(()) | Err(Error::Unsupported { .. } | Error::NotFound { .. } | Error::Superseded { .. }),
            ) => {
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
