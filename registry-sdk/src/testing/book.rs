//! What the mock registry knows: its agents, by the contract's rules, and what has arrived.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::contract::{
    AgentHealth, AgentRecord, AgentStatus, Capability, CapabilityMatch, HealthStatus, Heartbeat,
    HeartbeatAck, Rank, Registration, RegistryStats, SearchIndex, StatusUpdate, Timestamp, UnhealthyReason,
    heartbeat_timeout,
};

/// A request that arrived.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Received {
    /// The HTTP method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The body, as far as it is text.
    pub body: String,
    /// When it arrived, by Tokio's clock.
    pub at: Instant,
    /// The status it was answered with; `None` where the connection was harmed instead.
    pub status: Option<u16>,
}

/// All that has arrived, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Seen(pub Vec<Received>);

impl Seen {
    /// How many heartbeats of an agent arrived, well answered or not.
    #[must_use]
    pub fn heartbeats(&self, agent_id: &str) -> usize {
        let path = format!("/agents/{agent_id}/heartbeat");
        self.0.iter().filter(|one| one.path == path).count()
    }

    /// How many registrations of an agent arrived.
    #[must_use]
    pub fn registrations(&self, agent_id: &str) -> usize {
        let of_agent = |one: &&Received| {
            let body = serde_json::from_str::<serde_json::Value>(&one.body).unwrap_or_default();
            one.path == "/register" && body["agent_id"] == agent_id
        };
        self.0.iter().filter(of_agent).count()
    }
}

/// One agent in the book.
#[derive(Clone, Debug)]
struct Entry {
    registration: Registration,
    status: AgentStatus,
    /// Offline because it missed its deadline.
    missed: bool,
    registered: Instant,
    heard: Instant,
}

/// Why the book refuses.
pub(super) enum Refusal {
    Unknown,
    Superseded,
}

/// The agents.
#[derive(Debug)]
pub(super) struct Book {
    agents: BTreeMap<String, Entry>,
    timeout: Duration,
    /// The same moment by both clocks: what is written as a time follows Tokio's, also when it is paused.
    began: (Instant, SystemTime),
}

