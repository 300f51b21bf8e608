//! The Prometheus metrics of the contract. Labels taken from requests have a bounded number of values.

mod credentials;
mod database;
mod heartbeats;
mod searches;

use std::time::Duration;

use prometheus::{
    Error, Gauge, HistogramOpts, HistogramVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use registry_sdk::contract::{AgentStatus, RegistryStats};

pub(crate) use credentials::CredentialMetrics;
use database::DatabaseMetrics;
use heartbeats::HeartbeatLatencies;
use searches::SearchCounters;

/// Maximum number of distinct values of a label taken from requests.
const MAX_LABEL_VALUES: usize = 1_000;

/// The label value for everything without its own series.
const OVERFLOW_LABEL: &str = "other";

const LATENCY_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

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
    pub(crate) database: DatabaseMetrics,
    pub(crate) credentials: CredentialMetrics,
    revision: IntGauge,
    replica_lag: Gauge,
    replicas: IntGauge,
    differing_replicas: IntGaugeVec,
    connections: IntGauge,
    max_connections: IntGauge,
    watchers: IntGauge,
    max_watchers: IntGauge,
    queue_length: IntGaugeVec,
    max_queue_length: IntGaugeVec,
    unreadable_rows: IntGauge,
    requests: HistogramVec,
    heartbeats: HeartbeatLatencies,
    searches: SearchCounters,
}

/// Gauges that are computed at each scrape.
pub(crate) struct Gauges {
    pub(crate) stats: RegistryStats,
    pub(crate) last_sweep_age: Duration,
    pub(crate) is_database_up: bool,
    /// Time for which the database was unavailable since the previous scrape.
    pub(crate) outage_time: Duration,
    /// Revision up to which this server knows every change.
    pub(crate) revision: i64,
    /// Time since this server last knew every change.
    pub(crate) replica_lag: Duration,
    pub(crate) replicas: ReplicaCounts,
    pub(crate) connections: Usage,
    pub(crate) event_streams: Usage,
    pub(crate) queued_heartbeats: Usage,
    pub(crate) queued_changes: Usage,
}

