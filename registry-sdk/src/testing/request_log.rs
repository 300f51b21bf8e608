//! The requests that arrived at the mock registry.

use tokio::time::Instant;

/// A request that arrived.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReceivedRequest {
    /// The HTTP method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The body, as far as it is text.
    pub body: String,
    /// When it arrived, by Tokio's clock.
    pub at: Instant,
    /// The status it was answered with; `None` where the connection was harmed instead.
    pub status: Option<u16>,
    /// Whether it had been held back on its way: see [`MockRegistry::deliver_late`](super::MockRegistry::deliver_late).
    pub is_late: bool,
}

/// All that has arrived, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct RequestLog(pub Vec<ReceivedRequest>);

impl RequestLog {
    /// How many heartbeats of an agent arrived, well answered or not.
    #[must_use]
    pub fn heartbeats(&self, agent_id: &str) -> usize {
        let path = format!("/agents/{agent_id}/heartbeat");
        self.0.iter().filter(|one| one.path == path).count()
    }

    /// How many registrations of an agent arrived.
    #[must_use]
    pub fn registrations(&self, agent_id: &str) -> usize {
        let of_agent = |one: &&ReceivedRequest| {
            let body = serde_json::from_str::<serde_json::Value>(&one.body).unwrap_or_default();
            one.path == "/register" && body["agent_id"] == agent_id
        };
        self.0.iter().filter(of_agent).count()
    }
}