impl Book {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { agents: BTreeMap::new(), timeout, began: (Instant::now(), SystemTime::now()) }
    }

    pub(super) fn forget(&mut self) {
        self.agents.clear();
    }

    pub(super) fn register(&mut self, registration: Registration) -> AgentRecord {
        let now = Instant::now();
        let registered = self.agents.get(&registration.agent_id).map_or(now, |entry| entry.registered);
        let (agent_id, status) = (registration.agent_id.clone(), registration.status);
        let entry = Entry { registration, status, missed: false, registered, heard: now };
        let record = self.record(&entry);
        self.agents.insert(agent_id, entry);
        record
    }

    pub(super) fn beat(&mut self, agent_id: &str, beat: &Heartbeat) -> Result<HeartbeatAck, Refusal> {
        let timeout = self.timeout;
        let entry = self.entry(agent_id, beat.instance_id.as_deref())?;
        let was_offline = entry.status == AgentStatus::Offline;
        entry.status = beat.status.unwrap_or(if was_offline { AgentStatus::Active } else { entry.status });
        (entry.missed, entry.heard) = (false, Instant::now());
        let (status, heard) = (entry.status, entry.heard);
        let timeout = heartbeat_timeout(timeout, entry.registration.heartbeat_interval);
        Ok(HeartbeatAck::new(agent_id.to_owned(), status, self.timestamp(heard), timeout))
    }

    pub(super) fn set_status(
        &mut self,
        agent_id: &str,
        update: &StatusUpdate,
    ) -> Result<AgentRecord, Refusal> {
        let entry = self.entry(agent_id, update.instance_id.as_deref())?;
        // Only a heartbeat brings back who has fallen silent.
        if !entry.missed || update.status == AgentStatus::Offline {
            (entry.status, entry.missed) = (update.status, false);
        }
        let entry = entry.clone();
        Ok(self.record(&entry))
    }

    pub(super) fn remove(&mut self, agent_id: &str) -> Result<(), Refusal> {
        self.agents.remove(agent_id).map(|_| ()).ok_or(Refusal::Unknown)
    }

    pub(super) fn get(&mut self, agent_id: &str) -> Result<AgentRecord, Refusal> {
        let entry = self.entry(agent_id, None)?.clone();
        Ok(self.record(&entry))
    }

    pub(super) fn health(&mut self, agent_id: &str) -> Result<AgentHealth, Refusal> {
        let entry = self.entry(agent_id, None)?.clone();
        let (status, reason) = match (entry.status, entry.missed) {
            (AgentStatus::Active | AgentStatus::Busy, _) => (HealthStatus::Healthy, None),
            (AgentStatus::Offline, true) => (HealthStatus::Unhealthy, Some(UnhealthyReason::HeartbeatMissed)),
            (AgentStatus::Offline, false) => (HealthStatus::Unhealthy, Some(UnhealthyReason::Offline)),
        };
        let record = self.record(&entry);
        let mut health = AgentHealth::new(agent_id, status);
        health.agent_status = Some(entry.status);
        health.last_heartbeat = record.last_heartbeat;
        health.since_heartbeat = Some(entry.heard.elapsed());
        health.heartbeat_timeout = record.heartbeat_timeout;
        health.reason = reason;
        Ok(health)
    }

    /// Everyone of a status, by id.
    pub(super) fn list(&mut self, status: Option<AgentStatus>) -> Vec<AgentRecord> {
        self.expire();
        let wanted = self.agents.values().filter(|entry| status.is_none_or(|status| entry.status == status));
        wanted.map(|entry| self.record(entry)).collect()
    }

    /// Everyone that can do something, the best match first.
    pub(super) fn search(&mut self, q: &str, status: Option<AgentStatus>) -> Vec<CapabilityMatch> {
        let agents = self.list(status);
        let mut index = SearchIndex::default();
        let slots: HashMap<u32, &AgentRecord> =
            agents.iter().map(|agent| (index.add(&agent.capabilities), agent)).collect();
        let mut found: Vec<(Rank<'_>, CapabilityMatch)> = Vec::new();
        for hit in index.find(q) {
            let Some(agent) = slots.get(&hit.slot) else { continue };
            let Some(found_by) = agent.capabilities.get(usize::from(hit.place)) else { continue };
            let AgentRecord { agent_id, status, last_heartbeat, .. } = agent;
            let (status, last_heartbeat) = (*status, *last_heartbeat);
            let rank = Rank { score: hit.score, status, last_heartbeat, agent_id };
            found.push((rank, match_of(agent, found_by.clone(), hit.score)));
        }
        found.sort_by_key(|(rank, _)| *rank);
        found.into_iter().map(|(_, found)| found).collect()
    }

    pub(super) fn stats(&mut self) -> RegistryStats {
        self.expire();
        let mut stats = RegistryStats::default();
        let mut names = std::collections::HashSet::new();
        for entry in self.agents.values() {
            stats.count(entry.status, entry.missed);
            stats.total_capabilities += entry.registration.capabilities.len() as u64;
            names.extend(entry.registration.capabilities.iter().map(|capability| capability.name.as_str()));
        }
        stats.distinct_capabilities = names.len() as u64;
        stats
    }

    /// Marks who has missed the deadline. Every answer begins with it, so nobody sees it late.
    fn expire(&mut self) {
        for entry in self.agents.values_mut() {
            let limit = heartbeat_timeout(self.timeout, entry.registration.heartbeat_interval);
            if entry.status != AgentStatus::Offline && entry.heard.elapsed() > limit {
                (entry.status, entry.missed) = (AgentStatus::Offline, true);
            }
        }
    }

    fn entry(&mut self, agent_id: &str, instance_id: Option<&str>) -> Result<&mut Entry, Refusal> {
        self.expire();
        let entry = self.agents.get_mut(agent_id).ok_or(Refusal::Unknown)?;
        let registered = entry.registration.instance_id.as_deref();
        if instance_id.is_some() && registered.is_some() && instance_id != registered {
            return Err(Refusal::Superseded);
        }
        Ok(entry)
    }

    fn record(&self, entry: &Entry) -> AgentRecord {
        let given = entry.registration.clone();
        let mut record = AgentRecord::new(given.agent_id, entry.status);
        record.agent_name = given.agent_name;
        record.base_url = given.base_url;
        record.capabilities = given.capabilities;
        record.metadata = given.metadata;
        record.heartbeat_interval = given.heartbeat_interval;
        record.instance_id = given.instance_id;
        record.registered_at = Some(self.timestamp(entry.registered));
        record.last_heartbeat = Some(self.timestamp(entry.heard));
        record.heartbeat_timeout = Some(heartbeat_timeout(self.timeout, given.heartbeat_interval));
        record
    }

    fn timestamp(&self, at: Instant) -> Timestamp {
        let (instant, time) = self.began;
        (time + at.duration_since(instant)).into()
    }
}

/// What a search says of an agent.
fn match_of(record: &AgentRecord, capability: Capability, score: f64) -> CapabilityMatch {
    let mut found = CapabilityMatch::new(&record.agent_id, record.status, capability);
    found.agent_name.clone_from(&record.agent_name);
    found.base_url.clone_from(&record.base_url);
    found.last_heartbeat = record.last_heartbeat;
    found.score = Some(score);
    found.healthy = Some(record.status != AgentStatus::Offline);
    found
}
