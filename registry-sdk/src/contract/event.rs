//! The events of `GET /events`.

/// The kind of change that an event reports. An event carries the agent's record after the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// An agent registered for the first time, or with a changed registration.
    Registered,
    /// The agent's status, maintenance or health changed.
    StatusChanged,
    /// The agent was removed. The event carries its last record.
    Deregistered,
}

/// Event that reports missed changes: the reader has to list all agents again. Its data is `{"revision": …}`.
pub const RESET_EVENT: &str = "reset";

/// Last event of a stream, sent before a slow reader is disconnected.
pub const OVERRUN_EVENT: &str = "overrun";

/// Last event of a stream, sent by a server that is being drained: the reader should reconnect at once, to another server if
/// there is one.
pub const DRAINING_EVENT: &str = "draining";

impl EventKind {
    /// Returns the kind with this name, or `None` for any other event.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Registered, Self::StatusChanged, Self::Deregistered]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }

    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::StatusChanged => "status_changed",
            Self::Deregistered => "deregistered",
        }
    }

    /// Encodes a server-sent event (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
    ///
    /// The id must not contain a line break. The record is compact JSON, which never contains one, so no text of an agent can
    /// end the event early.
    #[must_use]
    pub fn frame(self, id: impl std::fmt::Display, record: &[u8]) -> Vec<u8> {
        let head = format!("id: {id}\nevent: {}\ndata: ", self.as_str());
        // Registries keep many frames, so the capacity is exact.
        let mut frame = Vec::with_capacity(head.len() + record.len() + 2);
        frame.extend_from_slice(head.as_bytes());
        frame.extend_from_slice(record);
        frame.extend_from_slice(b"\n\n");
        frame
    }
}
