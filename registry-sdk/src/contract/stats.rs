//! Statistics of a registry.

use serde::{Deserialize, Serialize};

use super::agent::AgentStatus;

/// Counts over the whole registry at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct RegistryStats {
    /// Number of agents.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub total_agents: u64,
    /// Number of active agents.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub active_agents: u64,
    /// Number of busy agents.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub busy_agents: u64,
    /// Number of offline agents.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub offline_agents: u64,
    /// Number of agents that are offline because they missed their deadline.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub stale_agents: u64,
    /// Number of agents in maintenance, whatever their status.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub maintenance_agents: u64,
    /// Number of capabilities of all agents.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub total_capabilities: u64,
    /// Number of distinct names of those capabilities.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub distinct_capabilities: u64,
}

/// Counts one more agent.
pub fn count_agent(counts: &mut RegistryStats, status: AgentStatus, missed_deadline: bool) {
    counts.total_agents += 1;
    counts.stale_agents += u64::from(missed_deadline);
    *match status {
        AgentStatus::Active => &mut counts.active_agents,
        AgentStatus::Busy => &mut counts.busy_agents,
        AgentStatus::Offline | AgentStatus::Unknown(_) => &mut counts.offline_agents,
    } += 1;
}
