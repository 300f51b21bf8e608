//! Decides after each attempt of a delegation whether another agent gets the task. With hedging, attempts overlap.
//!
//! `failure_kind.rs` has the table of failures, and of what follows from each.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;
use tracing::field::Empty;

use super::agent_states::Refusal;
use super::attempt::{Attempt, AttemptTimeout, Awaited, FailedAttempt, Settings};
use super::attempt_span::AttemptSpan;
use super::delegate_error::{DelegateError, EndReason};
use super::failure_kind::FailureKind;
use super::found::Earlier;
use super::orchestrator::Orchestrator;
use super::query::TaskQuery;
use super::selection::{SelectError, Selection, Skipped};
use super::task_error::{Charge, TaskError};
use crate::error::with_causes;
use crate::metrics;
use crate::retry::deadline_after;
use crate::spans;

/// Maximum random extension of the wait for a busy agent, so that waiting tasks do not all arrive at once.
const MAX_SPREAD: Duration = Duration::from_secs(1);

type Selecting<'a> = Pin<Box<dyn Future<Output = Result<Selection, SelectError>> + Send + 'a>>;

/// A task that was done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delegated<T> {
    /// The result.
    pub value: T,
    /// The agent that did the task, and the agents that were skipped.
    pub selection: Selection,
    /// The earlier attempts, which failed.
    pub failed: Vec<FailedAttempt>,
}

/// Gives a task to one agent after another until it is done or no further attempt is allowed.
pub(super) async fn with_failover<T, F>(
    orchestrator: &Orchestrator,
    query: TaskQuery,
    settings: Settings,
    task: impl FnMut(Attempt) -> F,
) -> Result<Delegated<T>, DelegateError>
where
    F: Future<Output = Result<T, TaskError>>,
{
    let span = tracing::info_span!(
        "delegation",
        capability = query.capability,
        idempotency_key = settings.idempotency_key,
        error.type = Empty,
        otel.status_code = Empty
    );
    orchestrator.states.deposit();
    let failover = Failover {
        orchestrator,
        deadline: deadline_after(Instant::now(), settings.time_limit),
        query: Arc::new(query),
        settings,
        earlier: Arc::default(),
        begun: 0,
        running: Vec::new(),
        exhausted: 0,
        draws: false,
        fair_time: None,
        failed: Vec::new(),
        refusals: Vec::new(),
        skipped: Vec::new(),
        ending: None,
    };
    let outcome = failover.run(task).instrument(span.clone()).await;
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
            spans::record_failure(&span, error.reason.name());
            metrics::task_ended("failed");
        }
    });
    outcome
}

/// The state of a delegation.
struct Failover<'a> {
    orchestrator: &'a Orchestrator,
    query: Arc<TaskQuery>,
    settings: Settings,
    earlier: Arc<Earlier>,
    deadline: Instant,
    /// Number of attempts that were begun.
    begun: u32,
    /// The attempts that have not ended.
    running: Vec<Running>,
    /// Number of failed attempts that count for [`Settings::attempts`].
    exhausted: usize,
    /// Whether the next attempt draws from the retry budget.
    draws: bool,
    /// Minimum duration of an attempt whose cut-off counts against its agent: the time of the first attempt. Later ones may
    /// have less time, which is not their agents' fault.
    fair_time: Option<Duration>,
    failed: Vec<FailedAttempt>,
    /// Refusals of the path or the credentials. They count against their agents if another agent does the task.
    refusals: Vec<Refusal>,
    /// The agents that the last selection skipped.
    skipped: Vec<Skipped>,
    /// Why no further attempt begins. Running attempts may still succeed.
    ending: Option<EndReason>,
}

/// An attempt that has not ended.
struct Running {
    number: u32,
    selection: Selection,
    began: Instant,
    span: AttemptSpan,
    awaited: Awaited,
}

/// What the delegation waits for in addition to its running attempts.
enum Next<'a> {
    /// Nothing: all possible attempts are running.
    Nothing,
    /// The agent of the next attempt.
    Selection(Selecting<'a>),
    /// The time when a busy agent may be tried again.
    BusyAgent(Instant),
}

impl Next<'_> {
    /// The selected agent; `None` until it is time to select one.
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

