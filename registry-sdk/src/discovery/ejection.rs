//! Outlier ejection: an agent that fails too often gets no tasks for a while.
//!
//! The terms and the growth of the ejection are those of Envoy's outlier detection and gRPC's A50
//! (<https://github.com/grpc/proposal/blob/master/A50-xds-outlier-detection.md>). Both judge hosts once per interval by
//! thousands of requests; tasks of agents are fewer and slower, so each outcome is judged when it comes. The trial after an
//! ejection is that of a circuit breaker (Michael Nygard, "Release It!", 2007).

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::retry::deadline_after;

/// Number of outcomes that the success rate is computed of.
const OUTCOMES: usize = 20;

/// When an agent is ejected, and for how long.
///
/// An ejected agent gets no tasks, except that never more than half of the candidates of a task are kept out, and never the
/// last one. After its time one task goes to it as a trial: if it succeeds the agent is admitted again, else it is ejected for
/// longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionSettings {
    consecutive_failures: usize,
    min_success_rate: f64,
    min_outcomes: usize,
    window: Duration,
    base_time: Duration,
    max_time: Duration,
}

impl Default for EjectionSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 3,
            min_success_rate: 0.6,
            min_outcomes: 10,
            window: Duration::from_secs(600),
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
        }
    }
}

impl EjectionSettings {
    /// Sets how many failures in a row eject an agent, however far apart they are; at least one. Default: 3.
    #[must_use]
    pub fn consecutive_failures(mut self, failures: usize) -> Self {
        self.consecutive_failures = failures.max(1);
        self
    }

    /// Sets the share of successes below which an agent is ejected, from 0 (never) to 1. It is computed of the last 20
    /// outcomes within the [`window`](Self::window), once there are [`min_outcomes`](Self::min_outcomes). Default: 0.6.
    #[must_use]
    pub fn min_success_rate(mut self, rate: f64) -> Self {
        self.min_success_rate = rate.clamp(0.0, 1.0);
        self
    }

    /// Sets how many outcomes are needed before the success rate counts, from 1 to 20. Default: 10.
    #[must_use]
    pub fn min_outcomes(mut self, outcomes: usize) -> Self {
        self.min_outcomes = outcomes.clamp(1, OUTCOMES);
        self
    }

    /// Sets how long an outcome counts for the success rate. Default: 10 minutes.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets the length of the first ejection. Each further one is that much longer, and for each such time in which the agent
    /// was admitted the next one is that much shorter again. Default: 30 s.
    #[must_use]
    pub fn base_time(mut self, time: Duration) -> Self {
        self.base_time = time;
        self
    }

    /// Sets the length of the longest ejection. Default: 5 minutes.
    #[must_use]
    pub fn max_time(mut self, time: Duration) -> Self {
        self.max_time = time;
        self
    }

    /// Time after which nothing is remembered of an agent that got no tasks.
    pub(super) fn memory(&self) -> Duration {
        self.window.saturating_add(self.max_time)
    }
}

/// Whether an agent gets tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EjectionState {
    /// It gets tasks.
    Admitted,
    /// It failed too often, and gets none if there are enough other candidates.
    Ejected {
        /// How long that goes on.
        remaining: Duration,
    },
    /// Its ejection is over, and the next task is a trial.
    OnTrial,
}

/// The outcomes of one agent's tasks, and its ejection.
#[derive(Debug, Default)]
pub(super) struct Ejection {
    /// When tasks ended and whether they succeeded, the oldest first.
    outcomes: VecDeque<(Instant, bool)>,
    consecutive_failures: usize,
    ejected: Option<Ejected>,
    /// Length of the last ejection, as a multiple of the base time.
    multiple: u32,
    /// Since when it is admitted again.
    admitted: Option<Instant>,
    /// Grows with each ejection and each admission. Outcomes of tasks that began before the last one are ignored.
    epoch: u64,
}

#[derive(Debug)]
struct Ejected {
    until: Instant,
    /// When the trial began that has not ended yet.
    trial: Option<Instant>,
}

/// What has to be known of a task when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    epoch: u64,
    trial: Option<Instant>,
}

impl Ejection {
    pub(super) fn state(&self, settings: &EjectionSettings, now: Instant) -> EjectionState {
        let Some(ejected) = &self.ejected else { return EjectionState::Admitted };
        let until = ejected.trial.map_or(ejected.until, |trial| {
            // A trial whose outcome nobody reports does not keep the agent out for ever.
            ejected.until.max(deadline_after(trial, settings.base_time))
        });
        match until.saturating_duration_since(now) {
            Duration::ZERO => EjectionState::OnTrial,
            remaining => EjectionState::Ejected { remaining },
        }
    }

