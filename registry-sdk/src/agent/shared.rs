//! The state that an agent's handles and its loop share: what the registry should know, and the calls that wait for that.
//!
//! Handles change the state, wake the loop and wait. Only the loop sends requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::state::{AgentState, OnSuperseded};
use super::tasks::TaskCounter;
use crate::client::RegistryClient;
use crate::contract::{AgentRecord, AgentStatus, Registration, Timestamp};
use crate::error::Error;
use crate::metrics;
use crate::retry::{Attempts, RetryPolicy, deadline_after};

/// State that all handles of an agent and its loop share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) agent_id: String,
    /// Distinguishes this process from others with the same agent id.
    pub(super) instance_id: String,
    /// When the agent was created. Its age counts from here.
    pub(super) created: Instant,
    pub(super) client: RegistryClient,
    pub(super) tasks: TaskCounter,
    pub(super) state: watch::Sender<AgentState>,
    /// Whether the registry may know this process, so that a shutdown has to report its end.
    may_be_registered: AtomicBool,
    inner: Mutex<Inner>,
    /// Wakes the loop when `inner` has changed. Only the loop waits for it.
    changed: Notify,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) desired: Desired,
    pub(super) on_superseded: OnSuperseded,
    pub(super) calls: Vec<Call>,
    pub(super) stop: Stop,
    /// The loop. `None` until it is first needed.
    pub(super) task: Option<JoinHandle<()>>,
}

/// The state that the registry should have.
#[derive(Debug)]
pub(super) struct Desired {
    /// The registration, with the latest capabilities and status.
    pub(super) registration: Registration,
    /// Number of changes of the registration. Only registering sends them; heartbeats do not.
    pub(super) version: u64,
    /// The status that the agent set, which its heartbeats carry. `None` until it sets one, so that heartbeats leave a status
    /// that others have set.
    pub(super) status: Option<AgentStatus>,
    /// Interval of the heartbeats. `None` while they are off.
    pub(super) interval: Option<Duration>,
}

/// Whether the loop has to end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    No,
    /// The agent is being shut down.
    By {
        /// When a request in flight is cut off, to leave time for setting `offline`.
        cut_off: Instant,
        /// When the shutdown has to be complete.
        deadline: Instant,
    },
    /// The last handle was dropped.
    Abandoned,
}

/// A call that waits until the registry has acknowledged a change.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) wants: Wants,
    /// When the next attempt for this call is due.
    pub(super) due: Instant,
    /// Whether the attempt in flight serves this call.
    pub(super) is_concerned: bool,
    pub(super) policy: RetryPolicy,
    /// `None` until the first attempt: a call's time does not run while another request is in flight.
    pub(super) attempts: Option<Attempts>,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// The outcome of a call: a registration has a record.
pub(super) type Answer = Result<Option<AgentRecord>, Error>;

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// The current registration is acknowledged.
    Registration,
    /// The current status is acknowledged.
    Status,
    /// The registry gives the process no more work.
    Maintenance,
    /// No request is in flight.
    Idle,
}

impl Shared {
    pub(super) fn new(client: RegistryClient, mut registration: Registration) -> Self {
        let status = (registration.status != AgentStatus::Active).then_some(registration.status);
        let instance_id =
            registration.instance_id.get_or_insert_with(|| format!("{:032x}", fastrand::u128(..))).clone();
        // The loop sets it at each attempt.
        registration.instance_age = None;
        let agent_id = registration.agent_id.clone();
        let desired = Desired { registration, version: 0, status, interval: None };
        let inner = Inner {
            desired,
            on_superseded: OnSuperseded::default(),
            calls: Vec::new(),
            stop: Stop::No,
            task: None,
        };
        Self {
            agent_id,
            instance_id,
            created: Instant::now(),
            client,
            tasks: TaskCounter::default(),
            state: watch::Sender::new(AgentState::Registering),
            may_be_registered: AtomicBool::new(false),
            inner: Mutex::new(inner),
            changed: Notify::new(),
        }
    }

