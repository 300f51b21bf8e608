//! What is known of agents only for the moment: their load, as heartbeats tell it, and how they answered the last
//! probe.
//!
//! It is not stored: after a restart the next heartbeat or probe tells it again. Replicas tell it each other
//! every so often; what gets lost on the way is told again just as well.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::ProbeResult;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use super::Shared;

/// How often other replicas are told.
const BROADCAST_INTERVAL: Duration = Duration::from_millis(250);

/// The longest message: PostgreSQL takes less than 8,000 bytes.
const MAX_MESSAGE_BYTES: usize = 7_000;

/// What is known of an agent for the moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// How much of its capacity is in use, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) load: Option<f64>,
    /// How many tasks it is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active_tasks: Option<u32>,
    /// How it answered the last probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probe: Option<ProbeResult>,
}

impl Report {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over what a later report says; the rest stays.
    pub(crate) fn update(&mut self, later: Self) {
        self.load = later.load.or(self.load);
        self.active_tasks = later.active_tasks.or(self.active_tasks);
        if later.probe.is_some() {
            self.probe = later.probe;
        }
    }
}

/// Whose reports the other replicas have to be told.
#[derive(Debug, Default)]
pub(crate) struct DirtyReports(Mutex<HashSet<String>>);

/// A message to the other replicas.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    /// The server that tells.
    from: u64,
    reports: Vec<(String, Report)>,
}

impl Shared {
    /// Takes over what this server was told of an agent.
    pub(super) fn report(&self, agent_id: &str, report: Report) {
        if report.is_empty() {
            return;
        }
        self.view.report(agent_id, report);
        if self.store.is_shared() {
            self.dirty_reports.0.lock().insert(agent_id.to_owned());
        }
    }
}

/// Tells the other replicas what is new. Never ends by itself; may be cancelled at any await.
pub(super) async fn broadcast(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(BROADCAST_INTERVAL).await;
        let dirty = std::mem::take(&mut *shared.dirty_reports.0.lock());
        if dirty.is_empty() || shared.availability.unavailable_for().is_some() {
            continue;
        }
        let reports = dirty.into_iter().filter_map(|agent_id| {
            let report = shared.view.entry(&agent_id)?.liveness.report();
            Some((agent_id, report))
        });
        if let Err(error) = shared.store.broadcast(&messages(shared.server_id, reports)).await {
            // The next heartbeats tell it again.
            tracing::debug!(%error, "cannot broadcast reports to the other servers, the next heartbeats send them again");
        }
    }
}

/// Takes over what the other replicas tell. Ends where there are none.
pub(super) async fn receive(shared: Arc<Shared>) {
    let mut broadcasts = shared.store.subscribe();
    loop {
        match broadcasts.recv().await {
            Ok(text) => {
                // What another version of the server says may not be understood.
                let Ok(message) = serde_json::from_str::<Message>(&text) else { continue };
                if message.from != shared.server_id {
                    for (agent_id, report) in message.reports {
                        shared.view.report(&agent_id, report);
                    }
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// As few messages as will do.
fn messages(from: u64, reports: impl Iterator<Item = (String, Report)>) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    for report in reports {
        // Strings and numbers: it cannot fail to serialize.
        let encoded = serde_json::to_string(&report).unwrap_or_default();
        match messages.last_mut() {
            Some(message) if message.len() + encoded.len() < MAX_MESSAGE_BYTES => {
                message.push(',');
                message.push_str(&encoded);
            }
            _ => messages.push(format!(r#"{{"from":{from},"reports":[{encoded}"#)),
        }
    }
    for message in &mut messages {
        message.push_str("]}");
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_is_sent_in_a_message_of_bounded_size() {
        let report = Report { load: Some(0.25), active_tasks: Some(3), probe: None };
        let sent: Vec<_> = (0..1_000).map(|number| (format!("agent-{number}"), report.clone())).collect();
        let messages = messages(7, sent.iter().cloned());
        assert!(messages.iter().all(|message| message.len() < MAX_MESSAGE_BYTES + 10));
        let read: Vec<Message> = messages.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert!(read.iter().all(|message| message.from == 7));
        assert_eq!(read.into_iter().flat_map(|message| message.reports).collect::<Vec<_>>(), sent);
    }
}
