//! Group commit: while one write is under way the next batch gathers, and each caller is answered after its
//! own batch is in the database and in the view.
//!
//! There are two lanes. Heartbeats that change nothing but the time take the fast one: one statement a batch,
//! which need not wait for the disk. Everything else takes the lane of changes: one transaction a batch,
//! which commits fully and numbers its changes.
//!
//! A lane ends when its [`Lanes`] are gone or its token is cancelled, and what waits by then is written.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry_sdk::contract::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::rules::{Change, Judge, Outcome};
use super::view::Pulse;
use super::{Core, Error};
use crate::store::{Current, StoreError, Touch, Writes};

/// How many heartbeats may wait before further ones are refused.
const BEATS_WAITING: usize = 16_384;

/// How many changes may wait, and how many of those places only heartbeats get: one that changes something as well, or comes
/// just in time, takes this lane, and no flood of registrations may make its agent offline.
const CHANGES_WAITING: usize = 8_192;
const RESERVED: usize = 2_048;

/// How many heartbeats one statement writes.
const BEATS_A_BATCH: usize = 1_000;

/// How many times a lane lets the other tasks run while its batch is smaller than the last one: what a batch costs beside
/// what is in it is more than that. And for how long at most: under a flood letting them run once takes long.
const LINGER: usize = 40;
const LONGEST_LINGER: Duration = Duration::from_micros(500);

/// How many changes one transaction makes.
const CHANGES_A_BATCH: usize = 500;

/// A request in a lane, and where its answer goes.
pub(super) struct Waiting<T, A> {
    request: T,
    answer: Answer<A>,
}

type Answer<A> = oneshot::Sender<Result<A, Error>>;

/// A heartbeat that changes nothing but the time, and where that is noted.
pub(super) struct Beat {
    touch: Touch,
    pulse: Arc<Pulse>,
}

/// A change of one agent.
pub(super) struct Asked {
    agent_id: String,
    change: Change,
    arrived: Instant,
}

/// The ends of the lanes that callers hold.
pub(super) struct Lanes {
    beats: mpsc::Sender<Waiting<Beat, Option<Timestamp>>>,
    changes: mpsc::Sender<Waiting<Asked, Outcome>>,
}

/// The other ends, for [`run_beats`] and [`run_changes`].
pub(super) type Beats = mpsc::Receiver<Waiting<Beat, Option<Timestamp>>>;
pub(super) type Changes = mpsc::Receiver<Waiting<Asked, Outcome>>;

impl Beat {
    fn agent_id(&self) -> &str {
        &self.touch.agent.agent_id
    }
}

impl Lanes {
    pub(super) fn new() -> (Self, Beats, Changes) {
        let (beats, beats_end) = mpsc::channel(BEATS_WAITING);
        let (changes, changes_end) = mpsc::channel(CHANGES_WAITING);
        (Self { beats, changes }, beats_end, changes_end)
    }

    /// Writes a heartbeat's time, unless the agent's revision in the database is another: then `None`.
    pub(super) async fn beat(&self, touch: Touch, pulse: Arc<Pulse>) -> Result<Option<Timestamp>, Error> {
        ask(&self.beats, Beat { touch, pulse }).await
    }

    /// Makes a change.
    pub(super) async fn change(
        &self,
        agent_id: String,
        change: Change,
        arrived: Instant,
    ) -> Result<Outcome, Error> {
        if self.changes.capacity() <= RESERVED && !matches!(change, Change::Beat(_)) {
            return Err(Error::Overloaded);
        }
        ask(&self.changes, Asked { agent_id, change, arrived }).await
    }
}

async fn ask<T, A>(lane: &mpsc::Sender<Waiting<T, A>>, request: T) -> Result<A, Error> {
    let (answer, answered) = oneshot::channel();
    lane.try_send(Waiting { request, answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::Overloaded,
        mpsc::error::TrySendError::Closed(_) => Error::Stopping,
    })?;
    answered.await.unwrap_or(Err(Error::Stopping))
}

/// Fills the next batch, and waits for its first where there is none. It stays empty when the lane has ended.
///
/// Those of the last batch have just been answered, and come again at once where the load is high: it is worth waiting for
/// about as many. Where the load is not high nobody is let wait, since there is nothing else to run.
async fn gather<T, A>(
    lane: &mut mpsc::Receiver<Waiting<T, A>>,
    batch: &mut Vec<Waiting<T, A>>,
    most: usize,
    last: usize,
    stop: &CancellationToken,
) {
    if batch.is_empty() {
        tokio::select! {
            biased;
            _ = lane.recv_many(batch, most) => {}
            () = stop.cancelled() => {
                lane.close();
                lane.recv_many(batch, most).await;
            }
        }
    }
    let began = Instant::now();
    for _ in 0..LINGER {
        if batch.len() + lane.len() >= last || began.elapsed() > LONGEST_LINGER {
            break;
        }
        tokio::task::yield_now().await;
    }
    batch.extend(std::iter::from_fn(|| lane.try_recv().ok()).take(most.saturating_sub(batch.len())));
}

/// The lane of heartbeats.
pub(super) async fn run_beats(core: Arc<Core>, mut lane: Beats, stop: CancellationToken) {
    let mut last = 0;
    loop {
        let mut waiting = Vec::new();
        gather(&mut lane, &mut waiting, BEATS_A_BATCH, last, &stop).await;
        if waiting.is_empty() {
            return;
        }
        last = waiting.len();
        let batch = Batch::of(waiting);
        let written = batch.write(&core).await;
        batch.answer(&written);
    }
}

