//! Availability: whether the database can be used and the sweeper runs.

use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::HealthStatus;
use tokio::time::Instant;

use crate::store::StoreError;

/// Number of sweep intervals without a sweep after which the server counts as unhealthy.
const MAX_MISSED_SWEEPS: u32 = 3;

/// Minimum time without a sweep before the server counts as unhealthy, for short sweep intervals.
const SWEEP_GRACE: Duration = Duration::from_secs(10);

/// A part of the server with its own database session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Follower,
    Heartbeats,
    Changes,
}

/// Whether each part of the server can use the database.
///
/// A part that failed retries until it succeeds, even if there are no requests.
#[derive(Debug)]
pub(super) struct Availability(Mutex<State>);

#[derive(Debug)]
struct State {
    failing: Vec<Part>,
    /// Start of the current outage, in whichever part.
    unavailable_since: Option<Instant>,
    /// Outage time that no scrape has reported yet, except for the current outage.
    ///
    /// Of the current outage, the time since `counted_until` is still unreported.
    uncounted: Duration,
    counted_until: Instant,
    last_sweep: Instant,
    /// The last time at which the view had every change.
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
        Self(Mutex::new(State {
            failing: Vec::new(),
            unavailable_since: None,
            uncounted: Duration::ZERO,
            counted_until: now,
            last_sweep: now,
            last_agreement: now,
        }))
    }

    /// Records that the database failed a part. Returns whether this begins an outage.
    pub(super) fn record_failure(&self, part: Part, error: &StoreError) -> bool {
        let mut state = self.0.lock();
        if !state.failing.contains(&part) {
            state.failing.push(part);
        }
        let has_begun = state.unavailable_since.is_none();
        if has_begun {
            let now = Instant::now();
            (state.unavailable_since, state.counted_until) = (Some(now), now);
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(
                part = part.as_str(),
                cause,
                "{error}; answering reads from memory and rejecting writes until the database is available"
            );
        }
        has_begun
    }

    /// Records that a part has used the database successfully.
    pub(super) fn record_success(&self, part: Part) {
        let mut state = self.0.lock();
        state.failing.retain(|failing| *failing != part);
        // Wait for the next poll, which also ends the outage for the agents' deadlines.
        if part == Part::Follower
            && state.failing.is_empty()
            && let Some(since) = state.unavailable_since.take()
        {
            let uncounted = state.counted_until.elapsed();
            state.uncounted += uncounted;
            let unavailable_seconds = since.elapsed().as_secs_f64();
            tracing::info!(unavailable_seconds, "the database is available again, accepting writes");
        }
    }

    pub(super) fn is_failing(&self, part: Part) -> bool {
        self.0.lock().failing.contains(&part)
    }

    /// Returns how long the database has been unavailable for any part. `None` if it is available.
    pub(super) fn unavailable_for(&self) -> Option<Duration> {
        self.0.lock().unavailable_since.map(|since| since.elapsed())
    }

    /// Returns the outage time since the last call.
    pub(super) fn take_outage_time(&self) -> Duration {
        let mut state = self.0.lock();
        let mut outage_time = std::mem::take(&mut state.uncounted);
        if state.unavailable_since.is_some() {
            let now = Instant::now();
            outage_time += now - std::mem::replace(&mut state.counted_until, now);
        }
        outage_time
    }

    pub(super) fn record_sweep(&self) {
        self.0.lock().last_sweep = Instant::now();
    }

    pub(super) fn last_sweep_age(&self) -> Duration {
        self.0.lock().last_sweep.elapsed()
    }

    /// Records that the view has every change.
    pub(super) fn record_agreement(&self) {
        self.0.lock().last_agreement = Instant::now();
    }

    /// Returns the time since the view last had every change.
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

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(availability: &Availability, part: Part) -> bool {
        availability.record_failure(part, &StoreError::Unavailable("away".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn outage_is_counted_once_with_its_full_length() {
        let availability = Availability::new();
        advance(SECOND).await;
        assert_eq!(availability.take_outage_time(), Duration::ZERO);
        assert!(fail(&availability, Part::Changes));
        advance(SECOND).await;
        assert!(!fail(&availability, Part::Follower), "the same outage");
        assert_eq!(availability.take_outage_time(), SECOND);
        advance(SECOND).await;
        availability.record_success(Part::Changes);
        advance(SECOND).await;
        availability.record_success(Part::Follower);
        advance(SECOND).await;
        assert_eq!(availability.take_outage_time(), 2 * SECOND);
        assert!(fail(&availability, Part::Heartbeats));
        advance(SECOND).await;
        assert_eq!(availability.take_outage_time(), SECOND);
        assert_eq!(availability.take_outage_time(), Duration::ZERO);
    }
}
