//! Transient reports of agents: the load from heartbeats, and the last probe result.
//!
//! Reports are not stored: after a restart the next heartbeat or probe brings them again. Replicas broadcast
//! them to each other periodically; a lost report is replaced by the next one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::ProbeResult;
use serde::{Deserialize, Serialize};

use super::shared::Shared;

/// Interval between broadcasts.
const BROADCAST_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum size of a message. PostgreSQL allows less than 8,000 bytes.
const MAX_MESSAGE_BYTES: usize = 7_000;

/// The transient state of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Fraction of the agent's capacity in use, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) load: Option<f64>,
    /// Number of tasks that the agent is working on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active_tasks: Option<u32>,
    /// Result of the last probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probe: Option<ProbeResult>,
}

impl Report {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Updates the fields that are set in a later report.
    pub(crate) fn update(&mut self, later: Self) {
        self.load = later.load.or(self.load);
        self.active_tasks = later.active_tasks.or(self.active_tasks);
        if later.probe.is_some() {
            self.probe = later.probe;
        }
    }
}

/// Ids of agents whose reports have not been broadcast yet.
#[derive(Debug, Default)]
pub(crate) struct DirtyReports(Mutex<HashSet<String>>);

/// A broadcast to the other replicas.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    /// Id of the sending server.
    from: u64,
    reports: Vec<(String, Report)>,
}

impl Shared {
    /// Records a report that this server received or made.
    pub(super) fn report(&self, agent_id: &str, report: Report) {
        if report.is_empty() {
            return;
        }
        self.view.report(agent_id, report);
        if self.database.is_shared() {
            self.dirty_reports.0.lock().insert(agent_id.to_owned());
        }
    }
}

/// Broadcasts new reports to the other replicas. Never returns.
///
/// # Cancel safety
/// A cancelled broadcast loses reports, which the next heartbeats bring again.
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
        let messages = messages(shared.server_id, reports);
        if let Err(error) = shared.read(|session| session.broadcast(&messages)).await {
            tracing::debug!(%error, "cannot broadcast reports, the next heartbeats bring them again");
        }
    }
}

/// Applies a broadcast, unless it is this server's own.
pub(super) fn receive(shared: &Shared, message: &str) {
    // Another version of the server may send messages of another form.
    let Ok(message) = serde_json::from_str::<Message>(message) else { return };
    if message.from != shared.server_id {
        for (agent_id, report) in message.reports {
            shared.view.report(&agent_id, report);
        }
    }
}

/// Encodes the reports into as few messages as possible.
fn messages(from: u64, reports: impl Iterator<Item = (String, Report)>) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    for report in reports {
        // Strings and numbers always serialize.
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
