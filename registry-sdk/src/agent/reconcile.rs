//! The agent's loop. It sends one request at a time until the registry has acknowledged the state that the agent wants. Nothing
//! else sends writes for the agent.
//!
//! | phase | request | outcome | next phase |
//! |---|---|---|---|
//! | `Unregistered` | register | acknowledged | `Registered`; the next heartbeat comes one interval after this request began, the first one after a random part of it |
//! | | | a younger process owns the id (409) | `Superseded` |
//! | | | an earlier process with the same `instance_id` was shut down (409 that names the agent itself) | `Unregistered`, once more, as a process that starts now |
//! | | | failed | `Unregistered`, after a pause that grows |
//! | `Registered` | heartbeat | acknowledged | `Registered`, one interval later |
//! | | | acknowledged, but the tag is that of another registration | `Registered`; the registration is sent again within a tenth of the interval |
//! | | | acknowledged after failures, by a registry without tags | the same, because the registry may have lost an update |
//! | | heartbeat or status | unknown (404) | `Unregistered`, within a tenth of the interval |
//! | | | another process owns the id (409), and ages are known | `Unregistered`, at once: its age decides |
//! | | | the same, and ages are not known | `Superseded` |
//! | | heartbeat | failed | `Registered`, after a pause that grows |
//! | | maintenance, while the agent drains | acknowledged, or no longer needed (404, 409) | `Registered` |
//! | | | failed | `Registered`, after a pause that grows |
//! | | register, to send an update | acknowledged | `Registered` |
//! | | | a younger process owns the id (409) | `Superseded` |
//! | | | failed | `Registered`; heartbeats go on, and the update is sent again after a pause that grows |
//! | `Superseded` | read the record | the owner is offline, gone or another one, and ages are known | `Unregistered`, within a tenth of the interval |
//! | | | another process owns the id, only one registration was refused because of it so far, and ages are known | `Unregistered`, within a tenth of the interval: requests that were late may have made it look younger than it is |
//! | | | anything else | `Superseded`, one interval later |
//!
//! On a registry that knows no ages, the newest registration wins. Updates are then sent only right after an acknowledged
//! heartbeat, so that an older process notices in time that it was superseded, and never takes the id back.
//!
//! A draining agent does not register by itself any more: a registry that does not have it gives it no work anyway.
//!
//! While heartbeats are off, the loop sends only what a caller waits for. A shutdown ends the loop in any phase: the request in
//! flight gets up to half of the time, and then the status is set to `offline` for good, unless the registry cannot know the
//! process.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::shared::{Desired, Inner, Shared, Stop, Wants};
use super::state::OnSuperseded;
use super::timer::{DEFAULT_INTERVAL, Timer};
use crate::contract::{AgentRecord, HeartbeatAck};
use crate::error::Error;
use crate::retry::deadline_after;

/// Minimum time between two heartbeats, however often the registry expects them.
const MIN_PACE: Duration = Duration::from_secs(1);

/// The agent's relation to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The registry has no registration of the agent, or a different one.
    Unregistered,
    /// The registry has acknowledged a registration.
    Registered,
    /// Another process owns the id.
    Superseded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Register,
    Heartbeat,
    /// Set the status now.
    Status,
    /// Ask to be given no more work.
    Maintenance,
    /// Read the record, to check whether the owner of the id is alive.
    ReadOwner,
}

/// The next action of the loop.
enum Plan {
    Send(Request),
    Wait(Option<Instant>),
    /// Shut down by this time.
    ShutDown(Instant),
    Abandon,
}

/// The response to a request.
pub(super) enum Answered {
    Registered(Box<AgentRecord>),
    Heartbeat(HeartbeatAck),
    StatusSet,
    TakenOut {
        /// Whether it is maintenance by somebody else, which may end before the drain.
        is_by_other: bool,
    },
    Record(Box<AgentRecord>),
}

/// The last registration that the registry acknowledged.
pub(super) struct Acked {
    pub(super) version: u64,
    pub(super) tag: Option<String>,
}

/// Information from the registry's responses so far.
#[derive(Default)]
pub(super) struct Known {
    pub(super) acked: Option<Acked>,
    /// Whether the youngest process owns the id on this registry.
    pub(super) knows_ages: bool,
    /// When the registry last heard of the agent, and how long the agent may be silent.
    pub(super) last_success: Option<Instant>,
    pub(super) timeout: Option<Duration>,
    /// The owner because of which the last registration was refused, and how many times in a row.
    pub(super) refused_for: Option<String>,
    pub(super) refusals: u32,
    /// The last refusal that was logged since the last acknowledged registration.
    pub(super) logged_refusal: Option<String>,
    /// Whether the registry gives this process no more work.
    pub(super) is_out: bool,
}

