//! One agent in memory, and how it stands at a moment.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::{AgentStatus, Timestamp};

use super::record::{Json, Load, Record};
use crate::registry::reports::Report;
use crate::registry::rules::{MAX_CLOCK_SKEW, Patience};
use crate::store::{RegistrationTag, StoredAgent};

/// One agent in memory. For any change but a heartbeat or a report there is a new one.
#[derive(Debug)]
pub(crate) struct Held {
    /// As it was stored; the time of the last heartbeat is in `pulse`.
    pub(crate) agent: Arc<StoredAgent>,
    pub(crate) pulse: Arc<Pulse>,
    /// Computed when it is first wanted: at the start of the server it would cost a hash for each agent.
    tag: OnceLock<RegistrationTag>,
}

/// What changes of an agent all the time. It stays the same through the agent's changes.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// The last heartbeat, in milliseconds since the Unix epoch.
    heard: AtomicI64,
    /// A last heartbeat that the database confirmed as the last of all, after it had become too old. Where
    /// other processes write as well, only then is the agent believed to have missed its deadline.
    confirmed: AtomicI64,
    report: Mutex<Report>,
}

/// An agent's status at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) status: AgentStatus,
    pub(super) missed_deadline: bool,
    pub(super) probe_failed: bool,
}

impl Standing {
    /// As it was stored.
    pub(super) fn stored(agent: &StoredAgent, moment: &Moment) -> Self {
        let StoredAgent { status, missed_deadline, probe_failed, .. } = *agent;
        Self { status, missed_deadline, probe_failed: probe_failed && moment.probes }
    }

    /// By when it was last heard.
    pub(super) fn at(agent: &StoredAgent, heard: Timestamp, moment: &Moment) -> Self {
        let stored = Self::stored(agent, moment);
        if stored.status != AgentStatus::Offline && moment.is_overdue(agent, heard) {
            Self { status: AgentStatus::Offline, missed_deadline: true, ..stored }
        } else {
            stored
        }
    }

    pub(super) fn is_healthy(self) -> bool {
        self.status != AgentStatus::Offline && !self.probe_failed
    }
}

/// The circumstances of a read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: Timestamp,
    pub(crate) patience: Patience,
    /// Whether a missed deadline has to be confirmed by the database before it is believed.
    pub(crate) doubt: bool,
    /// Whether this server goes by probes.
    pub(crate) probes: bool,
}

impl Moment {
    pub(crate) fn later(self, by: Duration) -> Self {
        self.shifted(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
    }

    pub(crate) fn earlier(self, by: Duration) -> Self {
        self.shifted(i64::try_from(by.as_millis()).unwrap_or(i64::MAX).wrapping_neg())
    }

    fn shifted(self, millis: i64) -> Self {
        Self { now: Timestamp::from_unix_millis(self.now.unix_millis().saturating_add(millis)), ..self }
    }

    fn is_overdue(&self, agent: &StoredAgent, heard: Timestamp) -> bool {
        self.patience.is_overdue(heard, agent.heartbeat_interval, self.now)
    }
}

impl Pulse {
    pub(super) fn new(heard: Timestamp) -> Self {
        let heard = AtomicI64::new(heard.unix_millis());
        Self { heard, confirmed: AtomicI64::new(i64::MIN), report: Mutex::default() }
    }

    /// Takes over a heartbeat, unless a later one is known. One that is much later is from before the clock was set back.
    pub(crate) fn hear(&self, time: Timestamp) {
        let later = |known: i64| {
            let is_ahead = Timestamp::from_unix_millis(known).since(time) > MAX_CLOCK_SKEW;
            Some(if is_ahead { time.unix_millis() } else { known.max(time.unix_millis()) })
        };
        // It always has a value to set.
        let _ = self.heard.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    pub(crate) fn heard(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.heard.load(Ordering::Acquire))
    }

    pub(crate) fn report(&self) -> Report {
        self.report.lock().clone()
    }

    pub(crate) fn load(&self) -> Load {
        let report = self.report.lock();
        Load { load: report.load, active_tasks: report.active_tasks }
    }

    pub(super) fn update_report(&self, later: Report) {
        self.report.lock().update(later);
    }
}

impl Held {
    pub(super) fn new(agent: Arc<StoredAgent>, pulse: Arc<Pulse>) -> Self {
        Self { agent, pulse, tag: OnceLock::new() }
    }

    /// The tag of what the agent registered.
    pub(crate) fn registration_tag(&self) -> RegistrationTag {
        *self.tag.get_or_init(|| self.agent.registration_tag())
    }

    /// Believes that the last heartbeat it knows is the last of all, where it is too old at that moment.
    pub(super) fn believe(&self, moment: &Moment) {
        let heard = self.pulse.heard();
        if moment.is_overdue(&self.agent, heard) {
            self.pulse.confirmed.store(heard.unix_millis(), Ordering::Release);
        }
    }

    pub(crate) fn is_overdue(&self, moment: &Moment) -> bool {
        moment.is_overdue(&self.agent, self.pulse.heard())
    }

    /// How it stands, as far as is known. Where its deadline seems missed and other processes may have heard
    /// of it, it is among the doubts.
    pub(super) fn standing(&self, moment: &Moment, doubts: &mut Vec<String>) -> Standing {
        let heard = self.pulse.heard();
        let standing = Standing::at(&self.agent, heard, moment);
        if moment.doubt
            && standing.missed_deadline
            && !self.agent.missed_deadline
            && self.pulse.confirmed.load(Ordering::Acquire) != heard.unix_millis()
        {
            doubts.push(self.agent.agent_id.clone());
        }
        standing
    }

    /// Its record, where it was last heard at a time.
    pub(crate) fn record(&self, moment: &Moment, heard: Timestamp) -> Json {
        Record::at(&self.agent, heard, self.pulse.load(), moment).json(self.registration_tag())
    }
}
