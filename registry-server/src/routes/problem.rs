//! Errors in the format of the API: `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use registry_sdk::contract::{Problem, ValidationError};
use registry_sdk::internal::{InvalidParameter, invalid_fields_detail};

use crate::registry::Error;

/// `Retry-After` of temporary rejections, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

/// An error with its status.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// Boxed, since every fallible handler returns it by value.
    problem: Box<Problem>,
    /// `Retry-After` in seconds, if a retry may succeed.
    retry_after: Option<u32>,
    /// Whether the handler has already logged the error, with its knowledge of the request.
    is_logged: bool,
}

/// Reason of a rejection that no handler has logged, as a response extension.
#[derive(Clone, Debug)]
pub(super) struct UnloggedRejection(pub(super) String);

/// Maximum number of fields that the reason names.
const NAMED_FIELDS: usize = 5;

impl ApiError {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_SECONDS);
        let problem = Problem::new(status.as_u16(), title, detail).into();
        Self { status, problem, retry_after, is_logged: false }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn detail(&self) -> &str {
        &self.problem.detail
    }

    /// Marks the error as logged.
    pub(crate) fn logged(self) -> Self {
        Self { is_logged: true, ..self }
    }

    /// Whether the request was forbidden or malformed.
    ///
    /// Requests rejected for lack of capacity or of a database do not count, since those of all agents come
    /// at once.
    fn is_rejection(&self) -> bool {
        matches!(self.status.as_u16(), 400 | 401 | 403 | 408 | 413 | 415 | 421 | 422)
    }

    /// Returns the detail, followed by the first invalid fields.
    fn reason(&self) -> String {
        let fields = self.problem.errors.iter().take(NAMED_FIELDS);
        let fields: Vec<_> = fields.map(|error| format!("{} {}", error.field, error.message)).collect();
        if fields.is_empty() {
            self.problem.detail.clone()
        } else {
            format!("{}: {}", self.problem.detail, fields.join("; "))
        }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn too_many_requests(detail: &str, wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1_000).try_into().unwrap_or(u32::MAX);
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn method_not_allowed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, detail)
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        let status = match &error {
            Error::NotFound(_) | Error::NoCard(_) => StatusCode::NOT_FOUND,
            Error::Superseded { .. } | Error::ShutDown { .. } => StatusCode::CONFLICT,
            Error::Unavailable
            | Error::Unsettled
            | Error::Locked(_)
            | Error::Overloaded
            | Error::TooManyStreams
            | Error::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Error::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut answer = Self::new(status, detail);
        if let Error::Superseded { owner, .. } | Error::ShutDown { owner, .. } = error {
            answer.problem.owner = Some(owner);
        }
        answer
    }
}

impl From<InvalidParameter> for ApiError {
    fn from(invalid: InvalidParameter) -> Self {
        Self::bad_request(invalid.to_string())
    }
}

impl From<ValidationError> for ApiError {
    fn from(ValidationError(errors): ValidationError) -> Self {
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, invalid_fields_detail(errors.len()));
        error.problem.errors = errors;
        error
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // Strings, numbers and a list always serialize.
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        if !self.is_logged && self.is_rejection() {
            response.extensions_mut().insert(UnloggedRejection(self.reason()));
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
