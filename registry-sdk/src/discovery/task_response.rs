//! Responses of agents that are read chunk by chunk.

use std::time::Duration;

use reqwest::header::HeaderMap;
use tokio::time::{Instant, timeout_at};

use super::failure_kind::FailureKind;
use super::http_task_error::HttpTaskError;
use super::selection::Selection;
use crate::error::with_causes;
use crate::retry::deadline_after;

/// The response of [`Delegation::send`](super::Delegation::send): a status, headers, and a body that is read chunk by chunk.
///
/// The task counts as in flight until the body has ended or this is dropped, and then as done. A body that breaks off or falls
/// silent counts against the agent.
#[derive(Debug)]
pub struct TaskResponse {
    response: reqwest::Response,
    task: Task,
    chunk_timeout: Duration,
    /// When the wait for the next chunk began.
    waiting: Option<Instant>,
}

/// The task at the agent, which ends when this is dropped.
#[derive(Debug)]
struct Task(Selection);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.report_success();
    }
}

impl TaskResponse {
    pub(super) fn new(response: reqwest::Response, selection: Selection, chunk_timeout: Duration) -> Self {
        Self { response, task: Task(selection), chunk_timeout, waiting: None }
    }

    /// Returns the status, which is a success.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Returns the headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Waits for the next part of the body; `None` at its end.
    ///
    /// Cancel safe: no data is lost. If a call is dropped, the next one continues the same wait, and
    /// [`chunk_timeout`](super::Delegation::chunk_timeout) still counts from the first.
    ///
    /// # Errors
    /// [`HttpTaskError::InvalidResponse`] if the connection breaks, or nothing arrives within the
    /// [`chunk_timeout`](super::Delegation::chunk_timeout).
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, HttpTaskError> {
        let waiting = *self.waiting.get_or_insert_with(Instant::now);
        let arrived = timeout_at(deadline_after(waiting, self.chunk_timeout), self.response.chunk()).await;
        self.waiting = None;
        let detail = match arrived {
            Ok(Ok(chunk)) => {
                if chunk.is_none() {
                    self.task.0.report_success();
                }
                return Ok(chunk.map(Vec::from));
            }
            Ok(Err(error)) => format!("the response broke off ({})", with_causes(&error.without_url())),
            Err(_) => format!("nothing arrived within the chunk_timeout of {:?}", self.chunk_timeout),
        };
        let agent_id = &self.task.0.agent.agent_id;
        tracing::info!(agent_id, error = detail, "response broke off");
        self.task.0.report_failure(FailureKind::Agent);
        Err(HttpTaskError::InvalidResponse { status: self.status(), detail, body: Vec::new() })
    }

    /// Returns the HTTP response, without the time limit between chunks. The task counts as done.
    #[must_use]
    pub fn into_inner(self) -> reqwest::Response {
        self.response
    }
}
