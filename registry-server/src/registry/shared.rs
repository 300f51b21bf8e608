//! State that all tasks of the registry share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::{RegistryStats, Timestamp};

use super::Error;
use super::availability::Availability;
use super::clock::DatabaseClock;
use super::events::{self, EventLog};
use super::reports::DirtyReports;
use super::rules::DeadlinePolicy;
use super::view::{Json, Load, ReadContext, Record, View};
use crate::admission::Admission;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{Event, EventKind, Store, StoreError, StoredAgent};

/// Maximum deviation of a reading of the database's clock: a reading is as old as its transaction.
const MAX_CLOCK_DRIFT: Duration = Duration::from_secs(10);

/// State that all tasks of the registry share.
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) view: View,
    pub(super) clock: DatabaseClock,
    pub(super) availability: Availability,
    pub(super) config: Config,
    pub(super) started_at: Instant,
    pub(super) events: EventLog,
    pub(super) dirty_reports: DirtyReports,
    pub(super) admission: Admission,
    pub(super) metrics: Metrics,
    /// Statistics for `GET /metrics`, with the time of their computation: several Prometheus servers may scrape.
    pub(super) cached_stats: Mutex<Option<(RegistryStats, Instant)>>,
    /// Distinguishes this server from others over the same database.
    pub(super) server_id: u64,
}

impl Shared {
    pub(super) fn deadline_policy(&self) -> DeadlinePolicy {
        DeadlinePolicy {
            timeout: self.config.heartbeat_timeout,
            reachable_since: self.availability.reachable_since(),
            expiry_margin: self.config.sweep_interval.min(Duration::from_secs(1)),
            remove_after: self.config.remove_after,
        }
    }

    /// Adopts a reading of the database's clock.
    ///
    /// If somebody has set that clock, the past silence of agents is unknown, so it counts from now on.
    pub(super) fn observe_clock(&self, reading: Timestamp) {
        let expected = self.clock.now();
        let drift = reading.since(expected).max(expected.since(reading));
        if drift > MAX_CLOCK_DRIFT.min(self.config.heartbeat_timeout / 4) {
            tracing::warn!(%expected, %reading, "the database's clock was set, restarting all heartbeat timeouts");
            // Readers read the clock first, so this has to be set before the clock: otherwise they could
            // judge a deadline by the new time and the old start of silence.
            self.availability.set_reachable_since(reading);
        }
        self.clock.observe(reading);
    }

    pub(super) fn read_context(&self) -> ReadContext {
        let is_probing = self.config.probe_interval.is_some();
        ReadContext {
            now: self.clock.now(),
            policy: self.deadline_policy(),
            needs_confirmation: self.store.is_shared(),
            is_probing,
        }
    }

    /// Rejects a write at once if the database is known to be unavailable, instead of waiting for a timeout.
    pub(super) fn check_database(&self) -> Result<(), Error> {
        if self.availability.unavailable_for().is_some() { Err(Error::Unavailable) } else { Ok(()) }
    }

    /// Returns the record of an agent that was just stored.
    pub(super) fn record(&self, agent: &StoredAgent) -> Json {
        let context = self.read_context();
        let record = Record::current(agent, agent.last_heartbeat, self.load_of(agent), &context);
        record.json(agent.registration_tag())
    }

    fn load_of(&self, agent: &StoredAgent) -> Load {
        self.view.entry(&agent.agent_id).map(|entry| entry.liveness.load()).unwrap_or_default()
    }

    /// Applies committed events to the view, then publishes them to watchers.
    pub(super) fn apply(&self, events: &[Event]) {
        for Event { kind, agent } in events {
            match kind {
                EventKind::Deregistered => {
                    self.view.remove(&agent.agent_id, agent.revision);
                    self.metrics.remove_agent(&agent.agent_id);
                }
                _ => self.view.put_if_newer(agent.clone()),
            }
        }
        self.publish(events);
    }

    /// Publishes events to watchers.
    pub(super) fn publish(&self, events: &[Event]) {
        let context = self.read_context();
        let encode = |Event { kind, agent }: &Event| {
            let record = Record::stored(agent, self.load_of(agent), &context);
            (
                agent.revision,
                events::encode_frame(*kind, agent.revision, || record.json(agent.registration_tag())),
            )
        };
        self.events.append(events.iter().map(encode));
    }

    /// Reads the agents' last heartbeats from the database, as written by any process, and updates the view.
    pub(super) async fn confirm_deadlines(&self, agent_ids: &[String]) {
        let last_heartbeats = self.store.last_heartbeats(agent_ids).await;
        self.record_outcome(&last_heartbeats);
        if let Ok(last_heartbeats) = last_heartbeats {
            self.observe_clock(last_heartbeats.now);
            let context = ReadContext { now: last_heartbeats.now, ..self.read_context() };
            self.view.confirm(&last_heartbeats.times, agent_ids, &context);
        }
    }

    /// Records from the outcome of a database operation that the database is unavailable.
    ///
    /// Only the follower records that it is available again.
    pub(super) fn record_outcome<T>(&self, outcome: &Result<T, StoreError>) {
        match outcome {
            Ok(_) => {}
            Err(error @ StoreError::Unavailable(source)) => {
                if self.availability.mark_unavailable() {
                    tracing::error!(cause = %source, "{error}; answering reads from memory, rejecting writes until it is");
                }
            }
            Err(error @ StoreError::Rejected(source)) => {
                tracing::error!(cause = %source, "{error}");
            }
        }
    }
}
