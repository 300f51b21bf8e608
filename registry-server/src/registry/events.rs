//! The latest events in encoded form, as served by `GET /events`.
//!
//! Watchers have no buffer, only a cursor into the log. A watcher has lagged if the events after its cursor
//! are no longer retained. The log is part of the view and under the same lock, so a watcher never learns of
//! a change that reads do not show yet.

use std::collections::VecDeque;

use crate::store::Position;

/// Maximum number of entries retained for slow and resuming watchers.
const MAX_RETAINED_ENTRIES: usize = 16_384;

/// Maximum total size of the retained events.
const MAX_RETAINED_BYTES: usize = 16 * 1_024 * 1_024;

/// Size after which a read ends.
const READ_BYTES: usize = 64 * 1_024;

/// The latest entries, with consecutive revisions.
#[derive(Debug)]
pub(super) struct EventLog {
    /// The position before the oldest retained entry.
    base: Position,
    /// Positions, each with its event as sent to watchers. `None` for internal events.
    entries: VecDeque<(Position, Option<Vec<u8>>)>,
    bytes: usize,
    /// Number of resets. Cursors of earlier epochs are reset.
    epoch: u64,
}

/// A watcher's position in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    after: Position,
    epoch: u64,
}

impl Cursor {
    /// Returns the position up to which the watcher has read.
    pub(crate) fn position(&self) -> Position {
        self.after
    }
}

/// The position at which an event stream starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StreamStart {
    /// After this position.
    After(Position),
    /// Before the last events, this many of them or as many as are retained.
    Last(usize),
}

/// The result of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LogRead {
    /// There are no new events.
    UpToDate,
    /// The next events, encoded.
    Frames(Vec<u8>),
    /// The next events are no longer retained. The cursor continues at this position.
    Lagged(Position),
    /// The cursor is not in the registry's history, and continues at this position.
    Reset(Position),
}

impl EventLog {
    /// Creates an empty log at a position.
    pub(super) fn new(head: Position, epoch: u64) -> Self {
        Self { base: head, entries: VecDeque::new(), bytes: 0, epoch }
    }

