//! A simulated server: the real registry over the simulated database. Only this file uses the registry's API.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use registry_sdk::contract::{AgentHealth, AgentRecord, Heartbeat, HeartbeatAck, Registration, StatusUpdate};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::database::SimDatabase;
use super::network::Sim;
use super::world::Profile;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::registry::{Error, Json, Registry, Supervisor};

/// Time within which the registry answers every call, by design: six seconds, and some for the network.
const CALL_LIMIT: Duration = Duration::from_millis(6_500);

/// Time within which a server has loaded all agents, or ends.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Time within which a server ends after SIGTERM.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// What a failed call tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// 404.
    NotFound,
    /// Nothing was changed.
    Unchanged,
    /// The change may have been made.
    Unknown,
    /// The server is gone.
    Disconnected,
    /// Any other error, which is always a violation.
    Other,
}

/// A server process.
pub(super) struct Server {
    pub(super) index: usize,
    registry: Arc<Registry>,
    supervisor: Supervisor,
    /// Cancelled when the process is gone. Its tasks may still run, but have no effect.
    pub(super) killed: CancellationToken,
    pub(super) started_at: Instant,
    /// Name of its callers' token.
    token: Arc<str>,
    sim: Arc<Sim>,
}

impl Server {
    /// Starts a process. Returns `None` if it ended at once because the database was unavailable.
    pub(super) async fn start(sim: &Arc<Sim>, index: usize, profile: &Profile) -> Option<Arc<Self>> {
        let supervisor = Supervisor::new(CancellationToken::new());
        let process = sim.lock().server(index).process;
        let database = Arc::new(SimDatabase { sim: sim.clone(), server: index, process });
        let config = Config {
            heartbeat_timeout: profile.timeout,
            sweep_interval: profile.sweep_interval,
            ..Config::default()
        };
        let metrics = Metrics::new().ok()?;
        // A panic while it starts ends the process.
        let started =
            AssertUnwindSafe(Registry::start(database, config, metrics, &supervisor)).catch_unwind();
        let Ok(started) = timeout(START_LIMIT, started).await else {
            sim.lock().violation(format!("server {index} still starts after {START_LIMIT:?}"));
            return None;
        };
        let registry = started.ok()?.ok()?;
        let (sim, killed, started_at) = (sim.clone(), CancellationToken::new(), Instant::now());
        let token = format!("token of server {index}").into();
        Some(Arc::new(Self { index, registry, supervisor, killed, started_at, token, sim }))
    }

    /// Waits until the process ends because one of its tasks failed.
    pub(super) async fn failed(&self) {
        self.supervisor.failure().await;
    }

    /// Ends the process at once.
    pub(super) fn kill(&self) {
        self.sim.lock().kill(self.index);
        self.sim.changed.notify_waiters();
        self.killed.cancel();
        self.supervisor.abort();
    }

    /// Ends the process like SIGTERM.
    pub(super) async fn terminate(&self) {
        let begun = Instant::now();
        self.supervisor.shutdown().cancel();
        self.registry.close();
        self.supervisor.close();
        let has_ended = timeout(SHUTDOWN_LIMIT, self.supervisor.wait()).await.is_ok();
        let index = self.index;
        let mut state = self.sim.lock();
        state.trace.add(|| format!("server {index} ended after {:?}", begun.elapsed()));
        if !has_ended && !self.killed.is_cancelled() {
            state.violation(format!("server {index} runs {SHUTDOWN_LIMIT:?} after SIGTERM"));
        }
        drop(state);
        self.kill();
    }

    pub(super) async fn register(&self, registration: Registration) -> Result<AgentRecord, Failure> {
        let written = self.call("register", self.registry.register(registration, Some(&self.token))).await?;
        self.decode(&written.response)
    }

    pub(super) async fn heartbeat(&self, agent_id: &str) -> Result<HeartbeatAck, Failure> {
        let heartbeat = self.registry.heartbeat(agent_id, Heartbeat::default(), Some(&self.token));
        self.call("heartbeat", heartbeat).await.map(|heard| heard.ack)
    }

    pub(super) async fn update_status(
        &self,
        agent_id: &str,
        update: StatusUpdate,
    ) -> Result<AgentRecord, Failure> {
        let updating = self.registry.update_status(agent_id, update, Some(&self.token));
        let written = self.call("update_status", updating).await?;
        self.decode(&written.response)
    }

    pub(super) async fn deregister(&self, agent_id: &str) -> Result<(), Failure> {
        self.call("deregister", self.registry.deregister(agent_id, Some(&self.token))).await.map(drop)
    }

    pub(super) async fn get_agent(&self, agent_id: &str) -> Result<AgentRecord, Failure> {
        let json = self.call("get_agent", self.registry.get_agent(agent_id)).await?;
        self.decode(&json)
    }

    pub(super) async fn check_health(&self, agent_id: &str) -> Result<AgentHealth, Failure> {
        self.call("check_health", self.registry.check_health(agent_id)).await
    }

    /// Whether the server marks its responses as possibly stale.
    pub(super) fn is_stale(&self) -> bool {
        self.registry.stale_for().is_some()
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn call<T>(&self, name: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        let begun = Instant::now();
        if self.supervisor.shutdown().is_cancelled() {
            return Err(Failure::Disconnected);
        }
        let answer = tokio::select! {
            biased;
            () = self.killed.cancelled() => return Err(Failure::Disconnected),
            answer = timeout(2 * CALL_LIMIT, call) => answer,
        };
        if begun.elapsed() > CALL_LIMIT {
            let index = self.index;
            self.sim.lock().violation(format!("server {index}: {name} took {:?}", begun.elapsed()));
        }
        answer.unwrap_or(Err(Error::Unsettled)).map_err(|error| self.failure(name, &error))
    }

    fn failure(&self, name: &str, error: &Error) -> Failure {
        match error {
            Error::NotFound(_) | Error::NoCard(_) => Failure::NotFound,
            Error::Unavailable | Error::Overloaded | Error::ShuttingDown | Error::Locked(_) => {
                Failure::Unchanged
            }
            Error::Unsettled => Failure::Unknown,
            Error::Internal | Error::TooManyStreams | Error::Superseded { .. } | Error::ShutDown { .. } => {
                let index = self.index;
                self.sim.lock().violation(format!("server {index}: {name} failed: {error}"));
                Failure::Other
            }
        }
    }

    fn decode(&self, json: &Json) -> Result<AgentRecord, Failure> {
        serde_json::from_slice(json).map_err(|error| {
            self.sim.lock().violation(format!("an answer cannot be read: {error}"));
            Failure::Other
        })
    }
}
