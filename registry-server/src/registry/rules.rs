//! What a change does to an agent. Pure: the same rules for both databases, in one place.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, Registration, Timestamp, heartbeat_timeout};

use crate::store::{Event, EventKind, StoredAgent, Writes};

/// How long a heartbeat may take from its arrival until every replica would find it in the database.
const COMMIT_LAG: Duration = Duration::from_millis(500);

/// A change that somebody asks for.
#[derive(Debug)]
pub(crate) enum Change {
    /// Creates or replaces the agent, and counts as a heartbeat.
    Register(Box<Registration>),
    /// The agent is alive, and may say its status.
    Beat(Option<AgentStatus>),
    /// Sets the status.
    SetStatus(AgentStatus),
    /// Removes the agent.
    Remove,
    /// Marks the agent offline where it has missed its deadline by a margin.
    Expire,
    /// Removes the agent where it has been offline long enough.
    Purge,
}

/// How long agents may be silent, and since when that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The registry's own heartbeat timeout.
    pub(crate) timeout: Duration,
    /// Nobody's silence before this counts: the agents could not have been heard. `None` while they still
    /// cannot.
    pub(crate) listening_since: Option<Timestamp>,
    /// How far past the deadline an agent has to be before that is written down. A heartbeat that arrived in
    /// time may still be on its way to the database.
    pub(crate) margin: Duration,
    /// How long an agent stays offline before it is removed; `None`: it is kept.
    pub(crate) remove_after: Option<Duration>,
}

impl Patience {
    /// Whether an agent that was last heard at `heard` is past its deadline.
    pub(crate) fn is_overdue(&self, heard: Timestamp, interval: Option<Duration>, now: Timestamp) -> bool {
        self.silence(heard, now) > heartbeat_timeout(self.timeout, interval)
    }

    /// Whether others may call the agent offline before a heartbeat that arrives now is committed. Such a
    /// heartbeat has to be announced, so that they hear of it.
    pub(crate) fn is_nearly_overdue(
        &self,
        heard: Timestamp,
        interval: Option<Duration>,
        now: Timestamp,
    ) -> bool {
        self.silence(heard, now) + COMMIT_LAG > heartbeat_timeout(self.timeout, interval)
    }

    fn silence(&self, heard: Timestamp, now: Timestamp) -> Duration {
        self.listening_since.map_or(Duration::ZERO, |since| now.since(heard.max(since)))
    }
}

/// What became of a change.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The agent as it is now.
    Done(Box<StoredAgent>),
    /// The agent is not there any more.
    Removed,
    /// There is no such agent.
    NotFound,
}

/// Decides one change after another within one transaction, and gathers what has to be written.
pub(crate) struct Judge<'a> {
    pub(crate) patience: &'a Patience,
    /// The database's clock.
    pub(crate) now: Timestamp,
    /// The registry's revision so far.
    pub(crate) revision: i64,
    pub(crate) writes: Writes,
}

