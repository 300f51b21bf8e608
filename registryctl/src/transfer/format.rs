//! Format of an export: JSON lines.
//!
//! ```text
//! {"agent_registry_export":1,"exported_at":"2026-11-24T09:30:00.123Z"}
//! {"agent_id":"feature-dev","agent_name":"…",…,"status":"active"}
//! {"agents_exported":1}
//! ```
//!
//! The first line identifies the file as an export, and the last line shows that it is complete. Each line in between is a body for
//! `POST /register`, plus the agent's `maintenance` if there is one. The `card` is a string with the text of the agent card: a
//! signature may cover every byte of the card, and programs that rewrite a JSON line only preserve the bytes of strings.

use registry_sdk::Error;
use registry_sdk::contract::{
    AgentCard, AgentStatus, FieldError, MaintenanceRequest, Registration, Timestamp, ValidationError, limits,
};
use registry_sdk::internal::RequestBody;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::fields::{Fields, reason};
use super::maintenance::MaintenanceLine;

/// Version of the export format.
pub(super) const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Serialize)]
pub(super) struct Header {
    pub(super) agent_registry_export: u32,
    /// Informational.
    pub(super) exported_at: Timestamp,
}

/// The last line.
#[derive(Debug, Serialize)]
pub(super) struct Footer {
    /// Number of agents in the file.
    pub(super) agents_exported: usize,
}

/// Fields of a record that are left out of an export, because they only have a meaning in one registry. Unknown fields are kept: the
/// registry may be newer than this program.
///
/// `instance_id` is among them. The agent's own process registers again as soon as it sees a different `registration_tag`, and sends
/// its age. An import cannot send that age, so a process that was restarted after the export would count as the older one.
const OWN_FIELDS: [&str; 12] = [
    "registered_at",
    "last_heartbeat",
    "heartbeat_timeout_seconds",
    "load",
    "active_tasks",
    "healthy",
    "revision",
    "changed_by",
    "card_digest",
    "registration_tag",
    "instance_id",
    "instance_age_seconds",
];

/// `instance_id` of a registration that is the first step of an import. It remains if the import is interrupted.
const UNFINISHED: &str = "registryctl-import";

/// Returns whether the import of an agent with this `instance_id` was interrupted.
pub(super) fn is_unfinished(instance_id: Option<&str>) -> bool {
    instance_id == Some(UNFINISHED)
}

/// Record of an agent, to be written as a line of an export.
pub(super) struct RecordFields {
    fields: Fields,
    agent_id: String,
}

impl RecordFields {
    pub(super) fn read(record: &RawValue) -> Result<Self, String> {
        let fields = Fields::read(record.get().as_bytes()).map_err(|error| error.to_string())?;
        let agent_id = serde_json::from_str(fields.get("agent_id").map_or("null", RawValue::get))
            .map_err(|_| "agent_id: must be a string".to_owned())?;
        Ok(Self { fields, agent_id })
    }

    pub(super) fn agent_id(&self) -> &str {
        &self.agent_id
    }

    pub(super) fn has_card(&self) -> bool {
        self.fields.get("card_digest").is_some()
    }

    /// Returns the agent's line, including its card.
    pub(super) fn into_line(self, card: Option<&AgentCard>) -> Result<String, String> {
        let mut fields = self.fields;
        fields.remove_all(&OWN_FIELDS);
        if let Some(maintenance) = fields.get("maintenance") {
            let mut parts = Fields::read(maintenance.get().as_bytes())
                .map_err(|error| format!("maintenance: {error}"))?;
            parts.remove("since");
            fields.insert("maintenance", raw(&parts)?);
        }
        if let Some(card) = card {
            fields.insert("card", raw(card.as_str())?);
        }
        // In JSON, line breaks only occur between tokens, where they are white space.
        Ok(raw(&fields)?.get().replace(['\n', '\r'], " "))
    }
}

fn raw(value: &(impl Serialize + ?Sized)) -> Result<Box<RawValue>, String> {
    to_raw_value(value).map_err(|error| error.to_string())
}

/// An agent in an export, with validated fields.
#[derive(Debug)]
pub(super) struct Entry {
    fields: Fields,
    registration: Registration,
    maintenance: Option<MaintenanceLine>,
}

