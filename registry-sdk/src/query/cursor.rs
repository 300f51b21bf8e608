//! Cursors of paged searches.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::parameters::{InvalidParameter, invalid};
use crate::contract::validate::is_valid_agent_id;
use crate::search::Rank;

/// The beginning of a page of a search.
///
/// Pages are ordered by score and id alone, because status and last heartbeat change from one page to the next, and differ
/// between replicas. The first page has a cursor of its own, as in Solr
/// (<https://solr.apache.org/guide/pagination-of-results.html>).
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SearchCursor {
    /// Before the best match.
    Start,
    /// After this match.
    After { score: f64, agent_id: String },
}

impl SearchCursor {
    pub(super) const START: &str = "*";

    pub(super) fn after(last: Rank<'_>) -> Self {
        Self::After { score: last.score, agent_id: last.agent_id.to_owned() }
    }

    pub(super) fn order(one: Rank<'_>, other: Rank<'_>) -> Ordering {
        other.score.total_cmp(&one.score).then_with(|| one.agent_id.cmp(other.agent_id))
    }

    /// Returns whether a match lies on this page or a later one.
    pub(super) fn is_before(&self, found: Rank<'_>) -> bool {
        match self {
            Self::Start => true,
            Self::After { score, agent_id } => {
                Self::order(Rank { score: *score, agent_id, ..found }, found).is_lt()
            }
        }
    }
}

/// The bits of the score, because every digit counts, and the id.
impl fmt::Display for SearchCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str(Self::START),
            Self::After { score, agent_id } => write!(f, "{:x}.{agent_id}", score.to_bits()),
        }
    }
}

impl FromStr for SearchCursor {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, InvalidParameter> {
        let read = || {
            let (bits, agent_id) = text.split_once('.')?;
            let bits = u64::from_str_radix(bits, 16).ok().filter(|_| !bits.starts_with('+'))?;
            let score = f64::from_bits(bits);
            is_valid_agent_id(agent_id).then(|| Self::After { score, agent_id: agent_id.to_owned() })
        };
        let cursor = if text == Self::START { Some(Self::Start) } else { read() };
        cursor.ok_or_else(|| invalid("cursor has to be *, or one that a Link header gave"))
    }
}