/// Heartbeats that are written together.
struct Batch {
    touches: Vec<Touch>,
    /// Who waits for which of them.
    waiting: Vec<(usize, Arc<Pulse>, Answer<Option<Timestamp>>)>,
}

impl Batch {
    fn of(mut beats: Vec<Waiting<Beat, Option<Timestamp>>>) -> Self {
        let mut batch =
            Self { touches: Vec::with_capacity(beats.len()), waiting: Vec::with_capacity(beats.len()) };
        // In the order of ids, so that two replicas rarely wait for each other, and repeats stand together.
        beats.sort_unstable_by(|a, b| a.request.agent_id().cmp(b.request.agent_id()));
        for Waiting { request: Beat { touch, pulse }, answer } in beats {
            match batch.touches.last_mut() {
                Some(last) if Arc::ptr_eq(&last.agent, &touch.agent) => {
                    last.arrived = last.arrived.max(touch.arrived);
                }
                _ => batch.touches.push(touch),
            }
            batch.waiting.push((batch.touches.len() - 1, pulse, answer));
        }
        batch
    }

    async fn write(&self, core: &Core) -> Result<Vec<Option<Timestamp>>, Error> {
        // Those that waited while the batch before came to nothing need not wait as long again.
        core.check_database()?;
        let written = core.store.touch(&self.touches).await;
        core.noticed(&written);
        written.map_err(|error| (&error).into())
    }

    fn answer(self, written: &Result<Vec<Option<Timestamp>>, Error>) {
        for (place, pulse, answer) in self.waiting {
            let outcome = match written {
                Ok(times) => Ok(times.get(place).copied().flatten()),
                Err(error) => Err(error.clone()),
            };
            if let Ok(Some(time)) = outcome {
                pulse.hear(time);
            }
            // Who does not wait any more has lost nothing but the answer.
            let _ = answer.send(outcome);
        }
    }
}

/// The lane of changes.
pub(super) async fn run_changes(core: Arc<Core>, mut lane: Changes, stop: CancellationToken) {
    let (mut waiting, mut last) = (Vec::new(), 0);
    loop {
        gather(&mut lane, &mut waiting, CHANGES_A_BATCH, last * 3 / 4, &stop).await;
        if waiting.is_empty() {
            return;
        }
        last = waiting.len();
        let (requests, answers): (Vec<_>, Vec<_>) =
            one_an_agent(&mut waiting).into_iter().map(|waiting| (waiting.request, waiting.answer)).unzip();
        match commit(&core, &requests).await {
            // One of them spoils it for all: each by itself, then.
            Err(StoreError::Rejected(_)) if requests.len() > 1 => {
                for (request, answer) in requests.iter().zip(answers) {
                    let outcome = commit(&core, std::slice::from_ref(request)).await;
                    let first =
                        outcome.map(|outcomes| outcomes.into_iter().next().unwrap_or(Outcome::NotFound));
                    let _ = answer.send(first.map_err(|error| (&error).into()));
                }
            }
            Ok(outcomes) => {
                for (outcome, answer) in outcomes.into_iter().zip(answers) {
                    let _ = answer.send(Ok(outcome));
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err((&error).into()));
                }
            }
        }
    }
}

/// Takes the first change of each agent; later ones of the same agent stay, in their order.
fn one_an_agent(waiting: &mut Vec<Waiting<Asked, Outcome>>) -> Vec<Waiting<Asked, Outcome>> {
    let mut taken = HashSet::new();
    let first = |next: &mut Waiting<Asked, Outcome>| taken.insert(next.request.agent_id.clone());
    waiting.extract_if(.., first).collect()
}

/// Makes a batch of changes, at most one an agent, and takes them over into the view.
async fn commit(core: &Core, requests: &[Asked]) -> Result<Vec<Outcome>, StoreError> {
    if core.availability.away_for().is_some() {
        return Err(StoreError::Unavailable("it has been away since before".into()));
    }
    let agent_ids: Vec<String> = requests.iter().map(|request| request.agent_id.clone()).collect();
    let began = Instant::now();
    let mut outcomes = Vec::new();
    let mut events = Vec::new();
    let mut before = 0;
    let mut decide = |mut current: Current| {
        before = current.revision;
        core.observe(current.now);
        let (patience, writes) = (core.patience(), Writes::default());
        let mut judge = Judge { patience: &patience, now: current.now, revision: current.revision, writes };
        let decided = requests.iter().map(|Asked { agent_id, change, arrived }| {
            judge.decide(change, began.duration_since(*arrived), current.agents.remove(agent_id))
        });
        outcomes = decided.collect();
        events.clone_from(&judge.writes.events);
        judge.writes
    };
    let written = core.store.transact(&agent_ids, &mut decide).await;
    core.noticed(&written);
    written?;
    core.take_over(&events);
    // Also of those to whom nothing happened but a heartbeat: the database may know more of them than the view.
    for outcome in &outcomes {
        if let Outcome::Done(agent) = outcome
            && agent.revision <= before
        {
            core.view.put(agent.clone());
        }
    }
    Ok(outcomes)
}
