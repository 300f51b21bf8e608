//! Outlier ejection: an agent that fails too often gets no tasks for a while.
//!
//! The terms and the growth of the ejection time are those of Envoy's outlier detection and gRPC's A50
//! (<https://github.com/grpc/proposal/blob/master/A50-xds-outlier-detection.md>). Both judge hosts once per interval by
//! thousands of requests. Tasks of agents are fewer and slower, so each outcome is judged when it arrives. The trial after an
//! ejection is that of a circuit breaker (Michael Nygard, "Release It!", 2007).

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::retry::deadline_after;

/// Number of outcomes from which the success rate is computed.
const OUTCOMES: usize = 20;

/// When an agent is ejected, and for how long.
///
/// An ejected agent gets a task only if no other candidate is left, including fallbacks, so no task is refused because all
/// agents are ejected. After the ejection, the agent gets one task as a trial: if the task succeeds, the agent is admitted
/// again, otherwise it is ejected for longer. If more than half of the candidates are ejected, those that have been ejected the
/// longest get their trial after a tenth of their time, so that the others are not overloaded for long. An agent that registers
/// with another `base_url` starts over.
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

    /// Sets the share of successes below which an agent is ejected, from 0 (never) to 1.
    ///
    /// It is computed from the last 20 outcomes within the [`window`](Self::window), once there are
    /// [`min_outcomes`](Self::min_outcomes). Default: 0.6.
    #[must_use]
    pub fn min_success_rate(mut self, rate: f64) -> Self {
        self.min_success_rate = rate.clamp(0.0, 1.0);
        self
    }

    /// Sets how many outcomes are required before the success rate counts, from 1 to 20. Default: 10.
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

    /// Sets the length of the first ejection.
    ///
    /// Each further ejection is longer by this time, and each such time without an ejection makes the next one shorter by it.
    /// Default: 30 s.
    #[must_use]
    pub fn base_time(mut self, time: Duration) -> Self {
        self.base_time = time;
        self
    }

    /// Sets the maximum length of an ejection. Default: 5 minutes.
    #[must_use]
    pub fn max_time(mut self, time: Duration) -> Self {
        self.max_time = time;
        self
    }

    /// Returns the time after which the state of an agent without tasks is forgotten.
    pub(super) fn memory(&self) -> Duration {
        self.window.saturating_add(self.max_time)
    }
}

/// Whether an agent gets tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EjectionState {
    /// The agent gets tasks.
    Admitted,
    /// The agent failed too often, and gets tasks only if no other agent is left.
    Ejected {
        /// The remaining time; zero while the trial is in flight.
        remaining: Duration,
    },
    /// A trial is due: the ejection is over, and the next task will be the trial. During the trial, the agent is
    /// [`Ejected`](Self::Ejected).
    OnTrial,
}

/// The outcomes of an agent's tasks, and its ejection.
#[derive(Debug, Default)]
pub(super) struct Ejection {
    /// When tasks ended and whether they succeeded, oldest first.
    outcomes: VecDeque<(Instant, bool)>,
    consecutive_failures: usize,
    ejected: Option<Ejected>,
    /// Length of the last ejection, as a multiple of the base time.
    multiple: u32,
    /// When the agent was admitted again.
    admitted: Option<Instant>,
    /// Increases with each ejection and each admission. Outcomes of tasks that began before are ignored.
    epoch: u64,
}

#[derive(Debug)]
struct Ejected {
    until: Instant,
    /// When the agent may return if too many others are ejected.
    early: Instant,
    /// When the trial began, if it has not ended.
    trial: Option<Instant>,
}

/// The data of a task that is needed when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    epoch: u64,
    trial: Option<Instant>,
}

impl Ejection {
    pub(super) fn state(&self, now: Instant) -> EjectionState {
        let Some(ejected) = &self.ejected else { return EjectionState::Admitted };
        match ejected.until.saturating_duration_since(now) {
            Duration::ZERO if ejected.trial.is_none() => EjectionState::OnTrial,
            remaining => EjectionState::Ejected { remaining },
        }
    }

    /// Returns since when the agent could get an early trial, if it can.
    pub(super) fn early(&self, now: Instant) -> Option<Instant> {
        let ejected = self.ejected.as_ref().filter(|ejected| ejected.trial.is_none())?;
        Some(ejected.early).filter(|early| *early <= now)
    }

    /// Records that the agent gets a task. If a trial is due, or the agent gets an early one, this is it.
    pub(super) fn begin(&mut self, now: Instant, is_let_in: bool) -> Ticket {
        let trial = match &mut self.ejected {
            Some(ejected) if ejected.trial.is_none() && (is_let_in || ejected.until <= now) => {
                ejected.trial = Some(now);
                ejected.trial
            }
            _ => None,
        };
        Ticket { epoch: self.epoch, trial }
    }

    /// Forgets everything, because another process has taken the agent's place. Tasks of the previous process say nothing about
    /// it.
    pub(super) fn forget(&mut self) {
        *self = Self { epoch: self.epoch + 1, ..Self::default() };
    }

    /// Records that a task ended without an outcome that says anything about the agent.
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

    /// Records that a task failed by the agent's fault. Returns the length of the ejection if that begins now.
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
        let early = deadline_after(now, time / 10);
        self.ejected = Some(Ejected { until: deadline_after(now, time), early, trial: None });
        time
    }

    /// Begins a new epoch, in which earlier outcomes do not count.
    fn change(&mut self) {
        self.epoch += 1;
        self.outcomes.clear();
        self.consecutive_failures = 0;
    }
}

#[cfg(test)]
mod tests;
