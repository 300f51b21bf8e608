//! Changes: each batch is one fully durable transaction, which numbers the changes.
//!
//! A change is answered after its transaction was committed and applied to the view. If the response to a
//! commit is lost, the next transaction finds out whether the commit succeeded: it holds the state row, so
//! the previous transaction has ended.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::availability::Part;
use super::error::Error;
use super::follower::catch_up;
use super::lane::{Lane, LaneSession, timed};
use super::queue::{self, Batches, Pace, Pending, submit};
use super::rules::{Change, CurrentAgent, Outcome, Transition};
use super::shared::{RETRY_INTERVAL, Shared};
use crate::metrics::Usage;
use crate::store::{
    AgentRow, CommitError, Event, Head, LockedAgents, LogEntry, Position, Purpose, Session, StoreError,
    Writes,
};

/// Maximum number of queued changes, and how many of these slots are reserved for heartbeats.
///
/// Heartbeats near their deadline are queued here, and a flood of registrations must not take their agents
/// offline.
const MAX_QUEUED: usize = 8_192;
const RESERVED_FOR_HEARTBEATS: usize = 2_048;

/// Batches only wait for the callers of the previous batch.
const PACE: Pace =
    Pace { enough: 500, interval: Duration::ZERO, call_again_time: Duration::from_millis(2), max: 500 };

/// Maximum time that a change waits in the queue. With the timeouts below, it is answered within five
/// seconds, or within six if its row was locked at first.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Timeout of a transaction up to its commit, including the wait for transactions of other servers.
///
/// If the session was lost unnoticed, this timeout passes before the transaction is retried.
const PREPARE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Timeout of a commit. The database may wait for a standby without any limit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time since a request's arrival after which the server stops looking for a commit whose response was lost.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time that a change waits for a locked row, and the interval between attempts.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A change of one agent.
pub(super) struct ChangeRequest {
    agent_id: String,
    change: Arc<Change>,
    /// Name of the request's token, or of the registry. `None` if the server does not require tokens.
    changed_by: Option<Arc<str>>,
    /// When the request arrived.
    arrived: Instant,
    /// When this attempt was queued: later than `arrived` if the agent's row was locked in an earlier
    /// attempt.
    queued: Instant,
}

type PendingChange = Pending<ChangeRequest, Outcome>;

/// The queue of changes.
pub(super) struct ChangeQueue(mpsc::Sender<PendingChange>);

/// Commits the queued changes.
pub(super) struct ChangeWriter {
    shared: Arc<Shared>,
    batches: Batches<ChangeRequest, Outcome>,
    lane: Lane,
}

/// The failure of a transaction.
enum Failure {
    /// Nothing was changed.
    NotApplied(StoreError),
    /// The changes may have been made.
    Unknown { error: StoreError, first: Position, outcomes: Vec<Outcome> },
}

/// A transaction that is ready to commit.
struct Prepared {
    writes: Writes,
    /// One outcome per request.
    outcomes: Vec<Outcome>,
    /// Epoch of the view on which the transaction is based.
    epoch: u64,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::NotApplied(error)
    }
}

impl ChangeQueue {
    /// Creates the queue. Cancelling `closing` closes it.
    pub(super) fn new(shared: Arc<Shared>, closing: CancellationToken) -> (Self, ChangeWriter) {
        let (queue_tx, queue) = mpsc::channel(MAX_QUEUED);
        let batches = Batches::new(queue, closing, PACE);
        (Self(queue_tx), ChangeWriter { shared, batches, lane: Lane::new(Purpose::Changes) })
    }

    /// Returns the number of queued changes, and the limit.
    pub(super) fn usage(&self) -> Usage {
        queue::usage(&self.0)
    }

    /// Submits a change. Retries for a moment while another session holds the agent's row.
    pub(super) async fn submit(
        &self,
        agent_id: String,
        change: Change,
        changed_by: Option<Arc<str>>,
        arrived: Instant,
    ) -> Result<Outcome, Error> {
        if self.0.capacity() <= RESERVED_FOR_HEARTBEATS && !matches!(change, Change::Heartbeat(_)) {
            return Err(Error::Overloaded);
        }
        let change = Arc::new(change);
        loop {
            let (agent_id, change, changed_by) = (agent_id.clone(), change.clone(), changed_by.clone());
            let request = ChangeRequest { agent_id, change, changed_by, arrived, queued: Instant::now() };
            match submit(&self.0, request).await? {
                Outcome::Locked if arrived.elapsed() < LOCK_TIMEOUT => sleep(LOCK_RETRY_INTERVAL).await,
                outcome => return Ok(outcome),
            }
        }
    }
}

