//! Broadcasts between servers that share a database: reports of agents, and the servers' own settings.
//!
//! Broadcasts are not stored and may get lost. The next one repeats or supersedes the content.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::replicas::Settings;
use super::reports::Report;
use super::shared::Shared;
use crate::store::Result;

/// Interval between broadcasts of reports.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// Interval at which a server announces its settings.
const ROUND_INTERVAL: Duration = Duration::from_secs(15);

/// Maximum size of a message. PostgreSQL's limit is just under 8,000 bytes.
const MAX_MESSAGE_BYTES: usize = 7_000;

/// A broadcast to the other servers.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    /// Id of the sending server.
    from: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reports: Vec<(String, Report)>,
    /// Settings of the sending server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
}

/// Broadcasts new reports and this server's settings. Never returns.
///
/// # Cancel safety
/// A cancelled broadcast loses reports, which the next heartbeats bring again.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut report_ticks = ticks(REPORT_INTERVAL);
    let mut rounds = ticks(ROUND_INTERVAL);
    loop {
        let outcome = tokio::select! {
            () = shared.replicas.introduction_due() => introduce(&shared).await,
            _ = report_ticks.tick() => broadcast_reports(&shared).await,
            _ = rounds.tick() => {
                let introduced = introduce(&shared).await;
                if introduced.is_ok() {
                    shared.replicas.end_round();
                }
                introduced
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "cannot broadcast to the other servers, the next broadcast makes up for it");
        }
    }
}

fn ticks(interval: Duration) -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn introduce(shared: &Shared) -> Result<()> {
    let settings = Some(shared.replicas.own().clone());
    let message = Message { from: shared.server_id, reports: Vec::new(), settings };
    // Strings and numbers always serialize.
    let messages = [serde_json::to_string(&message).unwrap_or_default()];
    shared.read(|session| session.broadcast(&messages)).await
}

async fn broadcast_reports(shared: &Shared) -> Result<()> {
    let dirty = shared.dirty_reports.take();
    if dirty.is_empty() || shared.availability.unavailable_for().is_some() {
        return Ok(());
    }
    let reports = dirty.into_iter().filter_map(|agent_id| {
        let report = shared.view.entry(&agent_id)?.liveness.report();
        Some((agent_id, report))
    });
    let messages = report_messages(shared.server_id, reports);
    shared.read(|session| session.broadcast(&messages)).await
}

/// Applies a broadcast, unless this server sent it.
pub(super) fn receive(shared: &Shared, message: &str) {
    // Other versions of the server may send messages in another format.
    let Ok(message) = serde_json::from_str::<Message>(message) else { return };
    if message.from == shared.server_id {
        return;
    }
    for (agent_id, report) in message.reports {
        shared.view.report(&agent_id, report);
    }
    if let Some(settings) = message.settings {
        shared.replicas.record(message.from, settings);
    }
}

/// Encodes the reports into as few messages as possible.
fn report_messages(from: u64, reports: impl Iterator<Item = (String, Report)>) -> Vec<String> {
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
        let messages = report_messages(7, sent.iter().cloned());
        assert!(messages.iter().all(|message| message.len() < MAX_MESSAGE_BYTES + 10));
        let read: Vec<Message> = messages.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert!(read.iter().all(|message| message.from == 7));
        assert_eq!(read.into_iter().flat_map(|message| message.reports).collect::<Vec<_>>(), sent);
    }
}
