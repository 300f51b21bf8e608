//! The format of an export: JSON lines.
//!
//! ```text
//! {"agent_registry_export":1,"exported_at":"2026-11-24T09:30:00.123Z"}
//! {"agent_id":"feature-dev","agent_name":"…",…,"status":"active"}
//! {"agents_exported":1}
//! ```
//!
//! The first line tells a file of another kind from an export, the last one an export that is whole from one that was cut off. Each
//! line between is what `POST /register` takes, and the agent's `maintenance` if there is one.

use std::collections::BTreeMap;

use registry_sdk::Error;
use registry_sdk::contract::{
    AgentRecord, AgentStatus, FieldError, Maintenance, MaintenanceRequest, Registration, Timestamp,
    ValidationError, limits,
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

/// Version of the format.
pub(super) const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) agent_registry_export: u32,
    /// For people.
    #[serde(default)]
    pub(super) exported_at: Option<Timestamp>,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Footer {
    /// Number of agents in the file.
    pub(super) agents_exported: usize,
}

/// The fields of a record that are the registry's own, or that only mean something to one registry. Unknown fields are kept:
/// the registry may be newer than this program.
///
/// An `instance_id` is not carried over. The agent's own process registers again as soon as it sees another `registration_tag`, and
/// says how old it is. The imported registration cannot, so a process that was restarted since would count as the older one.
const OWN_FIELDS: [&str; 11] = [
    "registered_at",
    "last_heartbeat",
    "heartbeat_timeout_seconds",
    "load",
    "active_tasks",
    "healthy",
    "revision",
    "changed_by",
    "registration_tag",
    "instance_id",
    "instance_age_seconds",
];

/// The fields of a record or of a line. Values keep the digits with which they were written.
type Fields = BTreeMap<String, Box<RawValue>>;

/// Returns the line of an agent's record.
pub(super) fn line_of_record(record: &RawValue) -> Result<String, serde_json::Error> {
    let mut fields: Fields = serde_json::from_str(record.get())?;
    serde_json::from_str::<String>(fields.get("agent_id").map_or("null", |id| id.get()))?;
    fields.retain(|name, _| !OWN_FIELDS.contains(&name.as_str()));
    if let Some(maintenance) = fields.get_mut("maintenance")
        && maintenance.get() != "null"
    {
        let mut parts: Fields = serde_json::from_str(maintenance.get())?;
        parts.remove("since");
        *maintenance = to_raw_value(&parts)?;
    }
    // Within JSON, a line break is nothing but white space.
    Ok(serde_json::to_string(&fields)?.replace(['\n', '\r'], " "))
}

/// The maintenance of a line.
#[derive(Debug, Deserialize)]
struct MaintenanceLine {
    reason: String,
    until: Option<Timestamp>,
    instance_id: Option<String>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// An agent of an export, whose fields are within their limits.
#[derive(Debug)]
pub(super) struct Entry {
    fields: Fields,
    registration: Registration,
    maintenance: Option<MaintenanceLine>,
}

impl Entry {
    /// Reads an agent's line. The errors are all that is wrong with it.
    pub(super) fn read(line: &[u8], now: Timestamp) -> Result<Self, Vec<String>> {
        let whole = |message: String| vec![message];
        let mut fields: Fields =
            serde_json::from_slice(line).map_err(|error| whole(format!("must be a JSON object: {error}")))?;
        let maintenance = fields.remove("maintenance").filter(|value| value.get() != "null");
        let maintenance = maintenance.map(|value| read_maintenance(&value, now)).transpose();
        fields.retain(|name, _| !OWN_FIELDS.contains(&name.as_str()));
        let body = serde_json::to_vec(&fields).map_err(|error| whole(error.to_string()))?;
        if body.len() > limits::BODY_BYTES {
            let (most, length) = (limits::BODY_BYTES, body.len());
            return Err(whole(format!("must be up to {most} bytes without its maintenance, has {length}")));
        }
        let registration = Registration::from_json(&body).map_err(|error| whole(error.to_string()))?;
        match (registration, maintenance) {
            (Ok(registration), Ok(maintenance)) => Ok(Self { fields, registration, maintenance }),
            (registration, maintenance) => {
                let errors = [registration.err(), maintenance.err()].into_iter().flatten();
                Err(errors
                    .flat_map(|ValidationError(errors)| errors)
                    .map(|error| error.to_string())
                    .collect())
            }
        }
    }

