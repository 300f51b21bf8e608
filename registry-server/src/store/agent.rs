//! Agents in the form in which they are stored.

use std::time::Duration;

use registry_sdk::AgentFilter;
use registry_sdk::contract::{
    AgentStatus, DEFAULT_HEALTH_PATH, Maintenance, ProbeMode, Registration, Timestamp,
};
use registry_sdk::internal::{FilterParts, Instances};
use serde::{Deserialize, Serialize};

use super::card::card_digest;
use super::encoded::{Capabilities, Metadata};

/// An agent in its stored form, as in its row and in events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredAgent {
    pub(crate) agent_id: String,
    pub(crate) agent_name: String,
    pub(crate) base_url: String,
    /// Path of the agent's health check, if it is not the default. Missing in events of older versions.
    #[serde(default)]
    pub(crate) health_path: Option<String>,
    /// Whether the agent allows probes, if it said so. Missing in events of older versions.
    #[serde(default)]
    pub(crate) probe: Option<ProbeMode>,
    pub(crate) capabilities: Capabilities,
    pub(crate) metadata: Metadata,
    pub(crate) status: AgentStatus,
    /// Whether the agent is offline because it missed its deadline, rather than because it said so.
    pub(crate) missed_deadline: bool,
    /// Time since which the agent has been offline.
    pub(crate) offline_since: Option<Timestamp>,
    /// Whether the registry's last probes of the agent failed.
    pub(crate) probe_failed: bool,
    pub(crate) heartbeat_interval: Option<Duration>,
    /// The instance that registered last, if it sent an id.
    pub(crate) instance_id: Option<String>,
    /// The most recent instances of the agent. Missing in events of older versions.
    #[serde(default)]
    pub(crate) instances: Instances,
    /// The stored maintenance, which may be over by now. Missing in events of older versions.
    #[serde(default)]
    pub(crate) maintenance: Option<Maintenance>,
    /// Name of the token that made the last change, or the registry's. Missing in events of older versions.
    #[serde(default)]
    pub(crate) changed_by: Option<String>,
    /// Hash of the agent's card, which is stored in a separate table. Missing in events of older versions.
    #[serde(default)]
    pub(crate) card_digest: Option<String>,
    pub(crate) registered_at: Timestamp,
    pub(crate) last_heartbeat: Timestamp,
    /// Revision of the agent's last change. Plain heartbeats do not change it.
    pub(crate) revision: i64,
}

impl StoredAgent {
    /// Creates an agent from a registration.
    ///
    /// The caller still has to set its instances, its times, its revision and `changed_by`.
    pub(crate) fn from_registration(registration: Registration) -> serde_json::Result<Self> {
        let never = Timestamp::from_unix_millis(0);
        Ok(Self {
            capabilities: Capabilities::new(&registration.capabilities)?,
            metadata: Metadata::new(&registration.metadata)?,
            agent_id: registration.agent_id,
            agent_name: registration.agent_name,
            base_url: registration.base_url,
            health_path: registration.health_path,
            probe: registration.probe,
            status: registration.status,
            missed_deadline: false,
            offline_since: None,
            probe_failed: false,
            heartbeat_interval: registration.heartbeat_interval,
            instance_id: registration.instance_id,
            instances: Instances::default(),
            maintenance: None,
            changed_by: None,
            card_digest: registration.card.as_ref().map(|card| card_digest(card.as_str())),
            registered_at: never,
            last_heartbeat: never,
            revision: 0,
        })
    }

    /// Whether what the agent registered passes a filter.
    pub(crate) fn passes(&self, filter: &AgentFilter) -> bool {
        (!filter.has_capability() || self.capabilities.any_passes(filter)) && self.metadata.passes(filter)
    }

    /// Whether the agent may be probed. A mode that only later versions know counts as no.
    pub(crate) fn may_be_probed(&self) -> bool {
        self.probe.unwrap_or_default() == ProbeMode::On
    }

    /// Whether probe results for one of the agents also hold for the other: same process, same URL.
    pub(crate) fn has_same_probes(&self, other: &Self) -> bool {
        let path = self.health_path.as_deref().unwrap_or(DEFAULT_HEALTH_PATH);
        self.base_url == other.base_url
            && path == other.health_path.as_deref().unwrap_or(DEFAULT_HEALTH_PATH)
            && self.may_be_probed() == other.may_be_probed()
            && self.instance_id == other.instance_id
    }

    /// Whether registering `draft` would change nothing.
    pub(crate) fn has_same_registration(&self, draft: &Self) -> bool {
        self.status == draft.status
            && self.agent_name == draft.agent_name
            && self.base_url == draft.base_url
            && self.health_path == draft.health_path
            && self.probe == draft.probe
            && self.heartbeat_interval == draft.heartbeat_interval
            && self.instance_id == draft.instance_id
            && self.capabilities == draft.capabilities
            && self.metadata == draft.metadata
            && self.card_digest == draft.card_digest
    }

    /// Whether the agent is in maintenance at `now`.
    pub(crate) fn is_in_maintenance(&self, now: Timestamp) -> bool {
        self.maintenance.as_ref().is_some_and(|maintenance| {
            let owner = maintenance.instance_id.as_deref();
            !maintenance.is_over(now) && owner.is_none_or(|instance_id| self.is_owned_by(instance_id))
        })
    }

    /// Whether a process owns the agent's id and has not been shut down.
    pub(crate) fn is_owned_by(&self, instance_id: &str) -> bool {
        self.instance_id.as_deref() == Some(instance_id) && !self.instances.has_ended(instance_id)
    }

    /// Whether two states of an agent differ only in the last heartbeat.
    pub(crate) fn is_same_but_for_heartbeat(&self, other: &Self) -> bool {
        *self == Self { last_heartbeat: self.last_heartbeat, ..other.clone() }
    }
}
