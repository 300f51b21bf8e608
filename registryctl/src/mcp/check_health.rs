//! The tool `check_health`: whether an agent can be given work now, and why not.

use std::time::Duration;

use registry_sdk::RegistryClient;
use rmcp::model::Tool;
use rmcp::schemars::JsonSchema;
use serde::Serialize;

use super::arguments::Arguments;
use super::explain::explain_agent;
use super::text::{cut, rounded};
use super::tool::{Answer, agent_id, answer, read_only};

pub(super) const NAME: &str = "check_health";

const MAX_DETAIL: usize = 200;

#[derive(Serialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Health {
    agent_id: String,
    /// Whether the agent can be given work now.
    healthy: bool,
    /// active, busy or offline.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// Why the agent cannot be given work: `offline`, `heartbeat_missed`, `maintenance` or `probe_failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_since_heartbeat: Option<f64>,
    /// Seconds without a heartbeat after which the agent is considered offline.
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_timeout_seconds: Option<f64>,
    /// Whether the registry's last health probe of the agent succeeded. If it said nothing about the agent's health, this is false
    /// only if earlier probes have made the agent unhealthy. Absent if the agent was not probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_ok: Option<bool>,
    /// Result of the last probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_detail: Option<String>,
}

pub(super) fn tool() -> Tool {
    read_only::<Health>(
        NAME,
        "Check an agent's health",
        "Shows whether an agent can be given work now, and if not, why.",
        agent_id(),
        &["agent_id"],
    )
}

pub(super) async fn call(client: &RegistryClient, mut arguments: Arguments) -> Answer {
    let id = arguments.required_text("agent_id")?;
    arguments.finish()?;
    let health = client.check_health(&id).await.map_err(|error| explain_agent(&error, &id))?;
    let seconds = |time: Option<Duration>| time.map(|time| rounded(time.as_secs_f64()));
    answer(&Health {
        healthy: health.is_healthy(),
        status: health.agent_status.map(|status| status.to_string()),
        reason: health.reason.map(|reason| reason.to_string()),
        seconds_since_heartbeat: seconds(health.since_heartbeat),
        heartbeat_timeout_seconds: seconds(health.heartbeat_timeout),
        probe_ok: health.probe.as_ref().map(|probe| probe.ok),
        probe_detail: health.probe.and_then(|probe| probe.detail).map(|detail| cut(&detail, MAX_DETAIL)),
        agent_id: id,
    })
}
