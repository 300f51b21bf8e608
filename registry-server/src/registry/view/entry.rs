//! One agent in memory, and how it stands at a moment.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::{AgentStatus, Timestamp};

use super::record::{Json, Load, Record};
use crate::registry::reports::Report;
use crate::registry::rules::{DeadlinePolicy, MAX_CLOCK_SKEW};
use crate::store::{RegistrationTag, StoredAgent};

/// One agent in memory. For any change but a heartbeat or a report there is a new one.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As it was stored; the time of the last heartbeat is in `liveness`.
    pub(crate) agent: Arc<StoredAgent>,
    pub(crate) liveness: Arc<Liveness>,
    /// Computed when it is first wanted: at the start of the server it would cost a hash for each agent.
    tag: OnceLock<RegistrationTag>,
}

/// What changes of an agent all the time. It stays the same through the agent's changes.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// The last heartbeat, in milliseconds since the Unix epoch.
    last_heartbeat: AtomicI64,
    /// A last heartbeat that the database confirmed as the last of all, after it had become too old. Where
    /// other processes write as well, only then is the agent believed to have missed its deadline.
    confirmed: AtomicI64,
    report: Mutex<Report>,
}

/// An agent's status at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct EffectiveStatus {
    pub(super) status: AgentStatus,
    pub(super) missed_deadline: bool,
    pub(super) probe_failed: bool,
}

impl EffectiveStatus {
    /// As it was stored.
    pub(super) fn stored(agent: &StoredAgent, context: &ReadContext) -> Self {
        let StoredAgent { status, missed_deadline, probe_failed, .. } = *agent;
        Self { status, missed_deadline, probe_failed: probe_failed && context.is_probing }
    }

    /// By when it was last heard.
    pub(super) fn current(agent: &StoredAgent, last_heartbeat: Timestamp, context: &ReadContext) -> Self {
        let stored = Self::stored(agent, context);
        if stored.status != AgentStatus::Offline && context.is_overdue(agent, last_heartbeat) {
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
pub(crate) struct ReadContext {
    pub(crate) now: Timestamp,
    pub(crate) policy: DeadlinePolicy,
    /// Whether a missed deadline has to be confirmed by the database before it is believed.
    pub(crate) needs_confirmation: bool,
    /// Whether this server goes by probes.
    pub(crate) is_probing: bool,
}

impl ReadContext {
    pub(crate) fn later(self, by: Duration) -> Self {
        self.shifted(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
    }

    pub(crate) fn earlier(self, by: Duration) -> Self {
        self.shifted(i64::try_from(by.as_millis()).unwrap_or(i64::MAX).wrapping_neg())
    }

    fn shifted(self, millis: i64) -> Self {
        Self { now: Timestamp::from_unix_millis(self.now.unix_millis().saturating_add(millis)), ..self }
    }

    fn is_overdue(&self, agent: &StoredAgent, last_heartbeat: Timestamp) -> bool {
        self.policy.is_overdue(last_heartbeat, agent.heartbeat_interval, self.now)
    }
}

impl Liveness {
    pub(super) fn new(last_heartbeat: Timestamp) -> Self {
        let last_heartbeat = AtomicI64::new(last_heartbeat.unix_millis());
        Self { last_heartbeat, confirmed: AtomicI64::new(i64::MIN), report: Mutex::default() }
    }

    /// Takes over a heartbeat, unless a later one is known. One that is much later is from before the clock was set back.
    pub(crate) fn record_heartbeat(&self, time: Timestamp) {
        let later = |known: i64| {
            let is_ahead = Timestamp::from_unix_millis(known).since(time) > MAX_CLOCK_SKEW;
            Some(if is_ahead { time.unix_millis() } else { known.max(time.unix_millis()) })
        };
        // It always has a value to set.
        let _ = self.last_heartbeat.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    pub(crate) fn last_heartbeat(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.last_heartbeat.load(Ordering::Acquire))
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

impl Entry {
    pub(super) fn new(agent: Arc<StoredAgent>, liveness: Arc<Liveness>) -> Self {
        Self { agent, liveness, tag: OnceLock::new() }
    }

    /// The tag of what the agent registered.
    pub(crate) fn registration_tag(&self) -> RegistrationTag {
        *self.tag.get_or_init(|| self.agent.registration_tag())
    }

    /// Believes that the last heartbeat it knows is the last of all, where it is too old at that moment.
    pub(super) fn confirm(&self, context: &ReadContext) {
        let last_heartbeat = self.liveness.last_heartbeat();
        if context.is_overdue(&self.agent, last_heartbeat) {
            self.liveness.confirmed.store(last_heartbeat.unix_millis(), Ordering::Release);
        }
    }

    pub(crate) fn is_overdue(&self, context: &ReadContext) -> bool {
        context.is_overdue(&self.agent, self.liveness.last_heartbeat())
    }

    /// How it stands, as far as is known. Where its deadline seems missed and other processes may have heard
    /// of it, it is among the doubts.
    pub(super) fn effective_status(
        &self,
        context: &ReadContext,
        unconfirmed: &mut Vec<String>,
    ) -> EffectiveStatus {
        let last_heartbeat = self.liveness.last_heartbeat();
        let effective = EffectiveStatus::current(&self.agent, last_heartbeat, context);
        if context.needs_confirmation
            && effective.missed_deadline
            && !self.agent.missed_deadline
            && self.liveness.confirmed.load(Ordering::Acquire) != last_heartbeat.unix_millis()
        {
            unconfirmed.push(self.agent.agent_id.clone());
        }
        effective
    }

    /// Its record, where it was last heard at a time.
    pub(crate) fn record(&self, context: &ReadContext, last_heartbeat: Timestamp) -> Json {
        Record::current(&self.agent, last_heartbeat, self.liveness.load(), context)
            .json(self.registration_tag())
    }
}
