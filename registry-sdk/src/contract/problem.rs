//! Errors on the wire.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::instances::Owner;

/// Beginning of the detail of a 404 for an unknown path, which distinguishes it from a 404 for an unknown agent.
pub const UNKNOWN_PATH_DETAIL: &str = "there is nothing at ";

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// The path of the field, for example `capabilities[2].tags[0]`.
    pub field: String,
    /// The fault, and the values that are valid.
    pub message: String,
}

impl FieldError {
    /// Creates an error for a field.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All invalid fields of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ValidationError(pub Vec<FieldError>);

/// The body of an error response, `application/problem+json` (RFC 9457).
///
/// ```
/// use registry_sdk::contract::Problem;
/// let problem = Problem::new(404, "Not Found", "no agent \"feature-dev\" is registered");
/// assert_eq!(problem.kind, "about:blank");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "The body of an error response, `application/problem+json` (RFC 9457).")
)]
#[non_exhaustive]
pub struct Problem {
    /// The kind of problem, a URI: `about:blank` if the status says everything.
    #[serde(rename = "type", default = "about_blank")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub kind: String,
    /// The name of the status code.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// What happened, and what to do about it.
    pub detail: String,
    /// All invalid fields, in a 422; otherwise empty.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub errors: Vec<FieldError>,
    /// The process that owns the agent's id, in a 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Owner, required = false))]
    pub owner: Option<Owner>,
}

impl Problem {
    /// Creates a problem that is described by its status and a detail.
    #[must_use]
    pub fn new(status: u16, title: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            kind: about_blank(),
            title: title.into(),
            status,
            detail: detail.into(),
            errors: Vec::new(),
            owner: None,
        }
    }
}

/// Returns the detail of a 422 for a number of invalid fields.
#[must_use]
pub fn invalid_fields_detail(count: usize) -> String {
    if count == 1 { "one field is invalid".to_owned() } else { format!("{count} fields are invalid") }
}

fn about_blank() -> String {
    "about:blank".to_owned()
}
