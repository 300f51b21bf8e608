//! Whether the database answers, whether the sweeper runs, and since when agents can be heard.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::{HealthStatus, Timestamp};

/// How many sweep intervals may pass without a sweep before the server calls itself unhealthy.
const MAX_MISSED_SWEEPS: u32 = 3;

/// At least this long may pass without a sweep, however short the interval.
const SWEEP_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Availability {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Since when the database has been away, where it is.
    unavailable_since: Option<Instant>,
    /// Since when agents can be heard, by the database's clock.
    reachable_since: Timestamp,
    last_sweep: Instant,
}

impl Availability {
    /// The database has just answered.
    pub(crate) fn new(now: Timestamp) -> Self {
        let state = State { unavailable_since: None, reachable_since: now, last_sweep: Instant::now() };
        Self { state: Mutex::new(state) }
    }

    /// The database does not answer. Whether that is news.
    pub(crate) fn mark_unavailable(&self) -> bool {
        let mut state = self.state.lock();
        let is_news = state.unavailable_since.is_none();
        state.unavailable_since.get_or_insert_with(Instant::now);
        is_news
    }

    /// The database answers, and its clock reads `now`. For how long it was away, where it was.
    pub(crate) fn mark_available(&self, now: Timestamp) -> Option<Duration> {
        let mut state = self.state.lock();
        let since = state.unavailable_since.take()?;
        // The agents could not have been heard meanwhile: each has one whole timeout from now on.
        state.reachable_since = now;
        Some(since.elapsed())
    }

    pub(crate) fn unavailable_for(&self) -> Option<Duration> {
        self.state.lock().unavailable_since.map(|since| since.elapsed())
    }

    /// Since when agents can be heard; `None` where they cannot.
    pub(crate) fn reachable_since(&self) -> Option<Timestamp> {
        let state = self.state.lock();
        state.unavailable_since.is_none().then_some(state.reachable_since)
    }

    /// Nobody's silence before a time counts.
    pub(crate) fn set_reachable_since(&self, now: Timestamp) {
        self.state.lock().reachable_since = now;
    }

    pub(crate) fn record_sweep(&self) {
        self.state.lock().last_sweep = Instant::now();
    }

    pub(crate) fn last_sweep_age(&self) -> Duration {
        self.state.lock().last_sweep.elapsed()
    }

    /// Healthy while the database answers and the sweeper runs.
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
