//! Metrics of the database as seen by this server: latencies, errors, outages, and waiting writes.

use std::time::Duration;

use prometheus::{Counter, Error, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::LATENCY_BUCKETS;

/// The parts of the server that use the database. Two of them write from a queue of the same name.
const PARTS: [&str; 4] = ["changes", "follower", "heartbeats", "reads"];
const QUEUES: [&str; 2] = ["changes", "heartbeats"];

const FLUSH_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0];

/// Metrics of the database. Recorded once per batch, poll or read, never per heartbeat.
#[derive(Debug)]
pub(crate) struct DatabaseMetrics {
    errors: IntCounterVec,
    latency: HistogramVec,
    queue_wait: HistogramVec,
    flush_size: HistogramVec,
    outages: IntCounter,
    outage_seconds: Counter,
}

impl DatabaseMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let histogram = |name, help, label, buckets: &[f64]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &[label])
        };
        let metrics = Self {
            errors: IntCounterVec::new(
                Opts::new(
                    "agent_registry_database_errors_total",
                    "Number of failed database operations, by the part of this server that needed them",
                ),
                &["part"],
            )?,
            latency: histogram(
                "agent_registry_database_latency_seconds",
                "Time that the database took for a flush of heartbeats, a transaction of changes, a poll or a read; \
                 failed operations are not counted",
                "part",
                LATENCY_BUCKETS,
            )?,
            queue_wait: histogram(
                "agent_registry_queue_wait_seconds",
                "Time from the arrival of a batch's oldest write until the batch left its queue to be written",
                "queue",
                LATENCY_BUCKETS,
            )?,
            flush_size: histogram(
                "agent_registry_flush_size",
                "Number of writes that were written together",
                "queue",
                FLUSH_BUCKETS,
            )?,
            outages: IntCounter::new(
                "agent_registry_database_outages_total",
                "Number of times that this server lost its database",
            )?,
            outage_seconds: Counter::new(
                "agent_registry_database_outage_seconds_total",
                "Time for which this server could not reach its database",
            )?,
        };
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.latency.clone()))?;
        registry.register(Box::new(metrics.queue_wait.clone()))?;
        registry.register(Box::new(metrics.flush_size.clone()))?;
        registry.register(Box::new(metrics.outages.clone()))?;
        registry.register(Box::new(metrics.outage_seconds.clone()))?;
        // Present from the start with zero: Prometheus does not see an increase in a new series.
        for part in PARTS {
            metrics.errors.with_label_values(&[part]);
            metrics.latency.with_label_values(&[part]);
        }
        for queue in QUEUES {
            metrics.queue_wait.with_label_values(&[queue]);
            metrics.flush_size.with_label_values(&[queue]);
        }
        Ok(metrics)
    }

    /// Records that the database failed a part of the server.
    pub(crate) fn record_error(&self, part: &str) {
        self.errors.with_label_values(&[part]).inc();
    }

    /// Records the duration of a part's successful database operation.
    pub(crate) fn record_latency(&self, part: &str, elapsed: Duration) {
        self.latency.with_label_values(&[part]).observe(elapsed.as_secs_f64());
    }

    /// Records how long the oldest write of a batch waited in its queue.
    pub(crate) fn record_queue_wait(&self, queue: &str, waited: Duration) {
        self.queue_wait.with_label_values(&[queue]).observe(waited.as_secs_f64());
    }

    /// Records a batch that was written.
    pub(crate) fn record_flush(&self, queue: &str, writes: usize, elapsed: Duration) {
        // A batch has at most a thousand writes.
        let writes = u32::try_from(writes).unwrap_or(u32::MAX);
        self.flush_size.with_label_values(&[queue]).observe(writes.into());
        self.record_latency(queue, elapsed);
    }

    /// Records the beginning of an outage of the database.
    pub(crate) fn record_outage(&self) {
        self.outages.inc();
    }

    /// Adds a part of an outage.
    pub(super) fn add_outage_time(&self, elapsed: Duration) {
        self.outage_seconds.inc_by(elapsed.as_secs_f64());
    }
}
