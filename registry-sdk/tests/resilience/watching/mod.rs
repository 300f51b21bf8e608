//! Watches and directories over registries that refuse, lag, repeat themselves and change their history.

mod directories;
mod lists;
mod mock;
mod refusals;
mod streams;
mod unreadable;

use std::time::Duration;

use registry_sdk::{RegistryClient, RetryPolicy, Watch, WatchEvent};
use tokio::time::timeout;

use crate::support::{Reply, Server};

/// Longer than anything takes on a paused clock.
const HOUR: Duration = Duration::from_secs(3_600);

/// These servers send no comments, so their streams count as lost after a while.
const BEFORE_SILENCE: Duration = Duration::from_secs(30);

/// An event after this time arrives between the first and the second list.
const AFTER_THE_LIST: Duration = Duration::from_secs(1);

/// A stream that stays open after these blocks.
fn stream(blocks: &str) -> Reply {
    Reply::Stall(head(blocks))
}

/// A stream that ends after these blocks.
fn closed_stream(blocks: &str) -> Reply {
    Reply::Raw(head(blocks))
}

/// A stream of two parts that stays open. Each part arrives in one piece after a pause.
fn stream_in_two(pause: Duration, first: &str, second: &str) -> Reply {
    let padding = second.len().saturating_sub(first.len() + ":\n\n".len());
    let first = format!("{first}:{}\n\n", " ".repeat(padding));
    let size = first.len();
    Reply::Slow(format!("{first}{second}").leak(), size, pause)
}

fn head(blocks: &str) -> &'static str {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{blocks}").leak()
}

/// An event as the registry sends it.
fn event(revision: u64, kind: &str, agent_id: &str, status: &str) -> String {
    let record = record(agent_id, status, revision);
    format!("id: {revision}-m\nevent: {kind}\ndata: {record}\n\n")
}

fn record(agent_id: &str, status: &str, revision: u64) -> String {
    format!(r#"{{"agent_id":"{agent_id}","status":"{status}","revision":{revision}}}"#)
}

fn list(records: &[String]) -> Reply {
    Reply::Answer(200, "", format!("[{}]", records.join(",")).leak())
}

/// A client without retries.
fn client(server: &Server) -> RegistryClient {
    RegistryClient::builder(server.url()).retry(RetryPolicy::none()).build().unwrap()
}

/// The next event in short form. Fails if there is none for a day.
async fn next(watch: &mut Watch) -> String {
    let event = timeout(24 * HOUR, watch.next()).await.unwrap();
    match event.unwrap() {
        WatchEvent::Listed(agents) => {
            let agents: Vec<_> =
                agents.iter().map(|agent| format!(" {} {}", agent.agent_id, agent.status)).collect();
            format!("listed{}", agents.join(","))
        }
        WatchEvent::Registered(agent) => format!("registered {}", agent.agent_id),
        WatchEvent::StatusChanged(agent) => format!("changed {} {}", agent.agent_id, agent.status),
        WatchEvent::Deregistered(agent) => format!("removed {}", agent.agent_id),
        WatchEvent::Interrupted(error) => format!("interrupted: {error}"),
        WatchEvent::Resumed => "resumed".to_owned(),
        other => format!("{other:?}"),
    }
}

/// All events within this time, in short form.
async fn events_within(watch: &mut Watch, time: Duration) -> Vec<String> {
    let mut events = Vec::new();
    let _ = timeout(time, async {
        loop {
            events.push(next(watch).await);
        }
    })
    .await;
    events
}
