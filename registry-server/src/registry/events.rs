//! The event log behind `GET /events`.
//!
//! Events come from this server's commits and from the follower, in any order. The log sorts them by
//! revision, which has no gaps, and retains the latest ones in encoded form. A watcher has no buffer of its
//! own, only a cursor into the log; if the events after the cursor are no longer retained, the watcher has
//! lagged.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::RwLock;
use registry_sdk::contract;
use tokio::sync::watch;

use super::view::Json;
use crate::store::EventKind;

/// Maximum number of events retained for slow and resuming watchers.
const MAX_RETAINED_EVENTS: i64 = 16_384;

/// Maximum size of the retained events.
const MAX_RETAINED_BYTES: usize = 16 * 1_024 * 1_024;

/// Size at which one read ends.
const READ_BYTES: usize = 64 * 1_024;

/// The latest events, in the order of their revisions.
#[derive(Debug)]
pub(crate) struct EventLog {
    state: RwLock<State>,
    /// Signals that there may be more to read.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Revision up to which all events are published.
    head: i64,
    /// Revision after which all published events are in `frames`.
    base: i64,
    /// Number of resets. Revisions of different epochs cannot be compared.
    epoch: u64,
    /// Events that wait for the ones before them.
    pending: BTreeMap<i64, Option<Vec<u8>>>,
    frames: VecDeque<(i64, Vec<u8>)>,
    bytes: usize,
}

/// A watcher's position in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    after: i64,
    epoch: u64,
}

impl Cursor {
    /// Returns the revision up to which the watcher has read.
    pub(crate) fn revision(&self) -> i64 {
        self.after
    }
}

/// The result of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LogRead {
    /// There are no new events.
    UpToDate,
    /// The next events, encoded.
    Frames(Vec<u8>),
    /// The next events are no longer retained. Contains the revision at which the cursor continues.
    Lagged(i64),
    /// The cursor belongs to another epoch. Contains the revision at which the cursor continues.
    Reset(i64),
}

impl EventLog {
    /// Creates an empty log at a revision.
    pub(super) fn new(head: i64) -> Self {
        let state =
            State { head, base: head, epoch: 0, pending: BTreeMap::new(), frames: VecDeque::new(), bytes: 0 };
        Self { state: RwLock::new(state), changed: watch::Sender::new(()) }
    }

    /// Returns the revision up to which all events are published.
    pub(super) fn head(&self) -> i64 {
        self.state.read().head
    }

    /// Adds events, and publishes those whose predecessors are all there.
    ///
    /// Published revisions are ignored. An internal event has no frame.
    pub(super) fn append(&self, events: impl IntoIterator<Item = (i64, Option<Vec<u8>>)>) {
        let mut state = self.state.write();
        let previous_head = state.head;
        for (revision, frame) in events {
            if revision > state.head {
                state.pending.insert(revision, frame);
            }
        }
        state.publish();
        let has_changed = state.head > previous_head;
        drop(state);
        if has_changed {
            self.changed.send_replace(());
        }
    }

    /// Starts a new epoch at `head`, after all agents were reloaded. The events in between are unknown.
    pub(super) fn reset(&self, head: i64) {
        let mut state = self.state.write();
        let is_rolled_back = head < state.head;
        (state.head, state.base, state.epoch) = (head, head, state.epoch + 1);
        state.frames.clear();
        state.bytes = 0;
        // After a rollback, pending events belong to a history that no longer exists.
        state.pending.retain(|revision, _| *revision > head && !is_rolled_back);
        state.publish();
        drop(state);
        self.changed.send_replace(());
    }

    /// Returns a cursor after a revision, or at the head.
    pub(crate) fn cursor(&self, after: Option<i64>) -> Cursor {
        let state = self.state.read();
        Cursor { after: after.unwrap_or(state.head), epoch: state.epoch }
    }

    /// Returns a receiver that is notified when there may be more to read.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Reads the events after the cursor, and advances it.
    pub(crate) fn read(&self, cursor: &mut Cursor) -> LogRead {
        let state = self.state.read();
        let is_stale = cursor.epoch != state.epoch || cursor.after > state.head;
        if is_stale || cursor.after < state.base {
            *cursor = Cursor { after: state.head, epoch: state.epoch };
            return if is_stale { LogRead::Reset(state.head) } else { LogRead::Lagged(state.head) };
        }
        let start = state.frames.partition_point(|(revision, _)| *revision <= cursor.after);
        let mut frames = Vec::new();
        for (revision, frame) in state.frames.range(start..) {
            frames.extend_from_slice(frame);
            cursor.after = *revision;
            if frames.len() >= READ_BYTES {
                return LogRead::Frames(frames);
            }
        }
        cursor.after = state.head;
        if frames.is_empty() { LogRead::UpToDate } else { LogRead::Frames(frames) }
    }
}

