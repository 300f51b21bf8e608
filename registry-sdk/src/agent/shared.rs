//! The state that an agent's handles and its loop share: what the registry is to know, and the calls that wait for that.
//!
//! Handles change it, wake the loop and wait. Only the loop sends anything.

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
    /// Tells this process apart from others that come up with the same id.
    pub(super) instance_id: String,
    /// When the agent was made: the origin of its age.
    pub(super) created: Instant,
    pub(super) client: RegistryClient,
    pub(super) tasks: TaskCounter,
    pub(super) state: watch::Sender<AgentState>,
    /// Whether the registry may have this process registered, and so has to be notified of its end.
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

/// The state that the registry is to have.
#[derive(Debug)]
pub(super) struct Desired {
    /// With the latest capabilities and status.
    pub(super) registration: Registration,
    /// Counts the updates, which only a registration sends.
    pub(super) version: u64,
    /// The status that the agent set, which its heartbeats carry. `None` until it sets one: until then heartbeats leave
    /// alone what others may have set.
    pub(super) status: Option<AgentStatus>,
    /// Interval of the heartbeats. `None` while they are off.
    pub(super) interval: Option<Duration>,
}

/// Whether the loop has to end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    No,
    /// In good order.
    By {
        /// When a request that is under way is cut off, so that there is time left to set `offline`.
        cut_off: Instant,
        /// When all has to be over.
        deadline: Instant,
    },
    /// Nobody holds the agent any more.
    Abandoned,
}

/// A caller that waits until the registry has acknowledged what it wants.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) wants: Wants,
    /// When the next attempt for this call is due.
    pub(super) due: Instant,
    /// Whether the attempt that is under way is also made for this call.
    pub(super) is_concerned: bool,
    pub(super) policy: RetryPolicy,
    /// `None` until its first attempt: the call's time does not run while another request is under way.
    pub(super) attempts: Option<Attempts>,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// The record, for a registration.
pub(super) type Answer = Result<Option<AgentRecord>, Error>;

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// The registration as it is now.
    Registration,
    /// The status as it is now.
    Status,
    /// That the registry has taken the process out.
    Maintenance,
    /// That no request is under way.
    Idle,
}

impl Shared {
    pub(super) fn new(client: RegistryClient, mut registration: Registration) -> Self {
        let status = (registration.status != AgentStatus::Active).then_some(registration.status);
        let instance_id =
            registration.instance_id.get_or_insert_with(|| format!("{:032x}", fastrand::u128(..))).clone();
        // The loop knows it at each attempt.
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

    /// None of its guards is held over an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn choose(&self, on_superseded: OnSuperseded) {
        self.lock().on_superseded = on_superseded;
        self.wake();
    }

    /// Changes the desired state, and wakes the loop.
    pub(super) fn desire(&self, change: impl FnOnce(&mut Desired)) {
        change(&mut self.lock().desired);
        self.wake();
    }

    /// The loop has ended, after a shutdown or with its runtime. Nobody waits for it in vain.
    pub(super) fn loop_ended(&self) {
        let mut inner = self.lock();
        let error = match inner.stop {
            Stop::Abandoned => return,
            Stop::By { .. } => Error::ShutDown,
            Stop::No => Error::Config("the runtime that the agent was started in has ended".to_owned()),
        };
        // Whoever calls from now on starts another.
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

    /// Waits until a request that is under way has to be cut off.
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

    /// The one place that changes the state. An agent that was stopped stays so.
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
    /// Changes the registration. The status is not part of that: see [`Desired::set_status`].
    pub(super) fn amend(&mut self, change: impl FnOnce(&mut Registration)) {
        let before = self.registration.clone();
        change(&mut self.registration);
        if self.registration != before {
            self.version += 1;
        }
    }

    /// Sets the status. That is no new version of the registration, because heartbeats carry it as well.
    pub(super) fn set_status(&mut self, status: AgentStatus) {
        self.status = Some(status);
        self.registration.status = status;
    }
}

impl Inner {
    /// Forgets the calls whose callers are gone.
    pub(super) fn forget_cancelled(&mut self) {
        self.calls.retain(|call| !call.reply.is_closed());
    }

    /// When the next attempt for a call of a kind is due.
    pub(super) fn due(&self, wants: Wants) -> Option<Instant> {
        self.calls.iter().filter(|call| call.wants == wants).map(|call| call.due).min()
    }

    /// Answers all calls of some kinds.
    pub(super) fn answer(&mut self, kinds: &[Wants], answer: &Answer) {
        self.answer_where(|call| kinds.contains(&call.wants), answer);
    }

    /// Answers the calls for which the last attempt was made.
    pub(super) fn answer_concerned(&mut self, answer: &Answer) {
        self.answer_where(|call| call.is_concerned, answer);
    }

    pub(super) fn answer_where(&mut self, chosen: impl Fn(&Call) -> bool, answer: &Answer) {
        for call in self.calls.extract_if(.., |call| chosen(call)) {
            // A caller that gave up only loses the answer.
            let _ = call.reply.send(answer.clone());
        }
    }

    /// Decides which of the calls get another attempt after the last one failed, and answers the others.
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
    /// Takes part in the next attempt, and says how long that may take.
    pub(super) fn take_part(&mut self, most: Duration) -> Duration {
        self.is_concerned = true;
        self.attempts.get_or_insert_with(|| self.policy.begin(most, 1)).time_left()
    }
}
