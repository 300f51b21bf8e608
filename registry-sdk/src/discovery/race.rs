//! The attempts of a delegation, one after another or, with hedging, side by side.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;

use super::attempt::{Attempt, AttemptTimeout, FailedAttempt};
use super::delegate_error::{DelegateError, EndReason};
use super::orchestrator::Orchestrator;
use super::outcome::{FailureKind, TaskError};
use super::query::TaskQuery;
use super::select::Earlier;
use super::selection::{SelectError, Selection, Skipped};
use crate::metrics;
use crate::retry::deadline_after;

/// By how much at most a wait for a busy agent is prolonged at random, so that the tasks that wait for it do not all come at once.
const MAX_SPREAD: Duration = Duration::from_secs(1);

type Selecting<'a> = Pin<Box<dyn Future<Output = Result<Selection, SelectError>> + Send + 'a>>;

/// How often a task is tried.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) attempts: usize,
    pub(super) time_limit: Duration,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) hedge_after: Option<Duration>,
    pub(super) at_most_once: bool,
    pub(super) idempotency_key: String,
    /// Whether the agent has done the task when the attempt ends.
    pub(super) reports_success: bool,
}

/// A task that was done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delegated<T> {
    /// The result.
    pub value: T,
    /// The agent that did it, and the agents that were skipped.
    pub selection: Selection,
    /// The attempts before, which failed.
    pub failed: Vec<FailedAttempt>,
}

/// Gives a task to one agent after another until it is done or no further attempt is allowed.
pub(super) async fn race<T, F>(
    orchestrator: &Orchestrator,
    query: TaskQuery,
    settings: Settings,
    task: impl FnMut(Attempt) -> F,
) -> Result<Delegated<T>, DelegateError>
where
    F: Future<Output = Result<T, TaskError>>,
{
    let span = tracing::debug_span!(
        "delegation",
        capability = query.capability,
        idempotency_key = settings.idempotency_key
    );
    orchestrator.states.deposit();
    let race = Race {
        orchestrator,
        deadline: deadline_after(Instant::now(), settings.time_limit),
        query: Arc::new(query),
        settings,
        earlier: Arc::default(),
        begun: 0,
        running: Vec::new(),
        exhausted: 0,
        failed: Vec::new(),
        suspects: Vec::new(),
        skipped: Vec::new(),
    };
    let outcome = race.run(task).instrument(span.clone()).await;
    span.in_scope(|| match &outcome {
        Ok(done) => {
            tracing::debug!(
                agent_id = done.selection.agent.agent_id,
                attempts = done.failed.len() + 1,
                "done"
            );
            metrics::task_ended("done");
        }
        Err(error) => {
            tracing::info!(%error, "not done");
            metrics::task_ended("failed");
        }
    });
    outcome
}

/// State of a delegation.
struct Race<'a> {
    orchestrator: &'a Orchestrator,
    query: Arc<TaskQuery>,
    settings: Settings,
    earlier: Arc<Earlier>,
    deadline: Instant,
    /// Number of attempts that were begun.
    begun: u32,
    /// The attempts that have not ended.
    running: Vec<Running>,
    /// Number of attempts that failed and count for [`Settings::attempts`].
    exhausted: usize,
    failed: Vec<FailedAttempt>,
    /// Agents that refused the path or the credentials. That counts against them if another agent does the task.
    suspects: Vec<Selection>,
    /// The agents that the last selection skipped.
    skipped: Vec<Skipped>,
}

/// An attempt that has not ended.
struct Running {
    number: u32,
    selection: Selection,
    began: Instant,
    /// The time after which it is cut off.
    time: Duration,
    /// The time after which that counts against the agent.
    fair_time: Duration,
}

impl Running {
    fn cut_off(&self) -> TaskError {
        let mut error = TaskError::from(AttemptTimeout(self.time));
        error.is_charged = self.began.elapsed() >= self.fair_time;
        error
    }
}

/// What the delegation waits for beside the attempts that run.
enum Next<'a> {
    /// For nothing: all that may run does.
    Nothing,
    /// For the agent of the next attempt.
    Selection(Selecting<'a>),
    /// For the time at which a busy agent may be asked again.
    BusyAgent(Instant),
}