impl Entry {
    /// Validates an agent's fields. Returns all errors.
    pub(super) fn read(mut fields: Fields, now: Timestamp) -> Result<Self, Vec<String>> {
        let whole = |message: String| vec![message];
        let maintenance = fields.remove("maintenance");
        let maintenance = maintenance.map(|value| MaintenanceLine::read(&value, now)).transpose();
        let card = fields.remove("card").map(|text| read_card(&text)).transpose();
        if let Ok(Some(card)) = &card {
            fields.insert("card", card.clone());
        }
        fields.remove_all(&OWN_FIELDS);
        let body = serde_json::to_vec(&fields).map_err(|error| whole(error.to_string()))?;
        let registration = Registration::from_json(&body)
            .map_err(|error| whole(format!("must be the registration of an agent: {}", reason(&error))))?;
        let (registration, maintenance) = match (registration, maintenance, card) {
            (Ok(registration), Ok(maintenance), Ok(_)) => (registration, maintenance),
            (registration, maintenance, card) => {
                let errors = [registration.err(), maintenance.err(), card.err()].into_iter().flatten();
                let errors = errors.flat_map(|ValidationError(errors)| errors);
                return Err(errors.map(|error| error.to_string()).collect());
            }
        };
        let entry = Self { fields, registration, maintenance };
        let longest = if entry.maintenance.is_some() { entry.unfinished_body() } else { entry.body() };
        let length = longest.map_err(|error| whole(error.full_message()))?.get().len();
        if length > limits::BODY_BYTES {
            let most = limits::BODY_BYTES;
            return Err(whole(format!(
                "the registration must have up to {most} bytes without its maintenance, has {length}"
            )));
        }
        Ok(entry)
    }

    pub(super) fn agent_id(&self) -> &str {
        &self.registration.agent_id
    }

    /// Returns the request body that registers the agent with its status.
    pub(super) fn body(&self) -> Result<Box<RawValue>, Error> {
        self.body_with(&[("status", json!(self.registration.status))])
    }

    /// Returns the request body that registers the agent as offline, so that it is given no work until its maintenance is set.
    pub(super) fn offline_body(&self) -> Result<Box<RawValue>, Error> {
        self.body_with(&[("status", json!(AgentStatus::Offline))])
    }

    /// Like [`offline_body`](Self::offline_body), but marked as unfinished: see [`is_unfinished`].
    pub(super) fn unfinished_body(&self) -> Result<Box<RawValue>, Error> {
        self.body_with(&[
            ("status", json!(AgentStatus::Offline)),
            ("instance_id", json!(UNFINISHED)),
            // The agent's own process is younger, so it owns the id, whether it registers before or after this.
            ("instance_age_seconds", json!(limits::INSTANCE_AGE.as_secs())),
        ])
    }

    fn body_with(&self, more: &[(&str, Value)]) -> Result<Box<RawValue>, Error> {
        let write = || {
            let mut fields = self.fields.clone();
            for (name, value) in more {
                fields.insert(name, to_raw_value(value)?);
            }
            to_raw_value(&fields)
        };
        write().map_err(|error| Error::Config(format!("cannot serialize the registration: {error}")))
    }

    /// Returns whether the agent's own process was draining it before a shutdown.
    pub(super) fn is_draining(&self, now: Timestamp) -> bool {
        self.maintenance.as_ref().is_some_and(|one| one.is_of_process() && !one.is_over(now))
    }

    /// Returns a request for the remaining time of the agent's maintenance, if it is not over.
    pub(super) fn maintenance(&self, now: Timestamp) -> Option<MaintenanceRequest> {
        self.maintenance.as_ref().filter(|one| !one.is_over(now)).map(|one| one.request(now))
    }

    /// Returns the unknown fields of the maintenance.
    pub(super) fn unknown_of_maintenance(&self) -> impl Iterator<Item = &str> {
        self.maintenance.iter().flat_map(MaintenanceLine::unknown)
    }
}

/// Parses the field `card`. The registration checks its limits.
fn read_card(value: &RawValue) -> Result<Box<RawValue>, ValidationError> {
    let invalid = |message: String| ValidationError(vec![FieldError::new("card", message)]);
    let text: String = serde_json::from_str(value.get())
        .map_err(|_| invalid("must be a string, the text of the agent card".to_owned()))?;
    RawValue::from_string(text)
        .map_err(|error| invalid(format!("must be the text of a JSON object: {}", reason(&error))))
}