impl<'a> Failover<'a> {
    async fn run<T, F>(mut self, mut task: impl FnMut(Attempt) -> F) -> Result<Delegated<T>, DelegateError>
    where
        F: Future<Output = Result<T, TaskError>>,
    {
        let mut attempts = FuturesUnordered::new();
        let mut next = self.select();
        let mut hedge_at = None;
        loop {
            tokio::select! {
                biased;
                Some((number, outcome)) = attempts.next() => {
                    let ended = self.take_running(number);
                    match outcome {
                        Ok(value) => return Ok(self.done(value, ended)),
                        Err(error) => self.failed(ended, error),
                    }
                    next = match (self.end(), next) {
                        (Some(reason), _) => return Err(self.error(reason).await),
                        // The hedge has no agent yet, so it becomes the attempt that follows this one.
                        (None, Next::Selection(selecting)) if self.may_begin() => Next::Selection(selecting),
                        (None, _) if self.may_begin() => self.select(),
                        (None, _) => Next::Nothing,
                    };
                }
                ready = next.ready() => next = match ready {
                    None => self.select(),
                    Some(Ok(selection)) if self.may_draw() => {
                        let attempt = self.begin(selection);
                        let (number, span) = (attempt.number, attempt.span.clone());
                        let task = span.in_scope(|| task(attempt)).instrument(span);
                        attempts.push(async move { (number, task.await) });
                        hedge_at = self.settings.hedge_after.map(|delay| deadline_after(Instant::now(), delay));
                        Next::Nothing
                    }
                    Some(Ok(_)) if self.running.is_empty() => {
                        return Err(self.error(EndReason::RetryBudgetExhausted).await);
                    }
                    Some(Err(error)) if self.running.is_empty() => match self.nobody(error) {
                        Ok(next) => next,
                        Err(reason) => return Err(self.error(reason).await),
                    },
                    Some(_) => Next::Nothing,
                },
                () = at(hedge_at) => {
                    hedge_at = None;
                    if matches!(next, Next::Nothing) && self.may_begin() && !self.settings.at_most_once {
                        self.draws = true;
                        next = self.select();
                    }
                }
                () = sleep_until(self.deadline) => return Err(self.out_of_time().await),
            }
        }
    }

