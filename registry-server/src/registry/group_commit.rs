//! Group commit: while one batch is written the next one gathers.
//!
//! Each caller gets its response after its batch is in the database and in the view. There are two queues.
//! Plain heartbeats take the fast one: one statement per batch, which does not wait for the disk. Everything
//! else takes the queue of changes: one transaction per batch, which is fully durable and numbers its
//! changes.
//!
//! A queue's task ends when all [`WriteQueues`] are dropped or its token is cancelled, after writing what is
//! queued.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry_sdk::contract::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::rules::{Change, Outcome, Transition};
use super::view::Liveness;
use super::{Error, Shared};
use crate::store::{HeartbeatWrite, LockedState, StoreError, Writes};

/// Maximum number of queued heartbeats; further ones are rejected.
const MAX_QUEUED_HEARTBEATS: usize = 16_384;

/// Maximum number of queued changes, and how many of these slots are reserved for heartbeats.
///
/// A heartbeat near its deadline is queued here, and a flood of registrations must not take its agent
/// offline.
const MAX_QUEUED_CHANGES: usize = 8_192;
const RESERVED_FOR_HEARTBEATS: usize = 2_048;

/// Maximum number of heartbeats per statement.
const MAX_HEARTBEAT_BATCH: usize = 1_000;

/// Maximum number of yields, and maximum time, while a batch fills up to the size of the last one.
///
/// A larger batch saves more than that, since each has a fixed cost. The time limit matters under a flood,
/// where one yield takes long.
const MAX_YIELDS: usize = 40;
const MAX_LINGER: Duration = Duration::from_micros(500);

/// Maximum number of changes per transaction.
const MAX_CHANGE_BATCH: usize = 500;

/// A queued request and the channel for its result.
pub(super) struct Pending<T, A> {
    request: T,
    reply_tx: ReplySender<A>,
}

type ReplySender<A> = oneshot::Sender<Result<A, Error>>;

/// A plain heartbeat, and where its time is recorded in memory.
pub(super) struct QueuedHeartbeat {
    heartbeat: HeartbeatWrite,
    liveness: Arc<Liveness>,
}

/// A change of one agent.
pub(super) struct ChangeRequest {
    agent_id: String,
    change: Change,
    arrived: Instant,
}

/// The sending halves of the queues.
pub(super) struct WriteQueues {
    heartbeats: mpsc::Sender<Pending<QueuedHeartbeat, Option<Timestamp>>>,
    changes: mpsc::Sender<Pending<ChangeRequest, Outcome>>,
}

/// The receiving halves, for [`run_heartbeats`] and [`run_changes`].
pub(super) type HeartbeatReceiver = mpsc::Receiver<Pending<QueuedHeartbeat, Option<Timestamp>>>;
pub(super) type ChangeReceiver = mpsc::Receiver<Pending<ChangeRequest, Outcome>>;

impl QueuedHeartbeat {
    fn agent_id(&self) -> &str {
        &self.heartbeat.agent.agent_id
    }
}

impl WriteQueues {
    pub(super) fn new() -> (Self, HeartbeatReceiver, ChangeReceiver) {
        let (heartbeats, heartbeats_rx) = mpsc::channel(MAX_QUEUED_HEARTBEATS);
        let (changes, changes_rx) = mpsc::channel(MAX_QUEUED_CHANGES);
        (Self { heartbeats, changes }, heartbeats_rx, changes_rx)
    }

    /// Writes a heartbeat; returns `None` if the agent is at another revision in the database.
    pub(super) async fn heartbeat(
        &self,
        heartbeat: HeartbeatWrite,
        liveness: Arc<Liveness>,
    ) -> Result<Option<Timestamp>, Error> {
        submit(&self.heartbeats, QueuedHeartbeat { heartbeat, liveness }).await
    }

    /// Makes a change.
    pub(super) async fn change(
        &self,
        agent_id: String,
        change: Change,
        arrived: Instant,
    ) -> Result<Outcome, Error> {
        if self.changes.capacity() <= RESERVED_FOR_HEARTBEATS && !matches!(change, Change::Heartbeat(_)) {
            return Err(Error::Overloaded);
        }
        submit(&self.changes, ChangeRequest { agent_id, change, arrived }).await
    }
}

