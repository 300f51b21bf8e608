//! The public handle of an agent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::shared::{Shared, Wants};
use super::state::{AgentState, OnSuperseded, RegistrationOutcome};
use super::tasks::TaskCounter;
use super::timer::MIN_INTERVAL;
use crate::client::RegistryClient;
use crate::contract::{AgentCard, AgentRecord, AgentStatus, Capability, Registration, limits};
use crate::error::Error;
use crate::retry::RetryPolicy;

/// Default time limit of [`Agent::shutdown`].
pub(super) const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// An agent: registers with a registry and keeps the registration alive.
///
/// An agent is cheap to clone, and all clones are the same agent. Its methods change the state that the registry should have,
/// and wait until the registry has acknowledged it. A background loop sends the changes one request at a time, and retries as
/// long as heartbeats are on. A registry that fails never stops the agent: [`Agent::watch`] reports the state. When the last
/// clone is dropped, the loop ends, and the registry notices at the agent's deadline. [`Agent::shutdown`] reports the end
/// at once.
///
/// All methods are cancel safe: the change is kept, but no further attempt is made for a caller that gave up.
///
/// The async methods and [`Agent::start_heartbeat`] have to be called within a Tokio runtime. The loop runs in the runtime of
/// the first such call. If that runtime ends, the next call restarts the loop in its own runtime.
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

/// The state shared by all clones of an agent. When it is dropped, the loop ends.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

impl Agent {
    /// Creates an agent, which is not registered yet.
    ///
    /// Sends nothing. The process counts as started now: of several processes with the same id, the youngest owns it.
    #[must_use]
    pub fn new(client: RegistryClient, registration: Registration) -> Self {
        Self { handle: Arc::new(Handle { shared: Arc::new(Shared::new(client, registration)) }) }
    }

    /// Sets what the agent does if a younger process owns its id. Default: [`OnSuperseded::StandBy`].
    #[must_use]
    pub fn on_superseded(self, choice: OnSuperseded) -> Self {
        self.shared().choose(choice);
        self
    }

    /// Returns the agent's id.
    #[must_use]
    pub fn agent_id(&self) -> &str {
        &self.shared().agent_id
    }