    /// Locks the state. No guard may be held over an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn choose(&self, on_superseded: OnSuperseded) {
        self.lock().on_superseded = on_superseded;
        self.wake();
    }

    /// Changes the desired state and wakes the loop.
    pub(super) fn desire(&self, change: impl FnOnce(&mut Desired)) {
        change(&mut self.lock().desired);
        self.wake();
    }

    /// Records that the loop has ended, after a shutdown or with its runtime, so that no call waits in vain.
    pub(super) fn loop_ended(&self) {
        let mut inner = self.lock();
        let error = match inner.stop {
            Stop::Abandoned => return,
            Stop::By { .. } => Error::ShutDown,
            Stop::No => Error::Config("the runtime that the agent was started in has ended".to_owned()),
        };
        // Later calls start another loop.
        inner.task = None;
        // The state changes first, so that callers that get the error see it.
        if matches!(error, Error::ShutDown) {
            self.change_state(|_| AgentState::Stopped);
        } else {
            tracing::error!(agent_id = self.agent_id, %error, "no heartbeats are sent until the agent is used again");
            self.degraded(Arc::new(error.clone()));
        }
        inner.answer_where(|_| true, &Err(error));
    }

    pub(super) fn may_be_registered(&self) -> bool {
        self.may_be_registered.load(Ordering::Acquire)
    }

    pub(super) fn set_may_be_registered(&self, may_be: bool) {
        self.may_be_registered.store(may_be, Ordering::Release);
    }

    pub(super) fn abandon(&self) {
        let mut inner = self.lock();
        if matches!(inner.stop, Stop::No) {
            inner.stop = Stop::Abandoned;
        }
        drop(inner);
        self.wake();
    }

    /// Tells the loop that something has changed.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Waits for a change.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until the request in flight has to be cut off.
    pub(super) async fn cut_off(&self) {
        loop {
            let stop = self.lock().stop;
            match stop {
                Stop::By { cut_off, .. } => tokio::select! {
                    () = sleep_until(cut_off) => return,
                    () = self.changed() => {}
                },
                Stop::No | Stop::Abandoned => self.changed().await,
            }
        }
    }

    pub(super) fn registered(&self, last_heartbeat: Option<Timestamp>) {
        self.change_state(|before| {
            let since = match before {
                AgentState::Registered { since, .. } => *since,
                _ => Instant::now().into_std(),
            };
            AgentState::Registered { since, last_heartbeat }
        });
    }

    pub(super) fn degraded(&self, last_error: Arc<Error>) {
        self.change_state(|before| {
            let (since, attempts) = match before {
                AgentState::Degraded { since, attempts, .. } => (*since, attempts.saturating_add(1)),
                _ => (Instant::now().into_std(), 1),
            };
            AgentState::Degraded { since, attempts, last_error }
        });
    }

    /// Changes the state. No other function does. A stopped agent stays stopped.
    pub(super) fn change_state(&self, next: impl FnOnce(&AgentState) -> AgentState) {
        self.state.send_if_modified(|state| {
            let changes = !state.is_stopped();
            if changes {
                *state = next(state);
                metrics::state_changed(&self.agent_id, state.name());
            }
            changes
        });
    }
}

impl Desired {
    /// Changes the registration, but not the status: see [`Desired::set_status`].
    pub(super) fn amend(&mut self, change: impl FnOnce(&mut Registration)) {
        let before = self.registration.clone();
        change(&mut self.registration);
        if self.registration != before {
            self.version += 1;
        }
    }

    /// Sets the status. This is not a new version of the registration, because heartbeats carry the status as well.
    pub(super) fn set_status(&mut self, status: AgentStatus) {
        self.status = Some(status);
        self.registration.status = status;
    }
}

impl Inner {
    /// Removes the calls whose callers are gone.
    pub(super) fn forget_cancelled(&mut self) {
        self.calls.retain(|call| !call.reply.is_closed());
    }

    /// Returns when the next attempt for a kind of call is due.
    pub(super) fn due(&self, wants: Wants) -> Option<Instant> {
        self.calls.iter().filter(|call| call.wants == wants).map(|call| call.due).min()
    }

    /// Answers all calls of some kinds.
    pub(super) fn answer(&mut self, kinds: &[Wants], answer: &Answer) {
        self.answer_where(|call| kinds.contains(&call.wants), answer);
    }

    /// Answers the calls that the last attempt served.
    pub(super) fn answer_concerned(&mut self, answer: &Answer) {
        self.answer_where(|call| call.is_concerned, answer);
    }

    pub(super) fn answer_where(&mut self, chosen: impl Fn(&Call) -> bool, answer: &Answer) {
        for call in self.calls.extract_if(.., |call| chosen(call)) {
            // A caller that gave up only loses the response.
            let _ = call.reply.send(answer.clone());
        }
    }

    /// Decides which calls get another attempt after the last one failed, and answers the others.
    pub(super) fn settle(&mut self, error: &Error) {
        let now = Instant::now();
        for call in self.calls.iter_mut().filter(|call| call.is_concerned) {
            if let Some(delay) =
                call.attempts.as_mut().and_then(|attempts| attempts.delay_after(error, false))
            {
                metrics::retried();
                (call.due, call.is_concerned) = (deadline_after(now, delay), false);
            }
        }
        self.answer_concerned(&Err(error.clone()));
    }
}

impl Call {
    /// Joins the next attempt. Returns how long that may take.
    pub(super) fn take_part(&mut self, most: Duration) -> Duration {
        self.is_concerned = true;
        self.attempts.get_or_insert_with(|| self.policy.begin(most, 1)).time_left()
    }
}
