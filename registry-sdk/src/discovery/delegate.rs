//! Delegating a task: its settings, and the ways to send it. `failover.rs` runs the attempts.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "a2a")]
use super::a2a_task::A2aTask;
use super::attempt::Settings;
use super::delegate_error::{DelegateError, EndReason};
use super::failover::{Delegated, with_failover};
use super::http_task::HttpTask;
use super::http_task_error::HttpTaskError;
use super::orchestrator::Orchestrator;
use super::query::TaskQuery;
use super::task_error::TaskError;
use super::task_response::TaskResponse;
#[cfg(feature = "a2a")]
use crate::a2a::{message::Message, reply::Reply};
use crate::contract::CapabilityMatch;

/// Headers that describe how a request is written, which the HTTP client sets.
const OF_CONNECTIONS: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE];

/// A task to be delegated. Created by [`Orchestrator::delegate`].
///
/// Set [`time_limit`](Self::time_limit) to more than twice the duration of your slowest task: each agent gets half of the
/// remaining time to respond, and the last one all of it. So one of two agents may hang before it responds. With more agents, the
/// second gets a quarter of the limit; if your slowest task has to fit into that, set `time_limit` to four times its duration, or
/// an [`attempt_timeout`](Self::attempt_timeout).
///
/// Use [`at_most_once`](Self::at_most_once) for tasks with side effects, unless the agents recognize the idempotency key. Let
/// delegations end by themselves: one that is dropped early, for example by an outer timeout, says nothing about its agent.
///
/// # Request headers
///
/// [`post_json`](Self::post_json), [`send`](Self::send) and `send_message` (feature `a2a`) add these headers, which the extractor
/// `DelegatedTask` (feature `axum`) reads:
///
/// | header | value |
/// |---|---|
/// | `Idempotency-Key` | the same text in all attempts of a task, in quotes (draft-ietf-httpapi-idempotency-key-header) |
/// | `Delegation-Attempt` | number of the attempt, starting at 1 |
/// | `Delegation-Time-Left-Seconds` | number of seconds after which the caller stops waiting for the response |
#[derive(Debug)]
#[must_use = "nothing is sent before `run`, `post_json`, `send` or `send_message` is called"]
pub struct Delegation<'a> {
    orchestrator: &'a Orchestrator,
    query: TaskQuery,
    settings: Settings,
    headers: Result<HeaderMap, String>,
    max_response: usize,
    chunk_timeout: Duration,
}

impl Orchestrator {
    /// Delegates a task to an agent that can do it, failing over to the next candidate.
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
            settings: Settings {
                attempts: 3,
                time_limit: Duration::from_secs(60),
                attempt_timeout: None,
                hedge_after: None,
                at_most_once: false,
                idempotency_key: format!("{:032x}", fastrand::u128(..)),
                reports_success: true,
            },
            headers: Ok(HeaderMap::new()),
            max_response: 16 * 1_024 * 1_024,
            chunk_timeout: Duration::from_secs(30),
        }
    }
}

