//! Responses of agents that are read chunk by chunk.

use std::time::Duration;

use reqwest::header::HeaderMap;
use tokio::time::timeout;

use super::http_task::HttpTaskError;
use super::outcome::FailureKind;
use super::selection::Selection;

/// The response of [`Delegation::send`](super::Delegation::send): a status, headers, and a body that is read chunk by chunk.
///
/// The task counts as in flight until the body has ended or this is dropped. If it breaks off or falls silent, that counts
/// against the agent.
#[derive(Debug)]
pub struct TaskResponse {
    response: reqwest::Response,
    selection: Selection,
    chunk_timeout: Duration,
}

impl TaskResponse {
    pub(super) fn new(response: reqwest::Response, selection: Selection, chunk_timeout: Duration) -> Self {
        Self { response, selection, chunk_timeout }
    }

    /// The status, which is a success.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next part of the body; `None` at its end.
    ///
    /// Cancel safe: a part that has not arrived is returned by the next call.
    ///
    /// # Errors
    /// [`HttpTaskError::InvalidResponse`] if the connection breaks, or nothing arrives within the
    /// [`chunk_timeout`](super::Delegation::chunk_timeout).
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, HttpTaskError> {
        let detail = match timeout(self.chunk_timeout, self.response.chunk()).await {
            Ok(Ok(Some(chunk))) => return Ok(Some(chunk.into())),
            Ok(Ok(None)) => {
                self.selection.report_success();
                return Ok(None);
            }
            Ok(Err(error)) => format!("the response broke off ({})", crate::error::with_causes(&error)),
            Err(_) => format!("nothing arrived within the chunk_timeout of {:?}", self.chunk_timeout),
        };
        self.selection.report_failure(FailureKind::Agent);
        Err(HttpTaskError::InvalidResponse { status: self.status(), detail, body: Vec::new() })
    }

    /// The response as it is, without the time limit between chunks. The task is reported as done.
    #[must_use]
    pub fn into_inner(self) -> reqwest::Response {
        self.selection.report_success();
        self.response
    }
}
