//! One agent in memory, and how it stands at a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::{AgentRecord, AgentStatus, Timestamp, heartbeat_timeout};

use crate::registry::reports::Report;
use crate::registry::rules::Patience;
use crate::store::StoredAgent;

/// One agent in memory. Only its last heartbeat and its report change in place; for any other change there is a
/// new one.
#[derive(Debug)]
pub(crate) struct Held {
    /// As it was stored; the time of the last heartbeat is in `heard`.
    pub(crate) agent: Arc<StoredAgent>,
    report: Mutex<Report>,
    /// The last heartbeat, in milliseconds since the Unix epoch.
    heard: AtomicI64,
    /// A last heartbeat that the database confirmed as the last of all, after it had become too old. Where
    /// other processes write as well, only then is the agent believed to have missed its deadline.
    confirmed: AtomicI64,
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
    fn stored(agent: &StoredAgent, moment: &Moment) -> Self {
        let StoredAgent { status, missed_deadline, probe_failed, .. } = *agent;
        Self { status, missed_deadline, probe_failed: probe_failed && moment.probes }
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
}

impl Held {
    pub(super) fn new(agent: Arc<StoredAgent>, report: Report) -> Self {
        let heard = AtomicI64::new(agent.last_heartbeat.unix_millis());
        Self { agent, report: Mutex::new(report), heard, confirmed: AtomicI64::new(i64::MIN) }
    }

    pub(crate) fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// How much of its capacity is in use, and how many tasks it is at.
    pub(crate) fn load(&self) -> (Option<f64>, Option<u32>) {
        let report = self.report.lock();
        (report.load, report.active_tasks)
    }

    pub(super) fn update_report(&self, later: Report) {
        self.report.lock().update(later);
    }

    /// Takes over a heartbeat, unless a later one is known.
    pub(super) fn hear(&self, time: Timestamp) {
        self.heard.fetch_max(time.unix_millis(), Ordering::AcqRel);
    }

    /// Believes that the last heartbeat it knows is the last of all, where it is too old at that moment.
    pub(super) fn believe(&self, moment: &Moment) {
        let heard = self.heard();
        if moment.patience.is_overdue(heard, self.agent.heartbeat_interval, moment.now) {
            self.confirmed.store(heard.unix_millis(), Ordering::Release);
        }
    }

    pub(crate) fn heard(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.heard.load(Ordering::Acquire))
    }

    pub(crate) fn is_overdue(&self, moment: &Moment) -> bool {
        moment.patience.is_overdue(self.heard(), self.agent.heartbeat_interval, moment.now)
    }

    /// How it stands, as far as is known. Where its deadline seems missed and other processes may have heard
    /// of it, it is among the doubts.
    pub(super) fn standing(&self, moment: &Moment, doubts: &mut Vec<String>) -> Standing {
        let stored = Standing::stored(&self.agent, moment);
        if stored.status == AgentStatus::Offline || !self.is_overdue(moment) {
            return stored;
        }
        if moment.doubt && self.confirmed.load(Ordering::Acquire) != self.heard.load(Ordering::Acquire) {
            doubts.push(self.agent.agent_id.clone());
        }
        Standing { status: AgentStatus::Offline, missed_deadline: true, ..stored }
    }

    pub(super) fn timeout(&self, moment: &Moment) -> Duration {
        heartbeat_timeout(moment.patience.timeout, self.agent.heartbeat_interval)
    }

    pub(super) fn record(&self, moment: &Moment, standing: Standing) -> AgentRecord {
        let mut record = record(&self.agent, moment);
        record.status = standing.status;
        record.healthy = Some(standing.is_healthy());
        record.last_heartbeat = Some(self.heard());
        (record.load, record.active_tasks) = self.load();
        record
    }
}

/// The record of an agent as it was stored.
pub(crate) fn record(agent: &StoredAgent, moment: &Moment) -> AgentRecord {
    let mut record = AgentRecord::new(&*agent.agent_id, agent.status);
    record.agent_name.clone_from(&agent.agent_name);
    record.base_url.clone_from(&agent.base_url);
    record.capabilities.clone_from(&agent.capabilities);
    record.metadata.clone_from(&agent.metadata);
    record.heartbeat_interval = agent.heartbeat_interval;
    record.instance_id.clone_from(&agent.instance_id);
    record.registered_at = Some(agent.registered_at);
    record.last_heartbeat = Some(agent.last_heartbeat);
    record.heartbeat_timeout = Some(heartbeat_timeout(moment.patience.timeout, agent.heartbeat_interval));
    record.healthy = Some(Standing::stored(agent, moment).is_healthy());
    record.revision = u64::try_from(agent.revision).ok();
    record
}
