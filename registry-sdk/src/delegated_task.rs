//! The headers of a delegated task, for agents on axum (feature `axum`).

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::contract::{ATTEMPT_HEADER, IDEMPOTENCY_KEY_HEADER, TIME_LEFT_HEADER, parse_idempotency_key};

/// An extractor of the headers that [`Delegation`](crate::discovery::Delegation) sends: the task, the attempt, and how long the
/// caller waits for the response.
///
/// A request without these headers is accepted as a first attempt without a key. For a header that cannot be read, the response
/// is 400 with a text that names the header.
///
/// ```no_run
/// use axum::{Json, Router, routing::post};
/// use registry_sdk::DelegatedTask;
/// use serde_json::{Value, json};
///
/// async fn execute(task: DelegatedTask, Json(input): Json<Value>) -> Json<Value> {
///     if task.attempt > 1 {
///         // An earlier attempt may have been carried out, here or elsewhere: look for `task.idempotency_key`.
///     }
///     Json(json!({"done": input}))
/// }
/// let app: Router = Router::new().route("/execute", post(execute));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DelegatedTask {
    /// The key that all attempts of a task share.
    pub idempotency_key: Option<String>,
    /// Number of the attempt, starting at 1.
    pub attempt: u32,
    /// How long the caller waits for the response, counted from when the request was sent.
    pub time_left: Option<Duration>,
}

/// The error for a header of a delegated task that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header {header} has to be {expected}")]
pub struct DelegatedTaskRejection {
    header: &'static str,
    expected: &'static str,
}

impl IntoResponse for DelegatedTaskRejection {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.to_string()).into_response()
    }
}

impl DelegatedTask {
    fn read(headers: &HeaderMap) -> Result<Self, DelegatedTaskRejection> {
        Ok(Self {
            idempotency_key: field(
                headers,
                IDEMPOTENCY_KEY_HEADER,
                "a text in quotes",
                parse_idempotency_key,
            )?,
            attempt: field(headers, ATTEMPT_HEADER, "a number from 1", |value| {
                value.parse().ok().filter(|number| *number > 0)
            })?
            .unwrap_or(1),
            time_left: field(headers, TIME_LEFT_HEADER, "a number of seconds", |value| {
                Duration::try_from_secs_f64(value.parse().ok()?).ok()
            })?,
        })
    }
}

/// Reads an optional header.
fn field<T>(
    headers: &HeaderMap,
    header: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, DelegatedTaskRejection> {
    let Some(value) = headers.get(header) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|value| parse(value.trim()));
    parsed.map(Some).ok_or(DelegatedTaskRejection { header, expected })
}

impl<S: Send + Sync> FromRequestParts<S> for DelegatedTask {
    type Rejection = DelegatedTaskRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Self::read(&parts.headers)
    }
}