    fn select(&self) -> Next<'a> {
        let (orchestrator, query, earlier) = (self.orchestrator, self.query.clone(), self.earlier.clone());
        Next::Selection(Box::pin(async move { orchestrator.select_from(&query, &earlier).await }))
    }

    /// Returns whether a further attempt may begin.
    fn may_begin(&self) -> bool {
        self.ending.is_none() && self.exhausted + self.running.len() < self.settings.attempts
    }

    /// Returns whether the retry budget allows the attempt that is about to begin.
    fn may_draw(&mut self) -> bool {
        let is_allowed = !std::mem::take(&mut self.draws) || self.orchestrator.states.withdraw();
        if !is_allowed {
            metrics::retry_budget_exhausted();
        }
        is_allowed
    }

    /// Begins an attempt with the selected agent.
    fn begin(&mut self, selection: Selection) -> Attempt {
        let began = Instant::now();
        self.begun += 1;
        let (number, agent) = (self.begun, selection.agent.clone());
        if let Some(last) = self.failed.last() {
            tracing::info!(agent_id = agent.agent_id, from = last.agent_id, attempt = number, "failed over");
            metrics::failed_over();
        }
        self.earlier.add_tried(&agent.agent_id);
        let left = self.deadline - began;
        let is_last = selection.is_last
            || self.settings.at_most_once
            || self.exhausted + self.running.len() + 1 >= self.settings.attempts;
        let share = self.settings.attempt_timeout.unwrap_or(left / 2).min(left);
        self.fair_time.get_or_insert(share);
        let time = if is_last && self.settings.attempt_timeout.is_none() { left } else { share };
        self.skipped.clone_from(&selection.skipped);
        let attempt_span = AttemptSpan::begin(&agent.agent_id, number, !self.running.is_empty());
        let span = attempt_span.span().clone();
        let (awaited, idempotency_key) = (Awaited::default(), self.settings.idempotency_key.clone());
        self.running.push(Running { number, selection, began, span: attempt_span, awaited: awaited.clone() });
        let (deadline, end) = (began + time, self.deadline);
        Attempt { agent, number, began, deadline, end, idempotency_key, span, awaited }
    }

    fn take_running(&mut self, number: u32) -> Running {
        let index = self.running.iter().position(|one| one.number == number).unwrap_or_default();
        self.running.swap_remove(index)
    }

    fn done<T>(self, value: T, done: Running) -> Delegated<T> {
        metrics::attempt_ended("ok");
        done.span.succeeded();
        if self.settings.reports_success {
            done.selection.report_success();
        }
        // The success shows that the task was sent correctly.
        for refusal in &self.refusals {
            self.orchestrator.states.charge(refusal);
        }
        // Otherwise an agent that hangs would cost a hedge each time.
        for overtaken in self.running.iter().filter(|one| one.number < done.number && one.awaited.get()) {
            overtaken.selection.report_failure(FailureKind::Agent);
        }
        Delegated { value, selection: done.selection, failed: self.failed }
    }

    /// Records a failed attempt, and decides whether a further one may follow.
    fn failed(&mut self, ended: Running, error: TaskError) {
        let (kind, may_have_arrived) = (error.kind, error.may_have_arrived);
        self.draws |= error.draws;
        self.record(ended, error);
        let reason = match kind {
            FailureKind::Task => EndReason::Rejected,
            FailureKind::Response => EndReason::UnusableResponse,
            _ if self.settings.at_most_once && may_have_arrived => EndReason::MayHaveArrived,
            _ if Instant::now() >= self.deadline => self.timed_out(),
            _ => return,
        };
        self.ending.get_or_insert(reason);
    }

    /// Returns why the delegation ends now, if it does.
    fn end(&mut self) -> Option<EndReason> {
        match &self.ending {
            // The other agents would respond in the same way.
            Some(EndReason::Rejected) => self.ending.take(),
            _ if !self.running.is_empty() => None,
            Some(_) => self.ending.take(),
            None if self.exhausted >= self.settings.attempts => Some(EndReason::AttemptsExhausted),
            None => None,
        }
    }

    fn record(&mut self, ended: Running, error: TaskError) {
        let Running { number, selection, began, span, awaited } = ended;
        span.failed(&error);
        let has_begun = error.has_begun();
        let TaskError { kind, source, may_have_arrived, charge, .. } = error;
        let had_time = awaited.get() && self.fair_time.is_none_or(|time| began.elapsed() >= time);
        let is_charged = charge == Charge::Yes || charge == Charge::IfItHadTime && had_time;
        let agent_id = selection.agent.agent_id.clone();
        tracing::info!(
            agent_id,
            attempt = number,
            kind = kind.name(),
            error = %with_causes(&*source),
            "attempt failed"
        );
        metrics::attempt_ended(kind.name());
        match kind {
            // No other agent will be tried, so the failure counts at once. Otherwise the agent would get every task.
            FailureKind::Deployment if self.settings.at_most_once => selection.call.failed(kind, true),
            FailureKind::Deployment => self.refusals.push(selection.call.refused()),
            // The task was not sent.
            FailureKind::Task if !may_have_arrived => drop(selection.call.refused()),
            _ => selection.call.failed(kind, is_charged),
        }
        if matches!(kind, FailureKind::Busy { .. }) {
            // The agent may be tried again when it is no longer busy.
            self.earlier.remove_tried(&agent_id);
        }
        if has_begun {
            self.exhausted += 1;
        }
        self.failed.push(FailedAttempt { agent_id, kind, elapsed: began.elapsed(), error: source });
    }

    /// Decides what to wait for if no agent can be selected and none has the task.
    fn nobody(&mut self, error: SelectError) -> Result<Next<'a>, EndReason> {
        let retry_after = error.retry_after();
        match error {
            SelectError::Registry(error) => return Err(EndReason::Registry(error)),
            SelectError::NoAgent { skipped, .. } => self.skipped = skipped,
        }
        let Some(retry_after) = retry_after else {
            let all_refused = self.failed.iter().all(|one| one.kind == FailureKind::Deployment);
            return Err(if all_refused && !self.failed.is_empty() {
                EndReason::Misdeployed
            } else {
                EndReason::NoAgent { capability: self.query.capability.clone() }
            });
        };
        let at = deadline_after(Instant::now(), retry_after);
        if at >= self.deadline {
            return Err(EndReason::Busy { retry_after });
        }
        let spread = (retry_after / 10).min(MAX_SPREAD).mul_f64(fastrand::f64());
        Ok(Next::BusyAgent(at + spread.min((self.deadline - at) / 2)))
    }

    async fn out_of_time(&mut self) -> DelegateError {
        for running in std::mem::take(&mut self.running) {
            let error = TaskError::late(AttemptTimeout(running.began.elapsed()));
            self.record(running, error);
        }
        let reason = self.ending.take().unwrap_or_else(|| self.timed_out());
        self.error(reason).await
    }

    fn timed_out(&self) -> EndReason {
        EndReason::TimedOut { limit: self.settings.time_limit }
    }

    async fn error(&mut self, reason: EndReason) -> DelegateError {
        let attempts = std::mem::take(&mut self.failed);
        let mut skipped = std::mem::take(&mut self.skipped);
        if reason.asks_for_others() {
            let explaining = self.orchestrator.explain(&self.query, &self.earlier, &mut skipped);
            // Agents that are not known by then are omitted.
            let _ = timeout_at(self.deadline, explaining).await;
        }
        skipped.retain(|one| attempts.iter().all(|attempt| attempt.agent_id != one.agent_id));
        DelegateError { reason, attempts, skipped }
    }
}

/// Waits until a moment, or forever if there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