impl Next<'_> {
    /// The selected agent; `None` when it is time to select one.
    async fn ready(&mut self) -> Option<Result<Selection, SelectError>> {
        match self {
            Self::Nothing => std::future::pending().await,
            Self::Selection(selecting) => Some(selecting.await),
            Self::BusyAgent(at) => {
                sleep_until(*at).await;
                None
            }
        }
    }
}

impl<'a> Race<'a> {
    async fn run<T, F>(mut self, mut task: impl FnMut(Attempt) -> F) -> Result<Delegated<T>, DelegateError>
    where
        F: Future<Output = Result<T, TaskError>>,
    {
        let mut attempts = FuturesUnordered::new();
        let mut next = self.select();
        let mut hedge_at = None;
        loop {
            let now = Instant::now();
            tokio::select! {
                biased;
                Some((number, outcome)) = attempts.next() => {
                    let ended = self.take_running(number);
                    let error = match outcome {
                        Ok(Ok(value)) => return Ok(self.done(value, ended.selection)),
                        Ok(Err(error)) => error,
                        Err(_) => ended.cut_off(),
                    };
                    match self.failed(ended, error) {
                        Some(reason) if reason.is_final() || self.running.is_empty() => {
                            return Err(self.error(reason));
                        }
                        // The attempts that run may still succeed.
                        Some(_) => next = Next::Nothing,
                        None if matches!(next, Next::Selection(_)) => {}
                        None => next = self.select(),
                    }
                }
                ready = next.ready() => match ready {
                    None => next = self.select(),
                    Some(Err(error)) => next = self.nobody(error)?,
                    Some(Ok(selection)) => {
                        next = Next::Nothing;
                        hedge_at = self.settings.hedge_after.map(|delay| deadline_after(now, delay));
                        let (number, attempt) = self.begin(selection);
                        let deadline = attempt.deadline;
                        let task = task(attempt);
                        attempts.push(async move { (number, timeout_at(deadline, task).await) });
                    }
                },
                () = sleep_until(hedge_at.unwrap_or(now)), if hedge_at.is_some() => {
                    hedge_at = None;
                    if matches!(next, Next::Nothing) && self.may_hedge() {
                        next = self.select();
                    }
                }
                () = sleep_until(self.deadline) => return Err(self.out_of_time()),
            }
        }
    }

