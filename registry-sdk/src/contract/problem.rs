//! What goes wrong, as the wire says it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::instances::Owner;

/// How the detail of a problem begins that says that there is no such path, in distinction from no such agent.
pub const UNKNOWN_PATH_DETAIL: &str = "there is nothing at ";

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// Where it is, for example `capabilities[2].tags[0]`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl FieldError {
    /// Says what is wrong with a field.
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

/// All that is wrong with a request's fields, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ValidationError(pub Vec<FieldError>);

/// An error's body, `application/problem+json` (RFC 9457).
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
    schema(description = "An error's body, `application/problem+json` (RFC 9457).")
)]
#[non_exhaustive]
pub struct Problem {
    /// The kind of problem, a URI: `about:blank` if the status says it all.
    #[serde(rename = "type", default = "about_blank")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub kind: String,
    /// The name of the status.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// What happened this time, and what to do about it.
    pub detail: String,
    /// The invalid fields, all of them, in a 422; otherwise empty.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub errors: Vec<FieldError>,
    /// The process that owns the agent's id, in a 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Owner, required = false))]
    pub owner: Option<Owner>,
}

impl Problem {
    /// A problem that its status describes, without fields.
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

fn about_blank() -> String {
    "about:blank".to_owned()
}