    /// Returns the position of the last entry.
    pub(super) fn head(&self) -> Position {
        self.entries.back().map_or(self.base, |(position, _)| *position)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Appends the next entry.
    pub(super) fn push(&mut self, position: Position, frame: Option<Vec<u8>>) {
        self.bytes += frame.as_ref().map_or(0, Vec::len);
        self.entries.push_back((position, frame));
        while self.entries.len() > MAX_RETAINED_ENTRIES || self.bytes > MAX_RETAINED_BYTES {
            let Some((position, frame)) = self.entries.pop_front() else { break };
            (self.base, self.bytes) = (position, self.bytes - frame.map_or(0, |frame| frame.len()));
        }
    }

    /// Returns the cursor at which a stream starts.
    pub(super) fn cursor(&self, start: StreamStart) -> Cursor {
        let after = match start {
            StreamStart::After(position) => position,
            StreamStart::Last(count) => self.before_last(count),
        };
        Cursor { after, epoch: self.epoch }
    }

    /// Returns the position before the last `count` events, or before all retained ones. Ignores internal
    /// events.
    fn before_last(&self, count: usize) -> Position {
        let events = self.entries.iter().enumerate().filter(|(_, (_, frame))| frame.is_some());
        let Some((first, _)) = events.rev().take(count).last() else { return self.head() };
        first.checked_sub(1).and_then(|before| self.entries.get(before)).map_or(self.base, |entry| entry.0)
    }

    /// Reads the events after the cursor, and advances the cursor.
    pub(super) fn read(&self, cursor: &mut Cursor) -> LogRead {
        let Some(start) = self.index_after(cursor) else {
            let has_lagged = cursor.epoch == self.epoch && cursor.after.revision < self.base.revision;
            *cursor = Cursor { after: self.head(), epoch: self.epoch };
            return if has_lagged { LogRead::Lagged(cursor.after) } else { LogRead::Reset(cursor.after) };
        };
        let mut frames = Vec::new();
        for (position, frame) in self.entries.range(start..) {
            frames.extend(frame.iter().flatten());
            cursor.after = *position;
            if frames.len() >= READ_BYTES {
                break;
            }
        }
        if frames.is_empty() { LogRead::UpToDate } else { LogRead::Frames(frames) }
    }

    /// Whether a position is in the history. `None` if it precedes the retained entries, so that this is
    /// unknown.
    pub(super) fn contains(&self, position: Position) -> Option<bool> {
        let count = usize::try_from(position.revision - self.base.revision).ok()?;
        let retained = match count.checked_sub(1) {
            Some(index) => self.entries.get(index).map(|(position, _)| *position),
            None => Some(self.base),
        };
        Some(retained == Some(position))
    }

    /// Returns the index of the first entry after the cursor.
    ///
    /// `None` if the cursor is not in this history, or its entry is not retained.
    fn index_after(&self, cursor: &Cursor) -> Option<usize> {
        let is_known = cursor.epoch == self.epoch && self.contains(cursor.after) == Some(true);
        usize::try_from(cursor.after.revision - self.base.revision).ok().filter(|_| is_known)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(revision: i64) -> Position {
        Position { revision, mark: 1_000 + revision }
    }

    fn push(log: &mut EventLog, revisions: impl IntoIterator<Item = i64>) {
        for revision in revisions {
            log.push(at(revision), Some(format!("{revision};").into_bytes()));
        }
    }

    fn read(log: &EventLog, cursor: &mut Cursor) -> String {
        match log.read(cursor) {
            LogRead::UpToDate => "up to date".to_owned(),
            LogRead::Frames(frames) => String::from_utf8(frames).unwrap(),
            LogRead::Lagged(head) => format!("lagged {}", head.revision),
            LogRead::Reset(head) => format!("reset {}", head.revision),
        }
    }

    #[test]
    fn watcher_continues_at_its_cursor_and_resumes_after_any_entry() {
        let mut log = EventLog::new(at(10), 0);
        let mut cursor = log.cursor(StreamStart::Last(0));
        assert_eq!(read(&log, &mut cursor), "up to date");
        push(&mut log, 11..=13);
        assert_eq!(read(&log, &mut cursor), "11;12;13;");
        log.push(at(14), None);
        assert_eq!(read(&log, &mut cursor), "up to date", "14 is internal");
        push(&mut log, 15..=15);
        assert_eq!(read(&log, &mut cursor), "15;");
        assert_eq!(
            read(&log, &mut log.cursor(StreamStart::After(at(12)))),
            "13;15;",
            "a resumed watcher continues"
        );
        assert_eq!(read(&log, &mut log.cursor(StreamStart::After(at(10)))), "11;12;13;15;");
        assert_eq!(log.head(), at(15));
    }

    #[test]
    fn position_in_another_history_is_reset() {
        let mut log = EventLog::new(at(10), 0);
        push(&mut log, 11..=13);
        for other in [Position { revision: 12, mark: 7 }, Position { revision: 10, mark: 7 }, at(14), at(99)]
        {
            assert_eq!(read(&log, &mut log.cursor(StreamStart::After(other))), "reset 13", "{other:?}");
        }
        let mut cursor = log.cursor(StreamStart::Last(0));
        let mut log = EventLog::new(at(13), 1);
        assert_eq!(read(&log, &mut cursor), "reset 13", "an earlier epoch");
        push(&mut log, 14..=14);
        assert_eq!(read(&log, &mut cursor), "14;");
    }

    #[test]
    fn stream_starts_before_the_last_retained_events() {
        let mut log = EventLog::new(at(10), 0);
        let last = |log: &EventLog, count| read(log, &mut log.cursor(StreamStart::Last(count)));
        assert_eq!(last(&log, 5), "up to date");
        log.push(at(11), None);
        assert_eq!(last(&log, 5), "up to date", "11 is internal");
        push(&mut log, 12..=13);
        log.push(at(14), None);
        push(&mut log, 15..=15);
        log.push(at(16), None);
        assert_eq!(last(&log, 0), "up to date");
        assert_eq!(last(&log, 1), "15;");
        assert_eq!(last(&log, 2), "13;15;");
        assert_eq!(last(&log, 3), "12;13;15;");
        assert_eq!(last(&log, 1_000), "12;13;15;");
        push(&mut log, 17..=10 + i64::try_from(MAX_RETAINED_ENTRIES).unwrap());
        assert!(last(&log, MAX_RETAINED_ENTRIES).starts_with("12;13;15;17;"));
        push(&mut log, [11 + i64::try_from(MAX_RETAINED_ENTRIES).unwrap()]);
        push(&mut log, [12 + i64::try_from(MAX_RETAINED_ENTRIES).unwrap()]);
        assert!(last(&log, MAX_RETAINED_ENTRIES).starts_with("13;15;17;"), "12 is no longer retained");
    }

    #[test]
    fn lagging_watcher_is_notified() {
        let mut log = EventLog::new(at(0), 0);
        let mut slow = log.cursor(StreamStart::Last(0));
        let most = i64::try_from(MAX_RETAINED_ENTRIES).unwrap();
        push(&mut log, 1..=most);
        assert!(read(&log, &mut slow.clone()).starts_with("1;2;"), "the last moment");
        push(&mut log, [most + 1]);
        assert_eq!(read(&log, &mut slow), format!("lagged {}", MAX_RETAINED_ENTRIES + 1));
    }

    #[test]
    fn retained_bytes_are_bounded() {
        let mut log = EventLog::new(at(0), 0);
        let mut cursor = log.cursor(StreamStart::Last(0));
        for revision in 1..=17 {
            log.push(at(revision), Some(vec![b'x'; 1_024 * 1_024]));
        }
        assert_eq!(read(&log, &mut cursor), "lagged 17");
        assert_eq!(
            log.read(&mut log.cursor(StreamStart::After(at(1)))),
            LogRead::Frames(vec![b'x'; 1_024 * 1_024])
        );
    }
}
