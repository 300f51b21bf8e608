//! Maintenance of an agent in an export.

use registry_sdk::contract::{FieldError, MaintenanceRequest, Timestamp, ValidationError, limits};
use registry_sdk::internal::RequestBody;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::fields::{Fields, NoFields};

/// Known fields. `since` is ignored: the registry sets it again.
const KNOWN: [&str; 4] = ["reason", "since", "until", "instance_id"];

/// Maintenance in a line of an export.
#[derive(Debug)]
pub(super) struct MaintenanceLine {
    reason: String,
    until: Option<Timestamp>,
    /// Whether the agent's own process began the maintenance.
    is_of_process: bool,
    /// Unknown fields.
    unknown: Vec<String>,
}

impl MaintenanceLine {
    /// Parses the field `maintenance`. Returns all errors.
    pub(super) fn read(value: &RawValue, now: Timestamp) -> Result<Self, ValidationError> {
        let fields = Fields::read(value.get().as_bytes()).map_err(|error| {
            ValidationError(vec![match error {
                NoFields::Twice(field) => wrong(&field, "duplicate field"),
                NoFields::Syntax(_) => FieldError::new(
                    "maintenance",
                    "must be an object with a `reason`, and an `until` if it ends by itself",
                ),
            }])
        })?;
        let mut errors = Vec::new();
        let until =
            optional::<Timestamp>(&fields, "until", "a time such as 2026-11-24T09:30:00Z", &mut errors);
        let instance_id = optional::<String>(&fields, "instance_id", "a string", &mut errors);
        if until.is_some_and(|until| until.since(now) > limits::MAINTENANCE) {
            errors.push(wrong("until", "must be within the next 365 days"));
        }
        match read_reason(&fields) {
            Ok(reason) if errors.is_empty() => {
                let unknown = fields.names().filter(|name| !KNOWN.contains(name)).map(str::to_owned);
                Ok(Self { reason, until, is_of_process: instance_id.is_some(), unknown: unknown.collect() })
            }
            Ok(_) => Err(ValidationError(errors)),
            Err(ValidationError(mut all)) => {
                all.append(&mut errors);
                Err(ValidationError(all))
            }
        }
    }

    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    pub(super) fn is_of_process(&self) -> bool {
        self.is_of_process
    }

    /// Returns the request for the remaining time.
    pub(super) fn request(&self, now: Timestamp) -> MaintenanceRequest {
        let request = MaintenanceRequest::new(&self.reason);
        match self.until {
            Some(until) => request.duration(until.since(now)),
            None => request,
        }
    }

    pub(super) fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str)
    }
}

fn wrong(field: &str, message: impl Into<String>) -> FieldError {
    FieldError::new(format!("maintenance.{field}"), message)
}

fn optional<T: DeserializeOwned>(
    fields: &Fields,
    name: &str,
    wanted: &str,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    let value = serde_json::from_str(fields.get(name)?.get()).ok();
    if value.is_none() {
        errors.push(wrong(name, format!("must be {wanted}")));
    }
    value
}

/// Parses the reason as the contract does. The end is not validated here, since it may be in the past.
fn read_reason(fields: &Fields) -> Result<String, ValidationError> {
    let mut body = Fields::default();
    if let Some(reason) = fields.get("reason") {
        body.insert("reason", reason.to_owned());
    }
    let invalid = |error: serde_json::Error| ValidationError(vec![wrong("reason", error.to_string())]);
    let read = serde_json::to_vec(&body).and_then(|body| MaintenanceRequest::from_json(&body));
    match read.map_err(invalid)? {
        Ok(request) => Ok(request.reason),
        Err(ValidationError(errors)) => {
            Err(ValidationError(errors.into_iter().map(|error| wrong(&error.field, error.message)).collect()))
        }
    }
}
