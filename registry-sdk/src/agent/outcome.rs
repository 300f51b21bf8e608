//! Handling the outcome of a request: the next phase, when its request is due, and the results of waiting calls. The table of
//! transitions is in `reconcile`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::reconcile::{Acked, Loop, Phase, Request};
use super::shared::Wants;
use super::state::AgentState;
use super::timer::Timer;
use crate::contract::{AgentRecord, AgentStatus, HeartbeatAck, Owner};
use crate::error::Error;

impl Loop {
    pub(super) fn acknowledged(&mut self, version: u64, began: Instant, record: AgentRecord) {
        tracing::info!(agent_id = self.shared.agent_id, "registered");
        let is_first = self.known.last_success.is_none();
        (self.known.last_success, self.known.timeout) = (Some(Instant::now()), record.heartbeat_timeout);
        // Spreads the heartbeats of agents that were started together.
        let part = if is_first { fastrand::f64() } else { 1.0 };
        self.phase_timer = Timer::at((began + self.effective_interval().mul_f64(part)).max(Instant::now()));
        self.update_timer.failures = 0;
        self.known.knows_ages |= record.registration_tag.is_some();
        self.known.acked = Some(Acked { version, tag: record.registration_tag.clone() });
        self.known.logged_refusal = None;
        (self.phase, self.is_reborn) = (Phase::Registered, false);
        // The registry may have been restored, or another process may have registered in between.
        self.known.is_out &= record.maintenance.is_some();
        self.shared.registered(record.last_heartbeat);
        self.shared.lock().answer_concerned(&Ok(Some(record)));
    }

    pub(super) fn heartbeat_acknowledged(&mut self, began: Instant, ack: &HeartbeatAck) {
        tracing::debug!(agent_id = self.shared.agent_id, "heartbeat");
        let was_failing = self.phase_timer.failures > 0;
        self.known.knows_ages |= ack.registration_tag.is_some();
        self.known.last_success = Some(Instant::now());
        self.known.timeout = ack.heartbeat_timeout.or(self.known.timeout);
        // Counted from the start of the request, so that slow responses do not make heartbeats drift. Heartbeats that a
        // suspended host missed are not made up for.
        self.phase_timer = Timer::at((began + self.effective_interval()).max(Instant::now()));
        self.is_confirmed = true;
        self.shared.registered(ack.last_heartbeat);
        let acked = self.known.acked.as_ref().and_then(|acked| acked.tag.as_ref());
        match &ack.registration_tag {
            // The registry may have a pending update already, if only its response was lost.
            Some(tag) if acked.is_some_and(|acked| acked != tag) && !self.is_dirty() => {
                tracing::warn!(
                    agent_id = self.shared.agent_id,
                    "the registry has another registration of this agent than the last one: registering again"
                );
                self.update_soon();
            }
            // A registry without tags may have been restored or have missed an update, and cannot show that.
            None if was_failing => self.update_soon(),
            _ => {}
        }
    }

    /// Handles the record that was read while another process owned the id. Registers if that process is gone, or if a third
    /// process, which may be older than this one, owns the id.
    pub(super) fn record_read(&mut self, record: &AgentRecord) {
        self.known.knows_ages |= record.registration_tag.is_some();
        let is_own = record.instance_id.as_deref() == Some(&self.shared.instance_id);
        let owner = Owner::new(record.instance_id.clone(), &record.base_url);
        // The owner has to win twice: at first, delayed requests may have made it look younger than it is.
        let is_decided = self.known.refused_for == owner.instance_id && self.known.refusals >= 2;
        if is_own {
            self.register_soon();
        } else if record.status == AgentStatus::Offline || (self.known.knows_ages && !is_decided) {
            self.take_over();
        } else {
            self.look_later();
            self.shared.change_state(|_| AgentState::Superseded { owner: Some(owner) });
        }
    }

    fn take_over(&mut self) {
        if self.known.knows_ages {
            tracing::debug!(
                agent_id = self.shared.agent_id,
                "the owner of the id is gone or has changed: registering"
            );
            self.register_soon();
        } else {
            self.look_later();
        }
    }

    fn look_later(&mut self) {
        self.phase_timer = Timer::at(Instant::now() + self.interval.unwrap_or_default());
    }

