//! The load of an agent as the orchestrator sees it: tasks in flight and latency.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which the weight of an observation falls to 1/e, some 37 %, as a multiple of the latency. Some tasks take milliseconds and
/// others minutes: a fixed time would forget the latter before the next task ends.
const DECAY: f64 = 10.0;

/// The same at least, as is usual for requests.
const MIN_DECAY: Duration = Duration::from_secs(10);

/// What an agent reports of itself with its heartbeats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReportedLoad {
    /// Share of its capacity in use.
    pub(super) load: Option<f64>,
    pub(super) active_tasks: Option<u32>,
}

impl ReportedLoad {
    /// From 0 for an idle agent to 1 for a full one. How many tasks an agent has room for is not known if it reports their number
    /// alone.
    fn share(self) -> f64 {
        let of_tasks = |tasks: u32| f64::from(tasks) / (f64::from(tasks) + 1.0);
        self.load.or_else(|| self.active_tasks.map(of_tasks)).unwrap_or_default().clamp(0.0, 1.0)
    }
}

/// Tasks in flight, and a peak-sensitive moving average of the latency: it follows a slow response at once, and quick ones by and
/// by (Finagle's peak EWMA, as in `tower::load::PeakEwma` and Linkerd). Without observations it falls, so that an agent that
/// was slow once is tried again.
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

    /// Records how long a task took that succeeded.
    pub(super) fn observe(&mut self, elapsed: Duration, now: Instant) {
        let observed = elapsed.as_secs_f64();
        let seconds = self.latency.map_or(observed, |latency| {
            let weight = latency.weight(now);
            (latency.seconds * weight + observed * (1.0 - weight)).max(observed)
        });
        self.latency = Some(Latency { seconds, at: now });
    }

    /// Records how long a task was under way that failed or was given up. A quick failure does not make the agent look fast.
    pub(super) fn observe_at_least(&mut self, elapsed: Duration, now: Instant) {
        if self.latency.is_some_and(|latency| latency.estimate(now) < elapsed.as_secs_f64()) {
            self.latency = Some(Latency { seconds: elapsed.as_secs_f64(), at: now });
        }
    }

    /// Whether a task would probably be done sooner by this agent than by another one.
    pub(super) fn is_less_than(
        &self,
        reported: ReportedLoad,
        other: &Self,
        other_reported: ReportedLoad,
        now: Instant,
    ) -> bool {
        // A latency is compared with another one, not with none.
        let (mine, others) = match (self.latency, other.latency) {
            (Some(mine), Some(others)) => (mine.estimate(now), others.estimate(now)),
            _ => (1.0, 1.0),
        };
        mine * self.pressure(reported) < others * other.pressure(other_reported)
    }

    /// The tasks that a further one would share the agent with, itself included.
    ///
    /// What the agent reports may be a heartbeat old and most of its tasks over, so an agent that says that it is full counts
    /// twice and no more: less than a task more or less in flight, or an agent that takes much longer.
    fn pressure(&self, reported: ReportedLoad) -> f64 {
        (f64::from(self.in_flight) + 1.0) * (1.0 + reported.share())
    }
}

impl Latency {
    /// Weight of what was observed so far.
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

    /// The load of an agent that did one task in so many seconds.
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
        // Nothing is known of the latency of a new agent, so the tasks decide.
        let fresh = Load::default();
        assert!(less(&fresh, &quick) && !less(&fresh, &slow) && !less(&slow, &fresh));
    }

    #[test]
    fn a_slow_response_counts_at_once_and_quick_ones_by_and_by() {
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
        // And in ten seconds at least.
        let quick = load_of(0, start);
        assert!(quick.latency.unwrap().weight(start + seconds(10)) > 0.36);
    }

    #[test]
    fn a_quick_failure_does_not_make_an_agent_look_fast() {
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
    fn what_an_agent_reports_counts_beside_what_is_in_flight() {
        let (now, one, other) = (Instant::now(), Load::default(), Load::default());
        let reported = |load: f64, tasks: u32| ReportedLoad { load: Some(load), active_tasks: Some(tasks) };
        let less = |mine, others| one.is_less_than(mine, &other, others, now);
        assert!(less(reported(0.2, 3), reported(0.9, 3)));
        // Eight tasks of an agent with room for 64 are less than four of one that is full.
        assert!(less(reported(0.125, 8), reported(1.0, 4)));
        let tasks = |tasks: u32| ReportedLoad { load: None, active_tasks: Some(tasks) };
        assert!(less(tasks(0), tasks(1)) && less(tasks(2), tasks(3)) && !less(tasks(3), tasks(2)));
        assert!(less(NONE, reported(0.1, 0)));
        // It is less than a task more in flight.
        let mut busier = Load::default();
        busier.begin();
        assert!(one.is_less_than(reported(0.9, 9), &busier, NONE, now));
    }
}
