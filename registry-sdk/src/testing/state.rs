//! The state of the mock registry: its agents, with the contract's rules.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::log::Log;
use crate::contract::event::EventKind;
use crate::contract::heartbeat::heartbeat_timeout;
use crate::contract::instances::Instances;
use crate::contract::maintenance::outlasts_registration;
use crate::contract::stats::count_agent;
use crate::contract::{
    AgentCard, AgentHealth, AgentRecord, AgentStatus, CapabilityMatch, HealthStatus, Heartbeat, HeartbeatAck,
    Maintenance, MaintenanceRequest, Owner, Registration, RegistryStats, StatusUpdate, Timestamp,
    UnhealthyReason, limits,
};
use crate::query::ListQuery;
use crate::query::filter::FilterParts;
use crate::query::prepared::PreparedSearch;
use crate::search::{Hit, Rank, SearchIndex};

/// A registered agent.
#[derive(Clone, Debug)]
struct Entry {
    registration: Registration,
    /// The processes that used the agent's id.
    instances: Instances,
    status: AgentStatus,
    /// Whether the agent is offline because it missed its deadline.
    missed: bool,
    maintenance: Option<Maintenance>,
    registered: Instant,
    last_heartbeat: Instant,
    load: Option<f64>,
    active_tasks: Option<u32>,
    /// The revision of the agent's last change.
    revision: u64,
}

impl Entry {
    /// Returns the registration tag, which depends on everything that was registered except the status.
    fn tag(&self) -> String {
        let registration = Registration { status: AgentStatus::Active, ..self.registration.clone() };
        let mut hasher = DefaultHasher::new();
        // Serializing the contract's types cannot fail.
        serde_json::to_string(&registration).unwrap_or_default().hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Returns the digest of the card.
    fn card_digest(&self) -> Option<String> {
        let mut hasher = DefaultHasher::new();
        self.registration.card.as_ref()?.as_str().hash(&mut hasher);
        Some(format!("{:016x}", hasher.finish()))
    }

    fn is_owned_by(&self, instance_id: &str) -> bool {
        self.registration.instance_id.as_deref() == Some(instance_id)
            && !self.instances.has_ended(instance_id)
    }

    fn refuse(&self, instance_id: &str) -> Refusal {
        let Registration { instance_id: owner, base_url, .. } = &self.registration;
        let owner = Owner::new(owner.clone(), base_url);
        if self.instances.has_ended(instance_id) {
            Refusal::ShutDown(owner)
        } else {
            Refusal::Superseded(owner)
        }
    }
}

/// Why a request is refused.
pub(super) enum Refusal {
    Unknown,
    /// Another process owns the id.
    Superseded(Owner),
    /// The process was shut down.
    ShutDown(Owner),
}

/// A copy of the agents and changes of a [`MockRegistry`](super::MockRegistry), to be restored later.
#[derive(Clone, Debug)]
pub struct Backup {
    agents: BTreeMap<String, Entry>,
    log: Log,
}

/// The agents and the event log.
#[derive(Clone, Debug)]
pub(super) struct MockState {
    agents: BTreeMap<String, Entry>,
    timeout: Duration,
    log: Log,
    /// The same moment by both clocks. Timestamps follow Tokio's clock, even while it is paused.
    began: (Instant, SystemTime),
}

impl MockState {
    pub(super) fn new(timeout: Duration) -> Self {
        let began = (Instant::now(), SystemTime::now());
        Self { agents: BTreeMap::new(), timeout, log: Log::default(), began }
    }

    pub(super) fn forget(&mut self) {
        self.agents.clear();
        self.log = self.log.restored(&Log::default());
    }

    /// The event log.
    pub(super) fn log(&mut self) -> &mut Log {
        self.expire();
        &mut self.log
    }

    pub(super) fn backup(&self) -> Backup {
        Backup { agents: self.agents.clone(), log: self.log.clone() }
    }

    pub(super) fn restore(&mut self, Backup { agents, log }: &Backup) {
        self.agents.clone_from(agents);
        self.log = self.log.restored(log);
    }

