//! A channel of agents that are being loaded.

use tokio::sync::{mpsc, watch};

use super::agent::StoredAgent;
use super::rows::AgentRow;

/// Sends loaded agents to a channel, in chunks.
#[derive(Clone, Debug)]
pub(crate) struct AgentSender {
    chunks: mpsc::Sender<Vec<StoredAgent>>,
    chunk: Vec<StoredAgent>,
    /// Notified of each chunk.
    progress: watch::Sender<()>,
}

/// Number of agents in a chunk, and of chunks that the channel holds.
const CHUNK_AGENTS: usize = 64;
const MAX_CHUNKS: usize = 32;

impl AgentSender {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Vec<StoredAgent>>) {
        let (chunks, received) = mpsc::channel(MAX_CHUNKS);
        (Self { chunks, chunk: Vec::new(), progress: watch::Sender::default() }, received)
    }

    /// Returns a receiver that is notified whenever agents have arrived from the database.
    pub(crate) fn progress(&self) -> watch::Receiver<()> {
        self.progress.subscribe()
    }

    /// Sends an agent, unless its row is unreadable.
    pub(crate) async fn send(&mut self, row: AgentRow) {
        let AgentRow::Readable(agent) = row else { return };
        self.chunk.push(*agent);
        if self.chunk.len() == CHUNK_AGENTS {
            self.flush().await;
        }
    }

    /// Sends the last, incomplete chunk.
    pub(crate) async fn flush(&mut self) {
        // A receiver that is gone has given up on the agents.
        let _ = self.chunks.send(std::mem::take(&mut self.chunk)).await;
        self.progress.send_replace(());
    }
}
