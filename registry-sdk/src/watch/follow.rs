//! The task behind a watch: connects, lists, follows, and begins again where it has to.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::event::WatchEvent;
use super::sse::{Block, Message, Parser};
use crate::client::{Aged, RegistryClient};
use crate::contract::{AgentRecord, AgentStatus, EventKind, OVERRUN_EVENT, RESET_EVENT};
use crate::decode;
use crate::error::Error;
use crate::query::ListQuery;
use crate::retry::Backoff;

/// A connection that says nothing for so long is lost: the registry sends a sign of life every 15 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);

/// Delays before the next attempt.
const BACKOFF: Backoff =
    Backoff { min_delay: Duration::from_millis(500), max_delay: Duration::from_secs(5), factor: 2.0 };

/// Follows until nobody listens any more, or no further attempt would be of use. May be cancelled at any await.
pub(super) async fn run(client: RegistryClient, events: mpsc::Sender<WatchEvent>) {
    let mut follower = Follower {
        client,
        events,
        last_id: None,
        listed: HashMap::new(),
        is_interrupted: false,
        has_listed: false,
        failures: 0,
    };
    loop {
        let Err(end) = follower.follow().await;
        let delay = match end {
            Disconnect::ReceiverDropped => return,
            Disconnect::Lost => BACKOFF.delay(0, None),
            Disconnect::Failed(error) => {
                let is_refused = error.is_refused() || matches!(error, Error::Unsupported { .. });
                // Perhaps it was the id that was refused.
                let is_final = is_refused && follower.last_id.take().is_none();
                if follower.interrupted(&error).await.is_err() || is_final {
                    return;
                }
                follower.failures = follower.failures.saturating_add(1);
                BACKOFF.delay(follower.failures, error.retry_after())
            }
        };
        sleep(delay).await;
    }
}

/// Why a connection is not followed any more.
enum Disconnect {
    /// It was closed.
    Lost,
    Failed(Error),
    ReceiverDropped,
}

impl From<Error> for Disconnect {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<mpsc::error::SendError<WatchEvent>> for Disconnect {
    fn from(_: mpsc::error::SendError<WatchEvent>) -> Self {
        Self::ReceiverDropped
    }
}

struct Follower {
    client: RegistryClient,
    events: mpsc::Sender<WatchEvent>,
    /// The last change that was seen; `None` where everything has to be listed.
    last_id: Option<String>,
    /// What the last list had of each agent, as long as older changes may follow it.
    listed: HashMap<String, u64>,
    is_interrupted: bool,
    has_listed: bool,
    /// How many attempts in a row have failed.
    failures: u32,
}

impl Follower {
    /// Follows one connection to its end.
    async fn follow(&mut self) -> Result<Infallible, Disconnect> {
        let (mut response, endpoint) = self.client.open_events(self.last_id.as_deref()).await?;
        // From here on the registry sends every change, so a list that is read now misses none.
        if self.last_id.is_none() {
            self.list().await?;
        }
        let (mut parser, mut has_spoken) = (Parser::default(), false);
        loop {
            let bytes = match read(&mut response).await {
                Ok(bytes) => bytes,
                // Streams are closed for many reasons. One that was silent, or never said anything, is no good.
                Err(Lost { was_silent, .. }) if has_spoken && !was_silent => return Err(Disconnect::Lost),
                Err(Lost { detail, .. }) => {
                    self.client.stream_failed(endpoint);
                    return Err(invalid_stream(detail));
                }
            };
            let blocks =
                parser.push(bytes.as_ref()).map_err(|_| invalid_stream("an event of it does not end"))?;
            for block in blocks {
                let is_reset = matches!(&block, Block::Message(message) if message.event == RESET_EVENT);
                if self.is_interrupted && !is_reset {
                    self.is_interrupted = false;
                    self.events.send(WatchEvent::Resumed).await?;
                }
                (self.failures, has_spoken) = (0, true);
                match block {
                    Block::KeepAlive => {}
                    Block::Message(_) if is_reset => self.list().await?,
                    Block::Message(message) => self.publish(message).await?,
                }
            }
            if let Some(id) = parser.last_id() {
                self.last_id = Some(id.to_owned());
            }
        }
    }

