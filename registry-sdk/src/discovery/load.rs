//! The load of an agent as seen by the orchestrator: tasks in flight and latency.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which the weight of an observation falls to 1/e (about 37 %), as a multiple of the latency. Some tasks take
/// milliseconds and others minutes: with a fixed time, a slow task would be forgotten before the next one ends.
const DECAY: f64 = 10.0;

/// Minimum of this time, as is usual for requests.
const MIN_DECAY: Duration = Duration::from_secs(10);

/// The load that an agent reports with its heartbeats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReportedLoad {
    /// The fraction of its capacity that is in use.
    pub(super) load: Option<f64>,
    pub(super) active_tasks: Option<u32>,
}

impl ReportedLoad {
    /// Returns a value between 0 for an idle agent and 1 for a full one. If the agent reports only the number of its tasks, its
    /// capacity is unknown.
    fn share(self) -> f64 {
        let of_tasks = |tasks: u32| f64::from(tasks) / (f64::from(tasks) + 1.0);
        self.load.or_else(|| self.active_tasks.map(of_tasks)).unwrap_or_default().clamp(0.0, 1.0)
    }
}

/// Tasks in flight, and a peak-sensitive moving average of the latency, which follows slow responses at once and fast ones
/// gradually (Finagle's peak EWMA, as in `tower::load::PeakEwma` and Linkerd). Without observations it falls, so that an agent
/// that was slow once is tried again.
#[derive(Debug, Default)]
pub(super) struct Load {
    in_flight: u32,
    latency: Option<Latency>,
}

#[derive(Clone, Copy, Debug)]
struct Latency {
    seconds: f64,
    at: Instant,
}