    /// Records that the agent gets a task. If a trial is due, this is it.
    pub(super) fn begin(&mut self, settings: &EjectionSettings, now: Instant) -> Ticket {
        let is_trial = self.state(settings, now) == EjectionState::OnTrial;
        let trial = is_trial.then_some(now);
        if let (Some(ejected), true) = (&mut self.ejected, is_trial) {
            ejected.trial = trial;
        }
        Ticket { epoch: self.epoch, trial }
    }

    /// Records that a task ended without an outcome that says anything of the agent.
    pub(super) fn release(&mut self, ticket: Ticket) {
        if let Some(ejected) = self.ejected.as_mut().filter(|ejected| ejected.trial == ticket.trial) {
            ejected.trial = None;
        }
    }

    /// Records that a task succeeded.
    pub(super) fn succeeded(&mut self, settings: &EjectionSettings, ticket: Ticket, now: Instant) {
        if ticket.epoch != self.epoch {
            return;
        }
        if self.ejected.take().is_some() {
            self.change();
            self.admitted = Some(now);
        } else {
            self.record(settings, now, true);
        }
    }

    /// Records that a task failed by the agent's fault. Returns for how long it is ejected, if that begins now.
    pub(super) fn failed(
        &mut self,
        settings: &EjectionSettings,
        ticket: Ticket,
        now: Instant,
    ) -> Option<Duration> {
        if ticket.epoch != self.epoch {
            return None;
        }
        if self.ejected.is_none() {
            self.record(settings, now, false);
        }
        let is_due = match &self.ejected {
            Some(_) => ticket.trial.is_some(),
            None => self.is_outlier(settings),
        };
        is_due.then(|| self.eject(settings, now))
    }

    fn record(&mut self, settings: &EjectionSettings, now: Instant, success: bool) {
        self.consecutive_failures = if success { 0 } else { self.consecutive_failures + 1 };
        if self.outcomes.len() == OUTCOMES {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back((now, success));
        while self.outcomes.front().is_some_and(|(at, _)| now - *at > settings.window) {
            self.outcomes.pop_front();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "there are few outcomes")]
    fn is_outlier(&self, settings: &EjectionSettings) -> bool {
        let successes = self.outcomes.iter().filter(|(_, success)| *success).count();
        let success_rate = successes as f64 / self.outcomes.len() as f64;
        self.consecutive_failures >= settings.consecutive_failures
            || self.outcomes.len() >= settings.min_outcomes && success_rate < settings.min_success_rate
    }

    fn eject(&mut self, settings: &EjectionSettings, now: Instant) -> Duration {
        let admitted = self.admitted.take().map_or(Duration::ZERO, |since| now - since);
        let recovered = admitted.as_nanos() / settings.base_time.as_nanos().max(1);
        let recovered = u32::try_from(recovered).unwrap_or(u32::MAX);
        self.multiple = self.multiple.saturating_sub(recovered).saturating_add(1);
        let time = settings.base_time.saturating_mul(self.multiple).min(settings.max_time);
        self.change();
        self.ejected = Some(Ejected { until: deadline_after(now, time), trial: None });
        time
    }

    /// Begins a new epoch, for which earlier outcomes say nothing.
    fn change(&mut self) {
        self.epoch += 1;
        self.outcomes.clear();
        self.consecutive_failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_oneof};
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Begin,
        /// Ends one of the tasks in flight.
        End(usize, bool),
    }

    /// A plain reading of the rules: all outcomes are kept, and the state is computed from them.
    #[derive(Default)]
    struct Model {
        outcomes: Vec<(u64, bool)>,
        until: Option<u64>,
        trial: Option<u64>,
        multiple: u64,
        admitted: u64,
        changes: usize,
    }

    impl Model {
        fn is_due(&self, now: u64) -> bool {
            let recent: Vec<bool> =
                self.outcomes.iter().rev().take(20).map(|(_, success)| *success).collect();
            let last_three_failed = recent.len() >= 3 && recent[..3].iter().all(|success| !success);
            let counted: Vec<bool> = self
                .outcomes
                .iter()
                .rev()
                .take(20)
                .filter(|(at, _)| now - at <= 600)
                .map(|(_, ok)| *ok)
                .collect();
            let failures = counted.iter().filter(|success| !**success).count();
            last_three_failed || counted.len() >= 10 && failures * 10 > counted.len() * 4
        }

