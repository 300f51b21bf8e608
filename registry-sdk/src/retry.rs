//! How often, and how long apart, a call is tried.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// The moment so much later. Durations that reach beyond what the clock can count are as good as for ever.
pub(crate) fn deadline_after(now: Instant, duration: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);
    now.checked_add(duration).unwrap_or_else(|| now + FOR_EVER)
}

/// How a call is repeated where that is safe and useful: after a failed connection, a time-out, and the
/// statuses 408, 425, 429, 500, 502, 503 and 504.
///
/// The pauses grow by a factor and are drawn at random between nothing and their full length ("full jitter",
/// as in Marc Brooker's "Exponential Backoff And Jitter", AWS 2015), so that the clients of a registry that
/// was restarted do not all come back at once. A `Retry-After` is obeyed, up to the longest pause.
///
/// ```
/// use std::time::Duration;
/// use registry_sdk::RetryPolicy;
/// let patient = RetryPolicy::registration().attempts(10).time_limit(Duration::from_secs(30));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    attempts: u32,
    min_delay: Duration,
    max_delay: Duration,
    factor: f64,
    time_limit: Option<Duration>,
}

impl RetryPolicy {
    /// For an agent that starts: three attempts, up to 1 s and 2 s apart.
    #[must_use]
    pub const fn registration() -> Self {
        Self {
            attempts: 3,
            min_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(5),
            factor: 2.0,
            time_limit: None,
        }
    }

    /// For a caller that waits for an answer: three attempts, up to 100 ms and 200 ms apart, 5 s in all.
    #[must_use]
    pub const fn discovery() -> Self {
        Self {
            attempts: 3,
            min_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(1),
            factor: 2.0,
            time_limit: Some(Duration::from_secs(5)),
        }
    }

    /// One attempt.
    #[must_use]
    pub const fn none() -> Self {
        Self { attempts: 1, ..Self::discovery() }.without_time_limit()
    }

    const fn without_time_limit(mut self) -> Self {
        self.time_limit = None;
        self
    }

    /// How many attempts are made in all; at least one.
    #[must_use]
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = if attempts == 0 { 1 } else { attempts };
        self
    }

    /// The longest that the first pause may be.
    #[must_use]
    pub const fn min_delay(mut self, delay: Duration) -> Self {
        self.min_delay = delay;
        self
    }

    /// The longest that any pause may be, also one that the registry asks for.
    #[must_use]
    pub const fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// By what the pauses grow. Below 1 it is 1.
    #[must_use]
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = factor.max(1.0);
        self
    }

    /// How long the whole call may take, pauses included.
    #[must_use]
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Begins a call: its time counts from now.
    pub(crate) fn begin(&self) -> Attempts {
        let deadline = self.time_limit.map(|limit| deadline_after(Instant::now(), limit));
        Attempts { delays: self.delays(), deadline }
    }

    /// The pauses between the attempts.
    fn delays(&self) -> Delays {
        Delays { left: self.attempts.saturating_sub(1), next: self.min_delay, policy: self.clone() }
    }

    /// The pause before the next attempt, where the registry asked for one. The drawn pause is added, so that
    /// not all who were told the same come back at the same moment.
    fn obeying(&self, retry_after: Option<Duration>, drawn: Duration) -> Duration {
        retry_after.map_or(drawn, |asked| asked.saturating_add(drawn).min(self.max_delay))
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    delays: Delays,
    deadline: Option<Instant>,
}

impl Attempts {
    /// How long the next attempt may take.
    pub(crate) fn time_left(&self, most: Duration) -> Duration {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(most, |left| left.min(most))
    }

    /// The pause before the next attempt; `None` if there is none: the error is the call's.
    pub(crate) fn pause_after(&mut self, error: &Error) -> Option<Duration> {
        let drawn = self.delays.next().filter(|_| error.is_retryable())?;
        let pause = self.delays.policy.obeying(error.retry_after(), drawn);
        let in_time = self.deadline.is_none_or(|deadline| deadline_after(Instant::now(), pause) < deadline);
        in_time.then_some(pause)
    }
}

/// Draws one pause after another.
#[derive(Debug)]
struct Delays {
    left: u32,
    /// The longest that the next pause may be.
    next: Duration,
    policy: RetryPolicy,
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let most = self.next.min(self.policy.max_delay);
        self.next = Duration::try_from_secs_f64(most.as_secs_f64() * self.policy.factor).unwrap_or(most);
        Some(most.mul_f64(fastrand::f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_pauses_twice_for_up_to_one_and_two_seconds() {
        for _ in 0..1_000 {
            let delays: Vec<_> = RetryPolicy::registration().delays().collect();
            assert_eq!(delays.len(), 2);
            assert!(delays[0] <= Duration::from_secs(1), "{delays:?}");
            assert!(delays[1] <= Duration::from_secs(2), "{delays:?}");
        }
    }

    #[test]
    fn pauses_are_drawn_from_the_whole_range() {
        let first = || RetryPolicy::registration().delays().next().unwrap();
        let drawn: Vec<_> = (0..1_000).map(|_| first()).collect();
        assert!(drawn.iter().any(|delay| *delay < Duration::from_millis(200)));
        assert!(drawn.iter().any(|delay| *delay > Duration::from_millis(800)));
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        let longest = Duration::from_secs(3);
        let policy = RetryPolicy::registration().attempts(50).max_delay(longest);
        assert!(policy.delays().all(|delay| delay <= longest));
        assert_eq!(policy.obeying(Some(Duration::from_secs(3_600)), Duration::ZERO), longest);
        assert_eq!(policy.obeying(Some(Duration::from_secs(2)), Duration::ZERO), Duration::from_secs(2));
    }

    #[test]
    fn one_attempt_has_no_pause() {
        assert_eq!(RetryPolicy::none().delays().next(), None);
        assert_eq!(RetryPolicy::none().attempts(0), RetryPolicy::none());
    }
}
