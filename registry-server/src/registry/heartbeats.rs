//! Plain heartbeats: one statement per batch, which does not wait for the disk. The statements are in
//! `store/postgres/heartbeats.rs` and `store/sqlite/heartbeats.rs`.
//!
//! A heartbeat is answered after its batch was written, so that every server sees it. A crash of the database
//! may lose the last batches, so after each reconnection the heartbeats within the timeout are written again.

use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::availability::Part;
use super::error::Error;
use super::lane::{Lane, LaneSession, timed};
use super::queue::{self, Batches, Pace, Pending, ReplySender, submit};
use super::shared::{RETRY_INTERVAL, Shared};
use super::view::{Entry, Liveness};
use crate::metrics::Usage;
use crate::store::{HeartbeatWrite, Purpose, Result, StoredAgent};

/// Maximum number of queued heartbeats. Further ones are rejected.
const MAX_QUEUED: usize = 16_384;

/// At most twenty statements a second, unless many heartbeats are queued.
const PACE: Pace = Pace {
    enough: 32,
    interval: Duration::from_millis(50),
    call_again_time: Duration::from_millis(10),
    max: MAX_BATCH,
};

/// Maximum number of heartbeats per statement.
const MAX_BATCH: usize = 1_000;

/// Timeout of a statement. If the session was lost unnoticed, it passes before the statement is retried.
const TIMEOUT: Duration = Duration::from_millis(1_500);

/// A heartbeat, with the agent as known when it arrived.
pub(super) struct QueuedHeartbeat {
    agent: Arc<StoredAgent>,
    liveness: Arc<Liveness>,
    arrived: Instant,
}

type PendingHeartbeat = Pending<QueuedHeartbeat, Option<Timestamp>>;

/// The queue of heartbeats.
pub(super) struct HeartbeatQueue(mpsc::Sender<PendingHeartbeat>);

/// Writes the queued heartbeats.
pub(super) struct HeartbeatWriter {
    shared: Arc<Shared>,
    batches: Batches<QueuedHeartbeat, Option<Timestamp>>,
    lane: Lane,
    /// Whether there was a session before, so that a new session replaces a lost one.
    had_session: bool,
    /// Whether recent heartbeats must be written again.
    needs_rewrite: bool,
}

impl HeartbeatQueue {
    /// Creates the queue. Cancelling `closing` closes it.
    pub(super) fn new(shared: Arc<Shared>, closing: CancellationToken) -> (Self, HeartbeatWriter) {
        let (queue_tx, queue) = mpsc::channel(MAX_QUEUED);
        let batches = Batches::new(queue, closing, PACE);
        let lane = Lane::new(Purpose::Heartbeats);
        (Self(queue_tx), HeartbeatWriter { shared, batches, lane, had_session: false, needs_rewrite: false })
    }

    /// Returns the number of queued heartbeats, and the limit.
    pub(super) fn usage(&self) -> Usage {
        queue::usage(&self.0)
    }

    /// Writes a heartbeat and returns its time.
    ///
    /// `None` if the agent has another revision in the database, or its row is locked.
    pub(super) async fn write(
        &self,
        entry: &Entry,
        arrived: Instant,
    ) -> std::result::Result<Option<Timestamp>, Error> {
        let (agent, liveness) = (entry.agent.clone(), entry.liveness.clone());
        submit(&self.0, QueuedHeartbeat { agent, liveness, arrived }).await
    }
}

impl HeartbeatWriter {
    /// Writes heartbeats until the queue is closed, and then the remaining ones.
    pub(super) async fn run(mut self) {
        let mut sessions_dropped = self.shared.sessions_dropped();
        let (mut previous, mut last_try) = (0, Instant::now());
        loop {
            let is_failing = self.shared.availability.is_failing(Part::Heartbeats);
            let woken = async {
                tokio::select! {
                    _ = sessions_dropped.changed() => {}
                    () = sleep_until(last_try + RETRY_INTERVAL), if is_failing => {}
                }
            };
            // Wait for all callers of the previous batch. With fewer, steady heartbeats would end up in ever
            // smaller batches.
            let Some(batch) = self.batches.next(previous.min(PACE.enough), woken).await else { return };
            (previous, last_try) = (batch.len(), Instant::now());
            if batch.is_empty() {
                // Checks whether the database accepts heartbeats.
                drop(self.write(&[]).await);
            } else {
                self.write_batch(batch).await;
            }
            if self.needs_rewrite {
                self.rewrite().await;
            }
        }
    }

    async fn write_batch(&mut self, pending: Vec<PendingHeartbeat>) {
        let oldest = pending.first().map(|pending| pending.request.arrived);
        let batch = Batch::new(pending);
        let times = match self.shared.check_available(Part::Heartbeats) {
            Ok(()) => {
                let waited = oldest.map(|arrived| arrived.elapsed()).unwrap_or_default();
                self.shared.metrics.database.record_queue_wait(Part::Heartbeats.as_str(), waited);
                self.write(&batch.heartbeats).await.map_err(|error| Error::from(&error))
            }
            // These callers have already waited for a batch that failed, so fail at once.
            Err(error) => Err(error),
        };
        batch.reply(&times, self.shared.time.now());
    }

