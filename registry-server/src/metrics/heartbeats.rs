//! Heartbeat latencies by agent.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::{Error, Histogram, HistogramOpts, HistogramVec, Registry};

use super::{MAX_LABEL_VALUES, OVERFLOW_LABEL};

/// Few buckets, since each agent has its own histogram.
const BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

/// A series per agent that is registered and not offline, up to a maximum, and one for all other heartbeats.
///
/// The counts of a freed series are dropped. Adding them to the other series would count them twice, since
/// they were already scraped.
#[derive(Debug)]
pub(super) struct HeartbeatLatencies {
    vec: HistogramVec,
    by_agent: RwLock<HashMap<String, Histogram>>,
    others: OnceLock<Histogram>,
}

impl HeartbeatLatencies {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let options = HistogramOpts::new(
            "agent_registry_heartbeat_latency_seconds",
            "Time until an agent's heartbeat was stored and answered",
        );
        let vec = HistogramVec::new(options.buckets(BUCKETS.to_vec()), &["agent_id"])?;
        registry.register(Box::new(vec.clone()))?;
        Ok(Self { vec, by_agent: RwLock::default(), others: OnceLock::new() })
    }

    /// Records a heartbeat. `is_present` is only called if the agent has no series.
    pub(super) fn record(&self, agent_id: &str, elapsed: Duration, is_present: impl FnOnce() -> bool) {
        let seconds = elapsed.as_secs_f64();
        let by_agent = self.by_agent.read();
        if let Some(latency) = by_agent.get(agent_id) {
            return latency.observe(seconds);
        }
        let has_room = by_agent.len() < MAX_LABEL_VALUES;
        drop(by_agent);
        let created = if has_room { self.create(agent_id, is_present) } else { None };
        created.as_ref().unwrap_or_else(|| self.others()).observe(seconds);
    }

    fn others(&self) -> &Histogram {
        self.others.get_or_init(|| self.vec.with_label_values(&[OVERFLOW_LABEL]))
    }

    fn create(&self, agent_id: &str, is_present: impl FnOnce() -> bool) -> Option<Histogram> {
        let mut by_agent = self.by_agent.write();
        // Another thread may have created this series, or the last one that fits.
        let has_place = by_agent.contains_key(agent_id) || by_agent.len() < MAX_LABEL_VALUES;
        // Called under the lock, so that the series of an agent that leaves from now on is freed afterwards.
        if !has_place || agent_id == OVERFLOW_LABEL || !is_present() {
            return None;
        }
        let create = || self.vec.with_label_values(&[agent_id]);
        Some(by_agent.entry(agent_id.to_owned()).or_insert_with(create).clone())
    }

    /// Frees the series of an agent.
    pub(super) fn remove(&self, agent_id: &str) {
        let mut by_agent = self.by_agent.write();
        if by_agent.remove(agent_id).is_some() {
            // Fails if there is no such series, which is fine.
            let _ = self.vec.remove_label_values(&[agent_id]);
        }
    }

    /// Frees the series of all agents that are not present.
    pub(super) fn retain(&self, is_present: impl Fn(&str) -> bool) {
        let agent_ids: Vec<_> = self.by_agent.read().keys().cloned().collect();
        agent_ids.iter().filter(|agent_id| !is_present(agent_id)).for_each(|agent_id| self.remove(agent_id));
    }
}