    fn register_soon(&mut self) {
        self.phase = Phase::Unregistered;
        self.phase_timer = Timer::soon(self.interval.unwrap_or_default());
    }

    /// Sends the registration again. Heartbeats continue meanwhile, because the registry knows the agent.
    fn update_soon(&mut self) {
        self.known.acked = None;
        self.update_timer = Timer::soon(self.effective_interval());
    }

    pub(super) fn failed(&mut self, request: Request, error: Error) {
        match (request, &error) {
            (Request::ReadOwner, Error::NotFound { .. }) => {
                // This response has no tag. The last acknowledged registration had one, if this registry knows ages.
                self.known.knows_ages |= self.known.acked.as_ref().is_some_and(|acked| acked.tag.is_some());
                self.take_over();
            }
            (Request::ReadOwner, _) => {
                tracing::debug!(agent_id = self.shared.agent_id, %error, "cannot see who owns the id");
                self.look_later();
            }
            (Request::Register, Error::Superseded { owner: Some(owner), .. }) => {
                self.refused(owner.clone(), error);
            }
            // No registry gives this response, so it comes from something in between.
            (Request::Register, Error::Superseded { owner: None, detail }) => {
                self.degraded(Error::InvalidResponse { status: 409, detail: detail.clone() });
            }
            // Setting a status does not register a process that never registered.
            (Request::Status, Error::Superseded { .. }) if !self.status_needs_registration() => {
                self.shared.lock().settle(&error);
            }
            (Request::Maintenance, Error::NotFound { .. } | Error::Superseded { .. }) => {
                self.taken_out(false);
            }
            (Request::Maintenance, _) => self.drain_failed(&error),
            (Request::Heartbeat | Request::Status, Error::Superseded { owner: Some(_), .. }) => {
                self.contested(&error);
            }
            (Request::Heartbeat | Request::Status, Error::Superseded { owner: None, .. }) => {
                self.superseded(None, &error);
            }
            (Request::Heartbeat, Error::NotFound { .. }) => self.forgotten(),
            (Request::Status, Error::NotFound { .. }) if self.status_needs_registration() => {
                self.forgotten();
            }
            (Request::Status, _) => self.shared.lock().settle(&error),
            (Request::Register, _) if self.phase == Phase::Registered => self.update_failed(&error),
            (Request::Register, _) if self.phase == Phase::Superseded => self.shared.lock().settle(&error),
            (Request::Register | Request::Heartbeat, _) => self.degraded(error),
        }
    }

    /// Records that the registry gives this process no more work: it confirmed that, or another process or none has the id.
    pub(super) fn taken_out(&mut self, is_by_other: bool) {
        self.known.is_out = !is_by_other;
        // Whoever began that maintenance may end it at any time.
        self.drain_timer = Timer::at(Instant::now() + self.effective_interval());
        self.shared.lock().answer_concerned(&Ok(None));
    }

    fn drain_failed(&mut self, error: &Error) {
        let pause = self.drain_timer.failed(error, self.effective_interval());
        if self.drain_timer.failures == 1 {
            tracing::warn!(
                agent_id = self.shared.agent_id, %error, ?pause,
                "the registry was not told that the agent drains, trying again; the agent drains all the same"
            );
        }
        self.shared.lock().settle(error);
    }

    /// Handles a registry that does not know the agent any more.
    fn forgotten(&mut self) {
        tracing::warn!(
            agent_id = self.shared.agent_id,
            "the registry does not know this agent: registering again"
        );
        self.register_soon();
        self.shared.change_state(|_| AgentState::Registering);
    }

    /// Handles another process that seems to own the id. A registration with this process's age decides.
    fn contested(&mut self, error: &Error) {
        tracing::debug!(agent_id = self.shared.agent_id, %error, "another process seems to own the id: registering, so that the age decides");
        self.known.knows_ages = true;
        (self.phase, self.phase_timer) = (Phase::Unregistered, Timer::at(Instant::now()));
        self.shared.change_state(|_| AgentState::Registering);
    }