/// Numbers of servers that share a database.
pub(crate) struct ReplicaCounts {
    /// All servers that were heard within the last minute, including this one.
    pub(crate) all: usize,
    /// Servers that differ from this one, by setting.
    pub(crate) differing: [(&'static str, usize); 2],
}

/// Usage of a limited resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: usize,
    pub(crate) max: usize,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, Error> {
        let request = HistogramOpts::new(
            "agent_registry_http_request_duration_seconds",
            "Time until a response started",
        );
        let gauge = |name, help| IntGauge::new(name, help);
        let registry = Registry::new();
        let metrics = Self {
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
            database: DatabaseMetrics::new(&registry)?,
            credentials: CredentialMetrics::new(&registry)?,
            revision: gauge("agent_registry_revision", "Revision up to which this server knows the changes")?,
            replica_lag: Gauge::new(
                "agent_registry_replica_lag_seconds",
                "Time since this server last knew all changes in its database",
            )?,
            replicas: gauge(
                "agent_registry_replicas",
                "Number of servers that share this database and were heard from within the last minute, this one included",
            )?,
            differing_replicas: IntGaugeVec::new(
                Opts::new(
                    "agent_registry_differing_replicas",
                    "Number of other servers that share this database and have another setting than this server",
                ),
                &["setting"],
            )?,
            connections: gauge("agent_registry_connections", "Number of open connections")?,
            max_connections: gauge("agent_registry_max_connections", "Maximum number of open connections")?,
            watchers: gauge("agent_registry_watchers", "Number of open event streams")?,
            max_watchers: gauge("agent_registry_max_watchers", "Maximum number of open event streams")?,
            queue_length: IntGaugeVec::new(
                Opts::new("agent_registry_queue_length", "Number of writes waiting for the database"),
                &["queue"],
            )?,
            max_queue_length: IntGaugeVec::new(
                Opts::new(
                    "agent_registry_max_queue_length",
                    "Maximum number of writes waiting for the database",
                ),
                &["queue"],
            )?,
            unreadable_rows: gauge(
                "agent_registry_unreadable_rows",
                "Number of agents whose rows in the database cannot be read, as of the last minute",
            )?,
            requests: HistogramVec::new(
                request.buckets(LATENCY_BUCKETS.to_vec()),
                &["method", "route", "status"],
            )?,
            heartbeats: HeartbeatLatencies::new(&registry)?,
            searches: SearchCounters::new(&registry)?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(build_info()?))?;
        registry.register(Box::new(metrics.agents.clone()))?;
        for gauges in [&metrics.differing_replicas, &metrics.queue_length, &metrics.max_queue_length] {
            registry.register(Box::new(gauges.clone()))?;
        }
        for gauge in [
            &metrics.capabilities,
            &metrics.stale_agents,
            &metrics.maintenance_agents,
            &metrics.database_up,
            &metrics.revision,
            &metrics.replicas,
            &metrics.connections,
            &metrics.max_connections,
            &metrics.watchers,
            &metrics.max_watchers,
            &metrics.unreadable_rows,
        ] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.last_sweep_age.clone()))?;
        registry.register(Box::new(metrics.replica_lag.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        Ok(metrics)
    }

    /// Records a request whose response has started.
    pub(crate) fn record_request(&self, method: &str, route: &str, status: &str, elapsed: Duration) {
        self.requests.with_label_values(&[method, route, status]).observe(elapsed.as_secs_f64());
    }

    /// Records a stored heartbeat. `is_present` returns whether the agent is registered and not offline.
    pub(crate) fn record_heartbeat(
        &self,
        agent_id: &str,
        elapsed: Duration,
        is_present: impl FnOnce() -> bool,
    ) {
        self.heartbeats.record(agent_id, elapsed, is_present);
    }

    /// Frees the series of an agent that was removed or went offline.
    pub(crate) fn remove_agent(&self, agent_id: &str) {
        self.heartbeats.remove(agent_id);
    }

    /// Frees the series of all agents that are not present.
    pub(crate) fn retain_agents(&self, is_present: impl Fn(&str) -> bool) {
        self.heartbeats.retain(is_present);
    }

    /// Records a search.
    pub(crate) fn record_search(&self, q: &str) {
        self.searches.record(q);
    }

    /// Records the number of agents whose rows cannot be decoded.
    pub(crate) fn set_unreadable_rows(&self, count: usize) {
        self.unreadable_rows.set(to_i64(count as u64));
    }

    /// Encodes all metrics in Prometheus' text format.
    pub(crate) fn encode(&self, gauges: &Gauges) -> Result<String, Error> {
        let Gauges { stats, last_sweep_age, is_database_up, .. } = gauges;
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
        self.database.add_outage_time(gauges.outage_time);
        self.revision.set(gauges.revision);
        self.replica_lag.set(gauges.replica_lag.as_secs_f64());
        self.replicas.set(to_i64(gauges.replicas.all as u64));
        for (setting, count) in gauges.replicas.differing {
            self.differing_replicas.with_label_values(&[setting]).set(to_i64(count as u64));
        }
        set_usage(gauges.connections, &self.connections, &self.max_connections);
        set_usage(gauges.event_streams, &self.watchers, &self.max_watchers);
        for (queue, usage) in [("heartbeats", gauges.queued_heartbeats), ("changes", gauges.queued_changes)] {
            let (length, max) = (&self.queue_length, &self.max_queue_length);
            set_usage(usage, &length.with_label_values(&[queue]), &max.with_label_values(&[queue]));
        }
        let families = self.searches.without_replacements(|| self.registry.gather());
        TextEncoder::new().encode_to_string(&families)
    }
}

fn build_info() -> Result<IntGaugeVec, Error> {
    let options = Opts::new("agent_registry_build_info", "1, with the version of this server");
    let build_info = IntGaugeVec::new(options, &["version"])?;
    build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    Ok(build_info)
}

fn set_usage(usage: Usage, used: &IntGauge, max: &IntGauge) {
    used.set(to_i64(usage.used as u64));
    max.set(to_i64(usage.max as u64));
}

fn to_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::HashMap;
    use std::time::Instant;

    use super::*;

    fn text(metrics: &Metrics) -> String {
        let gauges = Gauges {
            stats: RegistryStats::default(),
            last_sweep_age: Duration::from_millis(1_500),
            is_database_up: true,
            outage_time: Duration::ZERO,
            revision: 7,
            replica_lag: Duration::from_millis(250),
            replicas: ReplicaCounts { all: 1, differing: [("version", 0), ("heartbeat_timeout", 0)] },
            connections: Usage { used: 2, max: 100 },
            event_streams: Usage { used: 1, max: 50 },
            queued_heartbeats: Usage { used: 3, max: 1_000 },
            queued_changes: Usage { used: 0, max: 500 },
        };
        metrics.encode(&gauges).unwrap()
    }

