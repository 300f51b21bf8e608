//! Log matching: whether the database still has the history that this server knows.
//!
//! The idea is Raft's: if a log has the same entry as ours at our position, it also has the same entries
//! before it (D. Ongaro and J. Ousterhout, "In Search of an Understandable Consensus Algorithm", section
//! 5.3).

use crate::store::{LogEntry, LogPage, Position};

/// Returns the entries after a position, from a page that was read starting at that position's revision.
///
/// `None` if the position is not in the database's history, or entries in between are no longer kept. The
/// caller must then reload all agents.
pub(super) fn entries_after(position: Position, mut page: LogPage) -> Option<Vec<LogEntry>> {
    let is_first_known = page.entries.first().is_some_and(|entry| entry.position == position);
    if is_first_known {
        page.entries.remove(0);
    } else if page.head.position != position {
        return None;
    }
    let mut next = position.revision;
    let is_next = |entry: &LogEntry| {
        next += 1;
        entry.position.revision == next
    };
    let has_no_gap = page.entries.iter().all(is_next);
    let is_complete = page.entries.last().map_or(page.head.position == position, |last| {
        last.position == page.head.position || page.head.position.revision > last.position.revision
    });
    (has_no_gap && is_complete).then_some(page.entries)
}

#[cfg(test)]
mod tests {
    use registry_sdk::contract::Timestamp;

    use super::*;
    use crate::store::Head;

    fn at(revision: i64, history: i64) -> Position {
        Position { revision, mark: 100 * history + revision }
    }

    /// Returns the revisions of the entries after a position.
    fn after(position: Position, head: Position, entries: &[Position]) -> Option<Vec<i64>> {
        let head = Head { position: head, heartbeat_timeout: None, now: Timestamp::from_unix_millis(0) };
        let entry =
            |position: &Position| LogEntry { position: *position, agent_id: "a".to_owned(), event: None };
        let page = LogPage { head, is_writable: true, entries: entries.iter().map(entry).collect() };
        let entries = entries_after(position, page)?;
        Some(entries.iter().map(|entry| entry.position.revision).collect())
    }

    #[test]
    fn entries_of_the_same_history_follow() {
        assert_eq!(after(at(7, 1), at(7, 1), &[at(7, 1)]), Some(vec![]));
        assert_eq!(after(at(7, 1), at(9, 1), &[at(7, 1), at(8, 1), at(9, 1)]), Some(vec![8, 9]));
        assert_eq!(after(at(7, 1), at(99, 1), &[at(7, 1), at(8, 1)]), Some(vec![8]), "the first page");
        assert_eq!(after(at(7, 1), at(7, 1), &[]), Some(vec![]), "the log was emptied");
    }

    #[test]
    fn another_history_of_any_length_is_detected() {
        assert_eq!(after(at(7, 1), at(5, 2), &[]), None);
        assert_eq!(after(at(7, 1), at(7, 2), &[at(7, 2)]), None);
        assert_eq!(after(at(7, 1), at(8, 2), &[at(7, 2), at(8, 2)]), None);
    }

    #[test]
    fn gap_is_detected() {
        assert_eq!(after(at(7, 1), at(9, 1), &[at(8, 1), at(9, 1)]), None, "7 is not kept");
        assert_eq!(after(at(7, 1), at(9, 1), &[at(7, 1), at(9, 1)]), None, "8 is missing");
        assert_eq!(after(at(7, 1), at(9, 1), &[at(7, 1)]), None, "8 and 9 are missing");
        assert_eq!(after(at(7, 1), at(9, 1), &[]), None, "the log was emptied");
    }
}