        fn eject(&mut self, now: u64) {
            let healthy = if self.multiple == 0 { 0 } else { (now - self.admitted) / 30 };
            let was_on_trial = self.until.is_some();
            self.multiple =
                if was_on_trial { self.multiple } else { self.multiple.saturating_sub(healthy) } + 1;
            self.until = Some(now + (30 * self.multiple).min(300));
            self.changed();
        }

        fn changed(&mut self) {
            self.changes += 1;
            self.outcomes.clear();
            self.trial = None;
        }

        fn state(&self, now: u64) -> EjectionState {
            let Some(until) = self.until else { return EjectionState::Admitted };
            let until = self.trial.map_or(until, |trial| until.max(trial + 30));
            if until <= now {
                EjectionState::OnTrial
            } else {
                EjectionState::Ejected { remaining: Duration::from_secs(until - now) }
            }
        }
    }

    #[test]
    fn an_agent_is_ejected_and_admitted_by_the_rules() {
        let step = prop_oneof![
            2 => (1..50_u64).prop_map(Step::Wait),
            6 => any::<bool>().prop_map(|_| Step::Begin),
            4 => (any::<usize>(), any::<bool>()).prop_map(|(index, success)| Step::End(index, success)),
            2 => any::<usize>().prop_map(|index| Step::End(index, false)),
        ];
        let config = Config { cases: 2_000, failure_persistence: None, ..Config::default() };
        let history = proptest::collection::vec(step, 1..120);
        TestRunner::new(config)
            .run(&history, |history| {
                live(&history);
                Ok(())
            })
            .unwrap();
    }