async fn submit<T, A>(queue: &mpsc::Sender<Pending<T, A>>, request: T) -> Result<A, Error> {
    let (reply_tx, reply_rx) = oneshot::channel();
    queue.try_send(Pending { request, reply_tx }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::Overloaded,
        mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
    })?;
    reply_rx.await.unwrap_or(Err(Error::ShuttingDown))
}

/// Fills the next batch, waiting for the first request if necessary.
///
/// The batch stays empty once the queue is closed. Callers of the last batch have just got their responses,
/// and under load send the next request at once. So it pays to wait for about as many. Without load nobody
/// waits, since yielding returns at once.
async fn next_batch<T, A>(
    queue: &mut mpsc::Receiver<Pending<T, A>>,
    batch: &mut Vec<Pending<T, A>>,
    max_size: usize,
    previous_size: usize,
    shutdown: &CancellationToken,
) {
    if batch.is_empty() {
        tokio::select! {
            biased;
            _ = queue.recv_many(batch, max_size) => {}
            () = shutdown.cancelled() => {
                queue.close();
                queue.recv_many(batch, max_size).await;
            }
        }
    }
    let started = Instant::now();
    for _ in 0..MAX_YIELDS {
        if batch.len() + queue.len() >= previous_size || started.elapsed() > MAX_LINGER {
            break;
        }
        tokio::task::yield_now().await;
    }
    batch.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(max_size.saturating_sub(batch.len())));
}

/// Writes queued heartbeats until the queue is closed.
pub(super) async fn run_heartbeats(
    shared: Arc<Shared>,
    mut queue: HeartbeatReceiver,
    shutdown: CancellationToken,
) {
    let mut previous_size = 0;
    loop {
        let mut pending = Vec::new();
        next_batch(&mut queue, &mut pending, MAX_HEARTBEAT_BATCH, previous_size, &shutdown).await;
        if pending.is_empty() {
            return;
        }
        previous_size = pending.len();
        let batch = HeartbeatBatch::new(pending);
        let written = batch.write(&shared).await;
        batch.reply(&written);
    }
}

/// Heartbeats that are written together.
struct HeartbeatBatch {
    heartbeats: Vec<HeartbeatWrite>,
    /// The callers, each with the index of its heartbeat in the batch.
    callers: Vec<(usize, Arc<Liveness>, ReplySender<Option<Timestamp>>)>,
}

impl HeartbeatBatch {
    fn new(mut heartbeats: Vec<Pending<QueuedHeartbeat, Option<Timestamp>>>) -> Self {
        let mut batch = Self {
            heartbeats: Vec::with_capacity(heartbeats.len()),
            callers: Vec::with_capacity(heartbeats.len()),
        };
        // Sorted by id, so that replicas lock rows in the same order, and heartbeats of one agent are
        // adjacent.
        heartbeats.sort_unstable_by(|a, b| a.request.agent_id().cmp(b.request.agent_id()));
        for Pending { request: QueuedHeartbeat { heartbeat, liveness }, reply_tx } in heartbeats {
            match batch.heartbeats.last_mut() {
                Some(last) if Arc::ptr_eq(&last.agent, &heartbeat.agent) => {
                    last.arrived = last.arrived.max(heartbeat.arrived);
                }
                _ => batch.heartbeats.push(heartbeat),
            }
            batch.callers.push((batch.heartbeats.len() - 1, liveness, reply_tx));
        }
        batch
    }

    async fn write(&self, shared: &Shared) -> Result<Vec<Option<Timestamp>>, Error> {
        // These callers have waited for the previous batch already. If that failed, fail at once.
        shared.check_database()?;
        let written = shared.store.write_heartbeats(&self.heartbeats).await;
        shared.record_outcome(&written);
        written.map_err(|error| (&error).into())
    }

