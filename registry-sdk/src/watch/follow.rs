//! The task of a watch: a state machine that opens streams, reads lists, follows changes, and starts over if necessary.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::event::{Known, Report, WatchEvent};
use super::list::{Change, List, Progress, Reported};
use super::sse::{Block, Message};
use super::stream::{EventStream, StreamEnd};
use crate::beside::beside;
use crate::client::RegistryClient;
use crate::contract::event::{EventKind, RESET_EVENT};
use crate::contract::{AgentRecord, AgentStatus};
use crate::decode;
use crate::error::Error;
use crate::retry::Backoff;

/// Delays before the next attempt.
const OUTAGE: Backoff =
    Backoff { min_delay: Duration::from_millis(500), max_delay: Duration::from_secs(5), factor: 2.0 };

/// Delays after a refusal, which somebody may have to fix first.
const REFUSAL: Backoff = Backoff { max_delay: Duration::from_secs(60), ..OUTAGE };

/// The progress of a watch.
///
/// Each state except the first outlives its stream: when a stream is closed, fails or is silent for too long, the task opens
/// another one after the last acknowledged event and keeps the state. A `reset` leads from any state to `Listing`. An id that
/// the registry refuses, and an event that is too long, lead to `Empty`.
enum State {
    /// Nothing is known. Waits for a stream to begin, then becomes `Listing`.
    Empty,
    /// Waits for the pages of a list, and holds back the stream's events. After the last page, reports both as one list and
    /// becomes `Confirming`, or `Following` if the list was begun late enough. If a page fails, or an old one comes from
    /// memory, the registry counts as interrupted until the page is read again.
    Listing(List),
    /// Reports the stream's events as they arrive, although the list may have lagged behind the stream. Waits until no server
    /// lags any more, reads another list, and waits until the stream has caught up with that list. Then reports that list if it
    /// differs from what was reported, and becomes `Following`. Pages may fail as above.
    Confirming(List, Reported),
    /// Reports the stream's events as they arrive. After one that cannot be read, becomes `Listing`.
    Following(Reported),
}

/// Why a connection is no longer followed.
enum Disturbance {
    /// The stream ended without an error.
    Closed,
    /// The registry is about to stop, and another one may continue.
    Draining,
    Failed(Error),
    /// The next event cannot be read, nor any event after it.
    TooLong,
    ReceiverDropped,
}

impl From<Error> for Disturbance {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<StreamEnd> for Disturbance {
    fn from(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Closed => Self::Closed,
            StreamEnd::Draining => Self::Draining,
            StreamEnd::Failed(error) => Self::Failed(error),
            StreamEnd::TooLong => Self::TooLong,
        }
    }
}

/// A reported interruption.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Interruption {
    Outage,
    /// A refusal, which somebody may have to fix.
    Refusal,
}

struct Follower {
    client: RegistryClient,
    reports: mpsc::Sender<Report>,
    state: State,
    /// The last acknowledged event. `None` while nothing is known.
    last_id: Option<String>,
    /// When the known data was last known to be true. `None` before the first list.
    known: Option<Known>,
    interruption: Option<Interruption>,
    /// Whether any stream was opened, which shows that the client is configured correctly.
    has_opened: bool,
    /// Number of failed attempts in a row.
    failures: u32,
    /// Number of short streams in a row.
    short_streams: u32,
}

/// Follows the registry until the watch is dropped, or the client turns out to be configured wrongly. May be cancelled at any
/// await.
pub(super) async fn run(client: RegistryClient, reports: mpsc::Sender<Report>) {
    let mut follower = Follower {
        client,
        reports,
        state: State::Empty,
        last_id: None,
        known: None,
        interruption: None,
        has_opened: false,
        failures: 0,
        short_streams: 0,
    };
    loop {
        let Err(disturbance) = follower.follow().await;
        match follower.disturbed(disturbance).await {
            Some(pause) => sleep(pause).await,
            None => return,
        }
    }
}

