//! Changes that begin and end maintenance.

use registry_sdk::contract::{Maintenance, MaintenanceRequest, Timestamp};

use super::{Outcome, Transition, superseded};
use crate::store::{EventKind, StoredAgent};

impl Transition<'_> {
    pub(super) fn set_maintenance(
        &mut self,
        mut agent: StoredAgent,
        request: &MaintenanceRequest,
        arrived: Timestamp,
    ) -> Outcome {
        if let Some(instance_id) = request.instance_id.as_deref().filter(|id| !agent.is_owned_by(id)) {
            return superseded(&agent, Some(instance_id));
        }
        let is_of_agent = |current: &Maintenance| current.instance_id.is_none();
        if request.instance_id.is_some()
            && agent.is_in_maintenance(self.now)
            && agent.maintenance.as_ref().is_some_and(is_of_agent)
        {
            // A process drains itself. That must not end the agent's own maintenance when its successor
            // registers.
            return self.unchanged(agent);
        }
        agent.maintenance = Some(request.begin(arrived));
        self.emit(agent, EventKind::StatusChanged)
    }

    pub(super) fn end_maintenance(&mut self, mut agent: StoredAgent) -> Outcome {
        if agent.maintenance.take().is_none() {
            return self.unchanged(agent);
        }
        self.emit(agent, EventKind::StatusChanged)
    }

    pub(super) fn expire_maintenance(&mut self, agent: StoredAgent) -> Outcome {
        if has_leftover_maintenance(&agent, self.now) {
            self.end_maintenance(agent)
        } else {
            self.unchanged(agent)
        }
    }
}

/// Whether a row contains maintenance that is no longer visible to readers.
pub(crate) fn has_leftover_maintenance(agent: &StoredAgent, now: Timestamp) -> bool {
    agent.maintenance.is_some() && !agent.is_in_maintenance(now)
}
