//! Watching the registry: every change as it happens, over lost connections and restarts.

mod event;
mod follow;
mod list;
mod sse;
mod stream;

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use event::WatchEvent;
pub(crate) use event::{Known, Report};

use crate::client::RegistryClient;

/// How many changes may wait for a slow consumer before the connection is no longer read. The registry then drops
/// it at some point, and the watch comes back and goes on.
const BACKLOG: usize = 256;

/// Follows all agents of a registry. Made by [`RegistryClient::watch`].
///
/// It begins with all agents, then reports each change in order: for each agent, every change is reported once, unless there is a
/// [`WatchEvent::Listed`] instead. Plain heartbeats are no change. A task of its own keeps the connection, makes another one if
/// it is lost, and goes on after the last change that it saw. It ends when the watch is dropped.
///
/// Whatever the registry answers, the watch goes on: a refusal is retried like an outage, with pauses of up to a minute, and
/// reported by a [`WatchEvent::Interrupted`]. If the registry was restored from a backup or its database failed over, all agents
/// are listed anew.
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
    reports: mpsc::Receiver<Report>,
    _stop: DropGuard,
}

impl RegistryClient {
    /// Follows all agents from now on, in a task of its own.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let (sender, reports) = mpsc::channel(BACKLOG);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow::run(self.clone(), sender)));
        Watch { reports, _stop: stop.drop_guard() }
    }
}

impl Watch {
    /// The next event. `None` only if the client is set up wrongly, so that no attempt can succeed. A
    /// [`WatchEvent::Interrupted`] before it says why.
    ///
    /// Cancel safe: nothing is lost.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.next_report().await.map(|report| report.event)
    }

    pub(crate) async fn next_report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }
}

impl Stream for Watch {
    type Item = WatchEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.reports.poll_recv(context).map(|report| report.map(|report| report.event))
    }
}
