//! The log of requests to the mock registry.

use tokio::time::Instant;

/// A request that the mock registry received.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReceivedRequest {
    /// The HTTP method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The body, if it is text.
    pub body: String,
    /// When it arrived, by Tokio's clock.
    pub at: Instant,
    /// The status of the response; `None` if the connection was closed instead, or the request hangs.
    pub status: Option<u16>,
    /// Whether the request was held back: see [`MockRegistry::deliver_late`](super::MockRegistry::deliver_late).
    pub is_late: bool,
}

/// All requests that have arrived, oldest first.
///
/// A request of [`MockRegistry::deliver_late`](super::MockRegistry::deliver_late) is recorded, and counted, twice: when it arrives,
/// without a status, and when it takes effect.
#[derive(Clone, Debug, Default)]
pub struct RequestLog(pub Vec<ReceivedRequest>);

impl RequestLog {
    /// Returns the number of an agent's heartbeats that have arrived, whether or not they were accepted.
    #[must_use]
    pub fn heartbeats(&self, agent_id: &str) -> usize {
        let path = format!("/agents/{agent_id}/heartbeat");
        self.0.iter().filter(|one| one.path == path).count()
    }

    /// Returns the number of an agent's registrations that have arrived.
    #[must_use]
    pub fn registrations(&self, agent_id: &str) -> usize {
        let of_agent = |one: &&ReceivedRequest| {
            let body = serde_json::from_str::<serde_json::Value>(&one.body).unwrap_or_default();
            one.path == "/register" && body["agent_id"] == agent_id
        };
        self.0.iter().filter(of_agent).count()
    }
}
