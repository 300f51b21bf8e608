//! Tracks whether the database is available and the sweeper runs.

use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::HealthStatus;
use tokio::time::Instant;

use crate::store::StoreError;

/// Number of sweep intervals without a sweep after which the server is unhealthy.
const MAX_MISSED_SWEEPS: u32 = 3;

/// Minimum time without a sweep after which the server is unhealthy, however short the interval.
const SWEEP_GRACE: Duration = Duration::from_secs(10);

/// A part of the server that uses the database on a session of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Follower,
    Heartbeats,
    Changes,
}

/// Whether each part can use the database.
///
/// A part that failed tries again until it succeeds, whether or not there are requests.
#[derive(Debug)]
pub(super) struct Availability(Mutex<State>);

#[derive(Debug)]
struct State {
    failing: Vec<Part>,
    /// Start of the current outage of any part.
    unavailable_since: Option<Instant>,
    last_sweep: Instant,
    /// The last time at which the view had all changes.
    last_agreement: Instant,
}

impl Part {
    /// Returns the part's name in the metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::Heartbeats => "heartbeats",
            Self::Changes => "changes",
        }
    }
}

impl Availability {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let (last_sweep, last_agreement) = (now, now);
        Self(Mutex::new(State { failing: Vec::new(), unavailable_since: None, last_sweep, last_agreement }))
    }

    /// Records that the database failed a part.
    pub(super) fn record_failure(&self, part: Part, error: &StoreError) {
        let mut state = self.0.lock();
        if !state.failing.contains(&part) {
            state.failing.push(part);
        }
        if state.unavailable_since.is_none() {
            state.unavailable_since = Some(Instant::now());
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(
                ?part,
                cause,
                "{error}; answering reads from memory and rejecting writes until the database is available"
            );
        }
    }

    /// Records that a part has used the database.
    pub(super) fn record_success(&self, part: Part) {
        let mut state = self.0.lock();
        state.failing.retain(|failing| *failing != part);
        // With the next poll, which ends the outage for the agents' deadlines, too.
        if part == Part::Follower
            && state.failing.is_empty()
            && let Some(since) = state.unavailable_since.take()
        {
            let unavailable_seconds = since.elapsed().as_secs_f64();
            tracing::info!(unavailable_seconds, "the database is available again, accepting writes");
        }
    }

    pub(super) fn is_failing(&self, part: Part) -> bool {
        self.0.lock().failing.contains(&part)
    }

    /// Returns how long the database has been unavailable for any part, if it is.
    pub(super) fn unavailable_for(&self) -> Option<Duration> {
        self.0.lock().unavailable_since.map(|since| since.elapsed())
    }

    pub(super) fn record_sweep(&self) {
        self.0.lock().last_sweep = Instant::now();
    }

    pub(super) fn last_sweep_age(&self) -> Duration {
        self.0.lock().last_sweep.elapsed()
    }

    /// Records that the view has all changes.
    pub(super) fn record_agreement(&self) {
        self.0.lock().last_agreement = Instant::now();
    }

    /// Returns the time since the view last had all changes.
    pub(super) fn replica_lag(&self) -> Duration {
        self.0.lock().last_agreement.elapsed()
    }

    /// Returns `Healthy` while the database is available and the sweeper runs.
    pub(super) fn health(&self, sweep_interval: Duration) -> HealthStatus {
        let state = self.0.lock();
        let limit = (sweep_interval * MAX_MISSED_SWEEPS).max(SWEEP_GRACE);
        let is_swept = state.last_sweep.elapsed() <= limit;
        if state.unavailable_since.is_none() && is_swept {
            HealthStatus::Healthy
        } else {
            HealthStatus::Unhealthy
        }
    }
}
