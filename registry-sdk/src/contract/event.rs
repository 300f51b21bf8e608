//! What `GET /events` tells.

/// What kind of change an event tells. It has the agent's record with it, as it was after the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// An agent registered, for the first time or with something new.
    Registered,
    /// Its status changed, or whether it is healthy.
    StatusChanged,
    /// It was removed. The record is as it was last.
    Deregistered,
}

/// The event that says that changes were missed: what is known has to be read anew. Its data is
/// `{"revision": …}`.
pub const RESET_EVENT: &str = "reset";

/// The last event of a stream that is closed because its reader was too slow.
pub const OVERRUN_EVENT: &str = "overrun";

/// The last event of a stream of a server that is being drained: the reader connects again at once, to another server if
/// there is one.
pub const DRAINING_EVENT: &str = "draining";

impl EventKind {
    /// Returns the kind with this name; `None` for an event of another kind.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Registered, Self::StatusChanged, Self::Deregistered]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::StatusChanged => "status_changed",
            Self::Deregistered => "deregistered",
        }
    }

    /// A whole event as it is sent: a server-sent event
    /// (<https://html.spec.whatwg.org/multipage/server-sent-events.html>) with an id, which has no
    /// line break. The record is one in compact JSON, which has no bare line break in it: so no text of an agent can end
    /// the event.
    #[must_use]
    pub fn frame(self, id: impl std::fmt::Display, record: &[u8]) -> Vec<u8> {
        let head = format!("id: {id}\nevent: {}\ndata: ", self.as_str());
        // Registries keep many of these: no more than it takes.
        let mut frame = Vec::with_capacity(head.len() + record.len() + 2);
        frame.extend_from_slice(head.as_bytes());
        frame.extend_from_slice(record);
        frame.extend_from_slice(b"\n\n");
        frame
    }
}
