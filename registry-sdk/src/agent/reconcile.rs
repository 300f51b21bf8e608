//! The agent's loop. It sends one request at a time, until the registry has acknowledged the state that the agent wants.
//! Nothing else sends writes of the agent.
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
//! | | | another process owns the id, which has won only once | the same: requests that were late may have made it look younger than it is |
//! | | | anything else | `Superseded`, one interval later |
//!
//! A registry that knows no ages lets the newest registration win. There an update is sent only right after a heartbeat was
//! acknowledged: so an older process finds out in time that it was superseded, and never takes the id back.
//!
//! An agent that drains does not register by itself any more: a registry that does not have it gives it no work, either.
//!
//! While heartbeats are off, the loop sends only what a caller waits for. In every phase a shutdown ends it: the request
//! under way gets up to half of the time, then the status is set to `offline`, for good, unless the registry cannot have the
//! process registered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::shared::{Desired, Inner, Shared, Stop, Wants};
use super::state::OnSuperseded;
use super::timer::{DEFAULT_INTERVAL, Timer};
use crate::contract::{AgentRecord, HeartbeatAck};
use crate::error::Error;
use crate::retry::deadline_after;

/// Shortest time between two heartbeats that a registry can demand.
const MIN_PACE: Duration = Duration::from_secs(1);

/// What the agent knows of its standing with the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The registry does not have the registration, or another one.
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
    /// Sets the status now.
    Status,
    /// Asks to be given no more work.
    Maintenance,
    /// Reads the record, to see whether the owner of the id lives.
    ReadOwner,
}

/// What the loop does next.
enum Plan {
    Send(Request),
    Wait(Option<Instant>),
    /// Ends in good order, by then.
    ShutDown(Instant),
    Abandon,
}

/// The answer to a request.
pub(super) enum Answered {
    Registered(Box<AgentRecord>),
    Heartbeat(HeartbeatAck),
    StatusSet,
    TakenOut {
        /// Whether that is maintenance by somebody else, which may end before the drain.
        is_by_other: bool,
    },
    Record(Box<AgentRecord>),
}

/// The last registration that the registry acknowledged.
pub(super) struct Acked {
    pub(super) version: u64,
    pub(super) tag: Option<String>,
}

/// What the registry has said so far.
#[derive(Default)]
pub(super) struct Known {
    pub(super) acked: Option<Acked>,
    /// Whether the registry lets the youngest process own the id.
    pub(super) knows_ages: bool,
    /// When the registry last heard of the agent, and how long it may be silent.
    pub(super) last_success: Option<Instant>,
    pub(super) timeout: Option<Duration>,
    /// The owner in whose favour the last registration was refused, and how often in a row.
    pub(super) refused_for: Option<String>,
    pub(super) refusals: u32,
    /// The refusal that was logged last, since the last registration that was acknowledged.
    pub(super) logged_refusal: Option<String>,
    /// Whether the registry gives this process no more work.
    pub(super) is_out: bool,
}

pub(super) struct Loop {
    pub(super) shared: Arc<Shared>,
    pub(super) phase: Phase,
    /// When the phase's own request is due, as long as heartbeats are on.
    pub(super) phase_timer: Timer,
    /// An update of the registration.
    pub(super) update_timer: Timer,
    /// The request to be given no more work.
    pub(super) drain_timer: Timer,
    /// The interval and the version for which the timers are set.
    pub(super) interval: Option<Duration>,
    pub(super) version: u64,
    pub(super) known: Known,
    /// Whether a heartbeat was acknowledged just now, which proves that this process owns the id.
    pub(super) is_confirmed: bool,
    /// When the process started.
    pub(super) started: Instant,
    /// Whether it counts as started anew, since its registration was last refused.
    pub(super) is_reborn: bool,
}

/// Runs until the agent is shut down, or nobody holds it any more. Wakes once an interval, and when something changes.
pub(super) async fn run(shared: Arc<Shared>) {
    let span = tracing::debug_span!("heartbeat_loop", agent_id = shared.agent_id);
    Loop::new(shared).live().instrument(span).await;
}

/// However the loop ends, its callers get an answer.
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

    /// Decides what is next. The one place that looks at what the handles have changed.
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

    /// Sets the timers for what the handles have changed.
    fn follow(&mut self, desired: &Desired) {
        let now = Instant::now();
        if self.interval != desired.interval {
            self.interval = desired.interval;
            let interval = self.pace();
            self.phase_timer = Timer::at(match self.phase {
                Phase::Unregistered => now,
                // Agents that started together do not send together; and if heartbeats were started anew, the
                // one that was due comes no later for it.
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

    /// The requests that may be next, and when each is due. Of those due at the same time the first goes first.
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
                // While the registry fails, only heartbeats are tried: they find out when it is back.
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

    /// When the registry is to be asked to give the process no more work. Answers the callers that wait for it if it need not be.
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

    /// The time between two heartbeats: the interval, unless the registry expects to hear of the agent more often. It does
    /// so, for example, until it has acknowledged a longer interval.
    pub(super) fn pace(&self) -> Duration {
        let interval = self.interval.unwrap_or(DEFAULT_INTERVAL);
        self.known.timeout.map_or(interval, |timeout| interval.min((timeout / 2).max(MIN_PACE)))
    }

    /// Whether the registry lacks an update of the registration.
    pub(super) fn is_dirty(&self) -> bool {
        self.known.acked.as_ref().is_none_or(|acked| acked.version != self.version)
    }

    /// Whether an agent that is not registered sets its status by registering.
    pub(super) fn status_needs_registration(&self) -> bool {
        self.interval.is_some() || self.shared.may_be_registered()
    }

    async fn send(&mut self, request: Request) {
        let (limit, version) = self.begin(request);
        let (began, shared) = (Instant::now(), self.shared.clone());
        // Boxed, because an agent mostly waits, and then needs no room for a request. A token provider may panic, which must
        // not end the loop.
        let attempt = AssertUnwindSafe(Box::pin(self.attempt(request, limit))).catch_unwind();
        let panicked = |_| Err(Error::Config("a panic, perhaps of the token provider".to_owned()));
        let outcome = tokio::select! {
            outcome = attempt => outcome.unwrap_or_else(panicked),
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

    /// Warns if the loop runs again much later than it had to.
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