    /// Handles a refused registration: a younger process owns the id, or an earlier process with the same `instance_id` was
    /// shut down.
    fn refused(&mut self, owner: Owner, error: Error) {
        if owner.instance_id.as_deref() != Some(&self.shared.instance_id) {
            return self.superseded(Some(owner), &error);
        }
        // The registry heard of the end of that earlier process (of the same pod, for example) only after this one had started,
        // or its clock was set back. Until a registration is accepted, each attempt gives its own moment as the start of the process.
        self.phase = Phase::Unregistered;
        if std::mem::replace(&mut self.is_reborn, true) {
            self.degraded(error);
            self.started = self.phase_timer.due;
            return;
        }
        // The registry's clock has a resolution of a millisecond.
        let due = Instant::now() + Duration::from_millis(10);
        (self.started, self.phase_timer) = (due, Timer::at(due));
        for call in &mut self.shared.lock().calls {
            call.due = due;
        }
    }

    fn superseded(&mut self, owner: Option<Owner>, error: &Error) {
        self.phase = Phase::Superseded;
        // Servers behind one name may have different versions.
        self.known.knows_ages = owner.is_some();
        let owner_id = owner.as_ref().and_then(|owner| owner.instance_id.clone());
        let is_same = self.known.refused_for == owner_id;
        self.known.refusals = if is_same { self.known.refusals.saturating_add(1) } else { 1 };
        self.known.refused_for = owner_id;
        if !self.known.knows_ages {
            // A registry without ages does not record the end of a process that does not own the id.
            self.shared.set_may_be_registered(false);
        }
        self.look_later();
        if !self.shared.state.borrow().is_superseded() {
            let (owner_id, owner_url) =
                owner.as_ref().map(|owner| (owner.instance_id.as_deref(), &*owner.base_url)).unzip();
            tracing::warn!(
                agent_id = self.shared.agent_id,
                instance_id = self.shared.instance_id,
                owner_instance_id = owner_id.flatten(),
                owner_base_url = owner_url,
                "another process owns this agent's id, no heartbeats are sent; if this is a different agent, give it its \
                 own id"
            );
        }
        self.shared.change_state(|_| AgentState::Superseded { owner });
        self.shared.lock().answer(&[Wants::Registration, Wants::Status], &Err(error.clone()));
    }

    /// Returns the error of a call that comes while another process owns the id.
    pub(super) fn superseded_error(&self) -> Error {
        let owner = match &*self.shared.state.borrow() {
            AgentState::Superseded { owner } => owner.clone(),
            _ => None,
        };
        Error::Superseded { detail: "another process owns this agent's id".to_owned(), owner }
    }

    /// Handles an update that the registry did not accept. The previous registration stays.
    fn update_failed(&mut self, error: &Error) {
        let pause = self.update_timer.failed(error, self.effective_interval());
        if self.is_new_refusal(error) || self.update_timer.failures == 1 {
            tracing::warn!(
                agent_id = self.shared.agent_id, %error, ?pause,
                "the registry did not take a changed registration, trying again; heartbeats go on"
            );
        }
        self.shared.lock().settle(error);
    }

    /// Returns whether the registry refuses the agent for a reason that was not logged yet. An outage may have been logged
    /// before.
    fn is_new_refusal(&mut self, error: &Error) -> bool {
        let refusal = error.is_refused().then(|| error.to_string());
        let is_new = refusal.is_some() && refusal != self.known.logged_refusal;
        if is_new {
            self.known.logged_refusal = refusal;
        }
        is_new
    }

    fn degraded(&mut self, error: Error) {
        let pause = self.phase_timer.failed(&error, self.effective_interval());
        if self.is_new_refusal(&error) {
            tracing::warn!(
                agent_id = self.shared.agent_id, %error, ?pause,
                "the registry rejects this agent, so its settings have to be fixed: running on without it, and trying again"
            );
        } else if self.shared.state.borrow().is_degraded() {
            tracing::debug!(agent_id = self.shared.agent_id, %error, ?pause, "the registry still fails");
        } else {
            tracing::warn!(
                agent_id = self.shared.agent_id, %error, ?pause,
                "the registry fails: running on without it"
            );
        }
        self.shared.lock().settle(&error);
        self.shared.degraded(Arc::new(error));
    }
}