    pub(super) fn register(&mut self, mut registration: Registration) -> Result<AgentRecord, Refusal> {
        self.expire();
        let age = registration.instance_age.take();
        let instances = self.claim(&registration, age)?;
        let now = Instant::now();
        let known = self.agents.get(&registration.agent_id);
        let is_news = known.is_none_or(|entry| {
            entry.registration != registration || entry.status != registration.status || entry.missed
        });
        let same = known.filter(|entry| entry.registration.instance_id == registration.instance_id);
        let (agent_id, status) = (registration.agent_id.clone(), registration.status);
        let started = age.map(|age| self.timestamp(now).saturating_sub(age));
        let is_owner = |instance_id: &str| registration.instance_id.as_deref() == Some(instance_id);
        let before = known.and_then(|entry| entry.maintenance.as_ref());
        let maintenance =
            before.filter(|maintenance| outlasts_registration(maintenance, started, is_owner)).cloned();
        let is_news = is_news || before.is_some() && maintenance.is_none();
        let entry = Entry {
            registration,
            instances,
            status,
            missed: false,
            maintenance,
            registered: known.map_or(now, |entry| entry.registered),
            last_heartbeat: now,
            load: same.and_then(|entry| entry.load),
            active_tasks: same.and_then(|entry| entry.active_tasks),
            revision: known.map_or(0, |entry| entry.revision),
        };
        self.agents.insert(agent_id.clone(), entry);
        Ok(if is_news { self.changed(&agent_id, EventKind::Registered) } else { self.known(&agent_id) })
    }

    /// Decides whether a process may register. Returns the processes that are known then.
    fn claim(&mut self, registration: &Registration, age: Option<Duration>) -> Result<Instances, Refusal> {
        let now = self.timestamp(Instant::now());
        let is_overdue = |entry: &Entry| entry.last_heartbeat.elapsed() > self.limit(entry);
        let known = self.agents.get(&registration.agent_id);
        let mut instances = known.map(|entry| entry.instances.clone()).unwrap_or_default();
        let Some(claimant) = registration.instance_id.as_deref() else { return Ok(instances) };
        let living = known.filter(|entry| !is_overdue(entry));
        let owner = living.and_then(|entry| entry.registration.instance_id.clone());
        if instances.claim(claimant, age, owner.as_deref(), now) {
            return Ok(instances);
        }
        let Some(entry) = self.agents.get_mut(&registration.agent_id) else { return Ok(instances) };
        entry.instances = instances;
        Err(entry.refuse(claimant))
    }

    pub(super) fn heartbeat(&mut self, agent_id: &str, beat: &Heartbeat) -> Result<HeartbeatAck, Refusal> {
        let timeout = self.timeout;
        let entry = self.entry(agent_id, beat.instance_id.as_deref())?;
        let before = entry.status;
        let was_offline = before == AgentStatus::Offline;
        entry.status = beat.status.unwrap_or(if was_offline { AgentStatus::Active } else { before });
        (entry.missed, entry.last_heartbeat) = (false, Instant::now());
        entry.load = beat.load.or(entry.load);
        entry.active_tasks = beat.active_tasks.or(entry.active_tasks);
        let (status, last_heartbeat, tag) = (entry.status, entry.last_heartbeat, entry.tag());
        let timeout = heartbeat_timeout(timeout, entry.registration.heartbeat_interval);
        if status != before {
            self.changed(agent_id, EventKind::StatusChanged);
        }
        let ack = HeartbeatAck::new(agent_id.to_owned(), status, self.timestamp(last_heartbeat), timeout);
        Ok(ack.registration_tag(tag))
    }

    pub(super) fn set_status(
        &mut self,
        agent_id: &str,
        update: &StatusUpdate,
    ) -> Result<AgentRecord, Refusal> {
        let instance_id = update.instance_id.as_deref();
        let entry = match instance_id.filter(|_| update.is_final) {
            Some(instance_id) => match self.end(agent_id, instance_id)? {
                Some(entry) => entry,
                // This is a repetition, because the first response was lost.
                None => return Ok(self.known(agent_id)),
            },
            None => self.entry(agent_id, instance_id)?,
        };
        // Only a heartbeat brings back an agent that missed its deadline.
        let is_taken = !entry.missed || update.status == AgentStatus::Offline;
        let owner = instance_id.filter(|_| update.is_final);
        let ended = entry
            .maintenance
            .take_if(|maintenance| owner.is_some() && maintenance.instance_id.as_deref() == owner);
        if !is_taken || (entry.status == update.status && !entry.missed && ended.is_none()) {
            return Ok(self.known(agent_id));
        }
        (entry.status, entry.missed) = (update.status, false);
        Ok(self.changed(agent_id, EventKind::StatusChanged))
    }

    pub(super) fn set_maintenance(
        &mut self,
        agent_id: &str,
        request: &MaintenanceRequest,
    ) -> Result<AgentRecord, Refusal> {
        let now = self.timestamp(Instant::now());
        let entry = self.entry(agent_id, None)?;
        if let Some(other) = request.instance_id.as_deref().filter(|id| !entry.is_owned_by(id)) {
            return Err(entry.refuse(other));
        }
        let is_of_agent = |current: &Maintenance| current.instance_id.is_none();
        if request.instance_id.is_some() && entry.maintenance.as_ref().is_some_and(is_of_agent) {
            return Ok(self.known(agent_id));
        }
        entry.maintenance = Some(request.begin(now));
        Ok(self.changed(agent_id, EventKind::StatusChanged))
    }