    /// Lists all agents anew.
    async fn list(&mut self) -> Result<(), Disconnect> {
        self.last_id = None;
        let Aged { value: page, age } = self.client.list_with_age(ListQuery::all()).await?;
        // If the outage was reported already, a list from memory adds nothing.
        if age.is_zero() || !(self.is_interrupted && self.has_listed) {
            let revision = |agent: &AgentRecord| Some((agent.agent_id.clone(), agent.revision?));
            self.listed = page.agents.iter().filter_map(revision).collect();
            (self.is_interrupted, self.has_listed) = (false, true);
            let agents = page.agents.into_iter().map(Arc::new).collect();
            self.events.send(WatchEvent::Listed(agents)).await?;
        }
        if age.is_zero() {
            return Ok(());
        }
        let detail = format!("it answers from memory: its database has been away for {age:?}");
        Err(Error::Unavailable { status: 503, detail, retry_after: None }.into())
    }

    async fn publish(&mut self, message: Message) -> Result<(), Disconnect> {
        if message.event == OVERRUN_EVENT {
            return Err(Disconnect::Lost);
        }
        // Kinds of a later time say nothing here.
        let Ok(kind) = message.event.parse::<EventKind>() else { return Ok(()) };
        let agent: AgentRecord = match serde_json::from_str(&message.data) {
            Ok(agent) => agent,
            Err(error) => {
                // A removed agent is known by its id alone.
                let removed =
                    (kind == EventKind::Deregistered).then(|| decode::agent_id(&message.data)).flatten();
                let Some(agent_id) = removed else {
                    tracing::warn!(
                        event = message.event, %error,
                        "skipped an event that cannot be read, listing all agents anew"
                    );
                    return self.list().await;
                };
                AgentRecord::new(agent_id, AgentStatus::Offline)
            }
        };
        if self.is_listed(&agent) {
            return Ok(());
        }
        let agent = Arc::new(agent);
        let event = match kind {
            EventKind::Registered => WatchEvent::Registered(agent),
            EventKind::StatusChanged => WatchEvent::StatusChanged(agent),
            EventKind::Deregistered => WatchEvent::Deregistered(agent),
        };
        Ok(self.events.send(event).await?)
    }

    /// Whether the list that was read meanwhile has a change already, or a later one of the same agent.
    fn is_listed(&mut self, agent: &AgentRecord) -> bool {
        let Some(revision) = agent.revision else { return false };
        if self.listed.values().all(|listed| *listed < revision) {
            // Whatever follows is later than the list.
            self.listed = HashMap::new();
            return false;
        }
        self.listed.get(&agent.agent_id).is_some_and(|listed| *listed >= revision)
    }

    /// Tells an interruption, where it is news.
    async fn interrupted(&mut self, error: &Error) -> Result<(), Disconnect> {
        if !self.is_interrupted {
            self.is_interrupted = true;
            tracing::warn!(%error, "the registry cannot be followed: what is known may be out of date");
            self.events.send(WatchEvent::Interrupted(error.clone())).await?;
        }
        Ok(())
    }
}

/// How a connection ended.
struct Lost {
    was_silent: bool,
    detail: &'static str,
}

async fn read(response: &mut Response) -> Result<impl AsRef<[u8]>, Lost> {
    match timeout(SILENCE_TIMEOUT, response.chunk()).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(_) => Err(Lost { was_silent: false, detail: "it ended before its first event" }),
        Err(_) => Err(Lost { was_silent: true, detail: "it was silent for too long" }),
    }
}

fn invalid_stream(why: impl std::fmt::Display) -> Disconnect {
    let detail = format!("the event stream cannot be read: {why}");
    Error::InvalidResponse { status: 200, detail }.into()
}