impl ChangeWriter {
    /// Commits changes until the queue is closed, and then the remaining ones.
    pub(super) async fn run(mut self) {
        let (mut previous, mut last_try) = (0, Instant::now());
        loop {
            let is_failing = self.shared.availability.is_failing(Part::Changes);
            let woken = async {
                if is_failing { sleep_until(last_try + RETRY_INTERVAL).await } else { pending().await }
            };
            // Each transaction has a fixed cost, so wait for most callers of the previous batch. Not all may
            // have another change.
            let Some(mut pending) = self.batches.next(previous * 3 / 4, woken).await else { return };
            last_try = Instant::now();
            if pending.is_empty() {
                // Repeated until it succeeds.
                let _ = self.synchronize().await;
                continue;
            }
            previous = pending.len();
            while !pending.is_empty() {
                let batch = take_one_per_agent(&mut pending);
                self.commit(batch).await;
            }
        }
    }

    /// Commits a batch with at most one change per agent, and answers its callers.
    async fn commit(&mut self, batch: Vec<PendingChange>) {
        if let Err(error) = self.shared.check_available(Part::Changes) {
            // These callers have already waited for a batch that failed, so fail at once.
            return reply_error(batch, &error);
        }
        if let Some(oldest) = batch.first() {
            let waited = oldest.request.queued.elapsed();
            self.shared.metrics.database.record_queue_wait(Part::Changes.as_str(), waited);
        }
        let has_waited = |pending: &PendingChange| pending.request.arrived.elapsed() > QUEUE_TIMEOUT;
        let (late, batch) = batch.into_iter().partition::<Vec<_>, _>(has_waited);
        reply_error(late, &Error::Overloaded);
        if batch.is_empty() {
            return;
        }
        let (began, may_be_lost) = (Instant::now(), self.lane.has_session());
        let mut outcome = self.transact(&batch).await;
        if matches!(outcome, Err(Failure::NotApplied(StoreError::Unavailable(_)))) && may_be_lost {
            outcome = self.transact(&batch).await;
        }
        match outcome {
            Ok(outcomes) => {
                self.shared.availability.record_success(Part::Changes);
                let (part, elapsed) = (Part::Changes.as_str(), began.elapsed());
                self.shared.metrics.database.record_flush(part, batch.len(), elapsed);
                self.reply(batch, outcomes);
            }
            // Commit the changes one by one, so that only those that cause the failure fail.
            Err(Failure::NotApplied(StoreError::Rejected(_) | StoreError::Locked(_))) if batch.len() > 1 => {
                for pending in batch {
                    Box::pin(self.commit(vec![pending])).await;
                }
            }
            Err(Failure::NotApplied(StoreError::Locked(_))) => self.reply(batch, vec![Outcome::Locked]),
            Err(Failure::NotApplied(error)) => {
                if matches!(error, StoreError::Unavailable(_)) {
                    self.shared.record_failure(Part::Changes, &error);
                } else {
                    self.shared.metrics.database.record_error(Part::Changes.as_str());
                    tracing::error!(cause = std::error::Error::source(&error), "{error}");
                }
                reply_error(batch, &Error::from(&error));
            }
            Err(Failure::Unknown { error, first, outcomes }) => {
                self.settle(batch, error, first, outcomes).await;
            }
        }
    }

    /// Answers the callers, once memory matches the database.
    fn reply(&self, batch: Vec<PendingChange>, outcomes: Vec<Outcome>) {
        let now = self.shared.time.now();
        for (pending, outcome) in batch.into_iter().zip(outcomes) {
            if let Some(agent) = outcome.agent()
                && let Some(entry) = self.shared.view.entry(&agent.agent_id)
            {
                entry.liveness.record_heartbeat(agent.last_heartbeat, now);
            }
            // A caller that gave up only loses the response.
            let _ = pending.reply_tx.send(Ok(outcome));
        }
    }

    /// Commits a batch with at most one change per agent in one transaction, and applies it to the view.
    async fn transact(&mut self, batch: &[PendingChange]) -> Result<Vec<Outcome>, Failure> {
        let (mut session, prepared) = self.prepare(batch).await?;
        let Prepared { writes, outcomes, epoch } = prepared;
        if writes.is_empty() {
            timed(COMMIT_TIMEOUT, session.session.rollback()).await?;
            self.lane.give_back(session);
            return Ok(outcomes);
        }
        let first = writes.events.first().map(Event::position);
        let committed = timeout(COMMIT_TIMEOUT, session.session.commit(&writes)).await;
        match (committed.unwrap_or_else(|_| Err(CommitError::Unknown(timed_out()))), first) {
            (Ok(()), _) => self.lane.give_back(session),
            (Err(CommitError::Unknown(error)), Some(first)) => {
                return Err(Failure::Unknown { error, first, outcomes });
            }
            // A batch of heartbeats alone may be written twice.
            (Err(error), _) => return Err(Failure::NotApplied(error.into())),
        }
        let entries: Vec<LogEntry> = writes.events.iter().map(LogEntry::from).collect();
        match first {
            Some(first) if !self.shared.apply(epoch, &entries) => {
                Err(Failure::Unknown { error: other_history(), first, outcomes })
            }
            _ => Ok(outcomes),
        }
    }

    /// Prepares a transaction within the timeout.
    async fn prepare(&mut self, batch: &[PendingChange]) -> Result<(LaneSession, Prepared), StoreError> {
        timed(PREPARE_TIMEOUT, async {
            let mut session = self.lane.take(&self.shared).await?;
            let prepared = self.decide(&mut *session.session, batch).await?;
            Ok((session, prepared))
        })
        .await
    }

