//! Handing a task over, to the next agent where one fails.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reqwest::header::CONTENT_TYPE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout};
use url::Url;

use super::query::TaskQuery;
use super::select::{Orchestrator, SelectError, Selection};
use crate::contract::CapabilityMatch;
use crate::error::with_causes;
use crate::http::HttpClients;
use crate::retry::deadline_after;

/// How long a whole delegation may take unless told otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// How many agents get the task unless told otherwise.
const ATTEMPTS: usize = 3;

/// A task on its way to an agent. Made by [`Orchestrator::delegate`].
#[derive(Debug)]
pub struct Delegation<'a> {
    orchestrator: &'a Orchestrator,
    query: TaskQuery,
    attempts: usize,
    time_limit: Duration,
    hedge_after: Option<Duration>,
}

/// Who has had a task, while it is not done.
#[derive(Debug, Default)]
struct Progress {
    failed: Vec<String>,
    at_it: Vec<String>,
}

/// A task that was done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delegated<T> {
    /// What came of it.
    pub value: T,
    /// Who did it, and who was passed over.
    pub selection: Selection,
    /// Who got the task first, and failed.
    pub failed: Vec<String>,
}

/// What the caller's task says of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskError<E> {
    /// The agent's fault: another agent may do better.
    Transient(E),
    /// The task's own fault: no other agent would do better.
    Permanent(E),
}

/// Why a task was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DelegateError<E> {
    /// No agent could be chosen, or none is left after those that failed.
    #[error("no agent is there to do it; {} failed at it", failed.len())]
    NoAgent {
        /// Why none was selected.
        #[source]
        source: SelectError,
        /// Who got the task, and failed.
        failed: Vec<String>,
        /// Why the last of those failed.
        last: Option<E>,
    },
    /// As many agents as were allowed got the task, and failed.
    #[error("{} agents failed at it", failed.len())]
    Failed {
        /// Who got the task.
        failed: Vec<String>,
        /// Why the last of those failed.
        last: E,
    },
    /// The task cannot be done.
    #[error("{agent_id} says that it cannot be done")]
    Permanent {
        /// Who says so.
        agent_id: String,
        /// The reason.
        error: E,
    },
    /// It was not done in time.
    #[error("it was not done within {limit:?}")]
    TimedOut {
        /// How long it was allowed to take.
        limit: Duration,
        /// Who got the task, the last of whom may still be at it.
        failed: Vec<String>,
    },
}

/// Why a task that was sent over HTTP failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpTaskError {
    /// The agent could not be reached, or its answer broke off.
    #[error("the agent cannot be reached: {0}")]
    Unreachable(String),
    /// It answered with an error's status.
    #[error("the agent answered {status}: {body}")]
    Status {
        /// The status.
        status: u16,
        /// The beginning of what it said.
        body: String,
    },
    /// It answered something else than what was expected.
    #[error("the agent's answer makes no sense: {0}")]
    InvalidResponse(String),
    /// The task cannot be written as JSON.
    #[error("the task cannot be sent: {0}")]
    Payload(String),
}

impl Orchestrator {
    /// The best healthy agent for a capability, or for another where there is none.
    ///
    /// # Errors
    /// As [`Orchestrator::select`].
    pub async fn delegate_with_fallback(
        &self,
        primary: impl Into<String>,
        fallback: impl Into<String>,
    ) -> Result<Selection, SelectError> {
        self.select(&TaskQuery::new(primary).fallback(fallback)).await
    }

    /// Hands a task over to an agent that can do it, and to the next where that fails.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use registry_sdk::{RegistryClient, discovery::Orchestrator};
    /// # let orchestrator = Orchestrator::new(RegistryClient::new("http://127.0.0.1:8009")?);
    /// let task = serde_json::json!({"review": "fn main() {}"});
    /// let done = orchestrator.delegate("code_review").post_json::<serde_json::Value>("/execute", &task).await?;
    /// println!("{} did it: {}", done.selection.agent.agent_id, done.value);
    /// # Ok(())
    /// # }
    /// ```
    pub fn delegate(&self, query: impl Into<TaskQuery>) -> Delegation<'_> {
        Delegation {
            orchestrator: self,
            query: query.into(),
            attempts: ATTEMPTS,
            time_limit: TIME_LIMIT,
            hedge_after: None,
        }
    }
}

