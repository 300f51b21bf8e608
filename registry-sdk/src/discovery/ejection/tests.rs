//! Ejection against a simple model of its rules.

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

/// A simple model of the rules: it keeps all outcomes and computes the state from them.
#[derive(Default)]
struct Model {
    outcomes: Vec<(u64, bool)>,
    until: Option<u64>,
    has_trial: bool,
    multiple: u64,
    admitted: u64,
    changes: usize,
}

impl Model {
    fn is_due(&self, now: u64) -> bool {
        let recent: Vec<bool> = self.outcomes.iter().rev().take(20).map(|(_, success)| *success).collect();
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
        self.multiple = if was_on_trial { self.multiple } else { self.multiple.saturating_sub(healthy) } + 1;
        self.until = Some(now + (30 * self.multiple).min(300));
        self.changed();
    }

    fn changed(&mut self) {
        self.changes += 1;
        self.outcomes.clear();
        self.has_trial = false;
    }

    fn state(&self, now: u64) -> EjectionState {
        let Some(until) = self.until else { return EjectionState::Admitted };
        if until <= now && !self.has_trial {
            EjectionState::OnTrial
        } else {
            EjectionState::Ejected { remaining: Duration::from_secs(until.saturating_sub(now)) }
        }
    }
}

#[test]
fn agent_is_ejected_and_admitted_by_the_rules() {
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
        assert_eq!(ejection.state(now), model.state(seconds));
        match *step {
            Step::Wait(pause) => seconds += pause,
            Step::Begin => {
                let is_trial = model.state(seconds) == EjectionState::OnTrial;
                model.has_trial |= is_trial;
                in_flight.push((ejection.begin(now, false), model.changes, is_trial));
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

/// Runs tasks a second apart. Returns the number of tasks after which the agent is ejected.
fn ejected_after(settings: &EjectionSettings, succeeds: impl Fn(usize) -> bool) -> Option<usize> {
    let mut ejection = Ejection::default();
    let start = Instant::now();
    (0..1_000).position(|number| {
        let now = start + Duration::from_secs(number);
        let ticket = ejection.begin(now, false);
        if succeeds(usize::try_from(number).unwrap()) {
            ejection.succeeded(settings, ticket, now);
            return false;
        }
        ejection.failed(settings, ticket, now).is_some()
    })
}

#[test]
fn only_agents_that_often_fail_are_ejected() {
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
    assert_eq!(ejected_after(&short, |number| number % 2 == 1), None, "nine outcomes are within the window");
    assert_eq!(ejected_after(&settings.window(Duration::from_secs(9)), |number| number % 2 == 1), Some(10));
}

/// Ejects an agent by three failures, and returns the time.
fn eject(ejection: &mut Ejection, settings: &EjectionSettings, now: Instant) -> Duration {
    let ends = [(); 3].map(|()| {
        let ticket = ejection.begin(now, false);
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
        let ticket = ejection.begin(now, false);
        times.push(ejection.failed(&settings, ticket, now).unwrap().as_secs());
    }
    assert_eq!(times, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
    let admit = |ejection: &mut Ejection, now| {
        let ticket = ejection.begin(now, false);
        ejection.succeeded(&settings, ticket, now);
        assert_eq!(ejection.state(now), EjectionState::Admitted);
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
fn times_of_ejections_can_be_set() {
    let settings =
        EjectionSettings::default().base_time(Duration::from_secs(4)).max_time(Duration::from_secs(7));
    let mut ejection = Ejection::default();
    let start = Instant::now();
    assert_eq!(eject(&mut ejection, &settings, start).as_secs(), 4);
    let now = start + Duration::from_secs(4);
    let trial = ejection.begin(now, false);
    assert_eq!(ejection.failed(&settings, trial, now), Some(Duration::from_secs(7)));
}

#[test]
fn single_task_at_a_time_is_the_trial() {
    let settings = EjectionSettings::default();
    let (mut ejection, start) = (Ejection::default(), Instant::now());
    eject(&mut ejection, &settings, start);
    let now = start + Duration::from_secs(30);
    assert_eq!(ejection.state(now), EjectionState::OnTrial);
    let trial = ejection.begin(now, false);
    let remaining = Duration::ZERO;
    let later = now + Duration::from_secs(3_600);
    assert_eq!(ejection.state(later), EjectionState::Ejected { remaining }, "it may take its time");
    // A task that goes to the agent anyway, because no other agent is left, is not a trial.
    let other = ejection.begin(now, false);
    assert_eq!(ejection.failed(&settings, other, now), None);
    ejection.release(other);
    assert_eq!(ejection.state(now), EjectionState::Ejected { remaining });
    ejection.release(trial);
    assert_eq!(ejection.state(now), EjectionState::OnTrial, "the trial said nothing");
}

#[test]
fn outcomes_from_before_an_ejection_do_not_count_after_it() {
    let settings = EjectionSettings::default();
    let (mut ejection, start) = (Ejection::default(), Instant::now());
    let old = [(); 5].map(|()| ejection.begin(start, false));
    eject(&mut ejection, &settings, start);
    ejection.succeeded(&settings, old[0], start);
    assert_ne!(ejection.state(start), EjectionState::Admitted);
    let now = start + Duration::from_secs(30);
    let trial = ejection.begin(now, false);
    ejection.succeeded(&settings, trial, now);
    for ticket in &old[1..] {
        assert_eq!(ejection.failed(&settings, *ticket, now), None);
    }
    assert_eq!(ejection.state(now), EjectionState::Admitted);
}

#[test]
fn agent_can_get_an_early_trial_after_a_tenth_of_its_time() {
    let settings = EjectionSettings::default();
    let (mut ejection, start) = (Ejection::default(), Instant::now());
    assert_eq!(ejection.early(start), None);
    eject(&mut ejection, &settings, start);
    let early = start + Duration::from_secs(3);
    assert_eq!(ejection.early(early - Duration::from_millis(1)), None);
    assert_eq!(ejection.early(early), Some(early));
    let trial = ejection.begin(early, true);
    assert_eq!(ejection.early(early), None, "one trial at a time");
    let other = ejection.begin(early, true);
    assert_eq!(ejection.failed(&settings, other, early), None, "this one is none");
    assert_eq!(ejection.failed(&settings, trial, early), Some(Duration::from_secs(60)));
    assert_eq!(ejection.early(early + Duration::from_secs(5)), None);
    let early = early + Duration::from_secs(6);
    let trial = ejection.begin(early, true);
    ejection.succeeded(&settings, trial, early);
    assert_eq!(ejection.state(early), EjectionState::Admitted);
}