impl Load {
    pub(super) fn begin(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    pub(super) fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn forget_latency(&mut self) {
        self.latency = None;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Records the duration of a task that succeeded.
    pub(super) fn observe(&mut self, elapsed: Duration, now: Instant) {
        let observed = elapsed.as_secs_f64();
        let seconds = self.latency.map_or(observed, |latency| {
            let weight = latency.weight(now);
            (latency.seconds * weight + observed * (1.0 - weight)).max(observed)
        });
        self.latency = Some(Latency { seconds, at: now });
    }

    /// Records how long a task took that failed or was given up. A fast failure does not make the agent look fast.
    pub(super) fn observe_at_least(&mut self, elapsed: Duration, now: Instant) {
        if self.latency.is_some_and(|latency| latency.estimate(now) < elapsed.as_secs_f64()) {
            self.latency = Some(Latency { seconds: elapsed.as_secs_f64(), at: now });
        }
    }

    /// Returns whether this agent would probably complete a task sooner than another one.
    pub(super) fn is_less_than(
        &self,
        reported: ReportedLoad,
        other: &Self,
        other_reported: ReportedLoad,
        now: Instant,
    ) -> bool {
        // A latency is compared only with another latency.
        let (mine, others) = match (self.latency, other.latency) {
            (Some(mine), Some(others)) => (mine.estimate(now), others.estimate(now)),
            _ => (1.0, 1.0),
        };
        mine * self.pressure(reported) < others * other.pressure(other_reported)
    }

    /// Returns the number of tasks that would share the agent, including a further one.
    ///
    /// The agent's report may be a heartbeat old, and most of its tasks may be over. So a full load doubles the number, and no
    /// more.
    fn pressure(&self, reported: ReportedLoad) -> f64 {
        (f64::from(self.in_flight) + 1.0) * (1.0 + reported.share())
    }
}

impl Latency {
    /// Returns the weight of earlier observations.
    fn weight(self, now: Instant) -> f64 {
        let decay = (DECAY * self.seconds).max(MIN_DECAY.as_secs_f64());
        (-(now - self.at).as_secs_f64() / decay).exp()
    }

    fn estimate(self, now: Instant) -> f64 {
        self.seconds * self.weight(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: ReportedLoad = ReportedLoad { load: None, active_tasks: None };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The load of an agent that did one task in this many seconds.
    fn load_of(latency: u64, now: Instant) -> Load {
        let mut load = Load::default();
        load.observe(seconds(latency), now);
        load
    }

    #[test]
    fn tasks_in_flight_and_latency_multiply() {
        let now = Instant::now();
        let less = |one: &Load, other: &Load| one.is_less_than(NONE, other, NONE, now);
        let (mut quick, slow) = (load_of(1, now), load_of(4, now));
        for _ in 0..3 {
            assert!(less(&quick, &slow) && !less(&slow, &quick));
            quick.begin();
        }
        assert!(!less(&quick, &slow) && !less(&slow, &quick), "four tasks of a second, or one of four");
        quick.begin();
        assert!(less(&slow, &quick));
        quick.end();
        quick.end();
        assert!(less(&quick, &slow));
        // The latency of a new agent is unknown, so the tasks decide.
        let fresh = Load::default();
        assert!(less(&fresh, &quick) && !less(&fresh, &slow) && !less(&slow, &fresh));
    }

    #[test]
    fn slow_response_counts_at_once_and_fast_ones_gradually() {
        let start = Instant::now();
        let mut load = load_of(1, start);
        load.observe(seconds(9), start + seconds(1));
        let latency = |load: &Load, now| load.latency.unwrap().estimate(now);
        assert!((latency(&load, start + seconds(1)) - 9.0).abs() < 1e-9);
        load.observe(seconds(1), start + seconds(11));
        let now = latency(&load, start + seconds(11));
        // A ninth of the decay time, which is ten times the latency, has passed: 9 e^(-1/9) + 1 (1 - e^(-1/9)).
        assert!((now - 8.1587).abs() < 1e-3, "{now}");
        // Without observations it falls to 37 % in ten times the latency.
        let later = latency(&load, start + seconds(11) + Duration::from_secs_f64(10.0 * now));
        assert!((later - now * 0.3679).abs() < 1e-3, "{later}");
        // It takes ten seconds at least.
        let quick = load_of(0, start);
        assert!(quick.latency.unwrap().weight(start + seconds(10)) > 0.36);
    }

    #[test]
    fn fast_failure_does_not_make_an_agent_look_fast() {
        let now = Instant::now();
        let mut load = load_of(5, now);
        load.observe_at_least(seconds(1), now + seconds(1));
        assert!(load.latency.unwrap().estimate(now + seconds(1)) > 4.9);
        load.observe_at_least(seconds(30), now + seconds(1));
        assert!((load.latency.unwrap().estimate(now + seconds(1)) - 30.0).abs() < 1e-9);
        let mut fresh = Load::default();
        fresh.observe_at_least(Duration::from_millis(1), now);
        assert!(fresh.latency.is_none());
    }

    #[test]
    fn reported_load_counts_in_addition_to_tasks_in_flight() {
        let (now, one, other) = (Instant::now(), Load::default(), Load::default());
        let reported = |load: f64, tasks: u32| ReportedLoad { load: Some(load), active_tasks: Some(tasks) };
        let less = |mine, others| one.is_less_than(mine, &other, others, now);
        assert!(less(reported(0.2, 3), reported(0.9, 3)));
        // Eight tasks of an agent with room for 64 are less than four of a full one.
        assert!(less(reported(0.125, 8), reported(1.0, 4)));
        let tasks = |tasks: u32| ReportedLoad { load: None, active_tasks: Some(tasks) };
        assert!(less(tasks(0), tasks(1)) && less(tasks(2), tasks(3)) && !less(tasks(3), tasks(2)));
        assert!(less(NONE, reported(0.1, 0)));
        // It is less than one more task in flight.
        let mut busier = Load::default();
        busier.begin();
        assert!(one.is_less_than(reported(0.9, 9), &busier, NONE, now));
    }
}
