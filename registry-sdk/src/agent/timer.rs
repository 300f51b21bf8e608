//! Timers of the loop: when the next request is due, and how long to wait after failures.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::retry::Backoff;

/// Default interval of heartbeats if the registration declares none.
pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);

/// Minimum interval of heartbeats.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// Time limit of the loop's own attempts, as a fraction of the interval. After a hung connection there has to be time for two
/// more attempts before the deadline.
const ATTEMPT_SHARE: f64 = 0.25;

/// Minimum time limit of an attempt.
const MIN_ATTEMPT: Duration = Duration::from_millis(100);

/// Returns the time limit of the loop's own attempts.
pub(super) fn heartbeat_limit(interval: Duration) -> Duration {
    interval.mul_f64(ATTEMPT_SHARE).max(MIN_ATTEMPT)
}

/// Maximum of the first delay after a failure, as a fraction of the interval.
const MIN_DELAY: f64 = 0.1;

/// When a request is due. Failures postpone it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    pub(super) due: Instant,
    /// Number of failures in a row.
    pub(super) failures: u32,
}

impl Timer {
    /// Creates a timer that is due at a given time, without failures so far.
    pub(super) fn at(due: Instant) -> Self {
        Self { due, failures: 0 }
    }

    /// Creates a timer that is due at a random time within a tenth of the interval, because many agents may have the same
    /// reason at the same time.
    pub(super) fn soon(interval: Duration) -> Self {
        Self::at(Instant::now() + interval.mul_f64(MIN_DELAY * fastrand::f64()))
    }

    /// Postpones the next attempt, by up to a tenth of the interval at first, growing up to the interval. Returns the delay.
    pub(super) fn failed(&mut self, error: &Error, interval: Duration) -> Duration {
        let backoff = Backoff { min_delay: interval.mul_f64(MIN_DELAY), max_delay: interval, factor: 2.0 };
        let delay = backoff.delay(self.failures, error.retry_after());
        self.failures = self.failures.saturating_add(1);
        self.due = Instant::now() + delay;
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(100);

    fn failure(retry_after: Option<u64>) -> Error {
        let retry_after = retry_after.map(Duration::from_secs);
        Error::Unavailable { status: 503, detail: String::new(), retry_after }
    }

    #[test]
    fn delays_double_up_to_the_interval_with_full_jitter() {
        let delays = |_| {
            let mut timer = Timer::at(Instant::now());
            (0..6).map(|_| timer.failed(&failure(None), INTERVAL).as_secs_f64()).collect::<Vec<_>>()
        };
        let drawn: Vec<Vec<f64>> = (0..500).map(delays).collect();
        for (number, largest) in [10.0, 20.0, 40.0, 80.0, 100.0, 100.0].into_iter().enumerate() {
            let of_number = || drawn.iter().map(|delays| delays[number]);
            assert!(of_number().all(|delay| (0.0..=largest).contains(&delay)), "{number}");
            assert!(of_number().any(|delay| delay < largest * 0.1), "{number}");
            assert!(of_number().any(|delay| delay > largest * 0.9), "{number}");
        }
    }

    #[test]
    fn retry_after_is_obeyed_up_to_the_interval() {
        let delay = |seconds| Timer::at(Instant::now()).failed(&failure(Some(seconds)), INTERVAL);
        assert!((50..=60).contains(&delay(50).as_secs()));
        assert_eq!(delay(3_600), INTERVAL);
    }

    #[test]
    fn soon_is_spread_over_a_tenth_of_the_interval() {
        let now = Instant::now();
        let drawn: Vec<_> = (0..500).map(|_| Timer::soon(INTERVAL).due - now).collect();
        assert!(drawn.iter().all(|pause| *pause < Duration::from_millis(10_500)));
        assert!(drawn.iter().any(|pause| *pause < Duration::from_secs(2)));
        assert!(drawn.iter().any(|pause| *pause > Duration::from_secs(8)));
    }
}
