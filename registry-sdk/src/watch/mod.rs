//! Watching the registry: every change as it happens, over lost connections and restarts.

mod event;
mod follow;
mod sse;

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use event::WatchEvent;

use crate::client::RegistryClient;

/// How many changes may wait for a slow consumer before the connection is no longer read. The registry then drops
/// it at some point, and the watch comes back and goes on.
const BACKLOG: usize = 256;

/// Follows all agents of a registry. Made by [`RegistryClient::watch`].
///
/// It begins with everyone there is, then tells each change in order: for each agent, every change is told once,
/// unless there is a [`WatchEvent::Listed`] instead. Plain heartbeats are no change. A task of its own keeps the
/// connection, comes back where it is lost, and goes on after the last change that it saw. It ends when the watch is
/// dropped.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use registry_sdk::{RegistryClient, WatchEvent};
///
/// let mut watch = RegistryClient::new("http://127.0.0.1:8009")?.watch();
/// while let Some(event) = watch.next().await {
///     match event {
///         WatchEvent::Listed(agents) => println!("{} agents", agents.len()),
///         WatchEvent::Registered(agent) => println!("{} is there", agent.agent_id),
///         WatchEvent::StatusChanged(agent) => println!("{} is {}", agent.agent_id, agent.status),
///         WatchEvent::Deregistered(agent) => println!("{} is gone", agent.agent_id),
///         other => println!("{other:?}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
    _stop: DropGuard,
}

impl RegistryClient {
    /// Follows all agents from now on, in a task of its own.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let (sender, events) = mpsc::channel(BACKLOG);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow::run(self.clone(), sender)));
        Watch { events, _stop: stop.drop_guard() }
    }
}

impl Watch {
    /// The next event. `None` where the watch has ended, because no further attempt would mend it: the registry
    /// has no such operation, or refuses the credentials. An [`WatchEvent::Interrupted`] before it says why.
    ///
    /// Cancel safe: nothing is lost.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }
}

impl Stream for Watch {
    type Item = WatchEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.events.poll_recv(context)
    }
}
