//! A connection to `GET /events`.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Response;
use tokio::time::{Instant, timeout_at};

use super::sse::{Block, Parser};
use crate::client::RegistryClient;
use crate::contract::event::{DRAINING_EVENT, OVERRUN_EVENT};
use crate::error::Error;

/// Time limit for the first event of a stream.
const BEGINNING_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum silence of a connection, after which it counts as lost: the registry sends a comment every 15 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(35);

/// Minimum duration of a useful stream without changes.
const SHORT_LIFE: Duration = Duration::from_secs(10);

/// An open stream of blocks.
pub(super) struct EventStream {
    response: Response,
    endpoint: usize,
    parser: Parser,
    /// Blocks that were parsed and not returned yet.
    blocks: VecDeque<Block>,
    opened_at: Instant,
    last_received: Instant,
    pub(super) has_reported_change: bool,
}

/// How a stream ended.
#[derive(Debug)]
pub(super) enum StreamEnd {
    /// The stream was closed, which can have many reasons.
    Closed,
    /// The registry is about to stop.
    Draining,
    /// The endpoint failed.
    Failed(Error),
    /// The stream cannot be read any further: the next event exceeds the maximum length.
    TooLong,
}

impl EventStream {
    /// Opens a stream after an event, or from now on, and waits until it has begun. If nothing is known yet, it has begun with
    /// its first id.
    pub(super) async fn open(client: &RegistryClient, after: Option<&str>) -> Result<Self, StreamEnd> {
        let (response, endpoint) = client.open_events(after).await.map_err(StreamEnd::Failed)?;
        let (parser, now) = (Parser::default(), Instant::now());
        let mut stream = Self {
            response,
            endpoint,
            parser,
            blocks: VecDeque::new(),
            opened_at: now,
            last_received: now,
            has_reported_change: false,
        };
        let has_begun = |block: &Block| after.is_some() || *block != Block::default();
        let end = loop {
            if stream.blocks.iter().any(has_begun) {
                return Ok(stream);
            }
            match stream.receive(now + BEGINNING_TIMEOUT).await {
                Ok(()) => {}
                Err(StreamEnd::Closed | StreamEnd::Draining) => break "it ended before its first event",
                Err(StreamEnd::Failed(_)) => break "it did not begin",
                Err(StreamEnd::TooLong) => return Err(StreamEnd::TooLong),
            }
        };
        client.stream_failed(endpoint);
        Err(StreamEnd::Failed(unreadable(end)))
    }

    /// Waits for the next block. Cancel safe.
    pub(super) async fn next(&mut self, client: &RegistryClient) -> Result<Block, StreamEnd> {
        loop {
            match self.blocks.pop_front() {
                Some(block) if block.is(OVERRUN_EVENT) => return Err(StreamEnd::Closed),
                Some(block) if block.is(DRAINING_EVENT) => {
                    // All calls should go to another endpoint.
                    client.stream_failed(self.endpoint);
                    return Err(StreamEnd::Draining);
                }
                Some(block) => return Ok(block),
                None => {}
            }
            let received = self.receive(self.last_received + SILENCE_TIMEOUT).await;
            if let Err(StreamEnd::Failed(_)) = received {
                client.stream_failed(self.endpoint);
            }
            received?;
        }
    }

    /// Returns whether the stream ended soon and without a change.
    pub(super) fn was_short(&self) -> bool {
        !self.has_reported_change && self.opened_at.elapsed() < SHORT_LIFE
    }

    async fn receive(&mut self, deadline: Instant) -> Result<(), StreamEnd> {
        match timeout_at(deadline, self.response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                self.last_received = Instant::now();
                self.blocks.extend(self.parser.push(&bytes).map_err(|_| StreamEnd::TooLong)?);
                Ok(())
            }
            Ok(_) => Err(StreamEnd::Closed),
            Err(_) => Err(StreamEnd::Failed(unreadable("it was silent for too long"))),
        }
    }
}

fn unreadable(why: &str) -> Error {
    Error::InvalidResponse { status: 200, detail: format!("the event stream cannot be read: {why}") }
}
