//! What the registry's tasks share: the store, the view, and what follows from both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::{RegistryStats, Timestamp};

use super::Error;
use super::availability::Availability;
use super::clock::Clock;
use super::events::{self, EventLog};
use super::reports::Untold;
use super::rules::Patience;
use super::view::{Json, Load, Moment, Record, View};
use crate::admission::Admission;
use crate::bulkhead::Bulkhead;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{Event, EventKind, Store, StoreError, StoredAgent};

/// How far a reading of the database's clock may be off what is expected: it is as old as its transaction.
const MOST_DRIFT: Duration = Duration::from_secs(10);

/// What the registry's tasks share.
pub(super) struct Core {
    pub(super) store: Arc<dyn Store>,
    pub(super) view: View,
    pub(super) clock: Clock,
    pub(super) availability: Availability,
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) events: EventLog,
    pub(super) untold: Untold,
    pub(super) admission: Admission,
    pub(super) bulkhead: Bulkhead,
    pub(super) metrics: Metrics,
    /// The figures for Prometheus, and when they were read: several may scrape.
    pub(super) figures: Mutex<Option<(RegistryStats, Instant)>>,
    /// Tells this server apart from others over the same database.
    pub(super) server_id: u64,
}

impl Core {
    pub(super) fn patience(&self) -> Patience {
        Patience {
            timeout: self.config.heartbeat_timeout,
            listening_since: self.availability.listening_since(),
            margin: self.config.sweep_interval.min(Duration::from_secs(1)),
            remove_after: self.config.remove_after,
        }
    }

    /// Takes over a reading of the database's clock. Where somebody has set that clock, the agents' silence is not known any
    /// more: it counts from now on.
    pub(super) fn observe(&self, reading: Timestamp) {
        let expected = self.clock.now();
        let off = reading.since(expected).max(expected.since(reading));
        if off > MOST_DRIFT.min(self.config.heartbeat_timeout / 4) {
            tracing::warn!(%expected, %reading, "the database's clock was set: all agents have a whole timeout from now on");
            // Before the clock, which is read first: at no moment is a deadline judged by the new time alone.
            self.availability.listens_from(reading);
        }
        self.clock.observe(reading);
    }

    pub(super) fn moment(&self) -> Moment {
        let probes = self.config.probe_interval.is_some();
        Moment { now: self.clock.now(), patience: self.patience(), doubt: self.store.is_shared(), probes }
    }

    /// Refuses a write at once where the database is known to be away, rather than let it wait for that.
    pub(super) fn check_database(&self) -> Result<(), Error> {
        if self.availability.away_for().is_some() { Err(Error::Unavailable) } else { Ok(()) }
    }

    /// The record of an agent as it was just stored.
    pub(super) fn record(&self, agent: &StoredAgent) -> Json {
        let moment = self.moment();
        let record = Record::at(agent, agent.last_heartbeat, self.load(agent), &moment);
        record.json(agent.registration_tag())
    }

    fn load(&self, agent: &StoredAgent) -> Load {
        self.view.held(&agent.agent_id).map(|held| held.pulse.load()).unwrap_or_default()
    }

    /// Takes over changes into the view, and then tells those who watch.
    pub(super) fn take_over(&self, events: &[Event]) {
        for Event { kind, agent } in events {
            match kind {
                EventKind::Deregistered => {
                    self.view.remove(&agent.agent_id, agent.revision);
                    self.metrics.remove_agent(&agent.agent_id);
                }
                _ => self.view.put(agent.clone()),
            }
        }
        self.publish(events);
    }

    /// Tells those who watch.
    pub(super) fn publish(&self, events: &[Event]) {
        let moment = self.moment();
        let frame = |Event { kind, agent }: &Event| {
            let record = Record::stored(agent, self.load(agent), &moment);
            (agent.revision, events::frame(*kind, agent.revision, || record.json(agent.registration_tag())))
        };
        self.events.offer(events.iter().map(frame));
    }

    /// Asks the database when agents were last heard of, by any process.
    pub(super) async fn confirm(&self, agent_ids: &[String]) {
        let heard = self.store.last_heartbeats(agent_ids).await;
        self.noticed(&heard);
        if let Ok(heard) = heard {
            self.observe(heard.now);
            let moment = Moment { now: heard.now, ..self.moment() };
            self.view.confirm(&heard.times, agent_ids, &moment);
        }
    }

    /// Notes from a database operation's outcome that the database is away. Only the follower says when it
    /// is back.
    pub(super) fn noticed<T>(&self, outcome: &Result<T, StoreError>) {
        match outcome {
            Ok(_) => {}
            Err(error @ StoreError::Unavailable(source)) => {
                if self.availability.lost() {
                    tracing::error!(cause = %source, "{error}; answering reads from memory");
                }
            }
            Err(error @ StoreError::Rejected(source)) => tracing::error!(cause = %source, "{error}"),
        }
    }
}
