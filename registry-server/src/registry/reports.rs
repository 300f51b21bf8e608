//! Transient reports about agents: the load from heartbeats, and the last probe result.
//!
//! Reports are not stored, since the next heartbeat or probe restores them after a restart. Servers broadcast
//! them to each other.

use std::collections::HashSet;

use parking_lot::Mutex;
use registry_sdk::contract::ProbeResult;
use serde::{Deserialize, Serialize};

use super::shared::Shared;

/// The transient state of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Fraction of the agent's capacity in use, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) load: Option<f64>,
    /// Number of tasks that the agent is working on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active_tasks: Option<u32>,
    /// Result of the last probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probe: Option<ProbeResult>,
}

impl Report {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Overwrites the fields that are set in a later report.
    pub(crate) fn update(&mut self, later: Self) {
        self.load = later.load.or(self.load);
        self.active_tasks = later.active_tasks.or(self.active_tasks);
        if later.probe.is_some() {
            self.probe = later.probe;
        }
    }
}

/// Ids of agents whose reports have not been broadcast yet.
#[derive(Debug, Default)]
pub(crate) struct DirtyReports(Mutex<HashSet<String>>);

impl DirtyReports {
    /// Takes all ids.
    pub(super) fn take(&self) -> HashSet<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Shared {
    /// Records a report that this server received or created.
    pub(super) fn report(&self, agent_id: &str, report: Report) {
        if report.is_empty() {
            return;
        }
        self.view.report(agent_id, report);
        if self.database.is_shared() {
            self.dirty_reports.0.lock().insert(agent_id.to_owned());
        }
    }
}
