//! Retries: the number of attempts and the delays between them.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Action, Error};

/// Minimum time limit of an attempt at one of several endpoints, unless the whole limit is shorter.
const MIN_ATTEMPT: Duration = Duration::from_millis(100);

/// Returns the moment this much later. Durations beyond the clock's range count as forever.
pub(crate) fn deadline_after(now: Instant, duration: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);
    now.checked_add(duration).unwrap_or_else(|| now + FOR_EVER)
}

/// A backoff with full jitter: each delay is drawn between zero and a maximum that grows with each failure, so that the clients
/// of a restarted registry do not all return at once (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
/// 2015). A `Retry-After` is obeyed, up to the maximum delay.
///
/// Calls, the agent's loop, the cache and the watch all use this implementation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) min_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) factor: f64,
}

impl Backoff {
    /// Returns the delay after a failure that follows this many earlier failures.
    pub(crate) fn delay(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let drawn = self.largest(failures).mul_f64(fastrand::f64());
        // A random delay is added, so that clients with the same `Retry-After` do not return at the same moment.
        retry_after.map_or(drawn, |asked| asked.saturating_add(drawn).min(self.max_delay))
    }

    fn largest(&self, failures: u32) -> Duration {
        let grown =
            self.min_delay.as_secs_f64() * self.factor.powi(i32::try_from(failures).unwrap_or(i32::MAX));
        Duration::try_from_secs_f64(grown).unwrap_or(self.max_delay).min(self.max_delay)
    }
}

/// How calls are retried.
///
/// A call is retried if that is safe and useful: after a failed connection, a timeout, and the statuses 408, 425, 429, 500,
/// 502, 503 and 504.
///
/// Each delay is random, between zero and a maximum that grows by a factor ("full jitter"). A `Retry-After` is obeyed up to
/// `max_delay`. If another endpoint is available, the call fails over to it without a delay.
///
/// A policy with more than one attempt leaves time for at least two, and for one at each endpoint: no attempt takes longer than its
/// share of the `time_limit`.
///
/// An endpoint to which no connection can be made is skipped without counting as an attempt, as long as another one is left.
///
/// ```
/// use std::time::Duration;
/// use registry_sdk::RetryPolicy;
/// let patient = RetryPolicy::registration().attempts(10).time_limit(Duration::from_secs(30));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    attempts: u32,
    backoff: Backoff,
    time_limit: Option<Duration>,
}

impl RetryPolicy {
    /// Returns the policy for an agent's start: three attempts, with delays of up to 1 s and 2 s, without a time limit.
    #[must_use]
    pub const fn registration() -> Self {
        let (min_delay, max_delay) = (Duration::from_secs(1), Duration::from_secs(5));
        Self { attempts: 3, backoff: Backoff { min_delay, max_delay, factor: 2.0 }, time_limit: None }
    }

    /// Returns a policy for callers that wait for the response: three attempts, with delays of up to 100 ms and 200 ms, within
    /// 12 s.
    #[must_use]
    pub const fn discovery() -> Self {
        let (min_delay, max_delay) = (Duration::from_millis(100), Duration::from_secs(1));
        let time_limit = Some(Duration::from_secs(12));
        Self { attempts: 3, backoff: Backoff { min_delay, max_delay, factor: 2.0 }, time_limit }
    }

    /// Returns a policy with a single attempt, limited only by the attempt's own timeout. If connections fail, that is up to one
    /// attempt at each endpoint, see [above](Self).
    #[must_use]
    pub const fn none() -> Self {
        Self { attempts: 1, time_limit: None, ..Self::discovery() }
    }

    /// Sets the maximum number of attempts, at least one. If it is greater than one, every endpoint gets at least one attempt.
    #[must_use]
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = if attempts == 0 { 1 } else { attempts };
        self
    }

    /// Sets the maximum of the first delay, whose minimum is zero.
    #[must_use]
    pub const fn min_delay(mut self, delay: Duration) -> Self {
        self.backoff.min_delay = delay;
        self
    }

    /// Sets the maximum of all delays, including those that the registry asks for.
    #[must_use]
    pub const fn max_delay(mut self, delay: Duration) -> Self {
        self.backoff.max_delay = delay;
        self
    }

    /// Sets the factor by which delays grow. Values below 1 count as 1.
    #[must_use]
    pub const fn factor(mut self, factor: f64) -> Self {
        self.backoff.factor = factor.max(1.0);
        self
    }

    /// Sets the time limit of a call, including delays, until its response arrives.
    ///
    /// A long response that is arriving is not cut off: see
    /// [`RegistryClientBuilder::timeout`](crate::RegistryClientBuilder::timeout).
    #[must_use]
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Returns the same policy for a call with a time limit that fails over to other endpoints.
    pub(crate) fn within(&self, limit: Duration) -> Self {
        Self { attempts: self.attempts.max(2), time_limit: Some(limit), ..self.clone() }
    }

    /// Begins a call. Its time starts now, and suffices for all endpoints.
    pub(crate) fn begin(&self, attempt_timeout: Duration, endpoints: usize) -> Attempts {
        let deadline = self.time_limit.map(|limit| deadline_after(Instant::now(), limit));
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX);
        let share = if self.attempts > 1 { endpoints.max(2) } else { 1 };
        let attempt_timeout =
            self.time_limit.map_or(attempt_timeout, |limit| attempt_timeout.min(limit / share));
        Attempts {
            // At least one attempt at each endpoint.
            left: if self.attempts > 1 { self.attempts.max(endpoints) - 1 } else { 0 },
            failures: 0,
            backoff: self.backoff,
            attempt_timeout,
            deadline,
            is_strict: false,
        }
    }
}

