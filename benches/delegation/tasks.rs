//! Arriving tasks and their results.

use std::time::Duration;

/// A task. It arrives independently of the results of earlier tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    /// Time of arrival, since the beginning of the simulation.
    pub(crate) arrival: Duration,
    /// Time that a healthy agent takes for the task.
    pub(crate) work: Duration,
}

/// Generates tasks that arrive in a Poisson process and whose times have an exponential distribution. The same seed gives the same
/// tasks.
pub(crate) fn tasks(seed: u64, per_second: f64, mean_work: Duration, span: Duration) -> Vec<Task> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut exponential = move |mean: f64| -mean * (1.0 - random.f64()).ln();
    let mut arrival = 0.0;
    std::iter::from_fn(|| {
        arrival += exponential(1.0 / per_second);
        let work = Duration::from_secs_f64(exponential(mean_work.as_secs_f64()));
        Some(Task { arrival: Duration::from_secs_f64(arrival), work })
    })
    .take_while(|task| task.arrival < span)
    .collect()
}

/// Results of tasks.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Times of the tasks that succeeded.
    done: Vec<Duration>,
    lost: usize,
    attempts: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, elapsed: Duration, is_done: bool, attempts: usize) {
        if is_done {
            self.done.push(elapsed);
        } else {
            self.lost += 1;
        }
        self.attempts += attempts;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.done.extend(other.done);
        self.lost += other.lost;
        self.attempts += other.attempts;
    }

    pub(crate) fn tasks(&self) -> usize {
        self.done.len() + self.lost
    }

    pub(crate) fn lost(&self) -> usize {
        self.lost
    }

    /// Returns the number of attempts per task.
    pub(crate) fn attempts(&self) -> f64 {
        share(self.attempts, self.tasks())
    }

    /// Returns the median and the 99th percentile of the times of successful tasks, in seconds.
    pub(crate) fn percentiles(&mut self) -> [f64; 2] {
        self.done.sort_unstable();
        [50, 99].map(|percent| {
            let index = (self.done.len() * percent / 100).min(self.done.len().saturating_sub(1));
            self.done.get(index).copied().unwrap_or_default().as_secs_f64()
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are less than 2^52 tasks")]
pub(crate) fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
