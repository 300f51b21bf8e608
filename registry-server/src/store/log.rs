//! The log of changes: events and their positions in the history.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::Timestamp;

use super::agent::StoredAgent;

/// Maximum number of entries in a [`LogPage`].
pub(crate) const MAX_LOG_PAGE: i64 = 1_000;

/// Maximum number of entries in the log of a [`Snapshot`].
///
/// Covers about a minute of changes, and does not delay the start noticeably.
pub(crate) const MAX_REPLAYED_ENTRIES: i64 = 4_096;

/// Number of revisions kept in the log. A server that is further behind reloads everything.
pub(super) const RETAINED_REVISIONS: i64 = 20_000;

/// A position in the history of a registry.
///
/// A database that lost its latest changes (a promoted standby, a restored backup) assigns their revisions
/// again. The random mark distinguishes the changes of one history from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Position {
    pub(crate) revision: i64,
    pub(crate) mark: i64,
}

/// Formats the id of an event: `REVISION-MARK`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.revision, self.mark)
    }
}

/// Parses the id of an event. A revision alone, as sent by older servers, has no mark and so matches no
/// history.
impl FromStr for Position {
    type Err = ();

    fn from_str(id: &str) -> std::result::Result<Self, ()> {
        let (revision, mark) = id.split_once('-').unwrap_or((id, "0"));
        let is_number = !revision.is_empty() && revision.bytes().all(|byte| byte.is_ascii_digit());
        let revision = revision.parse().ok().filter(|_| is_number).ok_or(())?;
        let mark = u64::from_str_radix(mark, 16).map_err(|_| ())?;
        Ok(Self { revision, mark: mark.cast_signed() })
    }
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Registered,
    StatusChanged,
    Deregistered,
    /// A change that only other replicas need: a heartbeat close to its deadline, or an instance that started
    /// or ended.
    Internal,
}

impl EventKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::StatusChanged => "status_changed",
            Self::Deregistered => "deregistered",
            Self::Internal => "heard",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Registered, Self::StatusChanged, Self::Deregistered, Self::Internal];
        all.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A change, numbered by its revision.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: EventKind,
    /// Distinguishes the event from one with the same revision in another history: see [`Position`].
    pub(crate) mark: i64,
    /// The agent after the change. For `Deregistered`, its last state.
    pub(crate) agent: Arc<StoredAgent>,
}

impl Event {
    /// Creates an event with a new mark.
    pub(crate) fn new(kind: EventKind, agent: Arc<StoredAgent>) -> Self {
        Self { kind, mark: fastrand::i64(..), agent }
    }

    pub(crate) fn position(&self) -> Position {
        Position { revision: self.agent.revision, mark: self.mark }
    }

    /// Encodes the agent for the log.
    pub(super) fn agent_json(&self) -> std::result::Result<String, sqlx::Error> {
        serde_json::to_string(&*self.agent).map_err(|error| sqlx::Error::Encode(error.into()))
    }
}

/// A change in the log.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    pub(crate) position: Position,
    pub(crate) agent_id: String,
    /// `None` if the entry cannot be decoded, because a later version of the server may have written it.
    pub(crate) event: Option<Event>,
}

impl LogEntry {
    /// Decodes a stored event.
    pub(super) fn decode(position: Position, agent_id: String, kind: &str, agent: Option<&str>) -> Self {
        let event = || {
            let agent: StoredAgent = serde_json::from_str(agent?).ok()?;
            let kind = EventKind::from_name(kind)?;
            Some(Event { kind, mark: position.mark, agent: Arc::new(agent) })
        };
        Self { position, agent_id, event: event() }
    }
}

impl From<&Event> for LogEntry {
    fn from(event: &Event) -> Self {
        Self {
            position: event.position(),
            agent_id: event.agent.agent_id.clone(),
            event: Some(event.clone()),
        }
    }
}

/// The state row: the end of the history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) position: Position,
    /// The heartbeat timeout of all servers that share this database.
    pub(crate) heartbeat_timeout: Option<Duration>,
    /// Time of the database.
    pub(crate) now: Timestamp,
}

/// A page of the log.
#[derive(Debug)]
pub(crate) struct LogPage {
    pub(crate) head: Head,
    /// Whether the database accepts writes. Standbys and read-only databases do not.
    pub(crate) is_writable: bool,
    /// Entries from the requested revision on, in ascending order. At most [`MAX_LOG_PAGE`].
    ///
    /// Includes the entry of the requested revision itself, if it is still kept.
    pub(crate) entries: Vec<LogEntry>,
}

/// What [`Session::load`](super::Session::load) returns beside the agents: the log and the head at the same position.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The latest log entries up to the head, for watchers that resume. At most [`MAX_REPLAYED_ENTRIES`].
    pub(crate) log: Vec<LogEntry>,
    pub(crate) head: Head,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use registry_sdk::contract::Registration;
    use registry_sdk::internal::Instances;

    use super::*;

    /// Encodes an event, changes its JSON, and decodes it.
    fn decode_changed(
        change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
    ) -> Option<StoredAgent> {
        let mut agent =
            StoredAgent::from_registration(Registration::new("a", "A", "http://a").instance_id("one"))
                .unwrap();
        assert!(agent.instances.claim("one", None, None, Timestamp::from_unix_millis(1)));
        let event = Event::new(EventKind::Registered, agent.into());
        let mut json = serde_json::from_str(&event.agent_json().unwrap()).unwrap();
        change(&mut json);
        let json = serde_json::to_string(&json).unwrap();
        let entry = LogEntry::decode(event.position(), "a".to_owned(), "registered", Some(&json));
        Some(entry.event?.agent.as_ref().clone())
    }

    #[test]
    fn events_of_other_versions_are_decoded() {
        assert!(decode_changed(|_| {}).unwrap().instances.is_running("one"));
        let older = decode_changed(|event| {
            for later in ["instances", "health_path", "probe", "maintenance", "changed_by", "card_digest"] {
                assert!(event.remove(later).is_some(), "{later}");
            }
        });
        let older = older.unwrap();
        assert_eq!((older.instances, older.maintenance), (Instances::default(), None));
        let later = decode_changed(|event| drop(event.insert("probe".to_owned(), "sometimes".into())));
        assert!(!later.unwrap().may_be_probed());
        let later =
            decode_changed(|event| assert!(event.insert("added_later".to_owned(), 1.into()).is_none()));
        assert!(later.unwrap().instances.is_running("one"));
    }
}
