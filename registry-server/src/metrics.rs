//! The contract's Prometheus metrics. Labels taken from requests have a bounded number of values.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::{
    Error, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use registry_sdk::contract::{AgentStatus, RegistryStats};

/// Maximum number of distinct values of a label taken from requests.
const MAX_LABEL_VALUES: usize = 1_000;

/// The label that counts the values beyond the maximum.
const OVERFLOW_LABEL: &str = "other";

/// Maximum length of a label taken from requests, in characters.
const MAX_LABEL_CHARS: usize = 128;

const REQUEST_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Few buckets, since each agent has a histogram of its own.
const HEARTBEAT_BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

/// The metrics of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    agents: IntGaugeVec,
    capabilities: IntGauge,
    stale_agents: IntGauge,
    maintenance_agents: IntGauge,
    last_sweep_age: Gauge,
    database_up: IntGauge,
    watchers: IntGauge,
    unreadable_rows: IntGauge,
    requests: HistogramVec,
    heartbeats: HistogramVec,
    heartbeats_by_agent: BoundedSeries<Histogram>,
    searches: IntCounterVec,
    searches_by_capability: BoundedSeries<IntCounter>,
}

/// Gauges that are computed when they are scraped.
pub(crate) struct Gauges {
    pub(crate) stats: RegistryStats,
    pub(crate) last_sweep_age: Duration,
    pub(crate) is_database_up: bool,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, Error> {
        let heartbeat = HistogramOpts::new(
            "agent_registry_heartbeat_latency_seconds",
            "Time until an agent's heartbeat was stored and answered",
        );
        let request = HistogramOpts::new(
            "agent_registry_http_request_duration_seconds",
            "Time until a response started",
        );
        let gauge = |name, help| IntGauge::new(name, help);
        let metrics = Self {
            registry: Registry::new(),
            agents: IntGaugeVec::new(
                Opts::new("agent_registry_agents_total", "Number of agents by status, over all servers"),
                &["status"],
            )?,
            capabilities: gauge("agent_registry_capabilities_total", "Number of capabilities of all agents")?,
            stale_agents: gauge(
                "agent_registry_stale_agents_total",
                "Number of agents that are offline because they missed their deadline",
            )?,
            maintenance_agents: gauge(
                "agent_registry_maintenance_agents",
                "Number of agents in maintenance, whatever their status",
            )?,
            last_sweep_age: Gauge::new(
                "agent_registry_last_sweep_age_seconds",
                "Time since this server last checked deadlines",
            )?,
            database_up: gauge("agent_registry_database_up", "Whether this server can reach its database")?,
            watchers: gauge("agent_registry_watchers", "Number of open event streams")?,
            unreadable_rows: gauge(
                "agent_registry_unreadable_rows",
                "Number of agents whose rows in the database cannot be read, as of the last minute",
            )?,
            requests: HistogramVec::new(
                request.buckets(REQUEST_BUCKETS.to_vec()),
                &["method", "route", "status"],
            )?,
            heartbeats: HistogramVec::new(heartbeat.buckets(HEARTBEAT_BUCKETS.to_vec()), &["agent_id"])?,
            heartbeats_by_agent: BoundedSeries::default(),
            searches: IntCounterVec::new(
                Opts::new("agent_registry_discovery_requests_total", "Number of searches by search text"),
                &["capability"],
            )?,
            searches_by_capability: BoundedSeries::default(),
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.agents.clone()))?;
        for gauge in [
            &metrics.capabilities,
            &metrics.stale_agents,
            &metrics.maintenance_agents,
            &metrics.database_up,
            &metrics.watchers,
            &metrics.unreadable_rows,
        ] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.last_sweep_age.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.heartbeats.clone()))?;
        registry.register(Box::new(metrics.searches.clone()))?;
        Ok(metrics)
    }

    /// Records a request whose response has started.
    pub(crate) fn record_request(&self, method: &str, route: &str, status: &str, elapsed: Duration) {
        self.requests.with_label_values(&[method, route, status]).observe(elapsed.as_secs_f64());
    }

    /// Records a heartbeat that was stored.
    pub(crate) fn record_heartbeat(&self, agent_id: &str, elapsed: Duration) {
        let create = |agent_id: &str| self.heartbeats.with_label_values(&[agent_id]);
        self.heartbeats_by_agent.record(agent_id, create, |latency| latency.observe(elapsed.as_secs_f64()));
    }

    /// Removes the series of an agent.
    pub(crate) fn remove_agent(&self, agent_id: &str) {
        // The overflow series counts many agents, so it stays even if an agent has its name.
        if self.heartbeats_by_agent.remove(agent_id) && agent_id != OVERFLOW_LABEL {
            // An error says that there is no such series.
            let _ = self.heartbeats.remove_label_values(&[agent_id]);
        }
    }

    /// Records a search.
    pub(crate) fn record_search(&self, q: &str) {
        let words = q.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let words: String = words.chars().take(MAX_LABEL_CHARS).collect();
        let create = |words: &str| self.searches.with_label_values(&[words]);
        self.searches_by_capability.record(&words, create, IntCounter::inc);
    }

    /// Records how many agents' rows cannot be read.
    pub(crate) fn set_unreadable_rows(&self, count: usize) {
        self.unreadable_rows.set(to_i64(count as u64));
    }

    /// Counts an event stream as open until the guard is dropped.
    pub(crate) fn track_watcher(&self) -> WatcherGuard {
        self.watchers.inc();
        WatcherGuard(self.watchers.clone())
    }

    /// Encodes all metrics in Prometheus' text format.
    pub(crate) fn encode(&self, gauges: &Gauges) -> Result<String, Error> {
        let Gauges { stats, last_sweep_age, is_database_up } = gauges;
        for (status, count) in [
            (AgentStatus::Active, stats.active_agents),
            (AgentStatus::Busy, stats.busy_agents),
            (AgentStatus::Offline, stats.offline_agents),
        ] {
            self.agents.with_label_values(&[status.as_str()]).set(to_i64(count));
        }
        self.capabilities.set(to_i64(stats.total_capabilities));
        self.stale_agents.set(to_i64(stats.stale_agents));
        self.maintenance_agents.set(to_i64(stats.maintenance_agents));
        self.last_sweep_age.set(last_sweep_age.as_secs_f64());
        self.database_up.set((*is_database_up).into());
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn to_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Counts an event stream while it is open.
#[derive(Debug)]
pub(crate) struct WatcherGuard(IntGauge);

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The series of one metric, one per value of a label taken from requests, up to a maximum.
#[derive(Debug)]
struct BoundedSeries<M> {
    series: RwLock<HashMap<String, M>>,
    overflow: OnceLock<M>,
}

impl<M> Default for BoundedSeries<M> {
    fn default() -> Self {
        Self { series: RwLock::default(), overflow: OnceLock::new() }
    }
}

impl<M> BoundedSeries<M> {
    /// Updates the series of a value, creating it if there is room.
    fn record(&self, value: &str, create: impl FnOnce(&str) -> M, update: impl FnOnce(&M)) {
        let series = self.series.read();
        if let Some(metric) = series.get(value) {
            return update(metric);
        }
        if series.len() < MAX_LABEL_VALUES {
            drop(series);
            let mut series = self.series.write();
            // Another thread may have filled the map in the meantime.
            if series.len() < MAX_LABEL_VALUES || series.contains_key(value) {
                return update(series.entry(value.to_owned()).or_insert_with(|| create(value)));
            }
        }
        update(self.overflow.get_or_init(|| create(OVERFLOW_LABEL)));
    }

    /// Returns whether the value had a series.
    fn remove(&self, value: &str) -> bool {
        self.series.write().remove(value).is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        let gauges = Gauges {
            stats: RegistryStats::default(),
            last_sweep_age: Duration::from_millis(1_500),
            is_database_up: true,
        };
        metrics.encode(&gauges).unwrap()
    }

    #[test]
    fn labels_from_requests_are_bounded() {
        let metrics = Metrics::new().unwrap();
        for number in 0..MAX_LABEL_VALUES + 50 {
            metrics.record_search(&format!("Word{number}"));
            metrics.record_heartbeat(&format!("agent-{number}"), Duration::from_millis(2));
        }
        let all = text(&metrics);
        let searches = |line: &&str| line.starts_with("agent_registry_discovery_requests_total{");
        assert_eq!(all.lines().filter(searches).count(), MAX_LABEL_VALUES + 1);
        assert!(all.contains("agent_registry_discovery_requests_total{capability=\"other\"} 50"));
        assert!(all.contains("agent_registry_heartbeat_latency_seconds_count{agent_id=\"other\"} 50"));
        // A removed series makes room for a new one.
        metrics.remove_agent("agent-7");
        metrics.record_heartbeat("agent-new", Duration::from_millis(2));
        let all = text(&metrics);
        assert!(!all.contains("agent_id=\"agent-7\"") && all.contains("agent_id=\"agent-new\""));
    }

    #[test]
    fn search_text_is_escaped_in_its_label() {
        let metrics = Metrics::new().unwrap();
        metrics.record_search("a\"} 1\nevil{x=\"\\ b");
        assert!(text(&metrics).contains(r#"{capability="a\"} 1 evil{x=\"\\ b"} 1"#));
    }
}