impl Judge<'_> {
    /// Decides what a change that arrived `age` ago does to an agent. At most one change an agent: what was
    /// decided before is not in `current`.
    pub(crate) fn decide(&mut self, change: &Change, age: Duration, current: Option<StoredAgent>) -> Outcome {
        let arrived = Timestamp::from_unix_millis(
            self.now.unix_millis() - i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
        );
        match (change, current) {
            (Change::Register(registration), current) => self.register(registration, arrived, current),
            (_, None) => Outcome::NotFound,
            (Change::Beat(status), Some(agent)) => self.beat(agent, *status, arrived),
            (Change::SetStatus(status), Some(agent)) => self.set_status(agent, *status),
            (Change::Expire, Some(agent)) => self.expire(agent),
            (Change::Purge, Some(agent)) if !self.is_purgeable(&agent) => Outcome::Done(Box::new(agent)),
            (Change::Remove | Change::Purge, Some(agent)) => self.remove(agent.agent_id),
        }
    }

    fn register(
        &mut self,
        registration: &Registration,
        arrived: Timestamp,
        current: Option<StoredAgent>,
    ) -> Outcome {
        let (registered_at, heard) = current.map_or((arrived, arrived), |known| {
            (known.registered_at, self.later(known.last_heartbeat, arrived))
        });
        let given = registration.clone();
        let mut agent = StoredAgent {
            agent_id: given.agent_id,
            agent_name: given.agent_name,
            base_url: given.base_url,
            capabilities: given.capabilities,
            metadata: given.metadata,
            status: AgentStatus::Active,
            missed_deadline: false,
            offline_since: None,
            heartbeat_interval: given.heartbeat_interval,
            registered_at,
            last_heartbeat: heard,
            revision: 0,
        };
        self.assign(&mut agent, given.status);
        self.put(agent, EventKind::Registered)
    }

    fn beat(&mut self, mut agent: StoredAgent, status: Option<AgentStatus>, arrived: Timestamp) -> Outcome {
        let (heard, interval) = (agent.last_heartbeat, agent.heartbeat_interval);
        let overdue = self.patience.is_overdue(heard, interval, arrived);
        let was_offline = agent.status == AgentStatus::Offline || overdue;
        let next = status.unwrap_or(if was_offline { AgentStatus::Active } else { agent.status });
        agent.last_heartbeat = self.later(heard, arrived);
        if next != agent.status || agent.missed_deadline {
            self.assign(&mut agent, next);
            self.put(agent, EventKind::StatusChanged)
        } else if self.patience.is_nearly_overdue(heard, interval, self.now) {
            self.put(agent, EventKind::Heard)
        } else {
            self.writes.beats.push((agent.agent_id.clone(), agent.last_heartbeat));
            Outcome::Done(Box::new(agent))
        }
    }

    fn set_status(&mut self, mut agent: StoredAgent, status: AgentStatus) -> Outcome {
        let overdue = self.patience.is_overdue(agent.last_heartbeat, agent.heartbeat_interval, self.now);
        let silent = overdue || agent.missed_deadline;
        // Only a heartbeat brings back who has fallen silent.
        if agent.status == status && !agent.missed_deadline || silent && status != AgentStatus::Offline {
            return Outcome::Done(Box::new(agent));
        }
        self.assign(&mut agent, status);
        self.put(agent, EventKind::StatusChanged)
    }

    fn expire(&mut self, mut agent: StoredAgent) -> Outcome {
        let limit = heartbeat_timeout(self.patience.timeout, agent.heartbeat_interval) + self.patience.margin;
        let expired = self.patience.silence(agent.last_heartbeat, self.now) > limit;
        if agent.status == AgentStatus::Offline || !expired {
            return Outcome::Done(Box::new(agent));
        }
        self.assign(&mut agent, AgentStatus::Offline);
        agent.missed_deadline = true;
        self.put(agent, EventKind::StatusChanged)
    }

    fn is_purgeable(&self, agent: &StoredAgent) -> bool {
        let (Some(since), Some(limit)) = (agent.offline_since, self.patience.remove_after) else {
            return false;
        };
        agent.status == AgentStatus::Offline && self.patience.silence(since, self.now) > limit
    }

    fn remove(&mut self, agent_id: String) -> Outcome {
        self.event(EventKind::Deregistered, agent_id.clone());
        self.writes.removes.push(agent_id);
        Outcome::Removed
    }

    /// The later of two heartbeats. One in the future, from before somebody set the clock back, is now.
    fn later(&self, known: Timestamp, arrived: Timestamp) -> Timestamp {
        known.min(self.now).max(arrived)
    }

    /// Sets a status that somebody said, and what follows from it.
    fn assign(&self, agent: &mut StoredAgent, status: AgentStatus) {
        agent.offline_since =
            (status == AgentStatus::Offline).then(|| agent.offline_since.unwrap_or(self.now));
        agent.status = status;
        agent.missed_deadline = false;
    }

    fn put(&mut self, mut agent: StoredAgent, kind: EventKind) -> Outcome {
        agent.revision = self.event(kind, agent.agent_id.clone());
        self.writes.puts.push(agent.clone());
        Outcome::Done(Box::new(agent))
    }

    fn event(&mut self, kind: EventKind, agent_id: String) -> i64 {
        self.revision += 1;
        self.writes.events.push(Event { revision: self.revision, kind, agent_id });
        self.revision
    }
}
