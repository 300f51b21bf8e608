//! What Prometheus scrapes: the metrics of the contract. Labels that come from outside are bounded.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::{
    Error, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use registry_sdk::contract::{AgentStatus, RegistryStats};

/// How many distinct values a label from outside may have.
const MOST_VALUES: usize = 1_000;

/// What the rest counts under.
const OTHER: &str = "other";

/// Characters of a label from outside.
const LONGEST_VALUE: usize = 128;

const REQUEST_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Few, since every agent has them.
const HEARTBEAT_BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

/// The metrics of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    agents: IntGaugeVec,
    capabilities: IntGauge,
    stale_agents: IntGauge,
    last_sweep_age: Gauge,
    database_up: IntGauge,
    watchers: IntGauge,
    requests: HistogramVec,
    heartbeats: HistogramVec,
    heartbeats_of: Bounded<Histogram>,
    searches: IntCounterVec,
    searches_for: Bounded<IntCounter>,
}

/// What is only known when it is asked for.
pub(crate) struct Now {
    pub(crate) stats: RegistryStats,
    pub(crate) last_sweep_age: Duration,
    pub(crate) database_is_up: bool,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, Error> {
        let heartbeat = HistogramOpts::new(
            "agent_registry_heartbeat_latency_seconds",
            "How long it took until an agent's heartbeat was stored and answered",
        );
        let request = HistogramOpts::new(
            "agent_registry_http_request_duration_seconds",
            "How long it took until an answer began",
        );
        let gauge = |name, help| IntGauge::new(name, help);
        let metrics = Self {
            registry: Registry::new(),
            agents: IntGaugeVec::new(
                Opts::new("agent_registry_agents_total", "Agents by status, over all servers"),
                &["status"],
            )?,
            capabilities: gauge("agent_registry_capabilities_total", "Capabilities of all agents together")?,
            stale_agents: gauge(
                "agent_registry_stale_agents_total",
                "Agents that are offline because they missed their deadline",
            )?,
            last_sweep_age: Gauge::new(
                "agent_registry_last_sweep_age_seconds",
                "How long ago this server last looked for missed deadlines",
            )?,
            database_up: gauge("agent_registry_database_up", "Whether the database answers this server")?,
            watchers: gauge("agent_registry_watchers", "Event streams that this server has open")?,
            requests: HistogramVec::new(
                request.buckets(REQUEST_BUCKETS.to_vec()),
                &["method", "route", "status"],
            )?,
            heartbeats: HistogramVec::new(heartbeat.buckets(HEARTBEAT_BUCKETS.to_vec()), &["agent_id"])?,
            heartbeats_of: Bounded::default(),
            searches: IntCounterVec::new(
                Opts::new("agent_registry_discovery_requests_total", "Searches by what was searched for"),
                &["capability"],
            )?,
            searches_for: Bounded::default(),
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.agents.clone()))?;
        for gauge in [&metrics.capabilities, &metrics.stale_agents, &metrics.database_up, &metrics.watchers] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.last_sweep_age.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.heartbeats.clone()))?;
        registry.register(Box::new(metrics.searches.clone()))?;
        Ok(metrics)
    }

    /// A request was answered, or its answer began.
    pub(crate) fn answered(&self, method: &str, route: &str, status: &str, took: Duration) {
        self.requests.with_label_values(&[method, route, status]).observe(took.as_secs_f64());
    }

    /// A heartbeat was stored.
    pub(crate) fn heard(&self, agent_id: &str, took: Duration) {
        let series = |agent_id: &str| self.heartbeats.with_label_values(&[agent_id]);
        self.heartbeats_of.with(agent_id, series, |latency| latency.observe(took.as_secs_f64()));
    }

    /// An agent was removed, and its series goes with it.
    pub(crate) fn removed(&self, agent_id: &str) {
        // What counts under `other` is not one agent's, whatever that is called.
        if self.heartbeats_of.remove(agent_id) && agent_id != OTHER {
            // It fails only where it is not there.
            let _ = self.heartbeats.remove_label_values(&[agent_id]);
        }
    }

    /// Somebody searched.
    pub(crate) fn searched(&self, q: &str) {
        let words = q.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let words: String = words.chars().take(LONGEST_VALUE).collect();
        let series = |words: &str| self.searches.with_label_values(&[words]);
        self.searches_for.with(&words, series, IntCounter::inc);
    }

    /// Counts an event stream, until what this gives is dropped.
    pub(crate) fn watching(&self) -> Watching {
        self.watchers.inc();
        Watching(self.watchers.clone())
    }

    /// All of it, in Prometheus' text format.
    pub(crate) fn text(&self, now: &Now) -> Result<String, Error> {
        let Now { stats, last_sweep_age, database_is_up } = now;
        for (status, count) in [
            (AgentStatus::Active, stats.active_agents),
            (AgentStatus::Busy, stats.busy_agents),
            (AgentStatus::Offline, stats.offline_agents),
        ] {
            self.agents.with_label_values(&[status.as_str()]).set(whole(count));
        }
        self.capabilities.set(whole(stats.total_capabilities));
        self.stale_agents.set(whole(stats.stale_agents));
        self.last_sweep_age.set(last_sweep_age.as_secs_f64());
        self.database_up.set((*database_is_up).into());
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// An event stream that is open.
#[derive(Debug)]
pub(crate) struct Watching(IntGauge);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Series of one metric, one for each value of a label that comes from outside, up to a bound.
#[derive(Debug)]
struct Bounded<M> {
    known: RwLock<HashMap<String, M>>,
    other: OnceLock<M>,
}

impl<M> Default for Bounded<M> {
    fn default() -> Self {
        Self { known: RwLock::default(), other: OnceLock::new() }
    }
}

impl<M> Bounded<M> {
    /// Counts with the series of a value, which is made where it is new and there is room for it.
    fn with(&self, value: &str, series: impl FnOnce(&str) -> M, count: impl FnOnce(&M)) {
        let known = self.known.read();
        if let Some(metric) = known.get(value) {
            return count(metric);
        }
        if known.len() < MOST_VALUES {
            drop(known);
            let mut known = self.known.write();
            // Others may have come first.
            if known.len() < MOST_VALUES || known.contains_key(value) {
                return count(known.entry(value.to_owned()).or_insert_with(|| series(value)));
            }
        }
        count(self.other.get_or_init(|| series(OTHER)));
    }

    /// Whether there was one.
    fn remove(&self, value: &str) -> bool {
        self.known.write().remove(value).is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        let now = Now {
            stats: RegistryStats::default(),
            last_sweep_age: Duration::from_millis(1_500),
            database_is_up: true,
        };
        metrics.text(&now).unwrap()
    }

    #[test]
    fn labels_from_outside_are_bounded() {
        let metrics = Metrics::new().unwrap();
        for number in 0..MOST_VALUES + 50 {
            metrics.searched(&format!("Word{number}"));
            metrics.heard(&format!("agent-{number}"), Duration::from_millis(2));
        }
        let all = text(&metrics);
        let searches = |line: &&str| line.starts_with("agent_registry_discovery_requests_total{");
        assert_eq!(all.lines().filter(searches).count(), MOST_VALUES + 1);
        assert!(all.contains("agent_registry_discovery_requests_total{capability=\"other\"} 50"));
        assert!(all.contains("agent_registry_heartbeat_latency_seconds_count{agent_id=\"other\"} 50"));
        // One that goes makes room for another.
        metrics.removed("agent-7");
        metrics.heard("agent-new", Duration::from_millis(2));
        let all = text(&metrics);
        assert!(!all.contains("agent_id=\"agent-7\"") && all.contains("agent_id=\"agent-new\""));
    }

    #[test]
    fn what_is_searched_for_cannot_end_its_label() {
        let metrics = Metrics::new().unwrap();
        metrics.searched("a\"} 1\nevil{x=\"\\ b");
        assert!(text(&metrics).contains(r#"{capability="a\"} 1 evil{x=\"\\ b"} 1"#));
    }
}
