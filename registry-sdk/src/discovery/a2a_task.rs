//! Tasks over A2A: sends a message to an agent, and polls the agent's task until it ends.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tracing::Span;
use url::Url;

use super::attempt::Attempt;
use super::failure_kind::FailureKind;
use super::http_task::{AgentAccess, send};
use super::http_task_error::HttpTaskError;
use super::orchestrator::Orchestrator;
use super::task_error::{Charge, TaskError};
use crate::a2a::a2a_error::A2aError;
use crate::a2a::call::{Call, Unusable};
use crate::a2a::cards::Cards;
use crate::a2a::message::Message;
use crate::a2a::reply::Reply;
use crate::a2a::target::Target;
use crate::client::RegistryClient;
use crate::contract::{CapabilityMatch, IDEMPOTENCY_KEY_HEADER, TIME_LEFT_HEADER};
use crate::retry::Backoff;

/// Delays between two polls of a task.
const PAUSES: Backoff =
    Backoff { min_delay: Duration::from_millis(200), max_delay: Duration::from_secs(5), factor: 1.5 };

/// Time limit of a poll until its response begins, and of each pause while the response arrives, so that a long result may take longer.
const POLL_TIME: Duration = Duration::from_secs(10);

/// Number of failed polls in a row after which an attempt fails. The task may still run.
const MAX_FAILED_POLLS: u32 = 3;

/// Minimum delay after the first failed poll, so that an agent that restarts does not lose the task. After the second one it is
/// twice that.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// How long before its end an attempt polls once more, however long the delay would be.
const BEFORE_END: Duration = Duration::from_secs(1);

/// Maximum delay between two polls after that.
const LAST_PAUSE: Duration = Duration::from_millis(200);

/// Time limit of the request that cancels a task.
const CANCEL_TIME: Duration = Duration::from_secs(5);

/// A message that can be sent to any number of agents.
#[derive(Debug)]
pub(super) struct A2aTask<'a> {
    access: &'a AgentAccess,
    client: &'a RegistryClient,
    cards: &'a Cards,
    message: Message,
    /// The caller's own headers.
    headers: HeaderMap,
    max_response: usize,
}

/// An attempt, and the interface that it uses.
struct Connection<'a> {
    task: &'a A2aTask<'a>,
    attempt: &'a Attempt,
    /// The attempt's agent, at the URL of the interface.
    agent: CapabilityMatch,
    target: Arc<Target>,
}

impl<'a> A2aTask<'a> {
    pub(super) fn new(
        orchestrator: &'a Orchestrator,
        message: Message,
        headers: HeaderMap,
        max_response: usize,
    ) -> Self {
        let Orchestrator { access, client, cards, .. } = orchestrator;
        Self { access, client, cards, message, headers, max_response }
    }

    /// Sends the message to the agent of an attempt. Returns the reply once the agent has done the task or waits for the caller.
    pub(super) async fn run(&self, attempt: &Attempt) -> Result<Reply, TaskError> {
        let connection = self.connect(attempt).await?;
        let reply = connection.begin().await?;
        let reply = match reply.task_id().filter(|_| reply.state().is_running()) {
            Some(task_id) => {
                let running = connection.cancel_on_drop(task_id);
                let reply = connection.follow(task_id).await?;
                running.disarm();
                reply
            }
            None => reply,
        };
        reply.outcome().map_err(|error| self.access.failed(HttpTaskError::A2a(error)))
    }

    async fn connect<'b>(&'b self, attempt: &'b Attempt) -> Result<Connection<'b>, TaskError> {
        let target = self.cards.target(self.client, &attempt.agent, attempt.deadline).await;
        let target =
            target.map_err(|why| self.access.failed(HttpTaskError::A2a(A2aError::NotCallable(why))))?;
        let mut agent = attempt.agent.clone();
        // A token provider may choose the token by the URL, so it has to get the one to which the token is sent. If that
        // is the agent's own URL, the spelling that was registered is kept, because the provider may know only that one.
        if !Url::parse(&agent.base_url).is_ok_and(|url| url == *target.url()) {
            agent.base_url = target.url().to_string();
        }
        Ok(Connection { task: self, attempt, agent, target })
    }
}