    pub(super) fn agent_id(&self) -> &str {
        &self.registration.agent_id
    }

    pub(super) fn status(&self) -> AgentStatus {
        self.registration.status
    }

    /// Returns the body that registers the agent with a status.
    pub(super) fn body(&self, status: AgentStatus) -> Result<Box<RawValue>, Error> {
        let mut fields = self.fields.clone();
        let written = to_raw_value(&status).and_then(|status| {
            fields.insert("status".to_owned(), status);
            to_raw_value(&fields)
        });
        written.map_err(|error| Error::Config(format!("the registration cannot be written: {error}")))
    }

    /// Whether the agent was about to end: its own process had taken it out.
    pub(super) fn is_draining(&self, now: Timestamp) -> bool {
        self.maintenance.as_ref().is_some_and(|one| one.instance_id.is_some() && !is_over(one, now))
    }

    /// The rest of the agent's maintenance, if it is not over.
    pub(super) fn maintenance(&self, now: Timestamp) -> Option<MaintenanceRequest> {
        self.maintenance.as_ref().filter(|one| !is_over(one, now)).map(|one| request(one, now))
    }

    /// The fields of the maintenance that this version does not know.
    pub(super) fn unknown_of_maintenance(&self) -> impl Iterator<Item = &str> {
        self.maintenance.iter().flat_map(|one| one.unknown.keys().map(String::as_str))
    }

    /// Whether a record is that of this agent as an import leaves it that is interrupted before the maintenance is set and the status
    /// is that of the line.
    pub(super) fn is_half_of(&self, record: &AgentRecord) -> bool {
        let Registration { agent_name, base_url, health_path, probe, capabilities, metadata, .. } =
            &self.registration;
        let is_set = |maintenance: &Maintenance| {
            self.maintenance.as_ref().is_some_and(|one| one.reason == maintenance.reason)
        };
        let is_unfinished = match &record.maintenance {
            None => true,
            Some(maintenance) => is_set(maintenance) && self.status() != AgentStatus::Offline,
        };
        is_unfinished
            && record.status == AgentStatus::Offline
            && record.instance_id.is_none()
            && record.agent_name == *agent_name
            && record.base_url == *base_url
            && record.health_path == *health_path
            && record.probe == *probe
            && record.capabilities == *capabilities
            && record.metadata == *metadata
            && record.heartbeat_interval == self.registration.heartbeat_interval
    }
}

fn is_over(maintenance: &MaintenanceLine, now: Timestamp) -> bool {
    maintenance.until.is_some_and(|until| until <= now)
}

fn request(maintenance: &MaintenanceLine, now: Timestamp) -> MaintenanceRequest {
    let request = MaintenanceRequest::new(&maintenance.reason);
    match maintenance.until {
        Some(until) => request.duration(until.since(now)),
        None => request,
    }
}

fn read_maintenance(value: &RawValue, now: Timestamp) -> Result<MaintenanceLine, ValidationError> {
    let wrong = |field: &str, message: String| FieldError::new(format!("maintenance{field}"), message);
    let invalid = |field: &str, message: String| ValidationError(vec![wrong(field, message)]);
    let read: MaintenanceLine = serde_json::from_str(value.get()).map_err(|error| {
        invalid("", format!("must be an object with a `reason`, and an `until` where wanted: {error}"))
    })?;
    if read.until.is_some_and(|until| until.since(now) > limits::MAINTENANCE) {
        return Err(invalid(".until", "must be within the next 365 days".to_owned()));
    }
    // The contract's own check. It has no time, which may be over.
    let request = MaintenanceRequest::new(&read.reason);
    match serde_json::to_vec(&request).and_then(|body| MaintenanceRequest::from_json(&body)) {
        Ok(Ok(_)) => Ok(read),
        Ok(Err(ValidationError(errors))) => Err(ValidationError(
            errors.into_iter().map(|error| wrong(&format!(".{}", error.field), error.message)).collect(),
        )),
        Err(error) => Err(invalid("", error.to_string())),
    }
}
