//! The database's time, and how much of an agent's silence counts.
//!
//! Agents cannot send heartbeats while the registry is unavailable, so that time does not count as silence.
//! The follower polls the database continuously. If a poll is late, the registry was unavailable, the
//! database's clock was set, or this host was suspended: all three count as an outage. Each outage extends a
//! deadline by at most twice its length, so short outages do not keep a dead agent alive.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::Timestamp;
use tokio::time::Instant;

/// Time between two successful polls from which on the database counts as unavailable: three polls.
const OUTAGE_GAP: Duration = Duration::from_millis(1_500);

/// How far a reading may lie behind the estimate before the clock counts as set back.
///
/// Readings lag behind, since each is as old as its transaction.
const MAX_STEP_BACK: Duration = Duration::from_secs(10);

/// Time for which a reading may show that the clock was set back. After that, the rates of the clocks differ too
/// much.
const STEP_BACK_MEMORY: Duration = Duration::from_secs(600);

/// How far a heartbeat may lie in the future.
const MAX_CLOCK_SKEW: Duration = MAX_STEP_BACK;

/// Maximum number of remembered outages. The oldest is forgotten first.
const MAX_OUTAGES: usize = 256;

/// The database's time, estimated between readings, and the outages.
#[derive(Debug)]
pub(super) struct DatabaseTime(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Reading,
    /// The reading that was furthest ahead lately. Without it, the clock could be set back further in several
    /// small steps.
    furthest: Reading,
    silence: Silence,
}

/// A reading of the database's clock, and when it arrived.
#[derive(Clone, Copy, Debug)]
struct Reading {
    time: Timestamp,
    arrived: Instant,
}

impl Reading {
    fn now(time: Timestamp) -> Self {
        Self { time, arrived: Instant::now() }
    }

    /// Returns the present time according to this reading.
    fn estimate(&self) -> Timestamp {
        self.time.saturating_add(self.arrived.elapsed())
    }
}

/// Measures the silence of agents.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    /// Start of the counting: when this server started, or the clock was set back.
    since: Timestamp,
    /// The last poll that found the database writable.
    last_poll: Timestamp,
    outages: Arc<[Outage]>,
}

/// The polls before and after an outage.
#[derive(Clone, Copy, Debug)]
struct Outage {
    before: Timestamp,
    after: Timestamp,
}

impl DatabaseTime {
    pub(super) fn new(reading: Timestamp) -> Self {
        let (last, silence) = (Reading::now(reading), Silence::starting_at(reading));
        Self(Mutex::new(State { last, furthest: last, silence }))
    }

    /// Returns the estimated time.
    ///
    /// It lags slightly, since the last reading was already old when it arrived. So no deadline comes too
    /// early.
    pub(super) fn now(&self) -> Timestamp {
        self.0.lock().now()
    }

    /// Returns the estimated time, and the matching silence.
    pub(super) fn judge(&self) -> (Timestamp, Silence) {
        let state = self.0.lock();
        (state.now(), state.silence.clone())
    }

    /// Adopts a reading that has just arrived.
    pub(super) fn observe(&self, reading: Timestamp) {
        self.0.lock().observe(reading);
    }

    /// Counts silence only from now on, since earlier heartbeats may be lost.
    pub(super) fn restart(&self) {
        let mut state = self.0.lock();
        state.silence = Silence::starting_at(state.now());
    }

    /// Adopts the reading of a poll that found the database writable.
    pub(super) fn record_poll(&self, reading: Timestamp) {
        let mut state = self.0.lock();
        state.observe(reading);
        state.silence.record_poll(reading);
    }

    /// Returns time and silence as of a later poll, to find the deadlines that will be missed by then.
    pub(super) fn judge_later(&self, by: Duration) -> (Timestamp, Silence) {
        let (now, mut silence) = self.judge();
        silence.last_poll = silence.last_poll.saturating_add(by);
        (now.saturating_add(by), silence)
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.last.estimate()
    }

    fn observe(&mut self, reading: Timestamp) {
        let expected = self.furthest.estimate();
        let is_set_back = expected.since(reading) > MAX_STEP_BACK;
        if is_set_back {
            tracing::warn!(%expected, %reading, "the database's clock was set back, restarting all heartbeat timeouts");
            self.silence = Silence::starting_at(reading);
        }
        self.last = Reading::now(reading);
        if is_set_back || reading >= expected || self.furthest.arrived.elapsed() > STEP_BACK_MEMORY {
            self.furthest = self.last;
        }
    }
}

impl Silence {
    pub(crate) fn starting_at(now: Timestamp) -> Self {
        Self { since: now, last_poll: now, outages: Arc::default() }
    }

    /// Returns a silence for a database that is polled continuously.
    #[cfg(test)]
    pub(crate) fn without_outages(since: Timestamp) -> Self {
        Self { last_poll: Timestamp::from_unix_millis(i64::MAX), ..Self::starting_at(since) }
    }

    fn record_poll(&mut self, now: Timestamp) {
        if now.since(self.last_poll) > OUTAGE_GAP {
            let outage = Outage { before: self.last_poll, after: now };
            let skipped = (self.outages.len() + 1).saturating_sub(MAX_OUTAGES);
            self.outages = self.outages.iter().skip(skipped).copied().chain([outage]).collect();
        } else if now < self.last_poll {
            // The clock was set back a little, so what lies ahead of it now has not happened yet.
            self.outages = self.outages.iter().copied().filter(|outage| outage.before < now).collect();
        }
        self.last_poll = now;
    }