    /// Returns the client that the agent uses.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.shared().client
    }

    /// Returns the agent's current state.
    #[must_use]
    pub fn state(&self) -> AgentState {
        self.shared().state.borrow().clone()
    }

    /// Returns a receiver that follows the agent's state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<AgentState> {
        self.shared().state.subscribe()
    }

    /// Registers the agent. Retries as the client's own [`RetryPolicy`] says. A request in flight finishes first.
    ///
    /// # Errors
    /// Returns the reason why the agent could not be registered. If heartbeats are started, the agent keeps trying.
    /// [`Error::Superseded`] if a younger process owns the id.
    pub async fn register(&self) -> Result<AgentRecord, Error> {
        self.register_by(&self.shared().client.retry).await
    }

    async fn register_by(&self, policy: &RetryPolicy) -> Result<AgentRecord, Error> {
        // An invalid registration is never sent, so the check comes first.
        self.registration().validate()?;
        let record = self.shared().call(Wants::Registration, policy).await?;
        record.ok_or(Error::ShutDown)
    }

    /// Registers the agent with [`RetryPolicy::registration`]: three attempts, with delays of up to 1 s and 2 s.
    ///
    /// The agent may run without its registry: once heartbeats are started, it keeps trying.
    ///
    /// # Errors
    /// Only errors that no further attempt can fix: invalid fields, credentials that the registry refuses in the contract's own
    /// form, [`Error::Config`], and [`Error::ShutDown`] after a shutdown. A refusal by something else, such as a proxy's HTML page,
    /// is an outcome and not an error.
    pub async fn register_with_retry(&self) -> Result<RegistrationOutcome, Error> {
        match self.register_by(&RetryPolicy::registration()).await {
            Ok(record) => Ok(RegistrationOutcome::Registered(Box::new(record))),
            Err(error) if error.is_refused() || matches!(error, Error::ShutDown) => Err(error),
            Err(error) if error.is_superseded() => Ok(RegistrationOutcome::Superseded(Arc::new(error))),
            Err(error) => Ok(RegistrationOutcome::Degraded(Arc::new(error))),
        }
    }

    /// Starts sending heartbeats, the first after a random part of the interval, and registers the agent whenever necessary.
    ///
    /// The heartbeats end with [`Agent::stop_heartbeat`], with [`Agent::shutdown`], or when the last clone of the agent is
    /// dropped.
    ///
    /// The agent declares the interval to the registry, which waits at least twice as long before the agent counts as offline.
    ///
    /// # Errors
    /// [`Error::Config`] if the interval is shorter than a millisecond or longer than a day; [`Error::ShutDown`] after a
    /// shutdown.
    ///
    /// # Panics
    /// If called outside of a Tokio runtime.
    pub fn start_heartbeat(&self, interval: Duration) -> Result<(), Error> {
        if interval < MIN_INTERVAL || interval > limits::HEARTBEAT_INTERVAL {
            return Err(Error::Config(format!(
                "a heartbeat interval of {interval:?} is not between a millisecond and a day"
            )));
        }
        self.shared().change_and_wake(|inner| {
            inner.desired.amend(|registration| registration.heartbeat_interval = Some(interval));
            inner.desired.interval = Some(interval);
        })
    }

    /// Stops sending heartbeats, after a request in flight has finished.
    ///
    /// The agent counts as offline once its deadline has passed.
    pub async fn stop_heartbeat(&self) {
        self.shared().desire(|desired| desired.interval = None);
        // Nothing is sent after a shutdown anyway.
        let _ = self.shared().call(Wants::Idle, &RetryPolicy::none()).await;
    }

    /// Sets the agent's status at the registry and for later heartbeats.
    ///
    /// # Errors
    /// [`Error::Invalid`] for [`AgentStatus::Unknown`], which no request can set; nothing is changed then. Otherwise the reason
    /// why the registry has not accepted the status now; the next heartbeat carries it anyway. [`Error::Superseded`] if another
    /// process owns the id.
    pub async fn update_status(&self, status: AgentStatus) -> Result<(), Error> {
        status.check_known()?;
        self.set_status(status);
        self.shared().call(Wants::Status, &self.shared().client.retry).await.map(|_| ())
    }

    /// Sets the agent's status without a request: the next heartbeat carries it.
    ///
    /// [`AgentStatus::Unknown`], which no request can set, is ignored and logged.
    pub fn set_status(&self, status: AgentStatus) {
        if !status.is_known() {
            tracing::warn!(agent_id = self.agent_id(), %status, "ignored a status that no request can set");
            return;
        }
        self.shared().desire(|desired| desired.set_status(status));
    }

    /// Sets the agent's capabilities and registers the agent again. Later registrations have the same capabilities.
    ///
    /// # Errors
    /// [`Error::Invalid`] if any field is out of its limits; nothing is changed then. Otherwise the reason why the registry has
    /// not accepted the change now; while heartbeats are on, the agent keeps trying. [`Error::Superseded`] if another process
    /// owns the id.
    pub async fn update_capabilities(&self, capabilities: Vec<Capability>) -> Result<AgentRecord, Error> {
        self.amend(|registration| registration.capabilities.clone_from(&capabilities)).await
    }

    /// Sets or removes the agent's A2A agent card and registers the agent again. Later registrations have the same card.
    ///
    /// # Errors
    /// The same as those of [`Agent::update_capabilities`].
    pub async fn update_card(&self, card: Option<AgentCard>) -> Result<AgentRecord, Error> {
        self.amend(|registration| registration.card.clone_from(&card)).await
    }

    /// Changes the registration if the result is valid, and registers the agent again.
    async fn amend(&self, change: impl Fn(&mut Registration)) -> Result<AgentRecord, Error> {
        let mut changed = self.registration();
        change(&mut changed);
        changed.validate()?;
        self.shared().desire(|desired| desired.amend(|registration| change(registration)));
        self.register().await
    }

    /// Returns a function that reads the card for the next registration. It does not keep the heartbeat loop alive.
    #[cfg(all(feature = "a2a", feature = "axum"))]
    pub(crate) fn card_reader(&self) -> impl Fn() -> Option<AgentCard> + Send + Sync + 'static {
        let shared = Arc::clone(self.shared());
        move || shared.lock().desired.registration.card.clone()
    }

    /// Returns the counter of the agent's tasks, which heartbeats report.
    #[must_use]
    pub fn tasks(&self) -> TaskCounter {
        self.shared().tasks.clone()
    }

    /// Returns the id of this process, which distinguishes it from others with the same agent id.
    ///
    /// It is random, unless the registration names one.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.shared().instance_id
    }

    /// Returns the registration as it would be sent now.
    #[must_use]
    pub fn registration(&self) -> Registration {
        self.shared().lock().desired.registration.clone()
    }

    /// Shuts the agent down within five seconds: see [`Agent::shutdown_within`].
    pub async fn shutdown(&self) {
        self.shutdown_within(SHUTDOWN_LIMIT).await;
    }

    /// Shuts the agent down within a time limit: waiting calls fail with [`Error::ShutDown`], the request in flight gets up to
    /// half of the limit to finish, and the status is set to `offline` for good. If the registry cannot be reached, that is logged,
    /// and the registry notices at the agent's deadline.
    ///
    /// After any call of this method has returned, no clone and no task sends anything. If there are several calls at once, the
    /// shortest limit counts.
    ///
    /// # Cancel safety
    /// If the caller gives up, the shutdown continues, and another call waits for its end.
    pub async fn shutdown_within(&self, limit: Duration) {
        self.shared().stop_within(limit);
        self.shared().ended(limit).await;
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}
