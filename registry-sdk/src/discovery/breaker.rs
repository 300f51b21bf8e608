//! Circuit breakers: an agent that failed too often gets no tasks for a while (Michael Nygard, "Release It!", 2007).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When an agent's circuit opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    failure_threshold: usize,
    window: Duration,
    open_duration: Duration,
}

impl Default for BreakerSettings {
    /// Opens after 3 failures within 30 s, for 30 s.
    fn default() -> Self {
        Self { failure_threshold: 3, window: Duration::from_secs(30), open_duration: Duration::from_secs(30) }
    }
}

impl BreakerSettings {
    /// Sets how many failures within the window open the circuit; at least one. Default: 3.
    #[must_use]
    pub fn failure_threshold(mut self, failures: usize) -> Self {
        self.failure_threshold = failures.max(1);
        self
    }

    /// Sets how long a failure counts. Default: 30 s.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets how long the circuit stays open before it admits one trial. Default: 30 s.
    #[must_use]
    pub fn open_duration(mut self, duration: Duration) -> Self {
        self.open_duration = duration;
        self
    }
}

/// State of an agent's circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CircuitState {
    /// Tasks go to the agent.
    Closed,
    /// It failed too often: no task goes to it for now.
    Open,
    /// One task may go to it, as a trial: its outcome closes the circuit or opens it again.
    HalfOpen,
}

/// The circuits of all agents. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Breakers {
    settings: BreakerSettings,
    circuits: Arc<Mutex<HashMap<String, Circuit>>>,
}

#[derive(Debug, Default)]
struct Circuit {
    /// When it failed lately, the oldest first.
    failures: VecDeque<Instant>,
    /// Since when it is open.
    opened: Option<Instant>,
    /// When the trial began that has not ended yet.
    trial: Option<Instant>,
}

impl Circuit {
    fn state(&self, settings: &BreakerSettings) -> CircuitState {
        match (self.opened, self.trial) {
            (None, _) => CircuitState::Closed,
            // A trial that never ended, since its caller went away, does not keep the agent out for ever.
            (Some(_), Some(trial)) if trial.elapsed() < settings.open_duration => CircuitState::Open,
            (Some(opened), _) if opened.elapsed() < settings.open_duration => CircuitState::Open,
            (Some(_), _) => CircuitState::HalfOpen,
        }
    }
}

impl Breakers {
    pub(super) fn new(settings: BreakerSettings) -> Self {
        Self { settings, circuits: Arc::default() }
    }

    pub(super) fn state(&self, agent_id: &str) -> CircuitState {
        self.circuits().get(agent_id).map_or(CircuitState::Closed, |circuit| circuit.state(&self.settings))
    }

    /// Whether a task may go to an agent. Where its circuit is half open, this task is the trial.
    pub(super) fn admit(&self, agent_id: &str) -> bool {
        let mut circuits = self.circuits();
        let Some(circuit) = circuits.get_mut(agent_id) else { return true };
        match circuit.state(&self.settings) {
            CircuitState::Closed => true,
            CircuitState::Open => false,
            CircuitState::HalfOpen => {
                circuit.trial = Some(Instant::now());
                true
            }
        }
    }

    /// A task that was given to an agent went well.
    pub(super) fn succeeded(&self, agent_id: &str) {
        // Nothing to remember is the same as a closed circuit, so the map holds only those that failed.
        self.circuits().remove(agent_id);
    }

    /// A task that was given to an agent failed by the agent's fault.
    pub(super) fn failed(&self, agent_id: &str) {
        let now = Instant::now();
        let mut circuits = self.circuits();
        let circuit = circuits.entry(agent_id.to_owned()).or_default();
        circuit.failures.push_back(now);
        while circuit.failures.front().is_some_and(|at| now - *at >= self.settings.window) {
            circuit.failures.pop_front();
        }
        let was_trial = circuit.trial.take().is_some();
        if was_trial || circuit.failures.len() >= self.settings.failure_threshold {
            circuit.opened = Some(now);
        }
    }

    fn circuits(&self) -> MutexGuard<'_, HashMap<String, Circuit>> {
        self.circuits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, prop_oneof};
    use proptest::test_runner::{Config, TestRunner};
    use tokio::time::sleep;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Fail,
        Succeed,
    }

    /// Random histories against a plain reading of the rules: when it was closed last, and what failed since.
    #[test]
    fn a_circuit_opens_after_its_failures_and_lets_one_trial_through_after_its_time() {
        let step = prop_oneof![
            2 => (0..40_u64).prop_map(Step::Wait),
            3 => Just(Step::Fail),
            1 => Just(Step::Succeed),
        ];
        let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
        let history = proptest::collection::vec(step, 1..40);
        TestRunner::new(config)
            .run(&history, |history| {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_time().start_paused(true).build().unwrap().block_on(live(history));
                Ok(())
            })
            .unwrap();
    }

    async fn live(history: Vec<Step>) {
        let settings = BreakerSettings::default();
        let breakers = Breakers::new(settings);
        let (mut failures, mut opened): (Vec<Instant>, Option<Instant>) = (Vec::new(), None);
        for step in history {
            if let Step::Wait(seconds) = step {
                sleep(Duration::from_secs(seconds)).await;
                continue;
            }
            let expected = match opened {
                None => CircuitState::Closed,
                Some(at) if at.elapsed() < settings.open_duration => CircuitState::Open,
                Some(_) => CircuitState::HalfOpen,
            };
            assert_eq!(breakers.state("a"), expected);
            assert_eq!(breakers.admit("a"), expected != CircuitState::Open);
            if expected == CircuitState::HalfOpen {
                assert!(!breakers.admit("a"), "one trial at a time");
            }
            if expected == CircuitState::Open {
                continue;
            }
            if let Step::Succeed = step {
                breakers.succeeded("a");
                (failures, opened) = (Vec::new(), None);
                continue;
            }
            breakers.failed("a");
            failures.push(Instant::now());
            failures.retain(|at| at.elapsed() < settings.window);
            if expected == CircuitState::HalfOpen || failures.len() >= settings.failure_threshold {
                opened = Some(Instant::now());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_never_ends_does_not_keep_the_agent_out_for_ever() {
        let settings = BreakerSettings::default().failure_threshold(1);
        let breakers = Breakers::new(settings);
        breakers.failed("a");
        sleep(settings.open_duration).await;
        assert!(breakers.admit("a") && !breakers.admit("a"));
        sleep(settings.open_duration).await;
        assert!(breakers.admit("a"));
    }
}
