//! Errors in the format of the specification: `{"errorCode", "message"}`.

use axum::body::{Body, to_bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use registry_sdk::contract::Problem;
use serde::Serialize;

/// Upper bound for the size of a problem.
const MAX_PROBLEM_BYTES: usize = 64 * 1_024;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ArdError<'a> {
    error_code: &'a str,
    message: &'a str,
}

/// Rewrites a problem as an error of the specification. Keeps the status and headers such as `Retry-After`.
pub(in crate::routes) async fn to_ard_error(response: Response) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = to_bytes(body, MAX_PROBLEM_BYTES).await.unwrap_or_default();
    let problem = serde_json::from_slice::<Problem>(&body).ok();
    // Responses to HEAD have no body.
    let message = problem.as_ref().map_or(status.as_str(), |problem| &problem.detail);
    let error = serde_json::to_vec(&ArdError { error_code: error_code(status), message }).unwrap_or_default();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // An agent that is unknown now may register at any time.
    parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Response::from_parts(parts, Body::from(error))
}

/// Returns the specification's code for a status. The specification has no other codes.
fn error_code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "UNAUTHENTICATED",
        StatusCode::NOT_FOUND => "NOT_FOUND",
        StatusCode::TOO_MANY_REQUESTS => "RATE_LIMIT_EXCEEDED",
        status if status.is_client_error() => "INVALID_ARGUMENT",
        _ => "INTERNAL_ERROR",
    }
}
