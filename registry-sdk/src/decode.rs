//! Decoding the responses of all registries: newer ones with more fields, and minimal ones with few or none.
//!
//! As a response to a registration or a heartbeat, any success with JSON counts, and so does an empty one with 201, 202 or 204.
//! A field that is missing or malformed is taken from the request, or stays unknown.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::contract::{AgentHealth, AgentRecord, AgentStatus, HeartbeatAck, Registration};
use crate::error::Error;
use crate::response::ApiResponse;

/// Decodes the response to a registration.
pub(crate) fn registered(sent: &Registration, response: &ApiResponse) -> Result<AgentRecord, Error> {
    let fields = response.fields()?;
    let mut record = response.decode::<AgentRecord>().unwrap_or_else(|_| {
        let mut record = AgentRecord::new(&sent.agent_id, status(&fields).unwrap_or(sent.status));
        record.last_heartbeat = read(&fields, "last_heartbeat");
        record.registered_at = read(&fields, "registered_at");
        record.heartbeat_timeout = seconds(&fields, "heartbeat_timeout_seconds");
        record.registration_tag = read(&fields, "registration_tag");
        record.revision = read(&fields, "revision");
        record
    });
    if record.agent_name.is_empty() {
        record.agent_name.clone_from(&sent.agent_name);
        record.base_url.clone_from(&sent.base_url);
        record.capabilities.clone_from(&sent.capabilities);
        record.metadata.clone_from(&sent.metadata);
        record.heartbeat_interval = sent.heartbeat_interval;
        record.instance_id.clone_from(&sent.instance_id);
    }
    Ok(record)
}

/// Decodes the response to a heartbeat, which may have carried a status.
pub(crate) fn heartbeat_ack(
    agent_id: &str,
    said: Option<AgentStatus>,
    response: &ApiResponse,
) -> Result<HeartbeatAck, Error> {
    let fields = response.fields()?;
    Ok(HeartbeatAck {
        agent_id: agent_id.to_owned(),
        status: status(&fields).or(said).unwrap_or_default(),
        last_heartbeat: read(&fields, "last_heartbeat"),
        heartbeat_timeout: seconds(&fields, "heartbeat_timeout_seconds"),
        registration_tag: read(&fields, "registration_tag"),
    })
}

/// Decodes an agent's health. A minimal registry does not repeat the agent's id.
pub(crate) fn health(agent_id: &str, response: &ApiResponse) -> Result<AgentHealth, Error> {
    let mut health: AgentHealth = response.decode()?;
    if health.agent_id.is_empty() {
        agent_id.clone_into(&mut health.agent_id);
    }
    Ok(health)
}

/// Fields in which registries wrap a list.
const LIST_FIELDS: [&str; 5] = ["agents", "matches", "results", "items", "data"];

/// Decodes a list, which may be wrapped in an object. Records that cannot be read are skipped and logged. If none can be read,
/// the response does not come from a registry.
pub(crate) fn list<T: DeserializeOwned>(response: &ApiResponse) -> Result<Vec<T>, Error> {
    let items = items(response)?;
    let (mut records, mut last_error) = (Vec::with_capacity(items.len()), None);
    for item in items {
        match serde_json::from_str(item.get()) {
            Ok(record) => records.push(record),
            Err(error) => {
                let agent_id = agent_id(item.get());
                tracing::warn!(agent_id, %error, "skipped a record that cannot be read");
                last_error = Some(error);
            }
        }
    }
    match last_error {
        Some(error) if records.is_empty() => Err(response.invalid(error)),
        _ => Ok(records),
    }
}

/// Returns the agent's id in a record that cannot be read.
pub(crate) fn agent_id(record: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Identity {
        agent_id: String,
    }
    serde_json::from_str(record).ok().map(|Identity { agent_id }| agent_id)
}

/// Returns the items of a list, which may be wrapped in an object.
pub(crate) fn items(response: &ApiResponse) -> Result<Vec<&RawValue>, Error> {
    let list = |body| serde_json::from_slice(body).map_err(|error| response.invalid(error));
    if response.body.trim_ascii_start().first() != Some(&b'{') {
        return list(&response.body);
    }
    let fields: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_slice(&response.body).map_err(|error| response.invalid(error))?;
    let named = LIST_FIELDS.iter().find_map(|name| fields.get(*name));
    named.map_or_else(|| Err(response.invalid("no list")), |field| list(field.get().as_bytes()))
}

fn read<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Option<T> {
    T::deserialize(fields.get(name)?).ok()
}

/// An unknown word counts only next to the agent's id, because minimal registries respond with `{"status": "ok"}`.
fn status(fields: &Map<String, Value>) -> Option<AgentStatus> {
    let status = AgentStatus::of_word(fields.get("status")?.as_str()?);
    Some(status).filter(|status| fields.contains_key("agent_id") || status.is_known())
}

fn seconds(fields: &Map<String, Value>, name: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(fields.get(name)?.as_f64()?).ok()
}
