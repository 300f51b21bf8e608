//! Reading the answers to registrations and heartbeats, also of registries that say little or nothing in them.
//!
//! Any success that is JSON counts, and so does an empty one with 201, 202 or 204. A field that is missing, or not as the
//! contract has it, is known from what was sent, or stays unknown.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::contract::{AgentRecord, AgentStatus, HeartbeatAck, Registration};
use crate::error::Error;
use crate::response::ApiResponse;

/// Reads the answer to a registration.
pub(crate) fn record(sent: &Registration, response: &ApiResponse) -> Result<AgentRecord, Error> {
    let fields = response.fields()?;
    let mut record = response.decode::<AgentRecord>().unwrap_or_else(|_| {
        let mut record = AgentRecord::new(&sent.agent_id, read(&fields, "status").unwrap_or(sent.status));
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

/// Reads the answer to a heartbeat that said a status, or none.
pub(crate) fn ack(
    agent_id: &str,
    said: Option<AgentStatus>,
    response: &ApiResponse,
) -> Result<HeartbeatAck, Error> {
    let fields = response.fields()?;
    Ok(HeartbeatAck {
        agent_id: agent_id.to_owned(),
        status: read(&fields, "status").or(said).unwrap_or_default(),
        last_heartbeat: read(&fields, "last_heartbeat"),
        heartbeat_timeout: seconds(&fields, "heartbeat_timeout_seconds"),
        registration_tag: read(&fields, "registration_tag"),
    })
}

fn read<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Option<T> {
    T::deserialize(fields.get(name)?).ok()
}

fn seconds(fields: &Map<String, Value>, name: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(fields.get(name)?.as_f64()?).ok()
}