    pub(super) fn end_maintenance(&mut self, agent_id: &str) -> Result<AgentRecord, Refusal> {
        let ended = self.entry(agent_id, None)?.maintenance.take();
        let is_news = ended.is_some();
        Ok(if is_news { self.changed(agent_id, EventKind::StatusChanged) } else { self.known(agent_id) })
    }

    /// Records that a process was shut down. Only the owner's end affects the agent. Returns `None` if it was recorded before.
    fn end(&mut self, agent_id: &str, instance_id: &str) -> Result<Option<&mut Entry>, Refusal> {
        let now = self.timestamp(Instant::now());
        let entry = self.entry(agent_id, None)?;
        let owner = entry.registration.instance_id.as_deref();
        let (is_other, has_ended) =
            (owner.is_some_and(|owner| owner != instance_id), entry.instances.has_ended(instance_id));
        let refusal = entry.refuse(instance_id);
        if entry.instances.is_running(instance_id) || !(is_other || has_ended) {
            entry.instances.end(instance_id, now);
        }
        if is_other { Err(refusal) } else { Ok((!has_ended).then_some(entry)) }
    }

    pub(super) fn remove(&mut self, agent_id: &str) -> Result<(), Refusal> {
        self.entry(agent_id, None)?;
        self.changed(agent_id, EventKind::Deregistered);
        self.agents.remove(agent_id);
        Ok(())
    }

    pub(super) fn get(&mut self, agent_id: &str) -> Result<AgentRecord, Refusal> {
        self.entry(agent_id, None)?;
        Ok(self.known(agent_id))
    }

    /// Returns the card of an agent and its digest.
    pub(super) fn card(&mut self, agent_id: &str) -> Result<Option<(AgentCard, String)>, Refusal> {
        let entry = self.entry(agent_id, None)?;
        Ok(entry.registration.card.clone().zip(entry.card_digest()))
    }

    pub(super) fn health(&mut self, agent_id: &str) -> Result<AgentHealth, Refusal> {
        let entry = self.entry(agent_id, None)?.clone();
        let (status, reason) = match (entry.status, entry.missed) {
            (AgentStatus::Active | AgentStatus::Busy, _) if entry.maintenance.is_some() => {
                (HealthStatus::Unhealthy, Some(UnhealthyReason::Maintenance))
            }
            (AgentStatus::Active | AgentStatus::Busy, _) => (HealthStatus::Healthy, None),
            (AgentStatus::Offline | AgentStatus::Unknown(_), true) => {
                (HealthStatus::Unhealthy, Some(UnhealthyReason::HeartbeatMissed))
            }
            (AgentStatus::Offline | AgentStatus::Unknown(_), false) => {
                (HealthStatus::Unhealthy, Some(UnhealthyReason::Offline))
            }
        };
        let record = self.record(&entry);
        let mut health = AgentHealth::new(agent_id, status);
        health.agent_status = Some(entry.status);
        health.last_heartbeat = record.last_heartbeat;
        health.since_heartbeat = Some(entry.last_heartbeat.elapsed());
        health.heartbeat_timeout = record.heartbeat_timeout;
        health.reason = reason;
        Ok(health)
    }

    /// Returns agents ordered by id, and the cursor of the next page.
    pub(super) fn list(&mut self, query: &ListQuery) -> (Vec<AgentRecord>, Option<String>) {
        self.expire();
        let after = query.cursor.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let records =
            self.agents.range::<str, _>((after, Bound::Unbounded)).map(|(_, entry)| self.record(entry));
        let mut wanted = records.filter(|record| query.filter.accepts_record(record));
        let page: Vec<_> = wanted.by_ref().take(query.limit.unwrap_or(usize::MAX)).collect();
        let last = page.last().filter(|_| wanted.next().is_some());
        let next = last.map(|last| last.agent_id.clone());
        (page, next)
    }

    /// Returns the matches of a search, best first, and the cursor of the next page.
    pub(super) fn search(&mut self, search: &PreparedSearch) -> (Vec<CapabilityMatch>, Option<String>) {
        self.expire();
        let agents: Vec<_> = self.agents.values().map(|entry| self.record(entry)).collect();
        let filter = &search.query().filter;
        // The index has all agents, because scores also depend on agents that do not pass the filter.
        let mut index = SearchIndex::default();
        let slots: HashMap<u32, &AgentRecord> =
            agents.iter().map(|agent| (index.insert(&agent.capabilities), agent)).collect();
        let accepts = |slot, position| {
            let capability = slots.get(&slot).and_then(|agent| agent.capabilities.get(usize::from(position)));
            capability.is_some_and(|capability| filter.accepts_capability(capability))
        };
        let candidate = |hit: &Hit| {
            let agent = slots.get(&hit.slot)?;
            let passes = filter.accepts_status(agent.status, agent.healthy)
                && agent.maintenance.is_none()
                && filter.accepts_metadata(&agent.metadata);
            passes.then_some((*agent, hit.position, hit.score))
        };
        let limit = search.query().limit.unwrap_or(limits::DEFAULT_MATCHES);
        let (found, next) = search.search(&index, limit, accepts, candidate, |(agent, _, score)| {
            let AgentRecord { agent_id, status, last_heartbeat, .. } = *agent;
            Rank { score: *score, status: *status, last_heartbeat: *last_heartbeat, agent_id }
        });
        let found = found.into_iter().filter_map(|(agent, position, score)| {
            CapabilityMatch::from_record(agent, position.into(), score)
        });
        (found.collect(), next)
    }

