//! Sends a single request with the state that the agent wants at that moment.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::reconcile::{Answered, Loop, Phase, Request};
use super::shared::{Shared, Wants};
use super::state::AgentState;
use super::timer::heartbeat_limit;
use crate::contract::{AgentStatus, Heartbeat, MaintenanceRequest, StatusUpdate};
use crate::error::Error;
use crate::metrics;

impl Loop {
    /// Marks the calls that the next attempt serves. Returns the attempt's time limit and the version that it sends.
    pub(super) fn begin(&mut self, request: Request) -> (Duration, u64) {
        let now = Instant::now();
        let most = self.shared.client.attempt_timeout();
        let own = self.interval.map_or(most, |_| heartbeat_limit(self.effective_interval()).min(most));
        let mut limit = own;
        let by_registering = self.status_needs_registration();
        let mut inner = self.shared.lock();
        for call in &mut inner.calls {
            let is_concerned = match (request, call.wants) {
                (Request::Register, Wants::Registration)
                | (Request::Status, Wants::Status)
                | (Request::Maintenance, Wants::Maintenance) => true,
                // The heartbeat that has to succeed before the registration may be sent.
                (Request::Heartbeat, Wants::Registration) => call.due <= now,
                (Request::Register, Wants::Status) => by_registering,
                _ => false,
            };
            call.is_concerned = false;
            if is_concerned {
                limit = limit.max(call.take_part(most));
            }
        }
        let version = inner.desired.version;
        drop(inner);
        if request == Request::Register {
            self.shared.set_may_be_registered(true);
        }
        (limit.min(self.spare_time().max(own)), version)
    }

    /// Returns how long a caller's request may take without the registry missing a heartbeat. It leaves time for two attempts.
    fn spare_time(&self) -> Duration {
        let (Phase::Registered, Some(interval), Some(last_success)) =
            (self.phase, self.interval, self.known.last_success)
        else {
            return Duration::MAX;
        };
        let timeout = self.known.timeout.unwrap_or(interval * 2);
        let silent = last_success.elapsed() + 2 * heartbeat_limit(self.effective_interval());
        timeout.saturating_sub(silent)
    }

    pub(super) async fn attempt(&self, request: Request, limit: Duration) -> Result<Answered, Error> {
        let Shared { agent_id, instance_id, client, .. } = &*self.shared;
        match request {
            Request::Register => {
                let registration = self.shared.lock().desired.registration.clone();
                let outcome = client.register_once(&registration, self.started, limit).await;
                metrics::registration_sent(&outcome);
                outcome.map(|record| Answered::Registered(Box::new(record)))
            }
            Request::Heartbeat => {
                let outcome = client.heartbeat_once(agent_id, &self.heartbeat(), limit).await;
                metrics::heartbeat_sent(&outcome);
                outcome.map(Answered::Heartbeat)
            }
            Request::Status => {
                let status = self.shared.lock().desired.status.unwrap_or_default();
                let update = StatusUpdate::new(status).instance_id(instance_id);
                match client.update_status_once(agent_id, &update, limit).await {
                    // A registry without this operation may still accept the status with a heartbeat.
                    Err(Error::Unsupported { .. }) if status != AgentStatus::Offline => client
                        .heartbeat_once(agent_id, &self.heartbeat(), limit)
                        .await
                        .map(|_| Answered::StatusSet),
                    outcome => outcome.map(|()| Answered::StatusSet),
                }
            }
            Request::Maintenance => self.take_out(limit).await,
            Request::ReadOwner => {
                let seen = client.get_agent_once(agent_id, limit).await;
                seen.map(|record| Answered::Record(Box::new(record)))
            }
        }
    }

    /// Asks the registry to give the process no more work. On a registry without maintenance, sets the status `offline`, which
    /// later heartbeats carry.
    async fn take_out(&self, limit: Duration) -> Result<Answered, Error> {
        let Shared { agent_id, instance_id, client, .. } = &*self.shared;
        let request = MaintenanceRequest::new("draining").instance_id(instance_id);
        match client.set_maintenance_once(agent_id, &request, limit).await {
            Err(Error::Unsupported { .. }) => {}
            outcome => return outcome.map(|is_by_other| Answered::TakenOut { is_by_other }),
        }
        let taken_out = Answered::TakenOut { is_by_other: false };
        let update = StatusUpdate::new(AgentStatus::Offline).instance_id(instance_id);
        match client.update_status_once(agent_id, &update, limit).await {
            // With the basic operations alone there is no way to express it, because a heartbeat may make any agent active.
            Err(Error::Unsupported { .. }) => Ok(taken_out),
            outcome => outcome.map(|()| {
                self.shared.lock().desired.set_status(AgentStatus::Offline);
                taken_out
            }),
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let beat = self.shared.tasks.add_to(Heartbeat::default().instance_id(&self.shared.instance_id));
        let status = self.shared.lock().desired.status;
        status.into_iter().fold(beat, Heartbeat::status)
    }

    /// Reports that the agent is offline for good. This is the last request of the loop.
    pub(super) async fn shut_down(&mut self, deadline: Instant) {
        let Shared { agent_id, instance_id, client, .. } = &*self.shared;
        let calls = [Wants::Registration, Wants::Status, Wants::Maintenance, Wants::Idle];
        self.shared.lock().answer(&calls, &Err(Error::ShutDown));
        if self.shared.may_be_registered() {
            let update = StatusUpdate::shut_down(instance_id);
            let limit = deadline.saturating_duration_since(Instant::now());
            match timeout_at(deadline, client.send_status(agent_id, &update, limit)).await {
                Ok(
                    Ok(())
                    | Err(Error::Unsupported { .. } | Error::NotFound { .. } | Error::Superseded { .. }),
                ) => tracing::info!(agent_id, "shut down"),
                Ok(Err(error)) => {
                    tracing::warn!(agent_id, %error, "shut down, but the registry did not take the status");
                }
                Err(_) => tracing::warn!(agent_id, "shut down; the registry did not answer in time"),
            }
        }
        self.shared.set_may_be_registered(false);
        self.shared.change_state(|_| AgentState::Stopped);
    }
}