    fn reply(self, written: &Result<Vec<Option<Timestamp>>, Error>) {
        for (index, liveness, reply_tx) in self.callers {
            let outcome = match written {
                Ok(times) => Ok(times.get(index).copied().flatten()),
                Err(error) => Err(error.clone()),
            };
            if let Ok(Some(time)) = outcome {
                liveness.record_heartbeat(time);
            }
            // A caller that gave up only loses the response.
            let _ = reply_tx.send(outcome);
        }
    }
}

/// Commits queued changes until the queue is closed.
pub(super) async fn run_changes(shared: Arc<Shared>, mut queue: ChangeReceiver, shutdown: CancellationToken) {
    let (mut pending, mut previous_size) = (Vec::new(), 0);
    loop {
        next_batch(&mut queue, &mut pending, MAX_CHANGE_BATCH, previous_size * 3 / 4, &shutdown).await;
        if pending.is_empty() {
            return;
        }
        previous_size = pending.len();
        let (requests, replies): (Vec<_>, Vec<_>) = take_one_per_agent(&mut pending)
            .into_iter()
            .map(|pending| (pending.request, pending.reply_tx))
            .unzip();
        match commit(&shared, &requests).await {
            // The database rejected one of them. Commit them one by one, so that only that one fails.
            Err(StoreError::Rejected(_)) if requests.len() > 1 => {
                for (request, reply_tx) in requests.iter().zip(replies) {
                    let outcome = commit(&shared, std::slice::from_ref(request)).await;
                    let outcome =
                        outcome.map(|outcomes| outcomes.into_iter().next().unwrap_or(Outcome::NotFound));
                    let _ = reply_tx.send(outcome.map_err(|error| (&error).into()));
                }
            }
            Ok(outcomes) => {
                for (outcome, reply_tx) in outcomes.into_iter().zip(replies) {
                    let _ = reply_tx.send(Ok(outcome));
                }
            }
            Err(error) => {
                for reply_tx in replies {
                    let _ = reply_tx.send(Err((&error).into()));
                }
            }
        }
    }
}

/// Takes the first change of each agent. Later ones of the same agent stay queued, in order.
fn take_one_per_agent(
    pending: &mut Vec<Pending<ChangeRequest, Outcome>>,
) -> Vec<Pending<ChangeRequest, Outcome>> {
    let mut taken = HashSet::new();
    let is_first = |next: &mut Pending<ChangeRequest, Outcome>| taken.insert(next.request.agent_id.clone());
    pending.extract_if(.., is_first).collect()
}

/// Commits a batch of changes, at most one per agent, and applies it to the view.
async fn commit(shared: &Shared, requests: &[ChangeRequest]) -> Result<Vec<Outcome>, StoreError> {
    if shared.availability.unavailable_for().is_some() {
        return Err(StoreError::Unavailable("known to be unavailable".into()));
    }
    let agent_ids: Vec<String> = requests.iter().map(|request| request.agent_id.clone()).collect();
    let started = Instant::now();
    let mut outcomes = Vec::new();
    let mut events = Vec::new();
    let mut previous_revision = 0;
    let mut decide = |mut state: LockedState| {
        previous_revision = state.revision;
        shared.observe_clock(state.now);
        let (policy, writes) = (shared.deadline_policy(), Writes::default());
        let mut transition = Transition { policy: &policy, now: state.now, revision: state.revision, writes };
        let decided = requests.iter().map(|ChangeRequest { agent_id, change, arrived }| {
            transition.decide(change, started.duration_since(*arrived), state.agents.remove(agent_id))
        });
        outcomes = decided.collect();
        events.clone_from(&transition.writes.events);
        transition.writes
    };
    let written = shared.store.transact(&agent_ids, &mut decide).await;
    shared.record_outcome(&written);
    written?;
    shared.apply(&events);
    // Also update agents that did not change: the database may have a later state than the view.
    for outcome in &outcomes {
        if let Outcome::Applied(agent) = outcome
            && agent.revision <= previous_revision
        {
            shared.view.put_if_newer(agent.clone());
        }
    }
    Ok(outcomes)
}
