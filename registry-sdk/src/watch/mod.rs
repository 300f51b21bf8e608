//! Watching the registry: reports every change, across lost connections and restarts.

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

/// Maximum number of changes that wait for a slow consumer. Beyond that the connection is not read; the registry eventually
/// drops it, and the watch reconnects.
const BACKLOG: usize = 256;

/// A stream of all changes in a registry. Created by [`RegistryClient::watch`].
///
/// A watch first reports all agents, then each change in order. Every change of an agent is reported once, unless a
/// [`WatchEvent::Listed`] replaces it. Plain heartbeats are not changes. A background task keeps the connection, reconnects if
/// it is lost, and resumes after the last change. It ends when the watch is dropped.
///
/// The watch continues whatever the registry responds: a refusal is retried like an outage, with delays of up to a minute, and
/// reported as [`WatchEvent::Interrupted`]. If the registry was restored from a backup or its database failed over, all agents
/// are listed again.
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
    /// Follows all agents from now on, in a background task.
    ///
    /// # Panics
    /// If called outside of a Tokio runtime.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let (sender, reports) = mpsc::channel(BACKLOG);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow::run(self.clone(), sender)));
        Watch { reports, _stop: stop.drop_guard() }
    }
}

impl Watch {
    /// Waits for the next event.
    ///
    /// Returns `None` only if the client is configured wrongly, so that no attempt can succeed; a [`WatchEvent::Interrupted`]
    /// before it says why.
    ///
    /// Cancel safe: no event is lost.
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