impl Connection<'_> {
    /// Sends the message. Returns the task in the state of the agent's response.
    async fn begin(&self) -> Result<Reply, TaskError> {
        let access = self.task.access;
        let attempt = self.attempt;
        let call = Call::send(self.target.clone(), &self.task.message, &attempt.idempotency_key);
        let call = call.map_err(|error| access.failed(HttpTaskError::A2a(error)))?;
        let request = self.request(&call, true).map_err(|error| access.failed(error))?;
        attempt.record_request(&call.method, &call.url);
        let sending = async {
            let sent = send(request, &attempt.span, attempt.deadline).await;
            sent.map_err(|error| access.failed(refusal(&call, error)))
        };
        let response = attempt.in_time(sending).await?;
        self.read(&call, response, None).await
    }

    /// Returns a guard that cancels a task unless it is disarmed.
    fn cancel_on_drop<'b>(&'b self, task_id: &'b str) -> CancelOnDrop<'b> {
        CancelOnDrop { connection: self, task_id, runtime: Handle::current(), is_armed: true }
    }

    /// Polls a task until the agent no longer works on it. The attempt's deadline does not apply to a response that has begun.
    async fn follow(&self, task_id: &str) -> Result<Reply, TaskError> {
        let (mut polls, mut failures) = (0, 0);
        let mut pause = self.regular_pause(polls);
        loop {
            polls += 1;
            let call = Call::get_task(self.target.clone(), task_id, u64::from(polls) + 1);
            let polling = async {
                sleep(pause).await;
                self.poll(&call).await
            };
            let polled = match self.attempt.until_deadline(polling).await? {
                Ok(response) => self.read(&call, response, Some(task_id)).await,
                Err(error) => Err(error),
            };
            let error = match polled {
                Ok(reply) if reply.state().is_running() => {
                    self.attempt.awaited.set(true);
                    (failures, pause) = (0, self.regular_pause(polls));
                    continue;
                }
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            tracing::debug!(agent_id = self.agent.agent_id, %error, "polling a task failed");
            // A busy agent has not failed.
            let retry_after = error.retry_after();
            self.attempt.awaited.set(retry_after.is_none());
            let min_pause = if let Some(retry_after) = retry_after {
                retry_after.max(FAILURE_PAUSE)
            } else {
                failures += 1;
                if failures == MAX_FAILED_POLLS {
                    return Err(given_up(error));
                }
                FAILURE_PAUSE * failures
            };
            let delay = min_pause.saturating_add(PAUSES.delay(0, None));
            pause = self.pause(delay, delay);
        }
    }

    /// Returns the pause after this many polls, if the last one has not failed.
    fn regular_pause(&self, polls: u32) -> Duration {
        let delay = PAUSES.delay(polls, None);
        self.pause(delay, delay.min(LAST_PAUSE))
    }

    /// Cuts a delay short, so that a task that is done just before the attempt ends is found. The other delay applies if the
    /// attempt is about to end.
    fn pause(&self, delay: Duration, last_delay: Duration) -> Duration {
        let left = self.attempt.deadline.saturating_duration_since(Instant::now());
        let until_last = left.saturating_sub(BEFORE_END);
        if until_last.is_zero() { last_delay } else { delay.min(until_last) }
    }

    /// Requests the state of a task. Returns the response once it has begun.
    async fn poll(&self, call: &Call) -> Result<Response, TaskError> {
        let access = self.task.access;
        let request = self.request(call, false).map_err(|error| access.failed(error))?;
        // The attempt's span records the request that began the task.
        let sent = timeout(POLL_TIME, send(request, &Span::none(), Instant::now() + POLL_TIME)).await;
        let sent = sent.unwrap_or_else(|_| Err(HttpTaskError::Broken(Arc::new(PollTimeout))));
        sent.map_err(|error| access.failed(refusal(call, error)))
    }

    /// Reads a response. With a `task_id`, it has to be about that task, and one that stalls is given up, because the task can be polled
    /// again.
    async fn read(&self, call: &Call, response: Response, task_id: Option<&str>) -> Result<Reply, TaskError> {
        let (access, status) = (self.task.access, response.status().as_u16());
        let max_pause = task_id.map(|_| POLL_TIME);
        let body = access.read(response, self.task.max_response, self.attempt, max_pause).await?;
        let read = call.read(&body);
        let invalid = |detail| access.failed(HttpTaskError::InvalidResponse { status, detail, body });
        match read {
            Ok(reply) => match (task_id, reply.task_id()) {
                (Some(expected), Some(id)) if id != expected => Err(invalid(format!(
                    "the response is about another task: its id is {id:?} instead of {expected:?}"
                ))),
                _ => Ok(reply),
            },
            Err(Unusable::Refused(error)) => Err(access.failed(HttpTaskError::A2a(error))),
            Err(Unusable::Invalid(detail)) if task_id.is_none() => Err(invalid(detail)),
            // It does not show that the task was done.
            Err(Unusable::Invalid(detail)) => Err(TaskError { kind: FailureKind::Agent, ..invalid(detail) }),
        }
    }

    /// Creates a request with the headers of the protocol, and, if it carries the message, those of the task.
    fn request(&self, call: &Call, has_message: bool) -> Result<RequestBuilder, HttpTaskError> {
        let access = self.task.access;
        let headers = access.headers(self.attempt, &self.agent, &self.task.headers);
        let mut headers = headers.map_err(HttpTaskError::Request)?;
        if !has_message {
            // Otherwise an agent that knows the key might replay its response to the message.
            headers.remove(IDEMPOTENCY_KEY_HEADER);
            headers.remove(TIME_LEFT_HEADER);
        }
        call.set_headers(&mut headers);
        access.request(&call.method, &call.url, headers, call.body.clone())
    }
}

