//! Tracks whether the database is available and the sweeper runs, and since when silence of agents counts.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::{HealthStatus, Timestamp};

/// Number of sweep intervals without a sweep after which the server is unhealthy.
const MAX_MISSED_SWEEPS: u32 = 3;

/// Minimum time without a sweep after which the server is unhealthy, however short the interval.
const SWEEP_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Availability {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Start of the current outage.
    unavailable_since: Option<Instant>,
    /// Database time since which agents can reach the registry. Silence before it does not count.
    reachable_since: Timestamp,
    last_sweep: Instant,
}

impl Availability {
    /// Starts as available at database time `now`.
    pub(crate) fn new(now: Timestamp) -> Self {
        let state = State { unavailable_since: None, reachable_since: now, last_sweep: Instant::now() };
        Self { state: Mutex::new(state) }
    }

    /// Records that the database is unavailable; returns whether it was available until now.
    pub(crate) fn mark_unavailable(&self) -> bool {
        let mut state = self.state.lock();
        let is_news = state.unavailable_since.is_none();
        state.unavailable_since.get_or_insert_with(Instant::now);
        is_news
    }

    /// Records that the database is available at its time `now`.
    ///
    /// Returns the length of the outage that this ends.
    pub(crate) fn mark_available(&self, now: Timestamp) -> Option<Duration> {
        let mut state = self.state.lock();
        let since = state.unavailable_since.take()?;
        // Agents could not report during the outage, so each gets one whole timeout from now on.
        state.reachable_since = now;
        Some(since.elapsed())
    }

    pub(crate) fn unavailable_for(&self) -> Option<Duration> {
        self.state.lock().unavailable_since.map(|since| since.elapsed())
    }

    /// Returns the database time since which silence counts, or `None` during an outage.
    pub(crate) fn reachable_since(&self) -> Option<Timestamp> {
        let state = self.state.lock();
        state.unavailable_since.is_none().then_some(state.reachable_since)
    }

    /// Lets silence count only from `now` on.
    pub(crate) fn set_reachable_since(&self, now: Timestamp) {
        self.state.lock().reachable_since = now;
    }

    pub(crate) fn record_sweep(&self) {
        self.state.lock().last_sweep = Instant::now();
    }

    pub(crate) fn last_sweep_age(&self) -> Duration {
        self.state.lock().last_sweep.elapsed()
    }

    /// Returns `Healthy` while the database is available and the sweeper runs.
    pub(crate) fn health(&self, sweep_interval: Duration) -> HealthStatus {
        let state = self.state.lock();
        let limit = (sweep_interval * MAX_MISSED_SWEEPS).max(SWEEP_GRACE);
        if state.unavailable_since.is_some() || state.last_sweep.elapsed() > limit {
            HealthStatus::Unhealthy
        } else {
            HealthStatus::Healthy
        }
    }
}