    fn select(&self) -> Next<'a> {
        let (orchestrator, query, earlier) = (self.orchestrator, self.query.clone(), self.earlier.clone());
        Next::Selection(Box::pin(async move { orchestrator.select_from(&query, &earlier).await }))
    }

    /// Begins an attempt with the selected agent.
    fn begin(&mut self, selection: Selection) -> (u32, Attempt) {
        let now = Instant::now();
        self.begun += 1;
        let (number, agent) = (self.begun, selection.agent.clone());
        if let Some(last) = self.failed.last() {
            tracing::info!(agent_id = agent.agent_id, from = last.agent_id, attempt = number, "failed over");
            metrics::failed_over();
        }
        self.earlier.add_tried(&agent.agent_id);
        let left = self.deadline - now;
        let fair_time = self.settings.attempt_timeout.unwrap_or(left / 2);
        let is_last = selection.is_last
            || self.settings.at_most_once
            || self.exhausted + self.running.len() + 1 >= self.settings.attempts;
        let time = self.settings.attempt_timeout.unwrap_or(if is_last { left } else { fair_time }).min(left);
        self.skipped.clone_from(&selection.skipped);
        self.running.push(Running { number, selection, began: now, time, fair_time });
        let deadline = now + time;
        (number, Attempt { agent, number, deadline, idempotency_key: self.settings.idempotency_key.clone() })
    }

    fn take_running(&mut self, number: u32) -> Running {
        let index = self.running.iter().position(|one| one.number == number).unwrap_or_default();
        self.running.swap_remove(index)
    }

    fn done<T>(self, value: T, selection: Selection) -> Delegated<T> {
        metrics::attempt_ended("ok");
        if self.settings.reports_success {
            selection.report_success();
        }
        // So it was not the task that was sent wrongly.
        for suspect in &self.suspects {
            suspect.report_failure(FailureKind::Agent);
        }
        Delegated { value, selection, failed: self.failed }
    }

    /// Records an attempt that failed. Returns why no further one may follow, if that is so.
    fn failed(&mut self, ended: Running, error: TaskError) -> Option<EndReason> {
        let TaskError { kind, may_have_arrived, was_instant, .. } = error;
        self.record(ended, error);
        match kind {
            FailureKind::Task => Some(EndReason::Rejected),
            FailureKind::Response => Some(EndReason::UnusableResponse),
            _ if self.settings.at_most_once && may_have_arrived => Some(EndReason::MayHaveArrived),
            _ if Instant::now() >= self.deadline => Some(self.timed_out()),
            _ if self.exhausted + self.running.len() >= self.settings.attempts => {
                Some(EndReason::AttemptsExhausted)
            }
            _ if !was_instant && !self.orchestrator.states.withdraw() => {
                metrics::retry_budget_exhausted();
                Some(EndReason::RetryBudgetExhausted)
            }
            _ => None,
        }
    }

    fn record(&mut self, ended: Running, error: TaskError) {
        let Running { number, selection, began, .. } = ended;
        let TaskError { kind, source, may_have_arrived, is_charged, .. } = error;
        let agent_id = selection.agent.agent_id.clone();
        tracing::info!(agent_id, attempt = number, kind = kind.name(), error = %source, "attempt failed");
        metrics::attempt_ended(kind.name());
        if kind == FailureKind::Deployment {
            self.suspects.push(selection);
        } else {
            selection.call.failed(kind, is_charged);
        }
        if matches!(kind, FailureKind::Busy { .. }) {
            // It may be asked again when it is no longer busy.
            self.earlier.remove_tried(&agent_id);
        }
        if kind == FailureKind::Agent && may_have_arrived {
            self.exhausted += 1;
        }
        self.failed.push(FailedAttempt { agent_id, kind, elapsed: began.elapsed(), error: source });
    }

    fn may_hedge(&self) -> bool {
        !self.settings.at_most_once
            && self.exhausted + self.running.len() < self.settings.attempts
            && self.orchestrator.states.withdraw()
    }

    /// Decides what to wait for if no agent can be selected.
    fn nobody(&mut self, error: SelectError) -> Result<Next<'a>, DelegateError> {
        if !self.running.is_empty() {
            return Ok(Next::Nothing);
        }
        let retry_after = error.retry_after();
        let skipped = match error {
            SelectError::Registry(error) => return Err(self.error(EndReason::Registry(error))),
            SelectError::NoAgent { skipped, .. } => skipped,
        };
        let reason = match retry_after {
            Some(retry_after) => {
                let at = deadline_after(Instant::now(), retry_after);
                if at < self.deadline {
                    let spread = (retry_after / 10).min(MAX_SPREAD).mul_f64(fastrand::f64());
                    return Ok(Next::BusyAgent(at + spread.min((self.deadline - at) / 2)));
                }
                EndReason::Busy { retry_after }
            }
            None if self.are_all_misdeployed() => EndReason::Misdeployed,
            None => EndReason::NoAgent { capability: self.query.capability.clone() },
        };
        self.skipped = skipped;
        Err(self.error(reason))
    }

    fn are_all_misdeployed(&self) -> bool {
        !self.failed.is_empty() && self.failed.iter().all(|one| one.kind == FailureKind::Deployment)
    }

    fn out_of_time(&mut self) -> DelegateError {
        for running in std::mem::take(&mut self.running) {
            let error = running.cut_off();
            self.record(running, error);
        }
        self.error(self.timed_out())
    }

    fn timed_out(&self) -> EndReason {
        EndReason::TimedOut { limit: self.settings.time_limit }
    }

    fn error(&mut self, reason: EndReason) -> DelegateError {
        let attempts = std::mem::take(&mut self.failed);
        let mut skipped = std::mem::take(&mut self.skipped);
        skipped.retain(|one| attempts.iter().all(|attempt| attempt.agent_id != one.agent_id));
        DelegateError { reason, attempts, skipped }
    }
}
