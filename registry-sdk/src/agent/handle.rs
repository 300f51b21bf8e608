//! The handle on an agent: its public methods.

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

/// An agent, as its registry sees it: a [`RegistryClient`] with an identity.
///
/// Cheap to clone; all clones are one agent. Its methods change the state that the registry is to have, and wait
/// until the registry has acknowledged it; one loop sends it all, one request at a time, and goes on trying as long as heartbeats are on. The
/// registry never takes the agent down: [`Agent::watch`] shows its state. When the last clone is dropped, the loop ends and
/// the registry finds out at the deadline; [`Agent::shutdown`] ends it in good order.
///
/// Every method may be cancelled: the change is kept, and no further attempt is made for the caller that is gone.
///
/// The methods that wait, and [`Agent::start_heartbeat`], have to be called within a Tokio runtime. The loop runs in the runtime
/// of the first such call; if that runtime ends, the next call starts the loop anew in its own.
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

/// What all clones of an agent hold. When it is dropped, the loop ends.
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
    /// An agent that is not registered yet. Nothing is sent. The process counts as started now: of several that
    /// come up with the same id, the youngest owns it.
    #[must_use]
    pub fn new(client: RegistryClient, registration: Registration) -> Self {
        Self { handle: Arc::new(Handle { shared: Arc::new(Shared::new(client, registration)) }) }
    }

    /// Sets what the agent does when a younger process owns its id. Default: [`OnSuperseded::StandBy`].
    #[must_use]
    pub fn on_superseded(self, choice: OnSuperseded) -> Self {
        self.shared().choose(choice);
        self
    }

    /// Its id.
    #[must_use]
    pub fn agent_id(&self) -> &str {
        &self.shared().agent_id
    }

    /// The client it speaks through.
    #[must_use]
    pub fn client(&self) -> &RegistryClient {
        &self.shared().client
    }

    /// Its standing with the registry now.
    #[must_use]
    pub fn state(&self) -> AgentState {
        self.shared().state.borrow().clone()
    }

    /// Follows its standing with the registry.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<AgentState> {
        self.shared().state.subscribe()
    }

    /// Registers, and tries again as the client's own [`RetryPolicy`] says. A request that is under way ends first.
    ///
    /// # Errors
    /// Whatever kept it from registering. Once heartbeats are started, the agent goes on trying.
    /// [`Error::Superseded`] if a younger process owns the id.
    pub async fn register(&self) -> Result<AgentRecord, Error> {
        self.register_by(&self.shared().client.retry).await
    }

    async fn register_by(&self, policy: &RetryPolicy) -> Result<AgentRecord, Error> {
        // An invalid registration is never sent, so no attempt has to find out.
        self.registration().validate()?;
        let record = self.shared().call(Wants::Registration, policy).await?;
        record.ok_or(Error::ShutDown)
    }

    /// Registers with the patience of a service that starts: three attempts, up to 1 s and 2 s apart. The agent may run
    /// without its registry: once heartbeats are started, it goes on trying.
    ///
    /// # Errors
    /// Only what no further attempt would mend: fields out of their limits, and credentials that the registry refuses in
    /// the contract's own form. A refusal by something in between, a page of HTML for example, is an outcome.
    pub async fn register_with_retry(&self) -> Result<RegistrationOutcome, Error> {
        match self.register_by(&RetryPolicy::registration()).await {
            Ok(record) => Ok(RegistrationOutcome::Registered(Box::new(record))),
            Err(error) if error.is_refused() || matches!(error, Error::ShutDown) => Err(error),
            Err(error) if error.is_superseded() => Ok(RegistrationOutcome::Superseded(Arc::new(error))),
            Err(error) => Ok(RegistrationOutcome::Degraded(Arc::new(error))),
        }
    }

    /// Starts sending heartbeats, the first after a random part of the interval, and registers (again) wherever that is
    /// needed. It ends by [`Agent::stop_heartbeat`], [`Agent::shutdown`] or when the last clone of the agent is dropped.
    ///
    /// The interval is declared to the registry, which waits at least twice as long before it calls the agent
    /// offline.
    ///
    /// # Errors
    /// [`Error::Config`] if the interval is shorter than a millisecond or longer than a day; [`Error::ShutDown`] after a shutdown.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
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

    /// Stops sending heartbeats; a request under way ends first. The registry will call the agent offline
    /// when its deadline has passed.
    pub async fn stop_heartbeat(&self) {
        self.shared().desire(|desired| desired.interval = None);
        // After a shutdown nothing is sent anyway.
        let _ = self.shared().call(Wants::Idle, &RetryPolicy::none()).await;
    }

    /// Sets the agent's status, at the registry and for its next heartbeats.
    ///
    /// # Errors
    /// [`Error::Invalid`] for [`AgentStatus::Unknown`], which no request can set: then nothing is changed. Otherwise whatever kept the registry from taking it now. The next heartbeat carries it all the same.
    /// [`Error::Superseded`] while another process owns the id.
    pub async fn update_status(&self, status: AgentStatus) -> Result<(), Error> {
        status.check_known()?;
        self.set_status(status);
        self.shared().call(Wants::Status, &self.shared().client.retry).await.map(|_| ())
    }

    /// Sets the agent's status without a request of its own: the next heartbeat carries it. [`AgentStatus::Unknown`], which
    /// no request can set, is ignored and logged.
    pub fn set_status(&self, status: AgentStatus) {
        if !status.is_known() {
            tracing::warn!(agent_id = self.agent_id(), %status, "ignored a status that no request can set");
            return;
        }
        self.shared().desire(|desired| desired.set_status(status));
    }

    /// Sets what the agent can do, and registers it anew. Whenever it registers again, that is what it says.
    ///
    /// # Errors
    /// [`Error::Invalid`] if fields are out of their limits: then nothing is changed. Otherwise whatever kept the
    /// registry from taking it now: while heartbeats are on, the agent goes on trying.
    /// [`Error::Superseded`] while another process owns the id.
    pub async fn update_capabilities(&self, capabilities: Vec<Capability>) -> Result<AgentRecord, Error> {
        self.amend(|registration| registration.capabilities.clone_from(&capabilities)).await
    }

    /// Sets the agent's A2A agent card, or removes it, and registers anew. Whenever it registers again, that is the card that it sends.
    ///
    /// # Errors
    /// As [`Agent::update_capabilities`].
    pub async fn update_card(&self, card: Option<AgentCard>) -> Result<AgentRecord, Error> {
        self.amend(|registration| registration.card.clone_from(&card)).await
    }

    /// Changes the registration if it is valid then, and registers anew.
    async fn amend(&self, change: impl Fn(&mut Registration)) -> Result<AgentRecord, Error> {
        let mut changed = self.registration();
        change(&mut changed);
        changed.validate()?;
        self.shared().desire(|desired| desired.amend(|registration| change(registration)));
        self.register().await
    }

    /// Returns a function that reads the card as it would be registered now. It does not keep the heartbeat loop alive.
    #[cfg(all(feature = "a2a", feature = "axum"))]
    pub(crate) fn card_reader(&self) -> impl Fn() -> Option<AgentCard> + Send + Sync + 'static {
        let shared = Arc::clone(self.shared());
        move || shared.lock().desired.registration.card.clone()
    }

    /// Counter of the agent's tasks, which heartbeats report.
    #[must_use]
    pub fn tasks(&self) -> TaskCounter {
        self.shared().tasks.clone()
    }

    /// Id of this process among others with the same agent id: random, unless the registration names one.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.shared().instance_id
    }

    /// The registration as it would be sent now.
    #[must_use]
    pub fn registration(&self) -> Registration {
        self.shared().lock().desired.registration.clone()
    }

    /// Ends the agent's life at the registry within five seconds: see [`Agent::shutdown_within`].
    pub async fn shutdown(&self) {
        self.shutdown_within(SHUTDOWN_LIMIT).await;
    }

    /// Ends the agent's life at the registry, in order and in bounded time: calls that wait fail with
    /// [`Error::ShutDown`], the request under way ends, then the status is set to `offline`, for good. If the registry
    /// cannot be reached, that is logged, and the registry finds out at the agent's deadline.
    ///
    /// It is a barrier for all clones and tasks: when any call of it returns, nothing more is sent. Of several at once the
    /// shortest limit counts.
    ///
    /// # Cancel safety
    /// The shutdown goes on if the caller gives up; another call waits for its end.
    pub async fn shutdown_within(&self, limit: Duration) {
        self.shared().stop_within(limit);
        self.shared().ended(limit).await;
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}
