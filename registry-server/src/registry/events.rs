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
const KEPT: i64 = 16_384;

/// How many bytes they may have.
const KEPT_BYTES: usize = 16 * 1_024 * 1_024;

/// About how many bytes one step gives to a watcher.
const STEP_BYTES: usize = 64 * 1_024;

/// The changes in order.
#[derive(Debug)]
pub(crate) struct EventLog {
    state: RwLock<State>,
    /// Changes whenever there is something new to read.
    moved: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Everything up to this revision is published.
    head: i64,
    /// Everything after this revision, up to `head`, is in `frames`.
    base: i64,
    /// How often the history was broken off: revisions of one history say nothing in another.
    history: u64,
    /// What came before its turn.
    pending: BTreeMap<i64, Option<Vec<u8>>>,
    frames: VecDeque<(i64, Vec<u8>)>,
    bytes: usize,
}

/// A watcher's place in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    after: i64,
    history: u64,
}

impl Place {
    /// The revision up to which the watcher has seen everything.
    pub(crate) fn revision(&self) -> i64 {
        self.after
    }
}

/// What a watcher finds at its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing new yet.
    Wait,
    /// The next changes, as they are sent.
    Frames(Vec<u8>),
    /// The watcher is so far behind that what comes next is not kept any more. It would go on after this
    /// revision.
    Behind(i64),
    /// Its place is of another history than the present one. It goes on after this revision.
    Broken(i64),
}

impl EventLog {
    /// An empty log, at a revision.
    pub(super) fn new(head: i64) -> Self {
        let state = State {
            head,
            base: head,
            history: 0,
            pending: BTreeMap::new(),
            frames: VecDeque::new(),
            bytes: 0,
        };
        Self { state: RwLock::new(state), moved: watch::Sender::new(()) }
    }

    /// The revision up to which everything is published.
    pub(super) fn head(&self) -> i64 {
        self.state.read().head
    }

    /// Takes over changes, and publishes those whose turn it is. What is published already is left alone. A change
    /// that nobody is to see has no frame.
    pub(super) fn offer(&self, changes: impl IntoIterator<Item = (i64, Option<Vec<u8>>)>) {
        let mut state = self.state.write();
        let before = state.head;
        for (revision, frame) in changes {
            if revision > state.head {
                state.pending.insert(revision, frame);
            }
        }
        state.publish();
        let has_moved = state.head > before;
        drop(state);
        if has_moved {
            self.moved.send_replace(());
        }
    }

    /// Breaks off: what was between is not known, and everything was read anew at a revision.
    pub(super) fn break_off(&self, head: i64) {
        let mut state = self.state.write();
        let set_back = head < state.head;
        (state.head, state.base, state.history) = (head, head, state.history + 1);
        state.frames.clear();
        state.bytes = 0;
        // Of a history that was set back nothing counts any more.
        state.pending.retain(|revision, _| *revision > head && !set_back);
        state.publish();
        drop(state);
        self.moved.send_replace(());
    }

    /// A place for a watcher who has seen everything up to a revision, or who begins now.
    pub(crate) fn place(&self, after: Option<i64>) -> Place {
        let state = self.state.read();
        Place { after: after.unwrap_or(state.head), history: state.history }
    }

    /// Wakes when there may be more to read.
    pub(crate) fn moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// What comes after a place, which moves on.
    pub(crate) fn read(&self, place: &mut Place) -> Step {
        let state = self.state.read();
        let is_broken = place.history != state.history || place.after > state.head;
        if is_broken || place.after < state.base {
            *place = Place { after: state.head, history: state.history };
            return if is_broken { Step::Broken(state.head) } else { Step::Behind(state.head) };
        }
        let from = state.frames.partition_point(|(revision, _)| *revision <= place.after);
        let mut found = Vec::new();
        for (revision, frame) in state.frames.range(from..) {
            found.extend_from_slice(frame);
            place.after = *revision;
            if found.len() >= STEP_BYTES {
                return Step::Frames(found);
            }
        }
        place.after = state.head;
        if found.is_empty() { Step::Wait } else { Step::Frames(found) }
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
            while self.bytes > KEPT_BYTES || self.frames.front().is_some_and(|(r, _)| self.head - r >= KEPT) {
                let Some((revision, frame)) = self.frames.pop_front() else { break };
                (self.base, self.bytes) = (revision, self.bytes - frame.len());
            }
        }
    }
}

/// A change as it is sent. `None` for one that nobody is to see.
pub(super) fn frame(kind: EventKind, revision: i64, record: impl FnOnce() -> Json) -> Option<Vec<u8>> {
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

    fn change(revision: i64) -> (i64, Option<Vec<u8>>) {
        (revision, Some(format!("{revision};").into_bytes()))
    }

    fn read(log: &EventLog, place: &mut Place) -> String {
        match log.read(place) {
            Step::Wait => "wait".to_owned(),
            Step::Frames(frames) => String::from_utf8(frames).unwrap(),
            Step::Behind(head) => format!("behind {head}"),
            Step::Broken(head) => format!("broken {head}"),
        }
    }

    #[test]
    fn changes_are_published_in_order_once_and_without_gaps() {
        let log = EventLog::new(10);
        let mut place = log.place(None);
        log.offer([change(12), change(13)]);
        assert_eq!(read(&log, &mut place), "wait", "11 is missing");
        log.offer([change(11), change(12), change(9)]);
        assert_eq!(read(&log, &mut place), "11;12;13;");
        assert_eq!((read(&log, &mut place).as_str(), log.head()), ("wait", 13));
        log.offer([(14, None), change(15)]);
        assert_eq!(read(&log, &mut place), "15;", "14 is nothing to see");
        assert_eq!(read(&log, &mut log.place(Some(12))), "13;15;", "who comes back goes on");
    }

    #[test]
    fn who_is_too_far_behind_or_of_another_history_is_told() {
        let log = EventLog::new(0);
        let (mut slow, mut ahead) = (log.place(None), log.place(Some(99)));
        assert_eq!(read(&log, &mut ahead), "broken 0");
        log.offer((1..=KEPT).map(change));
        assert!(read(&log, &mut slow.clone()).starts_with("1;2;"), "just in time");
        log.offer([change(KEPT + 1)]);
        assert_eq!(read(&log, &mut slow), format!("behind {}", KEPT + 1));
        log.offer([change(KEPT + 2)]);
        assert_eq!(read(&log, &mut slow), format!("{};", KEPT + 2), "and goes on from there");

        log.break_off(50);
        assert_eq!(read(&log, &mut slow), "broken 50", "the database was set back");
        log.offer([change(51)]);
        assert_eq!(read(&log, &mut slow), "51;");
    }

    #[test]
    fn big_changes_are_kept_up_to_their_bytes() {
        let log = EventLog::new(0);
        let mut place = log.place(None);
        log.offer((1..=17).map(|revision| (revision, Some(vec![b'x'; 1_024 * 1_024]))));
        assert_eq!(read(&log, &mut place), "behind 17");
        assert_eq!(log.read(&mut log.place(Some(1))), Step::Frames(vec![b'x'; 1_024 * 1_024]));
    }
}
