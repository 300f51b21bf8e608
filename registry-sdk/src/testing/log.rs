//! The mock registry's changes, for those who watch.

use crate::contract::{AgentRecord, EventKind, RESET_EVENT};

/// The changes so far.
#[derive(Debug)]
pub(super) struct Log {
    /// Tells the ids of this registry's changes from those of another one.
    mark: u64,
    /// The number of the last change.
    revision: u64,
    /// All changes after this one are kept.
    base: u64,
    frames: Vec<(u64, Vec<u8>)>,
}

impl Default for Log {
    fn default() -> Self {
        Self { mark: fastrand::u64(..), revision: 0, base: 0, frames: Vec::new() }
    }
}

impl Log {
    /// The id of a change on the wire.
    pub(super) fn id(&self, revision: u64) -> String {
        format!("{revision}-{:016x}", self.mark)
    }

    /// The change that an id names, `None` where it is no id. Those of another registry name one that is not kept.
    pub(super) fn revision_of(&self, id: &str) -> Option<u64> {
        let (revision, mark) = id.split_once('-').unwrap_or((id, "0"));
        let revision: u64 = revision.parse().ok()?;
        let mark = u64::from_str_radix(mark, 16).ok()?;
        Some(if mark == self.mark { revision } else { u64::MAX })
    }

    /// The number of the change that comes next.
    pub(super) fn next(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Keeps the change that had the last number.
    pub(super) fn keep(&mut self, kind: EventKind, record: &AgentRecord) {
        // A record always serializes.
        let record = serde_json::to_vec(record).unwrap_or_default();
        self.frames.push((self.revision, kind.frame(self.id(self.revision), &record)));
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Keeps nothing of what was: who asks for it is told to read all anew.
    pub(super) fn forget(&mut self) {
        (self.base, self.frames) = (self.next(), Vec::new());
    }

    /// What comes after a change, and the last change that is in it.
    pub(super) fn after(&self, revision: u64) -> (Vec<u8>, u64) {
        if revision < self.base || revision > self.revision {
            let head = self.revision;
            let id = self.id(head);
            let reset = format!("id: {id}\nevent: {RESET_EVENT}\ndata: {{\"revision\": {head}}}\n\n");
            return (reset.into_bytes(), head);
        }
        let after = self.frames.iter().filter(|(number, _)| *number > revision);
        (after.flat_map(|(_, frame)| frame).copied().collect(), self.revision)
    }
}