impl Delegation<'_> {
    /// How many agents may get the task, one after another; at least one. Default: 3.
    #[must_use]
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long all of it may take. Default: a minute.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// For tasks that may be done twice without harm: where an agent has not done the task after this time, the next
    /// one gets it as well, and the first good answer counts (hedged requests: Dean and Barroso, "The Tail at
    /// Scale", 2013, <https://doi.org/10.1145/2408776.2408794>). The others are dropped then. A time that one task in
    /// twenty takes costs some 5 % more work. Default: off.
    #[must_use]
    pub fn hedge_after(mut self, delay: Duration) -> Self {
        self.hedge_after = Some(delay);
        self
    }

    /// Runs the caller's task against the chosen agent, and against the next where it fails by the agent's
    /// fault. The outcome feeds the agent's circuit breaker.
    ///
    /// May be cancelled: what is under way is dropped.
    ///
    /// # Errors
    /// Where nobody did it: see [`DelegateError`].
    pub async fn run<T, E, F>(
        self,
        mut task: impl FnMut(CapabilityMatch) -> F,
    ) -> Result<Delegated<T>, DelegateError<E>>
    where
        F: Future<Output = Result<T, TaskError<E>>>,
    {
        let Self { orchestrator, time_limit, .. } = self;
        let mut progress = Progress::default();
        if let Ok(outcome) = timeout(time_limit, self.race(&mut task, &mut progress)).await {
            return outcome;
        }
        let Progress { mut failed, at_it } = progress;
        for agent_id in at_it {
            orchestrator.breakers.failed(&agent_id);
            failed.push(agent_id);
        }
        Err(DelegateError::TimedOut { limit: time_limit, failed })
    }

    /// Gives the task to one agent after another, or with hedging to several at once, until it is done or nobody is
    /// left.
    async fn race<T, E, F>(
        self,
        task: &mut impl FnMut(CapabilityMatch) -> F,
        progress: &mut Progress,
    ) -> Result<Delegated<T>, DelegateError<E>>
    where
        F: Future<Output = Result<T, TaskError<E>>>,
    {
        let Self { orchestrator, mut query, attempts, hedge_after, .. } = self;
        let mut running = FuturesUnordered::new();
        // Beside what is running, so that an answer need not wait for the next agent to be chosen.
        let mut selecting = Some(Box::pin(orchestrator.select_admitted(query.clone())));
        let mut begun = 0;
        let mut hedge_at = None;
        let mut last = None;
        // Why no further agent can be chosen.
        let mut nobody = None;
        loop {
            let may_begin = selecting.is_none() && nobody.is_none() && begun < attempts;
            tokio::select! {
                selected = pending_or(&mut selecting) => {
                    selecting = None;
                    match selected {
                        Ok(selection) => {
                            begun += 1;
                            hedge_at = hedge_after.map(|delay| deadline_after(Instant::now(), delay));
                            let agent = selection.agent.clone();
                            // Whoever has had the task does not get it again.
                            query.exclude.insert(agent.agent_id.clone());
                            progress.at_it.push(agent.agent_id.clone());
                            let task = task(agent);
                            running.push(async move { (task.await, selection) });
                        }
                        Err(source) if running.is_empty() => {
                            let failed = std::mem::take(&mut progress.failed);
                            return Err(DelegateError::NoAgent { source, failed, last });
                        }
                        Err(source) => nobody = Some(source),
                    }
                }
                Some((outcome, selection)) = running.next() => {
                    let agent_id = selection.agent.agent_id.clone();
                    progress.at_it.retain(|at_it| *at_it != agent_id);
                    match outcome {
                        Ok(value) => {
                            orchestrator.breakers.succeeded(&agent_id);
                            let failed = std::mem::take(&mut progress.failed);
                            return Ok(Delegated { value, selection, failed });
                        }
                        Err(TaskError::Permanent(error)) => {
                            // The agent did its part: it is the task that cannot be done.
                            orchestrator.breakers.succeeded(&agent_id);
                            return Err(DelegateError::Permanent { agent_id, error });
                        }
                        Err(TaskError::Transient(error)) => {
                            orchestrator.breakers.failed(&agent_id);
                            progress.failed.push(agent_id);
                            if may_begin {
                                selecting = Some(Box::pin(orchestrator.select_admitted(query.clone())));
                            } else if running.is_empty() && selecting.is_none() {
                                let failed = std::mem::take(&mut progress.failed);
                                return Err(match nobody {
                                    Some(source) => DelegateError::NoAgent { source, failed, last: Some(error) },
                                    None => DelegateError::Failed { failed, last: error },
                                });
                            }
                            last = Some(error);
                        }
                    }
                }
                () = sleep_until(hedge_at.unwrap_or_else(Instant::now)), if hedge_at.is_some() && may_begin => {
                    hedge_at = None;
                    selecting = Some(Box::pin(orchestrator.select_admitted(query.clone())));
                }
            }
        }
    }

    /// Sends the task as JSON to a path below the agent's `base_url`, and reads JSON back. What cannot be
    /// reached, breaks off, makes no sense, or answers 408, 429 or 5xx is the agent's fault; any other error's
    /// status is the task's.
    ///
    /// # Errors
    /// As [`Delegation::run`].
    pub async fn post_json<T: DeserializeOwned>(
        self,
        path: &str,
        payload: &impl Serialize,
    ) -> Result<Delegated<T>, DelegateError<HttpTaskError>> {
        let http = self.orchestrator.client().http().clone();
        let body = serde_json::to_vec(payload).map_err(|error| error.to_string());
        self.run(|agent| {
            let url = format!("{}/{}", agent.base_url.trim_end_matches('/'), path.trim_start_matches('/'));
            let (http, body) = (http.clone(), body.clone());
            async move {
                let body = body.map_err(|error| TaskError::Permanent(HttpTaskError::Payload(error)))?;
                send(&http, url, body).await
            }
        })
        .await
    }
}

/// What a future gives; nothing ever where there is none.
async fn pending_or<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn send<T: DeserializeOwned>(
    http: &HttpClients,
    url: String,
    body: Vec<u8>,
) -> Result<T, TaskError<HttpTaskError>> {
    let unreachable = |error: reqwest::Error| unreachable_by(&error.without_url());
    let url = Url::parse(&url).map_err(|error| unreachable_by(&error))?;
    let http = http.for_url(&url).map_err(|error| unreachable_by(&error))?;
    let request = http.post(url).header(CONTENT_TYPE, "application/json").body(body);
    let answer = request.send().await.map_err(unreachable)?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(unreachable)?;
    if status.is_success() {
        let nonsense = |error: serde_json::Error| HttpTaskError::InvalidResponse(error.to_string());
        return serde_json::from_slice(&body).map_err(|error| TaskError::Transient(nonsense(error)));
    }
    let said = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    let error = HttpTaskError::Status { status: status.as_u16(), body: said };
    if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
        Err(TaskError::Transient(error))
    } else {
        Err(TaskError::Permanent(error))
    }
}

fn unreachable_by(error: &dyn std::error::Error) -> TaskError<HttpTaskError> {
    TaskError::Transient(HttpTaskError::Unreachable(with_causes(error)))
}
