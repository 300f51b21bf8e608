//! The retry budget, which keeps retries from multiplying the load during an outage.

use std::collections::VecDeque;

use tokio::time::Instant;

/// Length of the window in seconds.
const WINDOW: u64 = 10;

/// A limit on the further attempts that an orchestrator makes after failures of agents, and for hedging.
///
/// Over the last 10 s, further attempts may not exceed `ratio` × tasks or `min_per_second` × 10, whichever is larger. Attempts
/// after a refused or broken connection and after a refusal (busy, wrong path or credentials) are free, because those cost an agent
/// nothing; attempts after a timeout count, even if it was the connection that timed out. The idea is Finagle's, as in
/// `tower::retry::budget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    ratio: f64,
    min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10 }
    }
}

impl RetryBudget {
    /// Sets the number of further attempts as a share of the tasks. Default: 0.2.
    #[must_use]
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = ratio.max(0.0);
        self
    }

    /// Sets the number of further attempts per second that are always allowed. Default: 10.
    #[must_use]
    pub fn min_per_second(mut self, attempts: u32) -> Self {
        self.min_per_second = attempts;
        self
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float that is too large becomes the largest integer, and none is negative"
    )]
    fn allowed(&self, tasks: u64) -> u64 {
        let share = (tasks as f64 * self.ratio) as u64;
        share.max(u64::from(self.min_per_second) * WINDOW)
    }
}

/// The use of a budget.
#[derive(Debug)]
pub(super) struct BudgetState {
    budget: RetryBudget,
    began: Instant,
    /// An entry for each second with any use, oldest first.
    seconds: VecDeque<Second>,
}

#[derive(Debug)]
struct Second {
    number: u64,
    tasks: u64,
    withdrawn: u64,
}

impl BudgetState {
    pub(super) fn new(budget: RetryBudget) -> Self {
        Self { budget, began: Instant::now(), seconds: VecDeque::new() }
    }

    /// Counts a task.
    pub(super) fn deposit(&mut self, now: Instant) {
        self.second(now).tasks += 1;
    }

    /// Takes a further attempt from the budget, if there is one.
    pub(super) fn withdraw(&mut self, now: Instant) -> bool {
        self.second(now);
        let tasks = self.seconds.iter().map(|second| second.tasks).sum();
        let withdrawn: u64 = self.seconds.iter().map(|second| second.withdrawn).sum();
        let is_allowed = withdrawn < self.budget.allowed(tasks);
        if is_allowed {
            self.second(now).withdrawn += 1;
        }
        is_allowed
    }

    /// Returns the present second, and forgets those outside of the window.
    fn second(&mut self, now: Instant) -> &mut Second {
        let number = (now - self.began).as_secs();
        while self.seconds.front().is_some_and(|second| second.number + WINDOW <= number) {
            self.seconds.pop_front();
        }
        if self.seconds.back().is_none_or(|second| second.number < number) {
            self.seconds.push_back(Second { number, tasks: 0, withdrawn: 0 });
        }
        let last = self.seconds.len() - 1;
        &mut self.seconds[last]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{Just, Strategy, prop_oneof};
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Tasks(u64),
        Withdraw,
    }

    /// A model that counts the last ten seconds each time.
    #[test]
    fn further_attempts_are_a_fifth_of_the_tasks_and_at_least_ten_a_second() {
        let step = prop_oneof![
            1 => (0..4_000_u64).prop_map(Step::Wait),
            1 => (0..400_u64).prop_map(Step::Tasks),
            12 => Just(Step::Withdraw),
        ];
        let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&proptest::collection::vec(step, 1..600), |history| {
                let mut state = BudgetState::new(RetryBudget::default());
                let (start, mut millis) = (state.began, 0);
                let (mut tasks, mut withdrawn) = (Vec::new(), Vec::new());
                for step in history {
                    let now = start + Duration::from_millis(millis);
                    let second = millis / 1_000;
                    let recent =
                        |seconds: &[u64]| seconds.iter().filter(|one| **one + 10 > second).count() as u64;
                    match step {
                        Step::Wait(pause) => millis += pause,
                        Step::Tasks(count) => {
                            (0..count).for_each(|_| state.deposit(now));
                            tasks.resize(tasks.len() + usize::try_from(count).unwrap(), second);
                        }
                        Step::Withdraw => {
                            let is_expected = recent(&withdrawn) < (recent(&tasks) / 5).max(100);
                            assert_eq!(state.withdraw(now), is_expected);
                            if is_expected {
                                withdrawn.push(second);
                            }
                        }
                    }
                    assert!(state.seconds.len() <= 10, "what is outside of the window is forgotten");
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn budget_can_be_set() {
        let withdrawals = |budget: RetryBudget, tasks: u64| {
            let mut state = BudgetState::new(budget);
            let now = state.began;
            (0..tasks).for_each(|_| state.deposit(now));
            (0..10_000).take_while(|_| state.withdraw(now)).count()
        };
        assert_eq!(withdrawals(RetryBudget::default().min_per_second(0), 100), 20);
        assert_eq!(withdrawals(RetryBudget::default().min_per_second(0).ratio(1.5), 100), 150);
        assert_eq!(withdrawals(RetryBudget::default().min_per_second(3).ratio(-1.0), 100), 30);
    }
}