    /// Begins a transaction, brings the view up to date, and decides the changes.
    async fn decide(
        &self,
        session: &mut dyn Session,
        batch: &[PendingChange],
    ) -> Result<Prepared, StoreError> {
        let (began, head) = begin(session).await?;
        self.shared.observe_head(&head);
        let epoch = bring_to_head(&self.shared, session, &head).await?;
        let agent_ids: Vec<String> = batch.iter().map(|pending| pending.request.agent_id.clone()).collect();
        let LockedAgents { mut rows, held } = session.lock_agents(&agent_ids).await?;
        let policy = self.shared.read_context().policy;
        let mut transition = Transition::new(&policy, head.now, head.position.revision);
        let decide = |ChangeRequest { agent_id, change, changed_by, arrived, .. }: &ChangeRequest| {
            if held.contains(agent_id) {
                return Outcome::Locked;
            }
            let mut current = CurrentAgent::default();
            match rows.remove(agent_id) {
                Some(AgentRow::Readable(agent)) => current.row = Some(*agent),
                Some(AgentRow::Unreadable(_)) => current.is_unreadable = true,
                None => {}
            }
            current.known = self.shared.view.entry(agent_id).map(|entry| entry.agent.clone());
            let age = began.saturating_duration_since(*arrived);
            transition.decide(change, changed_by.as_deref(), age, current)
        };
        let outcomes = batch.iter().map(|pending| &pending.request).map(decide).collect();
        Ok(Prepared { writes: transition.writes, outcomes, epoch })
    }

    /// Finds out whether a transaction was committed, and answers its callers accordingly.
    async fn settle(
        &mut self,
        batch: Vec<PendingChange>,
        error: StoreError,
        first: Position,
        outcomes: Vec<Outcome>,
    ) {
        tracing::warn!(%error, "the response to a commit was lost, checking whether the commit succeeded");
        let arrived = batch.iter().map(|pending| pending.request.arrived).min();
        let gives_up_at = arrived.unwrap_or_else(Instant::now) + SETTLE_TIMEOUT;
        let settled = timeout_at(gives_up_at, async {
            while self.synchronize().await.is_err() {
                sleep(RETRY_INTERVAL / 2).await;
            }
        });
        if settled.await.is_err() {
            self.shared.record_failure(Part::Changes, &error);
            return reply_error(batch, &Error::Unsettled);
        }
        match self.shared.view.has_event(first) {
            Some(true) => self.reply(batch, outcomes),
            Some(false) => {
                self.shared.record_failure(Part::Changes, &error);
                reply_error(batch, &Error::Unavailable);
            }
            None => reply_error(batch, &Error::Unsettled),
        }
    }

    /// Brings the view up to date with a transaction that changes nothing.
    ///
    /// A success proves that the database accepts writes and that every earlier transaction has ended.
    async fn synchronize(&mut self) -> Result<(), StoreError> {
        let session = timed(PREPARE_TIMEOUT, async {
            let mut session = self.lane.take(&self.shared).await?;
            let (_, head) = begin(&mut *session.session).await?;
            bring_to_head(&self.shared, &mut *session.session, &head).await?;
            session.session.commit(&Writes::default()).await?;
            Ok(session)
        })
        .await?;
        self.lane.give_back(session);
        self.shared.availability.record_success(Part::Changes);
        Ok(())
    }
}

/// Begins a transaction, waiting for the transactions of other servers.
///
/// Also returns when it began, since the database's time is the time of the beginning.
pub(super) async fn begin(session: &mut dyn Session) -> Result<(Instant, Head), StoreError> {
    loop {
        let began = Instant::now();
        match session.begin().await {
            Err(StoreError::Locked(_)) => session.rollback().await?,
            outcome => return Ok((began, outcome?)),
        }
    }
}

/// Brings the view up to the head of an open transaction. Returns the epoch of the view.
///
/// Fails if the view does not match the database's history. The follower notices this as well, and reloads
/// the view.
async fn bring_to_head(shared: &Shared, session: &mut dyn Session, head: &Head) -> Result<u64, StoreError> {
    if shared.view.position().position != head.position {
        catch_up(shared, session).await?;
    }
    let at = shared.view.position();
    if at.position == head.position { Ok(at.epoch) } else { Err(other_history()) }
}

fn other_history() -> StoreError {
    StoreError::Unavailable("its history differs from this server's".into())
}

/// Takes the first change of each agent. Later changes of the same agents stay pending, in order.
fn take_one_per_agent(pending: &mut Vec<PendingChange>) -> Vec<PendingChange> {
    let mut taken = HashSet::new();
    pending.extract_if(.., |pending| taken.insert(pending.request.agent_id.clone())).collect()
}

fn timed_out() -> StoreError {
    StoreError::Unavailable("no response in time".into())
}

fn reply_error(batch: Vec<PendingChange>, error: &Error) {
    for pending in batch {
        // A caller that gave up only loses the response.
        let _ = pending.reply_tx.send(Err(error.clone()));
    }
}