impl Follower {
    /// Opens a stream and follows it to its end.
    async fn follow(&mut self) -> Result<Infallible, Disturbance> {
        if self.last_id.is_none() {
            // All changes since the last stream were missed.
            self.begin_anew();
        }
        let mut stream = EventStream::open(&self.client, self.last_id.as_deref()).await?;
        self.has_opened = true;
        if matches!(self.state, State::Empty) {
            self.state = State::Listing(List::begin());
        }
        if let Some(list) = self.list() {
            list.stream_opened();
        }
        let end = loop {
            tokio::select! {
                block = stream.next(&self.client) => match block {
                    Ok(block) => self.handle_block(block, &mut stream).await?,
                    Err(end) => break end,
                },
                progress = next_progress(&mut self.state, &self.client) => self.listed(progress).await?,
            }
        };
        self.short_streams = if stream.was_short() { self.short_streams.saturating_add(1) } else { 0 };
        let end = match end {
            // Moving to another server again and again would lead nowhere.
            StreamEnd::Draining if self.short_streams > 1 => StreamEnd::Closed,
            end => end,
        };
        // Streams that are closed again and again must not prevent a list from being read.
        if matches!(end, StreamEnd::Closed) && self.list().is_some_and(|list| list.is_reading()) {
            let progress = next_progress(&mut self.state, &self.client).await;
            self.listed(progress).await?;
        }
        Err(end.into())
    }

    /// Handles the end of a stream. Returns how long to wait before the next attempt, or `None` if there is none.
    async fn disturbed(&mut self, disturbance: Disturbance) -> Option<Duration> {
        if let Some(list) = self.list() {
            list.pause();
        }
        let error = match disturbance {
            Disturbance::ReceiverDropped => return None,
            Disturbance::Closed => return Some(OUTAGE.delay(self.short_streams, None)),
            Disturbance::Draining => return Some(Duration::ZERO),
            Disturbance::TooLong => {
                tracing::warn!(
                    after = self.last_id,
                    "skipped an event that is too long to be read, listing all agents anew"
                );
                self.begin_anew();
                self.failures = self.failures.saturating_add(1);
                return Some(OUTAGE.delay(self.failures, None));
            }
            Disturbance::Failed(error) => error,
        };
        let is_refused = error.refuses_watch();
        let delays = if is_refused { REFUSAL } else { OUTAGE };
        self.failures = self.failures.saturating_add(1);
        let pause = delays.delay(self.failures, error.retry_after());
        // The registry may have refused the id, or the id cannot be sent.
        if matches!(error, Error::Invalid { .. } | Error::Config(_)) {
            self.begin_anew();
        }
        let is_final = matches!(error, Error::Config(_)) && !self.has_opened;
        self.interrupted(error, is_refused).await.ok()?;
        (!is_final).then_some(pause)
    }

    /// Handles a block of the stream.
    async fn handle_block(&mut self, block: Block, stream: &mut EventStream) -> Result<(), Disturbance> {
        if block.is(RESET_EVENT) {
            (self.state, self.last_id) = (State::Listing(List::begin()), block.id);
            return Ok(());
        }
        let Block { id, message } = block;
        match &mut self.state {
            State::Following(_) => self.resumed().await?,
            State::Confirming(list, _) if !list.is_failing => self.resumed().await?,
            State::Empty | State::Confirming(..) | State::Listing(_) => {}
        }
        if let Some(message) = message {
            self.event(message, id.as_deref()).await?;
            stream.has_reported_change |= id.is_some();
        }
        self.last_id = id.or_else(|| self.last_id.take());
        Ok(())
    }

    async fn event(&mut self, message: Message, id: Option<&str>) -> Result<(), Disturbance> {
        // Later versions may have other kinds of events, which are ignored.
        let Some(kind) = EventKind::from_name(&message.kind) else { return Ok(()) };
        match read(kind, &message.data) {
            Ok(change) => self.changed(change).await,
            Err(error) => {
                let event = message.kind;
                tracing::warn!(id, event, %error, "skipped an event that cannot be read, listing all agents anew");
                self.skipped_event();
                Ok(())
            }
        }
    }

    async fn changed(&mut self, change: Change) -> Result<(), Disturbance> {
        let reported = match &mut self.state {
            State::Empty => None,
            State::Listing(list) => {
                list.add(change.clone());
                None
            }
            State::Confirming(list, reported) => {
                list.add(change.clone());
                Some(reported)
            }
            State::Following(reported) => Some(reported),
        };
        if reported.is_some_and(|reported| reported.note(&change)) {
            self.report(change.into()).await
        } else {
            Ok(())
        }
    }

    fn skipped_event(&mut self) {
        match self.list() {
            Some(list) => list.skipped_event(),
            None => self.state = State::Listing(List::begin()),
        }
    }

