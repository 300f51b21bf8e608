//! The heartbeat loop: a state machine with two states, each with what comes of it and what is next.
//!
//! | state | outcome | next |
//! |---|---|---|
//! | Beat | heard | Beat, one interval after this attempt began |
//! | Beat | heard, after failures | Register, within a tenth of the interval |
//! | Beat | unknown (404) | Register, within a tenth of the interval |
//! | Register | registered | Beat, one interval after this attempt began |
//! | either | failed | the same, after a tenth of the interval, growing up to the interval |
//! | either | another process registered since (409) | the loop ends: superseded |
//!
//! Where there is something to say that only a registration tells, Register follows a Beat that was heard at
//! once. Not before it: the Beat of an older process is answered 409, while its registration would win over its
//! successor's. The loop begins with Register where the agent is not registered, and else with Beat, after a
//! random part of the interval. Otherwise only its token ends it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Core;
use crate::error::Error;

/// The first pause after a failure, as a part of the interval.
const FIRST_PAUSE: f64 = 0.1;

/// By what the pauses grow.
const PAUSE_FACTOR: f64 = 2.0;

/// How long an attempt may take, as a part of the interval: a hung connection must leave time for two more
/// attempts before the deadline.
const ATTEMPT: f64 = 0.25;

/// No attempt is cut shorter than this.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(100);

/// What the loop does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Says that the agent is alive.
    Beat,
    /// Registers the agent with what it can do now.
    Register,
}

/// The loop's memory.
struct Loop {
    core: Arc<Core>,
    interval: Duration,
    next: Next,
    at: Instant,
    /// How many attempts in a row have failed.
    failures: u32,
}

/// Sends heartbeats until `stop` is cancelled or another process takes over; an attempt under way is not cut off. Wakes once an interval,
/// and sooner after a failure. Holds the agent's core, and not its handle: a lost handle cancels `stop`.
pub(super) async fn run(core: Arc<Core>, interval: Duration, stop: CancellationToken) {
    let next = if core.state.borrow().is_registered() { Next::Beat } else { Next::Register };
    let at = match next {
        Next::Register => Instant::now(),
        Next::Beat if core.has_news() => Instant::now(),
        // Agents that started together do not beat together; and where the loop was restarted, the beat that
        // was due comes no later for it.
        Next::Beat => {
            let drawn = Instant::now() + interval.mul_f64(fastrand::f64());
            core.heard().map_or(drawn, |heard| drawn.min(heard + interval))
        }
    };
    let span = tracing::info_span!("heartbeat_loop", agent_id = core.agent_id);
    let mut beating = Loop { core, interval, next, at, failures: 0 };
    while stop.run_until_cancelled(sleep_until(beating.at)).await.is_some() {
        if beating.step().instrument(span.clone()).await.is_break() {
            return;
        }
    }
}

impl Loop {
    /// Makes one attempt, and decides what comes next and when. Breaks off where another process took over.
    async fn step(&mut self) -> ControlFlow<()> {
        let limit =
            self.interval.mul_f64(ATTEMPT).max(SHORTEST_ATTEMPT).min(self.core.client.attempt_timeout());
        let began = Instant::now();
        let outcome = match self.next {
            Next::Beat => self.core.beat(limit).await,
            Next::Register => self.core.register_once(limit).await,
        };
        match outcome {
            Ok(()) => self.succeeded(began),
            Err(error) if error.is_not_found() && self.next == Next::Beat => self.was_forgotten(),
            Err(error) if error.is_superseded() => {
                self.core.superseded();
                return ControlFlow::Break(());
            }
            Err(error) => self.failed(error),
        }
        ControlFlow::Continue(())
    }

    fn succeeded(&mut self, began: Instant) {
        let back_again = self.next == Next::Beat && self.failures > 0;
        self.failures = 0;
        if back_again {
            // It may have been restarted from an older state, or have missed a change. Like all the others,
            // but not at the same moment.
            self.register_soon();
        } else if self.next == Next::Beat && self.core.has_news() {
            self.next = Next::Register;
            self.at = Instant::now();
        } else {
            // From the beginning of the attempt: a slow answer does not make the beats drift apart. After a
            // suspended host wakes, the beats that were missed are not made up for.
            self.next = Next::Beat;
            self.at = (began + self.interval).max(Instant::now());
        }
    }

    /// The registry does not know the agent any more.
    fn was_forgotten(&mut self) {
        tracing::warn!(
            agent_id = self.core.agent_id,
            "the registry does not know this agent: registering again"
        );
        self.core.registering();
        self.register_soon();
    }

    fn failed(&mut self, error: Error) {
        self.failures = self.failures.saturating_add(1);
        let grown = PAUSE_FACTOR.powi(i32::try_from(self.failures - 1).unwrap_or(i32::MAX).min(30));
        let longest = self.interval.mul_f64((FIRST_PAUSE * grown).min(1.0));
        let asked = error.retry_after().unwrap_or_default().min(self.interval);
        // Half of it is fixed: a pause that is drawn from nothing on could use up the attempts at once.
        let pause = longest.mul_f64(0.5 + 0.5 * fastrand::f64()).max(asked);
        self.at = Instant::now() + pause;
        self.core.degraded(error, pause);
    }

    fn register_soon(&mut self) {
        self.next = Next::Register;
        self.at = Instant::now() + self.interval.mul_f64(FIRST_PAUSE * fastrand::f64());
    }
}