    /// Writes heartbeats, opening a new session if the idle one turns out to be lost.
    async fn write(&mut self, heartbeats: &[QueuedHeartbeat]) -> Result<Vec<Option<Timestamp>>> {
        let (began, may_be_lost) = (Instant::now(), self.lane.has_session());
        let mut written = self.write_once(heartbeats).await;
        if written.is_err() && may_be_lost {
            written = self.write_once(heartbeats).await;
        }
        match &written {
            Ok(times) => {
                self.shared.availability.record_success(Part::Heartbeats);
                if !times.is_empty() {
                    let (part, elapsed) = (Part::Heartbeats.as_str(), began.elapsed());
                    self.shared.metrics.database.record_flush(part, times.len(), elapsed);
                }
            }
            Err(error) => self.shared.record_failure(Part::Heartbeats, error),
        }
        written
    }

    async fn write_once(&mut self, heartbeats: &[QueuedHeartbeat]) -> Result<Vec<Option<Timestamp>>> {
        let mut session = self.lane.take(&self.shared).await?;
        self.needs_rewrite |= session.is_new && self.had_session;
        self.had_session = true;
        let writes = heartbeats.iter().map(QueuedHeartbeat::to_write).collect();
        let times = self.send(&mut session, writes).await?;
        self.lane.give_back(session);
        Ok(times)
    }

    /// Writes all heartbeats within the timeout again. If that fails, the next session repeats it.
    async fn rewrite(&mut self) {
        self.needs_rewrite = false;
        let context = self.shared.read_context();
        let is_alive = |Entry { agent, liveness, .. }: &Entry| {
            let heard = liveness.last_heartbeat();
            // A time in the future was recorded before the clock was set back.
            heard <= context.now && !context.policy.is_overdue(heard, agent.heartbeat_interval, context.now)
        };
        let heard = self.shared.view.entries_where(is_alive);
        for entries in heard.chunks(MAX_BATCH) {
            let write = |entry: &Arc<Entry>| HeartbeatWrite {
                agent: entry.agent.clone(),
                age: self.shared.time.now().since(entry.liveness.last_heartbeat()),
            };
            let writes = entries.iter().map(write).collect();
            let Ok(mut session) = self.lane.take(&self.shared).await else { return };
            // Heartbeats written to the previous session may be lost.
            self.needs_rewrite |= session.is_new;
            if let Err(error) = self.send(&mut session, writes).await {
                return self.shared.record_failure(Part::Heartbeats, &error);
            }
            self.lane.give_back(session);
        }
    }

    async fn send(
        &self,
        session: &mut LaneSession,
        heartbeats: Vec<HeartbeatWrite>,
    ) -> Result<Vec<Option<Timestamp>>> {
        if heartbeats.is_empty() {
            return Ok(Vec::new());
        }
        let written = timed(TIMEOUT, session.session.write_heartbeats(&heartbeats)).await?;
        // Observe the time before the heartbeats are read from memory, so that none lies in the future of a
        // reset clock.
        self.shared.time.observe(written.now);
        Ok(written.times)
    }
}

impl QueuedHeartbeat {
    fn to_write(&self) -> HeartbeatWrite {
        HeartbeatWrite { agent: self.agent.clone(), age: self.arrived.elapsed() }
    }
}

/// Heartbeats that are written together, one per agent.
struct Batch {
    heartbeats: Vec<QueuedHeartbeat>,
    /// The callers, each with the index of its heartbeat.
    callers: Vec<(usize, ReplySender<Option<Timestamp>>)>,
}

impl Batch {
    fn new(mut pending: Vec<PendingHeartbeat>) -> Self {
        let mut batch = Self {
            heartbeats: Vec::with_capacity(pending.len()),
            callers: Vec::with_capacity(pending.len()),
        };
        pending.sort_unstable_by(|one, other| one.request.agent.agent_id.cmp(&other.request.agent.agent_id));
        for Pending { request, reply_tx } in pending {
            match batch.heartbeats.last_mut() {
                Some(last) if last.agent.agent_id == request.agent.agent_id => {
                    if request.agent.revision > last.agent.revision {
                        last.agent = request.agent;
                    }
                    last.arrived = last.arrived.max(request.arrived);
                }
                _ => batch.heartbeats.push(request),
            }
            batch.callers.push((batch.heartbeats.len() - 1, reply_tx));
        }
        batch
    }

    fn reply(self, times: &std::result::Result<Vec<Option<Timestamp>>, Error>, now: Timestamp) {
        for (index, reply_tx) in self.callers {
            let outcome =
                times.as_ref().map(|times| times.get(index).copied().flatten()).map_err(Clone::clone);
            if let (Ok(Some(time)), Some(heartbeat)) = (&outcome, self.heartbeats.get(index)) {
                heartbeat.liveness.record_heartbeat(*time, now);
            }
            // A caller that gave up only loses the response.
            let _ = reply_tx.send(outcome);
        }
    }
}