impl Delegation<'_> {
    /// Sets how many agents may fail at the task, or decline it; at least one. Default: 3.
    ///
    /// Agents that refuse the task without beginning it (no connection, busy, wrong path or credentials) do not count.
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.settings.attempts = attempts.max(1);
        self
    }

    /// Sets the time limit of the whole delegation.
    ///
    /// Choose at least two to four times the duration of your slowest task: see [above](Self). Default: 60 s.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.settings.time_limit = limit;
        self
    }

    /// Sets the time limit of an attempt.
    ///
    /// Over HTTP, it applies until the head of the response arrives. The body of a response to [`post_json`](Self::post_json), or to
    /// the message of `send_message`, may take all of the delegation's remaining time: an agent that hangs after the head is not
    /// failed over, and ends the delegation with [`EndReason::UnusableResponse`](super::EndReason::UnusableResponse).
    ///
    /// Default: half of the remaining [`time_limit`](Self::time_limit), or all of it if no further attempt may follow. An
    /// attempt that is cut off counts against its agent only if it had as much time as the first one.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.settings.attempt_timeout = Some(timeout);
        self
    }

    /// Does not send the task to another agent once an agent may have received it: for tasks with side effects.
    ///
    /// The task fails over only if no connection could be made. Any response shows that it arrived, so even a refusal ends the
    /// delegation. Turns hedging off.
    pub fn at_most_once(mut self) -> Self {
        self.settings.at_most_once = true;
        self
    }

    /// If an agent has not finished after this delay, also sends the task to another one and uses whichever succeeds first.
    ///
    /// Only for tasks that may safely run twice (hedged requests: Dean and Barroso, "The Tail at Scale", 2013,
    /// <https://doi.org/10.1145/2408776.2408794>). The other attempts are then dropped; an agent that was overtaken by a later
    /// attempt is charged with a failure. A delay that one task in twenty exceeds costs about 5 % more work. Default: off.
    pub fn hedge_after(mut self, delay: Duration) -> Self {
        self.settings.hedge_after = Some(delay);
        self
    }

    /// Sets the key that shows agents which attempts belong to one task, for a task that the caller itself repeats.
    ///
    /// It may contain visible ASCII characters and spaces. Default: a random key.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.settings.idempotency_key = key.into();
        if crate::contract::idempotency_key_value(&self.settings.idempotency_key).is_none() {
            self.headers = Err("the idempotency key has to consist of visible ASCII characters".to_owned());
        }
        self
    }

    /// Adds a header to the requests of [`post_json`](Self::post_json), [`send`](Self::send) and `send_message`.
    ///
    /// It replaces a header of the SDK with the same name, but not those of the A2A protocol.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let header = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
        match (&mut self.headers, header) {
            (Ok(_), Some((name, _))) if OF_CONNECTIONS.contains(&name) => {
                self.headers = Err(format!("the header {name} is set by the connection itself"));
            }
            (Ok(headers), Some((name, mut value))) => {
                // The value may be a credential, which must not be logged.
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            (Ok(_), None) => {
                self.headers = Err(format!("the header {name:?} has characters that are not allowed"));
            }
            (Err(_), _) => {}
        }
        self
    }

    /// Sets the maximum length of a response that [`post_json`](Self::post_json) and `send_message` read. Default: 16 MiB.
    pub fn max_response(mut self, bytes: usize) -> Self {
        self.max_response = bytes;
        self
    }

    /// Sets how long a response of [`send`](Self::send) may be silent between two chunks. Default: 30 s.
    pub fn chunk_timeout(mut self, timeout: Duration) -> Self {
        self.chunk_timeout = timeout;
        self
    }

    /// Runs the caller's own code against the selected agent, and against the next one if the failure is the agent's fault.
    ///
    /// Within the code, `?` turns any error into a [`TaskError`].
    ///
    /// ```no_run
    /// # async fn example(orchestrator: registry_sdk::Orchestrator) -> Result<(), Box<dyn std::error::Error>> {
    /// let http = reqwest::Client::new();
    /// let done = orchestrator
    ///     .delegate("code_review")
    ///     .run(|agent| {
    ///         let request = http.get(format!("{}/version", agent.base_url));
    ///         async move { Ok(request.send().await?.error_for_status()?.text().await?) }
    ///     })
    ///     .await?;
    /// println!("{}", done.value);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Attempts in flight are dropped, and nothing keeps running.
    ///
    /// # Errors
    /// See [`DelegateError`].
    pub async fn run<T, F>(
        self,
        mut task: impl FnMut(CapabilityMatch) -> F,
    ) -> Result<Delegated<T>, DelegateError>
    where
        F: Future<Output = Result<T, TaskError>>,
    {
        with_failover(self.orchestrator, self.query, self.settings, |attempt| {
            let work = task(attempt.agent.clone());
            async move { attempt.in_time(work).await }
        })
        .await
    }

    /// Sends the task as JSON in a `POST` to a path below the agent's `base_url`, and decodes the response's JSON.
    ///
    /// An empty path means the `base_url` itself, and an empty response counts as `null`.
    ///
    /// # Cancel safety
    /// As in [`Delegation::run`], but an agent may have received the task.
    ///
    /// # Errors
    /// The same as those of [`Delegation::run`]. The table of [`FailureKind`](super::FailureKind) shows the effect of each
    /// failure.
    pub async fn post_json<T: DeserializeOwned>(
        mut self,
        path: &str,
        payload: &impl Serialize,
    ) -> Result<Delegated<T>, DelegateError> {
        let max_response = self.max_response;
        let body =
            serde_json::to_vec(payload).map_err(|error| format!("it cannot be written as JSON: {error}"));
        if let Ok(headers) = &mut self.headers {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        }
        let task = self.http_task(Method::POST, path, body)?;
        with_failover(self.orchestrator, self.query, self.settings, |attempt| {
            let task = task.clone();
            async move {
                let response = attempt.in_time(task.send(&attempt)).await?;
                let status = response.status().as_u16();
                let body = task.access.read(response, max_response, &attempt, None).await?;
                // A 204 has an empty body.
                let text = if body.trim_ascii().is_empty() { b"null" } else { &body[..] };
                serde_json::from_slice(text).map_err(|error| {
                    let detail = format!("the response cannot be decoded ({error})");
                    task.access.failed(HttpTaskError::InvalidResponse { status, detail, body })
                })
            }
        })
        .await
    }

    /// Sends a request to a path below the agent's `base_url`, and returns the first successful response as soon as it begins:
    /// for streams, and for anything other than JSON.
    ///
    /// An empty path means the `base_url` itself. Once the response has begun, the task stays with this agent.
    ///
    /// The `time_limit` applies until the response begins, and [`chunk_timeout`](Self::chunk_timeout) after that.
    ///
    /// # Cancel safety
    /// As in [`Delegation::run`], but an agent may have received the task.
    ///
    /// # Errors
    /// The same as those of [`Delegation::run`].
    pub async fn send(
        self,
        method: Method,
        path: &str,
        body: impl Into<Vec<u8>>,
    ) -> Result<Delegated<TaskResponse>, DelegateError> {
        let task = self.http_task(method, path, Ok(body.into()))?;
        // The outcome is that of the whole stream.
        let settings = Settings { reports_success: false, ..self.settings };
        let done = with_failover(self.orchestrator, self.query, settings, |attempt| {
            let task = task.clone();
            async move { attempt.in_time(task.send(&attempt)).await }
        })
        .await?;
        let Delegated { value, selection, failed } = done;
        let value = TaskResponse::new(value, selection.clone(), self.chunk_timeout);
        Ok(Delegated { value, selection, failed })
    }

    /// Sends a message to the agent over the [A2A](https://a2a-protocol.org) protocol, through the interface in the agent's
    /// card, and waits until the agent has done the resulting task (feature `a2a`).
    ///
    /// The id of the message is the idempotency key. The state of a long task is polled for as long as the attempt may last, so
    /// set [`time_limit`](Self::time_limit) to more than twice the slowest task, as for all tasks. A task that is given up is
    /// cancelled at its agent. If the agent needs an answer or credentials to continue, that is the result: see
    /// [`Reply::state`].
    ///
    /// ```no_run
    /// # async fn example(orchestrator: registry_sdk::Orchestrator) -> Result<(), Box<dyn std::error::Error>> {
    /// let done = orchestrator.delegate("find_recipe").send_message("Find a recipe with leeks").await?;
    /// println!("{} found {}", done.selection.agent.agent_id, done.value.text());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// As in [`Delegation::run`], but an agent may have received the task. If the agent has confirmed that, it is asked to
    /// cancel the task, in the background and for up to 5 s.
    ///
    /// # Errors
    /// The same as those of [`Delegation::run`]. The table of [`FailureKind`](super::FailureKind) shows the effect of each
    /// failure.
    #[cfg(feature = "a2a")]
    pub async fn send_message(self, message: impl Into<Message>) -> Result<Delegated<Reply>, DelegateError> {
        let invalid = |detail: String| DelegateError::new(EndReason::InvalidRequest(detail));
        let (headers, message) = (self.headers.map_err(invalid)?, message.into());
        if message.is_empty() {
            return Err(invalid("a message needs at least one part".to_owned()));
        }
        let task = &A2aTask::new(self.orchestrator, message, headers, self.max_response);
        with_failover(self.orchestrator, self.query, self.settings, |attempt| async move {
            task.run(&attempt).await
        })
        .await
    }

    /// Returns the request, if it is valid.
    fn http_task(
        &self,
        method: Method,
        path: &str,
        body: Result<Vec<u8>, String>,
    ) -> Result<Arc<HttpTask>, DelegateError> {
        let invalid = |detail: String| DelegateError::new(EndReason::InvalidRequest(detail));
        let headers = self.headers.clone().map_err(invalid)?;
        let body = body.map_err(invalid)?;
        Ok(Arc::new(HttpTask::new(self.orchestrator.access.clone(), method, path, headers, body)))
    }
}
