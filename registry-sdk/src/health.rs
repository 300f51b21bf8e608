//! The agent's own health endpoint (feature `axum`), which the registry's probes and orchestrators request.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use crate::agent::{Agent, TaskCounter};
use crate::contract::own_health::health_url;
use crate::contract::{DEFAULT_HEALTH_PATH, FailedCheck, HealthReport, HealthStatus};

/// Time limit of a check: half of a registry's time limit for the whole response.
const CHECK_LIMIT: Duration = Duration::from_secs(1);

type Verdict = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// An agent's health endpoint: responds with 200 and `healthy` if all checks pass, or with 503, `unhealthy` and the failed
/// checks. Without checks, the agent is healthy until it [drains](Agent::drain).
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use registry_sdk::{Agent, RegistryClient, contract::Registration};
/// # let client = RegistryClient::new("http://127.0.0.1:8009")?;
/// # let agent = Agent::new(client, Registration::new("a", "Agent", "http://a:8000"));
/// use registry_sdk::HealthEndpoint;
///
/// let health = HealthEndpoint::new(&agent)
///     .check("scratch space", || async {
///         tokio::fs::write("/tmp/probe", "").await.map_err(|error| error.to_string())
///     });
/// let app = axum::Router::new(/* … the agent's own routes … */).merge(health.router());
/// axum::serve(tokio::net::TcpListener::bind("0.0.0.0:8000").await?, app).await?;
/// # Ok(())
/// # }
/// ```
pub struct HealthEndpoint {
    agent_id: String,
    path: String,
    tasks: TaskCounter,
    began: Instant,
    checks: Vec<Check>,
}

struct Check {
    name: String,
    run: Box<dyn Fn() -> Verdict + Send + Sync>,
}

impl fmt::Debug for HealthEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checks: Vec<_> = self.checks.iter().map(|check| &check.name).collect();
        f.debug_struct("HealthEndpoint")
            .field("agent_id", &self.agent_id)
            .field("checks", &checks)
            .finish_non_exhaustive()
    }
}

impl HealthEndpoint {
    /// Creates the endpoint of an agent, at its `health_path` (`/health` by default).
    ///
    /// Its uptime counts from now. It does not keep the agent's heartbeat loop alive.
    #[must_use]
    pub fn new(agent: &Agent) -> Self {
        // The path is encoded, as it arrives in requests.
        let url = health_url("http://agent", agent.registration().health_path.as_deref());
        let path = url.map_or_else(|| DEFAULT_HEALTH_PATH.to_owned(), |url| url.path().to_owned());
        Self {
            agent_id: agent.agent_id().to_owned(),
            path,
            tasks: agent.tasks(),
            began: Instant::now(),
            checks: Vec::new(),
        }
    }

    /// Adds a check, which returns what is wrong.
    ///
    /// All checks run concurrently for each request. A check that takes longer than a second fails.
    #[must_use]
    pub fn check<F>(mut self, name: impl Into<String>, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push(Check { name: name.into(), run: Box::new(move || Box::pin(check())) });
        self
    }

    /// Returns a router with a `GET` of the health path, for merging into the agent's own router.
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        // A path may have segments that begin with a colon, which older versions of axum treat as parameters.
        Router::new().without_v07_checks().route(&self.path.clone(), get(answer)).with_state(Arc::new(self))
    }

    /// Returns the agent's current health.
    ///
    /// Cancel safe: the checks are cancelled as well.
    pub async fn health(&self) -> HealthReport {
        let verdicts = self.checks.iter().map(|check| async {
            let late = || format!("no answer within {CHECK_LIMIT:?}");
            let verdict = timeout(CHECK_LIMIT, (check.run)()).await.unwrap_or_else(|_| Err(late()));
            verdict.err().map(|detail| FailedCheck::new(&check.name, detail))
        });
        let mut failed: Vec<FailedCheck> = join_all(verdicts).await.into_iter().flatten().collect();
        if self.tasks.is_draining() {
            failed.push(FailedCheck::new("draining", "it takes no new tasks"));
        }
        let status = if failed.is_empty() { HealthStatus::Healthy } else { HealthStatus::Unhealthy };
        let mut health = HealthReport::new(status, &self.agent_id);
        health.active_tasks = self.tasks.active();
        // The precision of all times is a millisecond.
        let uptime = self.began.elapsed();
        health.uptime =
            uptime.saturating_sub(Duration::from_nanos(u64::from(uptime.subsec_nanos() % 1_000_000)));
        health.failed_checks = failed;
        health
    }
}

async fn answer(State(endpoint): State<Arc<HealthEndpoint>>) -> (StatusCode, Json<HealthReport>) {
    let health = endpoint.health().await;
    let status = match health.status {
        HealthStatus::Healthy => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health))
}