    /// Handles a page of a list. After the last page, the list is complete.
    async fn listed(&mut self, progress: Progress) -> Result<(), Disturbance> {
        let Some(list) = self.list() else { return Ok(()) };
        if let Progress::Page(page) = progress {
            if !list.take(page)? {
                return Ok(());
            }
            let age = list.age();
            list.is_failing = !age.is_zero();
            if list.is_failing {
                let agents = list.restart();
                self.listed_from_memory(agents, age).await?;
                let detail = format!("it answers from memory: its database has been unavailable for {age:?}");
                return Err(Error::Unavailable { status: 503, detail, retry_after: None }.into());
            }
            if matches!(self.state, State::Confirming(..)) {
                // The list may be ahead of the stream, which then reports the rest.
                return Ok(());
            }
        }
        match std::mem::replace(&mut self.state, State::Empty) {
            State::Listing(list) => self.listed_all(list, None).await,
            State::Confirming(list, reported) => self.listed_all(list, Some(reported)).await,
            State::Empty | State::Following(_) => Ok(()),
        }
    }

    /// A list from the registry's memory is better than none.
    async fn listed_from_memory(
        &mut self,
        agents: Vec<Arc<AgentRecord>>,
        age: Duration,
    ) -> Result<(), Disturbance> {
        if self.known.is_none() {
            // After a list, an interruption has to be reported again.
            self.interruption = None;
            self.known = Some(Known::with_age(age));
            self.report(WatchEvent::Listed(agents)).await?;
        }
        Ok(())
    }

    /// Handles a complete list. Reports it if it differs from what was reported before.
    async fn listed_all(&mut self, mut list: List, before: Option<Reported>) -> Result<(), Disturbance> {
        let is_complete = list.is_complete();
        let agents = list.restart();
        let (mut list, news, reported) = beside(move || {
            let agents = list.merge(agents, is_complete);
            let reported = Reported::of(&agents);
            let is_same = before.is_some_and(|before| before.has_same_agents(&reported));
            (list, (!is_same).then_some(agents), reported)
        })
        .await
        .ok_or(Disturbance::ReceiverDropped)?;
        match news {
            Some(agents) => {
                self.current();
                self.report(WatchEvent::Listed(agents)).await?;
            }
            None => self.resumed().await?,
        }
        self.state = if is_complete {
            State::Following(reported)
        } else {
            list.postpone();
            State::Confirming(list, reported)
        };
        Ok(())
    }

    fn list(&mut self) -> Option<&mut List> {
        match &mut self.state {
            State::Listing(list) | State::Confirming(list, _) => Some(list),
            State::Empty | State::Following(_) => None,
        }
    }

    fn begin_anew(&mut self) {
        (self.state, self.last_id) = (State::Empty, None);
    }

    /// Records that everything reported is true now. Returns whether that ends an interruption.
    fn current(&mut self) -> bool {
        (self.known, self.failures) = (Some(Known::with_age(Duration::ZERO)), 0);
        self.interruption.take().is_some()
    }

    /// Records the same, and reports the end of an interruption.
    async fn resumed(&mut self) -> Result<(), Disturbance> {
        if self.current() { self.report(WatchEvent::Resumed).await } else { Ok(()) }
    }

    /// Reports an interruption, unless it was reported before.
    async fn interrupted(&mut self, error: Error, is_refused: bool) -> Result<(), Disturbance> {
        let interruption = if is_refused { Interruption::Refusal } else { Interruption::Outage };
        if self.interruption < Some(interruption) {
            self.interruption = Some(interruption);
            tracing::warn!(%error, "the registry cannot be followed, trying again: what is known may be out of date");
            self.report(WatchEvent::Interrupted(error)).await?;
        }
        Ok(())
    }

    async fn report(&mut self, event: WatchEvent) -> Result<(), Disturbance> {
        let known = self.known.unwrap_or(Known::with_age(Duration::ZERO));
        self.reports.send(Report { event, known }).await.map_err(|_| Disturbance::ReceiverDropped)
    }
}

/// Waits for the next step of a list, if one is being read.
async fn next_progress(state: &mut State, client: &RegistryClient) -> Progress {
    match state {
        State::Listing(list) | State::Confirming(list, _) => list.next(client).await,
        State::Empty | State::Following(_) => std::future::pending().await,
    }
}

/// Reads an event.
fn read(kind: EventKind, data: &str) -> Result<Change, serde_json::Error> {
    let agent = serde_json::from_str(data).or_else(|error| {
        // The id of a removed agent suffices.
        let removed = (kind == EventKind::Deregistered).then(|| decode::agent_id(data)).flatten();
        removed.map(|agent_id| AgentRecord::new(agent_id, AgentStatus::Offline)).ok_or(error)
    })?;
    Ok(Change { kind, agent: Arc::new(agent) })
}

impl From<Change> for WatchEvent {
    fn from(Change { kind, agent }: Change) -> Self {
        match kind {
            EventKind::Registered => Self::Registered(agent),
            EventKind::StatusChanged => Self::StatusChanged(agent),
            EventKind::Deregistered => Self::Deregistered(agent),
        }
    }
}
