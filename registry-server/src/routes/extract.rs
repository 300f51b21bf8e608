//! Extractors of requests, which reject with the contract's errors.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::LengthLimitError;
use registry_sdk::contract::limits;
use tokio::time::timeout;

use super::problem::ApiError;
use crate::admission::Permit;
use crate::registry::{Error, Registry};

/// The `{id}` in a path. An id that cannot be decoded counts as that of an unknown agent.
pub(super) struct AgentId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for AgentId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(id)).map_err(|_| ApiError::not_found("no agent has such an id"))
    }
}

/// Timeout for reading a body.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A JSON body, or an empty one. Holds its permit until it is dropped.
pub(super) struct JsonBody {
    bytes: Bytes,
    _permit: Permit,
}

impl FromRequest<Arc<Registry>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, registry: &Arc<Registry>) -> Result<Self, ApiError> {
        if request.body().is_end_stream() {
            // The case of nearly all heartbeats.
            return Ok(Self { bytes: Bytes::new(), _permit: Permit::default() });
        }
        let length = request.body().size_hint().exact();
        let permit = registry.admission().acquire_body(length).ok_or(Error::Overloaded)?;
        let is_json = is_json(request.headers());
        let is_encoded = request.headers().get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let most = limits::BODY_BYTES;
        let reading = timeout(BODY_TIME, to_bytes(request.into_body(), most)).await;
        let read = reading.map_err(|_| {
            let seconds = BODY_TIME.as_secs();
            ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {seconds} s"))
        })?;
        let bytes = read.map_err(|error| {
            if error.into_inner().is::<LengthLimitError>() {
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body may have up to {most} bytes"))
            } else {
                ApiError::bad_request("the body could not be read to its end")
            }
        })?;
        if bytes.is_empty() {
            Ok(Self { bytes, _permit: permit })
        } else if is_encoded {
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body without a Content-Encoding"))
        } else if is_json {
            Ok(Self { bytes, _permit: permit })
        } else {
            let detail = "send the body as JSON, with the header Content-Type: application/json";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
        }
    }
}

impl JsonBody {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Returns the error for a body that is not JSON.
pub(super) fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::bad_request(format!("the body has to be a JSON object: {error}"))
}

/// Whether the content type is `application/json` or ends in `+json`, with any parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(content_type)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else {
        return false;
    };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