pub(super) struct Loop {
    pub(super) shared: Arc<Shared>,
    pub(super) phase: Phase,
    /// When the request of the phase is due, while heartbeats are on.
    pub(super) phase_timer: Timer,
    /// When an update of the registration is due.
    pub(super) update_timer: Timer,
    /// When the request to be given no more work is due.
    pub(super) drain_timer: Timer,
    /// The interval and the version for which the timers were set.
    pub(super) interval: Option<Duration>,
    pub(super) version: u64,
    pub(super) known: Known,
    /// Whether the last response acknowledged a heartbeat, which proves that this process owns the id.
    pub(super) is_confirmed: bool,
    /// When the process started.
    pub(super) started: Instant,
    /// Whether the process counts as started anew, because its registration was refused as that of a process that had ended.
    pub(super) is_reborn: bool,
}

/// Runs until the agent is shut down or its last handle is dropped. Wakes up once per interval, and when something changes.
pub(super) async fn run(shared: Arc<Shared>) {
    let span = tracing::debug_span!("heartbeat_loop", agent_id = shared.agent_id);
    Loop::new(shared).live().instrument(span).await;
}

/// Calls get a result however the loop ends.
impl Drop for Loop {
    fn drop(&mut self) {
        self.shared.loop_ended();
    }
}

