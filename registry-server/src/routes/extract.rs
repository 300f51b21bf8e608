//! What handlers read from a request, with the contract's errors where it cannot be read.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use registry_sdk::contract::{AgentStatus, FieldError, Invalid, is_agent_id, limits};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::ApiError;

/// The `{id}` of a path. One that cannot be an id at all is that of an unknown agent.
pub(super) struct AgentId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for AgentId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(id)).map_err(|_| ApiError::not_found("no agent has such an id"))
    }
}

/// The query's parameters.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(params)| Self(params)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// A body of JSON, or nothing.
pub(super) struct JsonBody(Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let is_json = is_json(request.headers());
        let is_encoded = request.headers().get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let body = Bytes::from_request(request, state).await.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let most = limits::BODY_BYTES;
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body may have up to {most} bytes"))
            }
            _ => ApiError::bad_request("the body could not be read to its end"),
        })?;
        if body.is_empty() {
            Ok(Self(body))
        } else if is_encoded {
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body without a Content-Encoding"))
        } else if is_json {
            Ok(Self(body))
        } else {
            let detail = "send the body as JSON, with the header Content-Type: application/json";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
        }
    }
}

impl JsonBody {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The fields of the body's object, none where there is no body.
    pub(super) fn fields(&self) -> Result<Fields, ApiError> {
        if self.0.is_empty() {
            return Ok(Fields::default());
        }
        let given = serde_json::from_slice(&self.0).map_err(|error| malformed(&error))?;
        Ok(Fields { given, errors: Vec::new() })
    }
}

/// The fields of a small body. What is wrong with them is gathered, and told by [`Fields::check`].
#[derive(Default)]
pub(super) struct Fields {
    given: serde_json::Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// The status that it names.
    pub(super) fn status(&mut self) -> Option<AgentStatus> {
        self.read("status", "one of \"active\", \"busy\", \"offline\"", |value| {
            AgentStatus::deserialize(value).ok()
        })
    }

    /// The process that it names.
    pub(super) fn instance_id(&mut self) -> Option<String> {
        self.read("instance_id", "1 to 64 of A-Z a-z 0-9 . _ -", |value| {
            value.as_str().filter(|id| is_agent_id(id)).map(str::to_owned)
        })
    }

    /// The load that it tells.
    pub(super) fn load(&mut self) -> Option<f64> {
        self.read("load", "a number from 0 to 1", |value| {
            value.as_f64().filter(|load| (0.0..=1.0).contains(load))
        })
    }

    /// The number of tasks that it tells.
    pub(super) fn active_tasks(&mut self) -> Option<u32> {
        let wanted = "a whole number from 0 to 4294967295";
        self.read("active_tasks", wanted, |value| u32::try_from(value.as_u64()?).ok())
    }

    /// Notes that a field is missing.
    pub(super) fn is_missing(&mut self, field: &str, wanted: &str) {
        if !self.errors.iter().any(|error| error.field == field) {
            self.errors.push(FieldError::new(field, format!("is required: {wanted}")));
        }
    }

    /// Refuses the body where a field that was read is not as it has to be.
    pub(super) fn check(self) -> Result<(), ApiError> {
        if self.errors.is_empty() { Ok(()) } else { Err(Invalid(self.errors).into()) }
    }

    fn read<T>(&mut self, field: &str, wanted: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.given.get(field).filter(|value| !value.is_null())?;
        let found = read(value);
        if found.is_none() {
            self.errors.push(FieldError::new(field, format!("must be {wanted}")));
        }
        found
    }
}

/// What to say of a body that is not JSON.
pub(super) fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::bad_request(format!("the body has to be a JSON object: {error}"))
}

/// The `limit` of a list or a search.
pub(super) fn check_limit(limit: Option<usize>) -> Result<Option<usize>, ApiError> {
    let most = limits::PAGE;
    match limit {
        Some(limit) if limit == 0 || limit > most => {
            Err(ApiError::bad_request(format!("limit has to be 1 to {most}, is {limit}")))
        }
        limit => Ok(limit),
    }
}

/// The `status` of a list or a search.
pub(super) fn check_status(status: Option<&str>) -> Result<Option<AgentStatus>, ApiError> {
    let read = status.map(str::parse).transpose();
    read.map_err(|error: registry_sdk::contract::UnknownStatus| ApiError::bad_request(error.to_string()))
}

/// `application/json` or any type that ends in `+json`, whatever its parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(content_type)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else {
        return false;
    };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
