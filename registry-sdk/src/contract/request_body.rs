//! Reading the bodies of requests, as a registry does.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::agent::AgentStatus;
use super::problem::{FieldError, ValidationError};
use super::validate::{VALID_ID, is_valid_agent_id};

/// The body of a request that a registry reads.
pub trait RequestBody: Sized {
    /// Reads and checks a body.
    ///
    /// The inner error names every field that is missing, of a wrong type or out of its limits. The outer one says that the
    /// body is not a JSON object at all.
    fn from_json(body: &[u8]) -> Result<Result<Self, ValidationError>, serde_json::Error>;
}

/// The valid values of a status.
pub(super) const STATUS: &str = "one of \"active\", \"busy\", \"offline\"";

/// The fields of a small body, and the errors found in them.
pub(super) struct Fields {
    given: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    pub(super) fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        // An empty body and `null` have no fields.
        let given: Option<_> = if body.is_empty() { None } else { serde_json::from_slice(body)? };
        let given = given.unwrap_or_default();
        Ok(Self { given, errors: Vec::new() })
    }

    pub(super) fn status(&mut self) -> Option<AgentStatus> {
        self.get("status", STATUS, |value| AgentStatus::deserialize(value).ok())
    }

    pub(super) fn instance_id(&mut self) -> Option<String> {
        self.get("instance_id", VALID_ID, |value| {
            value.as_str().filter(|id| is_valid_agent_id(id)).map(str::to_owned)
        })
    }

    /// Reads a field if it is given. `null` counts as not given.
    pub(super) fn get<T>(
        &mut self,
        field: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.given.get(field).filter(|value| !value.is_null())?;
        let found = read(value);
        if found.is_none() {
            self.fail(field, format!("must be {wanted}"));
        }
        found
    }

    pub(super) fn is_missing(&mut self, field: &str, wanted: &str) {
        if !self.errors.iter().any(|error| error.field == field) {
            self.fail(field, format!("is required, and must be {wanted}"));
        }
    }

    pub(super) fn fail(&mut self, field: &str, message: impl Into<String>) {
        self.errors.push(FieldError::new(field, message));
    }

    pub(super) fn check(self) -> Result<(), ValidationError> {
        if self.errors.is_empty() { Ok(()) } else { Err(ValidationError(self.errors)) }
    }
}