/// The time limit of an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) deadline: Instant,
    pub(crate) duration: Duration,
    /// Whether the deadline also bounds a response that is arriving.
    is_strict: bool,
}

impl Limit {
    /// Creates a limit that starts now, and is extended while a response is arriving.
    pub(crate) fn of(duration: Duration) -> Self {
        Self { deadline: deadline_after(Instant::now(), duration), duration, is_strict: false }
    }

    /// Extends the deadline, because part of the response has arrived.
    pub(crate) fn extend(&mut self) {
        if !self.is_strict {
            *self = Self::of(self.duration);
        }
    }
}

/// The attempts of a call.
#[derive(Debug)]
pub(crate) struct Attempts {
    left: u32,
    failures: u32,
    backoff: Backoff,
    attempt_timeout: Duration,
    deadline: Option<Instant>,
    is_strict: bool,
}

impl Attempts {
    /// Creates one attempt at each endpoint, within a strict limit, which also bounds the responses.
    pub(crate) fn within(limit: Duration, endpoints: usize) -> Self {
        let count = u32::try_from(endpoints.max(1)).unwrap_or(u32::MAX);
        // Each of many endpoints has time to respond.
        let attempt_timeout = (limit / count).max(limit.min(MIN_ATTEMPT));
        Self {
            left: count - 1,
            failures: 0,
            backoff: Backoff { max_delay: Duration::ZERO, ..RetryPolicy::discovery().backoff },
            attempt_timeout,
            deadline: Some(deadline_after(Instant::now(), attempt_timeout.saturating_mul(count))),
            is_strict: true,
        }
    }

    /// Returns the time limit of the next attempt.
    pub(crate) fn limit(&self) -> Limit {
        Limit { is_strict: self.is_strict, ..Limit::of(self.time_left()) }
    }

    /// Returns how long the next attempt may take.
    pub(crate) fn time_left(&self) -> Duration {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(self.attempt_timeout, |left| left.min(self.attempt_timeout))
    }

    /// Returns the delay before the next attempt, or `None` if the error is final.
    ///
    /// `has_other` says that an endpoint that was not tried is available. It gets the next attempt without a delay.
    pub(crate) fn delay_after(&mut self, error: &Error, has_other: bool) -> Option<Duration> {
        let fails_over = has_other && error.is_endpoint_failure();
        if !fails_over && error.action() != Action::Retry {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        let delay =
            if fails_over { Duration::ZERO } else { self.backoff.delay(self.failures, error.retry_after()) };
        self.failures = self.failures.saturating_add(u32::from(!fails_over));
        let in_time = self.deadline.is_none_or(|deadline| deadline_after(Instant::now(), delay) < deadline);
        in_time.then_some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(policy: &RetryPolicy) -> Vec<Duration> {
        let error = Error::Unavailable { status: 503, detail: String::new(), retry_after: None };
        let mut attempts = policy.begin(Duration::MAX, 1);
        std::iter::from_fn(|| attempts.delay_after(&error, false)).collect()
    }

    #[test]
    fn registration_policy_has_delays_of_up_to_one_and_two_seconds() {
        for _ in 0..1_000 {
            let delays = delays(&RetryPolicy::registration());
            assert_eq!(delays.len(), 2);
            assert!(delays[0] <= Duration::from_secs(1), "{delays:?}");
            assert!(delays[1] <= Duration::from_secs(2), "{delays:?}");
        }
    }

    #[test]
    fn delays_are_drawn_from_the_whole_range() {
        let drawn: Vec<_> = (0..1_000).map(|_| delays(&RetryPolicy::registration())[0]).collect();
        assert!(drawn.iter().any(|delay| *delay < Duration::from_millis(200)));
        assert!(drawn.iter().any(|delay| *delay > Duration::from_millis(800)));
    }

    #[test]
    fn no_delay_exceeds_the_maximum() {
        let largest = Duration::from_secs(3);
        let policy = RetryPolicy::registration().attempts(50).max_delay(largest);
        assert!(delays(&policy).iter().all(|delay| *delay <= largest));
        let asked = |seconds| policy.backoff.delay(0, Some(Duration::from_secs(seconds)));
        assert_eq!(asked(3_600), largest);
        assert!(asked(2) >= Duration::from_secs(2));
    }

    #[test]
    fn backoff_never_panics() {
        for (min_delay, max_delay) in [(0, 0), (0, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            for factor in [0.0, 1.0, 1e300, f64::INFINITY, f64::NAN] {
                let (min_delay, max_delay) = (Duration::from_secs(min_delay), Duration::from_secs(max_delay));
                let policy = RetryPolicy::none().min_delay(min_delay).max_delay(max_delay).factor(factor);
                for failures in [0, 1, 2_000, u32::MAX] {
                    for retry_after in [None, Some(Duration::MAX)] {
                        assert!(policy.backoff.delay(failures, retry_after) <= max_delay);
                    }
                }
            }
        }
    }

    #[test]
    fn single_attempt_has_no_delay() {
        assert_eq!(delays(&RetryPolicy::none()), []);
        assert_eq!(RetryPolicy::none().attempts(0), RetryPolicy::none());
    }
}
