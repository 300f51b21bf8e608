//! An agent in memory, and its effective status at a given time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use registry_sdk::AgentFilter;
use registry_sdk::contract::{AgentStatus, Timestamp};
use registry_sdk::internal::FilterParts;

use super::record::{Json, Load, Record};
use crate::registry::reports::Report;
use crate::registry::rules::DeadlinePolicy;
use crate::registry::time::is_far_ahead;
use crate::store::{RegistrationTag, StoredAgent};

/// An agent in memory. Every change other than a heartbeat or a report replaces the entry.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The agent as stored, except for the last heartbeat, which is in `liveness`.
    pub(crate) agent: Arc<StoredAgent>,
    pub(crate) liveness: Arc<Liveness>,
    /// Computed on first use, since hashing all agents would delay the start of the server.
    tag: OnceLock<RegistrationTag>,
}

/// The part of an agent that changes constantly. Shared by the agent's successive entries.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Milliseconds since the Unix epoch.
    last_heartbeat: AtomicI64,
    /// The last heartbeat that the database confirmed to be the latest, after the deadline.
    ///
    /// If other processes write to the database, a missed deadline only counts after this confirmation.
    confirmed: AtomicI64,
    report: Mutex<Report>,
}

/// An agent's status at a given time, considering its deadline.
#[derive(Clone, Copy, Debug)]
pub(super) struct EffectiveStatus {
    pub(super) status: AgentStatus,
    pub(super) missed_deadline: bool,
    pub(super) probe_failed: bool,
    pub(super) in_maintenance: bool,
}

impl EffectiveStatus {
    /// Returns the stored status, without considering the deadline.
    pub(super) fn stored(agent: &StoredAgent, context: &ReadContext) -> Self {
        let StoredAgent { status, missed_deadline, probe_failed, .. } = *agent;
        let probe_failed = probe_failed && context.is_probing && agent.may_be_probed();
        Self { status, missed_deadline, probe_failed, in_maintenance: agent.is_in_maintenance(context.now) }
    }

    /// Returns the status given the time of the last heartbeat.
    pub(super) fn current(agent: &StoredAgent, last_heartbeat: Timestamp, context: &ReadContext) -> Self {
        let stored = Self::stored(agent, context);
        if stored.status != AgentStatus::Offline && context.is_overdue(agent, last_heartbeat) {
            Self { status: AgentStatus::Offline, missed_deadline: true, ..stored }
        } else {
            stored
        }
    }

    pub(super) fn is_healthy(self) -> bool {
        self.status != AgentStatus::Offline && !self.probe_failed && !self.in_maintenance
    }

    /// Whether the status passes a filter.
    pub(super) fn passes(self, filter: &AgentFilter) -> bool {
        filter.accepts_status(self.status, Some(self.is_healthy()))
    }
}

/// Everything that a read depends on besides the entries.
#[derive(Clone, Debug)]
pub(crate) struct ReadContext {
    pub(crate) now: Timestamp,
    pub(crate) policy: DeadlinePolicy,
    /// Whether a missed deadline must be confirmed with the database.
    pub(crate) needs_confirmation: bool,
    /// Whether this server takes probe results into account.
    pub(crate) is_probing: bool,
}

impl ReadContext {
    fn is_overdue(&self, agent: &StoredAgent, last_heartbeat: Timestamp) -> bool {
        self.policy.is_overdue(last_heartbeat, agent.heartbeat_interval, self.now)
    }
}

impl Liveness {
    fn new(last_heartbeat: Timestamp) -> Self {
        let last_heartbeat = AtomicI64::new(last_heartbeat.unix_millis());
        Self { last_heartbeat, confirmed: AtomicI64::new(i64::MIN), report: Mutex::default() }
    }

    /// Returns the liveness of an agent whose previous entry is replaced.
    pub(super) fn succeeding(previous: Option<&Entry>, agent: &StoredAgent, now: Timestamp) -> Arc<Self> {
        let Some(previous) = previous else { return Arc::new(Self::new(agent.last_heartbeat)) };
        // Reports of another process do not apply.
        let is_same_process = previous.agent.instance_id == agent.instance_id;
        let liveness = if is_same_process {
            previous.liveness.clone()
        } else {
            Arc::new(Self::new(agent.last_heartbeat))
        };
        if !previous.agent.has_same_probes(agent) {
            liveness.report.lock().probe = None;
        }
        // Memory may have a heartbeat that has not reached the row yet.
        liveness.record_heartbeat(previous.liveness.last_heartbeat(), now);
        liveness.record_heartbeat(agent.last_heartbeat, now);
        liveness
    }

    /// Records a heartbeat, unless a later one is known.
    ///
    /// A known heartbeat far in the future was recorded before the clock was set back, and is replaced.
    pub(crate) fn record_heartbeat(&self, time: Timestamp, now: Timestamp) {
        let later = |known: i64| {
            let is_outdated = is_far_ahead(Timestamp::from_unix_millis(known), now);
            Some(if is_outdated { time.unix_millis() } else { known.max(time.unix_millis()) })
        };
        // Cannot fail, since the closure always returns a value.
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

    /// Returns the tag of the registration.
    pub(crate) fn registration_tag(&self) -> RegistrationTag {
        *self.tag.get_or_init(|| self.agent.registration_tag())
    }

    /// Marks an overdue heartbeat as confirmed to be the latest.
    pub(super) fn confirm(&self, context: &ReadContext) {
        let last_heartbeat = self.liveness.last_heartbeat();
        if context.is_overdue(&self.agent, last_heartbeat) {
            self.liveness.confirmed.store(last_heartbeat.unix_millis(), Ordering::Release);
        }
    }

    /// Returns the status as far as it is known.
    ///
    /// If the deadline seems missed, but another process may have recorded a later heartbeat, this adds the
    /// agent's id to `unconfirmed` and does not count the deadline as missed. The database has to confirm it
    /// first.
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
            return EffectiveStatus::stored(&self.agent, context);
        }
        effective
    }

    /// Returns the record with a given last heartbeat.
    pub(crate) fn record(&self, context: &ReadContext, last_heartbeat: Timestamp) -> Json {
        Record::current(&self.agent, last_heartbeat, self.liveness.load(), context)
            .json(self.registration_tag())
    }
}