    pub(super) fn stats(&mut self) -> RegistryStats {
        self.expire();
        let mut stats = RegistryStats::default();
        let mut names = std::collections::HashSet::new();
        for entry in self.agents.values() {
            count_agent(&mut stats, entry.status, entry.missed);
            stats.maintenance_agents += u64::from(entry.maintenance.is_some());
            stats.total_capabilities += entry.registration.capabilities.len() as u64;
            names.extend(entry.registration.capabilities.iter().map(|capability| capability.name.as_str()));
        }
        stats.distinct_capabilities = names.len() as u64;
        stats
    }

    /// Marks agents that have missed their deadline, and ends maintenance that is over. Every request does this first, so that
    /// no response shows an old state.
    fn expire(&mut self) {
        let mut expired = Vec::new();
        let now = self.timestamp(Instant::now());
        for (agent_id, entry) in &mut self.agents {
            let limit = heartbeat_timeout(self.timeout, entry.registration.heartbeat_interval);
            if entry.status != AgentStatus::Offline && entry.last_heartbeat.elapsed() > limit {
                (entry.status, entry.missed) = (AgentStatus::Offline, true);
                expired.push(agent_id.clone());
            }
            if entry.maintenance.take_if(|maintenance| maintenance.is_over(now)).is_some() {
                expired.push(agent_id.clone());
            }
        }
        expired.dedup();
        for agent_id in expired {
            self.changed(&agent_id, EventKind::StatusChanged);
        }
    }

    /// Assigns the next revision to a change of an agent and logs it. Returns the agent's record.
    fn changed(&mut self, agent_id: &str, kind: EventKind) -> AgentRecord {
        let revision = self.log.next();
        if let Some(entry) = self.agents.get_mut(agent_id) {
            entry.revision = revision;
        }
        let record = self.known(agent_id);
        self.log.keep(kind, &record);
        record
    }

    /// Returns the record of an agent that exists.
    fn known(&self, agent_id: &str) -> AgentRecord {
        let missing = || AgentRecord::new(agent_id, AgentStatus::Offline);
        self.agents.get(agent_id).map_or_else(missing, |entry| self.record(entry))
    }

    fn entry(&mut self, agent_id: &str, instance_id: Option<&str>) -> Result<&mut Entry, Refusal> {
        self.expire();
        let entry = self.agents.get_mut(agent_id).ok_or(Refusal::Unknown)?;
        let registered = entry.registration.instance_id.as_deref();
        match instance_id {
            Some(instance_id)
                if registered.is_some_and(|registered| registered != instance_id)
                    || entry.instances.has_ended(instance_id) =>
            {
                Err(entry.refuse(instance_id))
            }
            _ => Ok(entry),
        }
    }

    fn limit(&self, entry: &Entry) -> Duration {
        heartbeat_timeout(self.timeout, entry.registration.heartbeat_interval)
    }

    fn record(&self, entry: &Entry) -> AgentRecord {
        let limit = self.limit(entry);
        let given = entry.registration.clone();
        let mut record = AgentRecord::new(given.agent_id, entry.status);
        record.agent_name = given.agent_name;
        record.base_url = given.base_url;
        record.health_path = given.health_path;
        record.probe = given.probe;
        record.capabilities = given.capabilities;
        record.metadata = given.metadata;
        record.heartbeat_interval = given.heartbeat_interval;
        record.instance_id = given.instance_id;
        record.registered_at = Some(self.timestamp(entry.registered));
        record.last_heartbeat = Some(self.timestamp(entry.last_heartbeat));
        record.heartbeat_timeout = Some(limit);
        (record.load, record.active_tasks) = (entry.load, entry.active_tasks);
        record.healthy = Some(entry.status != AgentStatus::Offline && entry.maintenance.is_none());
        record.maintenance.clone_from(&entry.maintenance);
        record.card_digest = entry.card_digest();
        record.revision = Some(entry.revision);
        record.registration_tag = Some(entry.tag());
        record
    }

    fn timestamp(&self, at: Instant) -> Timestamp {
        let (instant, time) = self.began;
        (time + at.duration_since(instant)).into()
    }
}
