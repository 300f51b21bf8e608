//! The registry's changes in one order, for all who follow them: `GET /events`.
//!
//! Changes come from this server's own lane and from those of other replicas, whichever is first. The log puts
//! them in the order of their revisions, which have no gaps, and keeps the latest as they are sent. A watcher
//! has no buffer of its own: it has a place in the log, and where the log has moved on beyond it, it is told so.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::RwLock;
use registry_sdk::contract;
use tokio::sync::watch;

use super::view::Json;
use crate::store::EventKind;

/// How many changes are kept for watchers that are behind or come back.
const MAX_RETAINED_EVENTS: i64 = 16_384;

/// How many bytes they may have.
const MAX_RETAINED_BYTES: usize = 16 * 1_024 * 1_024;

/// About how many bytes one step gives to a watcher.
const READ_BYTES: usize = 64 * 1_024;

/// The changes in order.
#[derive(Debug)]
pub(crate) struct EventLog {
    state: RwLock<State>,
    /// Changes whenever there is something new to read.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Everything up to this revision is published.
    head: i64,
    /// Everything after this revision, up to `head`, is in `frames`.
    base: i64,
    /// How often the history was broken off: revisions of one history say nothing in another.
    epoch: u64,
    /// What came before its turn.
    pending: BTreeMap<i64, Option<Vec<u8>>>,
    frames: VecDeque<(i64, Vec<u8>)>,
    bytes: usize,
}

/// A watcher's place in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    after: i64,
    epoch: u64,
}

impl Cursor {
    /// The revision up to which the watcher has seen everything.
    pub(crate) fn revision(&self) -> i64 {
        self.after
    }
}

/// What a watcher finds at its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LogRead {
    /// Nothing new yet.
    UpToDate,
    /// The next changes, as they are sent.
    Frames(Vec<u8>),
    /// The watcher is so far behind that what comes next is not kept any more. It would go on after this
    /// revision.
    Lagged(i64),
    /// Its place is of another history than the present one. It goes on after this revision.
    Reset(i64),
}

impl EventLog {
    /// An empty log, at a revision.
    pub(super) fn new(head: i64) -> Self {
        let state =
            State { head, base: head, epoch: 0, pending: BTreeMap::new(), frames: VecDeque::new(), bytes: 0 };
        Self { state: RwLock::new(state), changed: watch::Sender::new(()) }
    }

    /// The revision up to which everything is published.
    pub(super) fn head(&self) -> i64 {
        self.state.read().head
    }

    /// Takes over changes, and publishes those whose turn it is. What is published already is left alone. A change
    /// that nobody is to see has no frame.
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

    /// Breaks off: what was between is not known, and everything was read anew at a revision.
    pub(super) fn reset(&self, head: i64) {
        let mut state = self.state.write();
        let is_rolled_back = head < state.head;
        (state.head, state.base, state.epoch) = (head, head, state.epoch + 1);
        state.frames.clear();
        state.bytes = 0;
        // Of a history that was set back nothing counts any more.
        state.pending.retain(|revision, _| *revision > head && !is_rolled_back);
        state.publish();
        drop(state);
        self.changed.send_replace(());
    }

    /// A place for a watcher who has seen everything up to a revision, or who begins now.
    pub(crate) fn cursor(&self, after: Option<i64>) -> Cursor {
        let state = self.state.read();
        Cursor { after: after.unwrap_or(state.head), epoch: state.epoch }
    }

    /// Wakes when there may be more to read.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What comes after a place, which moves on.
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

/// A change as it is sent. `None` for one that nobody is to see.
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
