//! `GET /events` as read by any client of server-sent events.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{Server, eventually};

/// A change of the registry, as in the database and in streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) kind: String,
    pub(crate) agent_id: String,
}

/// The fields between two empty lines.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Opaque id at which a stream can be resumed.
    pub(crate) id: Option<String>,
    kind: Option<String>,
    pub(crate) data: Value,
}

impl Block {
    fn parse(text: &str) -> Self {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let data = field("data: ").map_or(Value::Null, |data| serde_json::from_str(&data).unwrap());
        Self { id: field("id: "), kind: field("event: "), data }
    }

    pub(crate) fn is_reset(&self) -> bool {
        self.kind.as_deref() == Some("reset")
    }

    /// Returns the registry's revision in a change or a reset.
    pub(crate) fn revision(&self) -> Option<u64> {
        self.data["revision"].as_u64()
    }

    /// Returns the change, or `None` if the block is not a change.
    pub(crate) fn change(&self) -> Option<Change> {
        let kind = self.kind.clone().filter(|kind| kind != "draining" && !self.is_reset())?;
        let agent_id = self.data["agent_id"].as_str().unwrap_or_default().to_owned();
        Some(Change { revision: self.revision().unwrap_or_default(), kind, agent_id })
    }
}

/// A stream that is read until it is dropped. Reconnects after the last id, as browsers do.
pub(crate) struct EventStream {
    blocks: Arc<Mutex<Vec<Block>>>,
    /// Revision after which the stream began.
    from: u64,
    _reader: JoinSet<()>,
}

impl EventStream {
    /// Opens a stream on a registry whose revision is known, and waits until it has begun.
    pub(crate) async fn open(server: &Server, from: u64) -> Self {
        Self::start(server, None, from).await
    }

    /// Resumes a stream after a change whose revision is known.
    pub(crate) async fn resume(server: &Server, last_id: &str, from: u64) -> Self {
        Self::start(server, Some(last_id.to_owned()), from).await
    }

    async fn start(server: &Server, last_id: Option<String>, from: u64) -> Self {
        let blocks = Arc::<Mutex<Vec<Block>>>::default();
        let mut reader = JoinSet::new();
        reader.spawn(read(format!("{}/events", server.url()), last_id, blocks.clone()));
        eventually("the stream has begun", async || !blocks.lock().is_empty()).await;
        Self { blocks, from, _reader: reader }
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        self.blocks.lock().clone()
    }

    /// Whether the stream had each change of a history exactly once and in order.
    ///
    /// Checks all changes after the one at which it began, or after the last `reset`.
    pub(crate) fn has(&self, history: &[Change]) -> Result<(), String> {
        let blocks = self.blocks();
        let reset = blocks.iter().rposition(Block::is_reset);
        let from = reset.map_or(self.from, |reset| blocks[reset].revision().unwrap());
        let received: Vec<_> = blocks[reset.unwrap_or(0)..].iter().filter_map(Block::change).collect();
        let expected: Vec<_> = history.iter().filter(|change| change.revision > from).cloned().collect();
        if received == expected {
            return Ok(());
        }
        let same = received.iter().zip(&expected).take_while(|(one, other)| one == other).count();
        Err(format!(
            "after {from} ({} a reset) {same} changes are right, then the stream has {:?}, and the database {:?}",
            if reset.is_some() { "with" } else { "without" },
            &received[same..],
            &expected[same..]
        ))
    }
}

async fn read(url: String, mut last_id: Option<String>, blocks: Arc<Mutex<Vec<Block>>>) {
    let http = reqwest::Client::new();
    loop {
        let mut request = http.get(&url);
        if let Some(id) = &last_id {
            request = request.header("Last-Event-ID", id);
        }
        if let Ok(mut response) = request.send().await {
            let status = response.status().as_u16();
            if (400..500).contains(&status) && status != 429 {
                blocks.lock().push(Block {
                    id: None,
                    kind: Some(format!("refused: {status}")),
                    data: Value::Null,
                });
                return;
            }
            let mut text = Vec::new();
            while let Ok(Some(chunk)) = response.chunk().await {
                text.extend_from_slice(&chunk);
                while let Some(end) = text.windows(2).position(|end| end == b"\n\n") {
                    let block: Vec<u8> = text.drain(..end + 2).collect();
                    let block = Block::parse(std::str::from_utf8(&block).unwrap());
                    last_id = block.id.clone().or(last_id);
                    blocks.lock().push(block);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
