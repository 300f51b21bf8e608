//! The event log of the mock registry.

use crate::contract::AgentRecord;
use crate::contract::event::{EventKind, OVERRUN_EVENT, RESET_EVENT};

/// The changes so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// Number of times that the registry went back to an earlier state. Streams that were open before have to start over.
    history: u64,
    head: Position,
    /// All changes after this one are kept.
    base: Position,
    kept: Vec<(Position, Vec<u8>)>,
}

/// The revision of a change and a unique mark, because another history has the same revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    revision: u64,
    mark: u64,
}

/// The position of a stream in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// `None` if the change is unknown, or not part of this history.
    history: Option<u64>,
    revision: u64,
}

impl Position {
    /// Formats the id of a change on the wire.
    fn id(self) -> String {
        format!("{}-{:016x}", self.revision, self.mark)
    }

    /// Returns `None` for an invalid id. The number of an older client has a mark that no change has.
    fn parse(id: &str) -> Option<Self> {
        let (revision, mark) = id.split_once('-').unwrap_or((id, "0"));
        Some(Self { revision: revision.parse().ok()?, mark: u64::from_str_radix(mark, 16).ok()? })
    }
}

impl Log {
    /// Creates a log that continues another one with a different future.
    pub(super) fn restored(&self, backup: &Self) -> Self {
        Self { history: self.history + 1, ..backup.clone() }
    }

    /// Returns the revision of the next change.
    pub(super) fn next(&mut self) -> u64 {
        self.head = Position { revision: self.head.revision + 1, mark: fastrand::u64(1..) };
        self.head.revision
    }

    /// Stores the change with the latest revision.
    pub(super) fn keep(&mut self, kind: EventKind, record: &AgentRecord) {
        // Serializing a record cannot fail.
        let record = serde_json::to_vec(record).unwrap_or_default();
        self.kept.push((self.head, kind.frame(self.head.id(), &record)));
    }

    /// Drops all past changes, so that watches get a `reset`.
    pub(super) fn forget(&mut self) {
        self.next();
        (self.base, self.kept) = (self.head, Vec::new());
    }

    /// Returns where a stream begins: after an event, or before the last ones. `None` for an invalid id.
    pub(super) fn begin(&self, last_event_id: Option<&str>, last: usize) -> Option<Cursor> {
        let before_last = || Some(self.before_last(last));
        let position = last_event_id.map_or_else(before_last, Position::parse)?;
        let mut known = self.kept.iter().map(|(position, _)| *position).chain([self.base, self.head]);
        let history = known.any(|known| known == position).then_some(self.history);
        Some(Cursor { history, revision: position.revision })
    }

    fn before_last(&self, count: usize) -> Position {
        if count == 0 {
            return self.head;
        }
        let before = self.kept.iter().rev().nth(count);
        before.map_or(self.base, |(position, _)| *position)
    }

    /// Returns the block of a stream after which everything is new.
    pub(super) fn greeting(&self) -> Vec<u8> {
        format!("id: {}\n\n", self.head.id()).into_bytes()
    }

    /// Returns whether the changes after a cursor are not kept, or not part of this history.
    pub(super) fn has_lost(&self, cursor: Cursor) -> bool {
        cursor.history != Some(self.history) || cursor.revision < self.base.revision
    }

    /// Returns the blocks after a cursor, and the cursor after them.
    pub(super) fn after(&self, cursor: Cursor) -> (Vec<u8>, Cursor) {
        let Position { revision, .. } = self.head;
        let head = Cursor { history: Some(self.history), revision };
        if self.has_lost(cursor) {
            let id = self.head.id();
            let reset = format!("id: {id}\nevent: {RESET_EVENT}\ndata: {{\"revision\": {revision}}}\n\n");
            return (reset.into_bytes(), head);
        }
        let after = self.kept.iter().filter(|(position, _)| position.revision > cursor.revision);
        (after.flat_map(|(_, frame)| frame).copied().collect(), head)
    }

    /// Returns the last event for a slow reader.
    pub(super) fn overrun(&self) -> Vec<u8> {
        let Position { revision, .. } = self.head;
        format!("event: {OVERRUN_EVENT}\ndata: {{\"revision\": {revision}}}\n\n").into_bytes()
    }
}