impl Loop {
    fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Self {
            phase: Phase::Unregistered,
            phase_timer: Timer::at(now),
            update_timer: Timer::at(now),
            drain_timer: Timer::at(now),
            interval: None,
            version: 0,
            known: Known::default(),
            is_confirmed: false,
            started: shared.created,
            is_reborn: false,
            shared,
        }
    }

    async fn live(mut self) {
        loop {
            match self.plan() {
                Plan::Send(request) => self.send(request).await,
                Plan::Wait(None) => self.shared.changed().await,
                Plan::Wait(Some(due)) => {
                    tokio::select! {
                        () = sleep_until(due) => {}
                        () = self.shared.changed() => {}
                    }
                    self.notice_stall(due);
                }
                Plan::ShutDown(deadline) => return Box::pin(self.shut_down(deadline)).await,
                Plan::Abandon => return,
            }
        }
    }

    /// Decides on the next action. Only this function looks at the changes that handles have made.
    fn plan(&mut self) -> Plan {
        let shared = self.shared.clone();
        let mut inner = shared.lock();
        match inner.stop {
            Stop::No => {}
            Stop::By { deadline, .. } => return Plan::ShutDown(deadline),
            Stop::Abandoned => return Plan::Abandon,
        }
        inner.forget_cancelled();
        inner.answer(&[Wants::Idle], &Ok(None));
        self.follow(&inner.desired);
        let next = self.candidates(&mut inner).into_iter().flatten().min_by_key(|(due, _)| *due);
        let next = next.map(|(due, request)| (due, request, due <= Instant::now()));
        if !matches!(next, Some((_, Request::Register, true))) {
            self.is_confirmed = false;
        }
        match next {
            Some((_, request, true)) => Plan::Send(request),
            next => Plan::Wait(next.map(|(due, ..)| due)),
        }
    }

    /// Sets the timers after changes by handles.
    fn follow(&mut self, desired: &Desired) {
        let now = Instant::now();
        if self.interval != desired.interval {
            self.interval = desired.interval;
            let interval = self.effective_interval();
            self.phase_timer = Timer::at(match self.phase {
                Phase::Unregistered => now,
                // Spreads the heartbeats of agents that started together. If heartbeats were restarted, the next one must not
                // come later than it was due.
                Phase::Registered => {
                    let drawn = now + interval.mul_f64(fastrand::f64());
                    self.known.last_success.map_or(drawn, |last_success| drawn.min(last_success + interval))
                }
                Phase::Superseded => now + interval,
            });
        }
        if self.version != desired.version {
            self.version = desired.version;
            self.update_timer = Timer::at(now);
        }
    }

    /// Returns the possible requests and when each is due. If several are due, the first one is sent.
    fn candidates(&self, inner: &mut Inner) -> [Option<(Instant, Request)>; 4] {
        let own = self.interval.map(|_| self.phase_timer.due);
        let drain = self.drain_due(inner);
        let (registration, status) = (inner.due(Wants::Registration), inner.due(Wants::Status));
        let at = |request| move |due| (due, request);
        match self.phase {
            Phase::Unregistered if self.status_needs_registration() => {
                let own = own.filter(|_| !self.is_draining());
                let register = [own, registration, status].into_iter().flatten().min();
                [drain.map(at(Request::Maintenance)), register.map(at(Request::Register)), None, None]
            }
            Phase::Unregistered => {
                let register = registration.map(at(Request::Register));
                [drain.map(at(Request::Maintenance)), register, status.map(at(Request::Status)), None]
            }
            Phase::Registered => {
                // While the registry fails, only heartbeats are sent, to find out when it is available again.
                let must_update =
                    self.is_dirty() && self.interval.is_some() && self.phase_timer.failures == 0;
                let update =
                    registration.into_iter().chain(must_update.then_some(self.update_timer.due)).min();
                let may_register = self.known.knows_ages || self.is_confirmed;
                let request = if may_register { Request::Register } else { Request::Heartbeat };
                [
                    drain.map(at(Request::Maintenance)),
                    update.map(at(request)),
                    own.map(at(Request::Heartbeat)),
                    status.map(at(Request::Status)),
                ]
            }
            Phase::Superseded => {
                let looks = inner.on_superseded == OnSuperseded::StandBy && !self.is_draining();
                let look = own.filter(|_| looks).map(at(Request::ReadOwner));
                let refused: &[Wants] = if self.known.knows_ages {
                    &[Wants::Status]
                } else {
                    &[Wants::Status, Wants::Registration]
                };
                if registration.or(status).is_some() {
                    inner.answer(refused, &Err(self.superseded_error()));
                }
                [registration.filter(|_| self.known.knows_ages).map(at(Request::Register)), look, None, None]
            }
        }
    }

    /// Returns when to ask the registry to give the process no more work. Answers the calls that wait for it if it is
    /// unnecessary.
    fn drain_due(&self, inner: &mut Inner) -> Option<Instant> {
        let may_be_given_work = match self.phase {
            Phase::Unregistered => self.shared.may_be_registered(),
            Phase::Registered => true,
            Phase::Superseded => false,
        };
        if !self.is_draining() || !may_be_given_work || self.known.is_out {
            inner.answer(&[Wants::Maintenance], &Ok(None));
            return None;
        }
        let own = self.interval.map(|_| self.drain_timer.due);
        own.into_iter().chain(inner.due(Wants::Maintenance)).min()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.tasks.is_draining()
    }

    /// Returns the time between two heartbeats: the interval, unless the registry expects heartbeats more often, for example
    /// because it has not acknowledged a longer interval yet.
    pub(super) fn effective_interval(&self) -> Duration {
        let interval = self.interval.unwrap_or(DEFAULT_INTERVAL);
        self.known.timeout.map_or(interval, |timeout| interval.min((timeout / 2).max(MIN_PACE)))
    }

    /// Returns whether the registry lacks an update of the registration.
    pub(super) fn is_dirty(&self) -> bool {
        self.known.acked.as_ref().is_none_or(|acked| acked.version != self.version)
    }

    /// Returns whether an agent that is not registered sets its status by registering.
    pub(super) fn status_needs_registration(&self) -> bool {
        self.interval.is_some() || self.shared.may_be_registered()
    }

    async fn send(&mut self, request: Request) {
        let (limit, version) = self.begin(request);
        let (began, shared) = (Instant::now(), self.shared.clone());
        // Boxed, because an agent mostly waits and needs no memory for a request meanwhile.
        let attempt = Box::pin(self.attempt(request, limit));
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = shared.cut_off() => {
                tracing::warn!(agent_id = shared.agent_id, "the last request was cut off by the shutdown");
                return;
            }
        };
        self.notice_stall(deadline_after(began, limit));
        match outcome {
            Ok(Answered::Registered(record)) => self.acknowledged(version, began, *record),
            Ok(Answered::Heartbeat(ack)) => self.heartbeat_acknowledged(began, &ack),
            Ok(Answered::StatusSet) => self.shared.lock().answer_concerned(&Ok(None)),
            Ok(Answered::TakenOut { is_by_other }) => self.taken_out(is_by_other),
            Ok(Answered::Record(record)) => self.record_read(&record),
            Err(error) => self.failed(request, error),
        }
    }

    /// Warns if the loop wakes up much later than scheduled.
    fn notice_stall(&self, expected: Instant) {
        let late = Instant::now().saturating_duration_since(expected);
        let Some(interval) = self.interval.filter(|interval| late > *interval / 2) else { return };
        tracing::warn!(
            agent_id = self.shared.agent_id,
            ?late,
            "a heartbeat is late: the runtime was blocked, or the process suspended; keep blocking work off the runtime"
        );
        let silent = self.known.last_success.map(|last_success| last_success.elapsed()).unwrap_or_default();
        if self.phase == Phase::Registered && silent > self.known.timeout.unwrap_or(interval * 2) {
            self.shared.degraded(Arc::new(Error::Stalled { silent }));
        }
    }
}