    /// Returns how much of the time since an agent's last heartbeat counts as silence.
    pub(crate) fn of(&self, heard: Timestamp, timeout: Duration, now: Timestamp) -> Duration {
        self.with_downtime(heard.max(self.since), timeout, now)
    }

    /// Like [`Silence::of`], but also counts the time before this server started.
    pub(crate) fn with_downtime(&self, heard: Timestamp, timeout: Duration, now: Timestamp) -> Duration {
        let heard = if is_far_ahead(heard, now) { self.since } else { heard };
        let judged_at = now.min(self.last_poll.saturating_add(outage_gap(timeout)));
        let mut silence = judged_at.since(heard);
        let mut counted_to = heard;
        for outage in self.outages.iter() {
            let (start, end) = outage.span(timeout);
            let (start, end) = (start.max(counted_to), end.min(judged_at));
            silence = silence.saturating_sub(end.since(start));
            counted_to = counted_to.max(end);
        }
        silence
    }
}

impl Outage {
    /// Returns the time that does not count as silence for an agent with this timeout.
    ///
    /// It extends past the outage by the outage's own length, since an agent's retries have backed off by
    /// then.
    fn span(self, timeout: Duration) -> (Timestamp, Timestamp) {
        let extra = self.after.since(self.before).min(timeout / 2);
        (self.before, self.after.saturating_add(extra))
    }
}

/// Whether a heartbeat lies so far in the future that it was recorded before the clock was set back.
pub(crate) fn is_far_ahead(heard: Timestamp, now: Timestamp) -> bool {
    heard.since(now) > MAX_CLOCK_SKEW
}

/// Returns the time after a poll for which silence still counts if no further poll succeeds.
fn outage_gap(timeout: Duration) -> Duration {
    OUTAGE_GAP.min(timeout / 2)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(12);

    fn at(seconds: f64) -> Timestamp {
        std::time::SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs_f64(seconds))
            .map(Timestamp::from)
            .unwrap()
    }

    /// Polls every half second within a range of seconds.
    fn poll(silence: &mut Silence, from: u32, to: u32) {
        for half in 2 * from..=2 * to {
            silence.record_poll(at(f64::from(half) / 2.0));
        }
    }

    fn seconds(silence: &Silence, heard: f64, now: f64) -> f64 {
        silence.of(at(heard), TIMEOUT, at(now)).as_secs_f64()
    }

    #[test]
    fn silence_counts_while_the_database_is_polled_but_not_before_the_start() {
        let mut silence = Silence::starting_at(at(10.0));
        poll(&mut silence, 10, 30);
        assert!((seconds(&silence, 20.0, 30.0) - 10.0).abs() < 1e-9);
        assert!((seconds(&silence, 1.0, 30.0) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn silence_pauses_while_the_database_is_unavailable() {
        let mut silence = Silence::starting_at(at(0.0));
        poll(&mut silence, 0, 10);
        assert!((seconds(&silence, 5.0, 60.0) - 6.5).abs() < 1e-9, "up to three polls after the last one");
        silence.record_poll(at(60.0));
        // The pause extends past the outage by half a timeout.
        assert!((seconds(&silence, 5.0, 60.5) - 5.0).abs() < 1e-9);
        poll(&mut silence, 60, 68);
        assert!((seconds(&silence, 5.0, 68.0) - 7.0).abs() < 1e-9);
        assert!((seconds(&silence, 67.0, 68.0) - 1.0).abs() < 1e-9, "of an agent that was heard since");
    }

    #[test]
    fn short_outages_do_not_keep_a_dead_agent_alive() {
        let mut silence = Silence::starting_at(at(0.0));
        for round in 0..10 {
            poll(&mut silence, 11 * round, 11 * round + 8);
        }
        // The database is unavailable for 3 of every 11 s, and at most twice that does not count as silence.
        assert!(seconds(&silence, 0.0, 96.0) > 96.0 * 4.0 / 11.0);
        assert!(seconds(&silence, 0.0, 40.0) > TIMEOUT.as_secs_f64());
    }

    #[test]
    fn clock_set_forward_is_an_outage() {
        let mut silence = Silence::starting_at(at(0.0));
        poll(&mut silence, 0, 10);
        poll(&mut silence, 3_610, 3_620);
        assert!(seconds(&silence, 9.0, 3_611.0) <= 2.5);
    }

    #[test]
    fn clock_set_back_a_little_and_then_forward_is_an_outage() {
        let mut silence = Silence::starting_at(at(0.0));
        poll(&mut silence, 0, 10);
        poll(&mut silence, 12, 13);
        poll(&mut silence, 6, 7);
        poll(&mut silence, 3_610, 3_611);
        assert!((seconds(&silence, 6.0, 3_611.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn heartbeat_far_in_the_future_does_not_count() {
        let mut silence = Silence::starting_at(at(100.0));
        poll(&mut silence, 100, 110);
        assert!((seconds(&silence, 3_600.0, 110.0) - 10.0).abs() < 1e-9);
        assert!(seconds(&silence, 119.0, 110.0).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn clock_set_back_restarts_all_timeouts() {
        let time = DatabaseTime::new(at(10_000.0));
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(time.now(), at(10_100.0));
        time.observe(at(6_500.0));
        let (now, silence) = time.judge();
        assert_eq!(now, at(6_500.0));
        assert_eq!(silence.of(at(10_099.0), TIMEOUT, now), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn clock_set_back_in_small_steps_restarts_all_timeouts() {
        let time = DatabaseTime::new(at(10_000.0));
        time.observe(at(9_994.0));
        assert_eq!(time.judge().1.since, at(10_000.0));
        time.observe(at(9_988.0));
        assert_eq!(time.judge().1.since, at(9_988.0));
    }
}