impl State {
    fn publish(&mut self) {
        while let Some(frame) = self.pending.remove(&(self.head + 1)) {
            self.head += 1;
            if let Some(frame) = frame {
                self.bytes += frame.len();
                self.frames.push_back((self.head, frame));
            }
            while self.bytes > MAX_RETAINED_BYTES
                || self.frames.front().is_some_and(|(r, _)| self.head - r >= MAX_RETAINED_EVENTS)
            {
                let Some((revision, frame)) = self.frames.pop_front() else { break };
                (self.base, self.bytes) = (revision, self.bytes - frame.len());
            }
        }
    }
}

/// Encodes an event for the stream; `None` for an internal one.
pub(super) fn encode_frame(kind: EventKind, revision: i64, record: impl FnOnce() -> Json) -> Option<Vec<u8>> {
    let kind = match kind {
        EventKind::Registered => contract::EventKind::Registered,
        EventKind::StatusChanged => contract::EventKind::StatusChanged,
        EventKind::Deregistered => contract::EventKind::Deregistered,
        EventKind::Internal => return None,
    };
    Some(kind.frame(u64::try_from(revision).ok()?, &record()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: i64) -> (i64, Option<Vec<u8>>) {
        (revision, Some(format!("{revision};").into_bytes()))
    }

    fn read(log: &EventLog, cursor: &mut Cursor) -> String {
        match log.read(cursor) {
            LogRead::UpToDate => "up to date".to_owned(),
            LogRead::Frames(frames) => String::from_utf8(frames).unwrap(),
            LogRead::Lagged(head) => format!("lagged {head}"),
            LogRead::Reset(head) => format!("reset {head}"),
        }
    }

    #[test]
    fn events_are_published_in_order_once_and_without_gaps() {
        let log = EventLog::new(10);
        let mut cursor = log.cursor(None);
        log.append([event(12), event(13)]);
        assert_eq!(read(&log, &mut cursor), "up to date", "11 is missing");
        log.append([event(11), event(12), event(9)]);
        assert_eq!(read(&log, &mut cursor), "11;12;13;");
        assert_eq!((read(&log, &mut cursor).as_str(), log.head()), ("up to date", 13));
        log.append([(14, None), event(15)]);
        assert_eq!(read(&log, &mut cursor), "15;", "14 is not visible");
        assert_eq!(read(&log, &mut log.cursor(Some(12))), "13;15;", "a resumed watcher continues");
    }

    #[test]
    fn lagging_watcher_and_one_of_another_epoch_are_told() {
        let log = EventLog::new(0);
        let (mut slow, mut ahead) = (log.cursor(None), log.cursor(Some(99)));
        assert_eq!(read(&log, &mut ahead), "reset 0");
        log.append((1..=MAX_RETAINED_EVENTS).map(event));
        assert!(read(&log, &mut slow.clone()).starts_with("1;2;"), "just in time");
        log.append([event(MAX_RETAINED_EVENTS + 1)]);
        assert_eq!(read(&log, &mut slow), format!("lagged {}", MAX_RETAINED_EVENTS + 1));
        log.append([event(MAX_RETAINED_EVENTS + 2)]);
        assert_eq!(
            read(&log, &mut slow),
            format!("{};", MAX_RETAINED_EVENTS + 2),
            "and continues from there"
        );

        log.reset(50);
        assert_eq!(read(&log, &mut slow), "reset 50", "the database was rolled back");
        log.append([event(51)]);
        assert_eq!(read(&log, &mut slow), "51;");
    }

    #[test]
    fn retained_bytes_are_bounded() {
        let log = EventLog::new(0);
        let mut cursor = log.cursor(None);
        log.append((1..=17).map(|revision| (revision, Some(vec![b'x'; 1_024 * 1_024]))));
        assert_eq!(read(&log, &mut cursor), "lagged 17");
        assert_eq!(log.read(&mut log.cursor(Some(1))), LogRead::Frames(vec![b'x'; 1_024 * 1_024]));
    }
}