    /// Returns the counts of a metric by label value.
    fn counts(metrics: &Metrics, name: &str) -> HashMap<String, u64> {
        let count = |line: &str| {
            let (label, count) = line.strip_prefix(name)?.split_once("=\"")?.1.split_once("\"} ")?;
            Some((label.to_owned(), count.parse().unwrap()))
        };
        text(metrics).lines().filter_map(count).collect()
    }

    fn heartbeats(metrics: &Metrics) -> HashMap<String, u64> {
        counts(metrics, "agent_registry_heartbeat_latency_seconds_count{")
    }

    fn searches(metrics: &Metrics) -> HashMap<String, u64> {
        counts(metrics, "agent_registry_discovery_requests_total{")
    }

    #[test]
    fn series_of_agents_that_left_are_reused() {
        let metrics = Metrics::new().unwrap();
        let beat = |agent_id: &str| metrics.record_heartbeat(agent_id, Duration::from_millis(2), || true);
        (0..MAX_LABEL_VALUES + 50).for_each(|number| beat(&format!("agent-{number}")));
        let counted = heartbeats(&metrics);
        assert_eq!((counted.len(), counted["other"]), (MAX_LABEL_VALUES + 1, 50));
        metrics.remove_agent("agent-7");
        beat("agent-new");
        let counted = heartbeats(&metrics);
        assert_eq!((counted.get("agent-7"), counted["agent-new"], counted["other"]), (None, 1, 50));
        metrics.retain_agents(|agent_id| agent_id == "agent-new");
        assert_eq!(heartbeats(&metrics).len(), 2);
    }

    #[test]
    fn heartbeat_of_an_agent_that_left_meanwhile_creates_no_series() {
        let metrics = Metrics::new().unwrap();
        metrics.record_heartbeat("gone", Duration::from_millis(2), || false);
        // An agent with this name shares the series of the others, which must not be removed with it.
        metrics.record_heartbeat("other", Duration::from_millis(2), || true);
        metrics.remove_agent("other");
        assert_eq!(heartbeats(&metrics), HashMap::from([("other".to_owned(), 2)]));
    }

    #[test]
    fn least_recently_searched_text_is_replaced() {
        let metrics = Metrics::new().unwrap();
        (0..MAX_LABEL_VALUES).for_each(|number| metrics.record_search(&format!("Word{number}")));
        metrics.record_search("word0");
        metrics.record_search("new");
        let counted = searches(&metrics);
        assert_eq!((counted["word0"], counted.get("word1"), counted["new"]), (2, None, 1));
        assert_eq!(counted["other"], 1);
        metrics.record_search("newer");
        let counted = searches(&metrics);
        assert_eq!((counted.get("word2"), counted["newer"], counted["other"]), (None, 1, 2));
    }

    #[test]
    fn flood_of_texts_creates_few_series_and_counts_every_search() {
        let metrics = Metrics::new().unwrap();
        let began = Instant::now();
        (0..MAX_LABEL_VALUES).for_each(|number| metrics.record_search(&format!("word{number}")));
        (0..MAX_LABEL_VALUES * 3).for_each(|number| metrics.record_search(&format!("odd{number}")));
        let replaced_later = usize::try_from(began.elapsed().as_secs() * 2 + 2).unwrap();
        let counted = searches(&metrics);
        assert_eq!(counted.len(), MAX_LABEL_VALUES + 1);
        assert_eq!(counted.values().sum::<u64>(), MAX_LABEL_VALUES as u64 * 4);
        let kept = counted.keys().filter(|text| text.starts_with("word")).count();
        assert!(kept + replaced_later >= MAX_LABEL_VALUES / 2, "{kept}");
    }

    #[test]
    fn search_text_is_escaped_in_its_label() {
        let metrics = Metrics::new().unwrap();
        metrics.record_search("a\"} 1\nevil{x=\"\\ b");
        assert!(text(&metrics).contains(r#"{capability="a\"} 1 evil{x=\"\\ b"} 1"#));
    }
}
