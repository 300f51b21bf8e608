//! Whether the database answers, whether the sweeper runs, and since when agents can be heard.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use registry_sdk::contract::{HealthStatus, Timestamp};

/// How many sweep intervals may pass without a sweep before the server calls itself unhealthy.
const SWEEPS_MISSED: u32 = 3;

/// At least this long may pass without a sweep, however short the interval.
const SWEEP_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Availability {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Since when the database has been away, where it is.
    away_since: Option<Instant>,
    /// Since when agents can be heard, by the database's clock.
    listening_since: Timestamp,
    last_sweep: Instant,
}

impl Availability {
    /// The database has just answered.
    pub(crate) fn new(now: Timestamp) -> Self {
        let state = State { away_since: None, listening_since: now, last_sweep: Instant::now() };
        Self { state: Mutex::new(state) }
    }

    /// The database does not answer. Whether that is news.
    pub(crate) fn lost(&self) -> bool {
        let mut state = self.state.lock();
        let news = state.away_since.is_none();
        state.away_since.get_or_insert_with(Instant::now);
        news
    }

    /// The database answers, and its clock reads `now`. For how long it was away, where it was.
    pub(crate) fn found(&self, now: Timestamp) -> Option<Duration> {
        let mut state = self.state.lock();
        let away = state.away_since.take()?;
        // The agents could not have been heard meanwhile: each has one whole timeout from now on.
        state.listening_since = now;
        Some(away.elapsed())
    }

    pub(crate) fn away_for(&self) -> Option<Duration> {
        self.state.lock().away_since.map(|since| since.elapsed())
    }

    /// Since when agents can be heard; `None` where they cannot.
    pub(crate) fn listening_since(&self) -> Option<Timestamp> {
        let state = self.state.lock();
        state.away_since.is_none().then_some(state.listening_since)
    }

    /// Nobody's silence before a time counts.
    pub(crate) fn listens_from(&self, now: Timestamp) {
        self.state.lock().listening_since = now;
    }

    pub(crate) fn swept(&self) {
        self.state.lock().last_sweep = Instant::now();
    }

    pub(crate) fn last_sweep_age(&self) -> Duration {
        self.state.lock().last_sweep.elapsed()
    }

    /// Healthy while the database answers and the sweeper runs.
    pub(crate) fn health(&self, sweep_interval: Duration) -> HealthStatus {
        let state = self.state.lock();
        let limit = (sweep_interval * SWEEPS_MISSED).max(SWEEP_GRACE);
        if state.away_since.is_some() || state.last_sweep.elapsed() > limit {
            HealthStatus::Unhealthy
        } else {
            HealthStatus::Healthy
        }
    }
}