/// A poll got no response in time.
#[derive(Debug, thiserror::Error)]
#[error("no response within {POLL_TIME:?}")]
struct PollTimeout;

/// Returns the error of the protocol in an unsuccessful response, if it has one. Otherwise, and if the credentials were refused or the agent is
/// busy, the status decides.
fn refusal(call: &Call, error: HttpTaskError) -> HttpTaskError {
    match &error {
        HttpTaskError::Status { status: 401 | 403, .. } => error,
        _ if matches!(error.kind(), FailureKind::Busy { .. }) => error,
        HttpTaskError::Status { status, body, .. } => {
            call.refusal(*status, body).map_or(error, HttpTaskError::A2a)
        }
        _ => error,
    }
}

/// Returns the failure of an attempt whose task began, but can no longer be polled.
fn given_up(mut error: TaskError) -> TaskError {
    (error.may_have_arrived, error.draws) = (true, true);
    // Wrong credentials may be the caller's fault.
    let is_refused =
        matches!(error.source.downcast_ref(), Some(HttpTaskError::Status { status: 401 | 403, .. }));
    // Otherwise this is not a rejection, because the agent accepted the task.
    if error.kind != FailureKind::Response && !is_refused {
        error.kind = FailureKind::Agent;
        if error.charge == Charge::No {
            error.charge = Charge::Yes;
        }
    }
    error
}

/// Cancels a task at its agent when the attempt is given up: late, overtaken by a hedge, or dropped by the caller.
struct CancelOnDrop<'a> {
    connection: &'a Connection<'a>,
    task_id: &'a str,
    /// The runtime of the attempt, which may be dropped outside it.
    runtime: Handle,
    is_armed: bool,
}

impl CancelOnDrop<'_> {
    fn disarm(mut self) {
        self.is_armed = false;
    }
}

impl Drop for CancelOnDrop<'_> {
    /// Does not wait for the response, because the agent may be dead.
    fn drop(&mut self) {
        if !self.is_armed {
            return;
        }
        let call = Call::cancel_task(self.connection.target.clone(), self.task_id);
        // The request is created now, because the token with which the task began may have expired.
        if let Ok(request) = self.connection.request(&call, false) {
            self.runtime.spawn(async { request.timeout(CANCEL_TIME).send().await });
        }
    }
}