    fn live(history: &[Step]) {
        let settings = EjectionSettings::default();
        let (start, mut seconds) = (Instant::now(), 0);
        let (mut ejection, mut model) = (Ejection::default(), Model::default());
        let mut in_flight = Vec::new();
        for step in history {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(ejection.state(&settings, now), model.state(seconds));
            match *step {
                Step::Wait(pause) => seconds += pause,
                Step::Begin => {
                    let is_trial = model.state(seconds) == EjectionState::OnTrial;
                    if is_trial {
                        model.trial = Some(seconds);
                    }
                    in_flight.push((ejection.begin(&settings, now), model.changes, is_trial));
                }
                Step::End(..) if in_flight.is_empty() => {}
                Step::End(index, success) => {
                    let (ticket, changes, is_trial) = in_flight.swap_remove(index % in_flight.len());
                    let is_current = changes == model.changes;
                    let was_ejected = model.until.is_some();
                    if success {
                        ejection.succeeded(&settings, ticket, now);
                    } else {
                        ejection.failed(&settings, ticket, now);
                    }
                    match (is_current, success) {
                        (false, _) => {}
                        (true, true) if was_ejected => {
                            (model.until, model.admitted) = (None, seconds);
                            model.changed();
                        }
                        (true, false) if was_ejected && !is_trial => {}
                        (true, _) => {
                            model.outcomes.push((seconds, success));
                            if !success && (is_trial || model.is_due(seconds)) {
                                model.eject(seconds);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Lets tasks come and end, a second apart. Returns after how many the agent is ejected.
    fn ejected_after(settings: &EjectionSettings, succeeds: impl Fn(usize) -> bool) -> Option<usize> {
        let mut ejection = Ejection::default();
        let start = Instant::now();
        (0..1_000).position(|number| {
            let now = start + Duration::from_secs(number);
            let ticket = ejection.begin(settings, now);
            if succeeds(usize::try_from(number).unwrap()) {
                ejection.succeeded(settings, ticket, now);
                return false;
            }
            ejection.failed(settings, ticket, now).is_some()
        })
    }

    #[test]
    fn agents_that_often_fail_are_ejected_and_others_are_not() {
        let settings = EjectionSettings::default();
        assert_eq!(ejected_after(&settings, |_| false), Some(2));
        assert_eq!(ejected_after(&settings, |number| number % 2 == 1), Some(10), "every second");
        assert_eq!(ejected_after(&settings, |number| number % 3 == 0), Some(10), "two of three");
        assert_eq!(ejected_after(&settings, |number| number % 3 > 0), None, "every third");
        assert_eq!(ejected_after(&settings, |number| number % 4 > 0), None, "every fourth");
        assert_eq!(ejected_after(&settings.min_success_rate(0.8), |number| number % 4 > 0), Some(12));
        assert_eq!(ejected_after(&settings.min_success_rate(0.0), |number| number % 3 == 0), None);
        assert_eq!(ejected_after(&settings.min_outcomes(2), |number| number % 2 == 0), Some(1));
        assert_eq!(ejected_after(&settings.consecutive_failures(1), |number| number < 7), Some(7));
        let short = settings.window(Duration::from_secs(8));
        assert_eq!(
            ejected_after(&short, |number| number % 2 == 1),
            None,
            "nine outcomes are within the window"
        );
        assert_eq!(
            ejected_after(&settings.window(Duration::from_secs(9)), |number| number % 2 == 1),
            Some(10)
        );
    }

    /// Ejects an agent by three failures, and returns the time.
    fn eject(ejection: &mut Ejection, settings: &EjectionSettings, now: Instant) -> Duration {
        let ends = [(); 3].map(|()| {
            let ticket = ejection.begin(settings, now);
            ejection.failed(settings, ticket, now)
        });
        ends.into_iter().flatten().next().unwrap()
    }

    #[test]
    fn ejections_grow_up_to_five_minutes_and_shrink_with_health() {
        let settings = EjectionSettings::default();
        let mut ejection = Ejection::default();
        let mut now = Instant::now();
        let mut times = vec![eject(&mut ejection, &settings, now).as_secs()];
        for _ in 0..11 {
            now += Duration::from_secs(*times.last().unwrap());
            let ticket = ejection.begin(&settings, now);
            times.push(ejection.failed(&settings, ticket, now).unwrap().as_secs());
        }
        assert_eq!(times, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
        let admit = |ejection: &mut Ejection, now| {
            let ticket = ejection.begin(&settings, now);
            ejection.succeeded(&settings, ticket, now);
            assert_eq!(ejection.state(&settings, now), EjectionState::Admitted);
        };
        now += Duration::from_secs(300);
        admit(&mut ejection, now);
        // It was the twelfth in a row; ten times 30 s of health make up for ten of them.
        now += Duration::from_secs(10 * 30 + 29);
        assert_eq!(eject(&mut ejection, &settings, now).as_secs(), 90);
        now += Duration::from_secs(90);
        admit(&mut ejection, now);
        now += Duration::from_secs(3_600);
        assert_eq!(eject(&mut ejection, &settings, now).as_secs(), 30);
    }

    #[test]
    fn the_times_of_ejections_can_be_set() {
        let settings =
            EjectionSettings::default().base_time(Duration::from_secs(4)).max_time(Duration::from_secs(7));
        let mut ejection = Ejection::default();
        let start = Instant::now();
        assert_eq!(eject(&mut ejection, &settings, start).as_secs(), 4);
        let now = start + Duration::from_secs(4);
        let trial = ejection.begin(&settings, now);
        assert_eq!(ejection.failed(&settings, trial, now), Some(Duration::from_secs(7)));
    }

    #[test]
    fn one_task_at_a_time_is_the_trial() {
        let settings = EjectionSettings::default();
        let (mut ejection, start) = (Ejection::default(), Instant::now());
        eject(&mut ejection, &settings, start);
        let now = start + Duration::from_secs(30);
        assert_eq!(ejection.state(&settings, now), EjectionState::OnTrial);
        let trial = ejection.begin(&settings, now);
        let remaining = Duration::from_secs(30);
        assert_eq!(ejection.state(&settings, now), EjectionState::Ejected { remaining });
        // A task that goes there all the same, because too few others are left, is no trial.
        let other = ejection.begin(&settings, now);
        assert_eq!(ejection.failed(&settings, other, now), None);
        ejection.release(other);
        assert_eq!(ejection.state(&settings, now), EjectionState::Ejected { remaining });
        ejection.release(trial);
        assert_eq!(ejection.state(&settings, now), EjectionState::OnTrial, "the trial said nothing");
        // One whose outcome nobody reports does not keep the agent out for ever.
        ejection.begin(&settings, now);
        assert_eq!(ejection.state(&settings, now + remaining), EjectionState::OnTrial);
    }

    #[test]
    fn outcomes_of_tasks_from_before_an_ejection_say_nothing_of_the_time_after_it() {
        let settings = EjectionSettings::default();
        let (mut ejection, start) = (Ejection::default(), Instant::now());
        let old = [(); 5].map(|()| ejection.begin(&settings, start));
        eject(&mut ejection, &settings, start);
        ejection.succeeded(&settings, old[0], start);
        assert_ne!(ejection.state(&settings, start), EjectionState::Admitted);
        let now = start + Duration::from_secs(30);
        let trial = ejection.begin(&settings, now);
        ejection.succeeded(&settings, trial, now);
        for ticket in &old[1..] {
            assert_eq!(ejection.failed(&settings, *ticket, now), None);
        }
        assert_eq!(ejection.state(&settings, now), EjectionState::Admitted);
    }
}
