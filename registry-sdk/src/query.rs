//! What to list and what to search for.

use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch};

/// Which agents to list. By default all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListQuery {
    /// Only agents of this status.
    pub status: Option<AgentStatus>,
    /// At most so many, up to 1,000; the rest follows on further pages.
    pub limit: Option<usize>,
    /// Where the page before ended: [`Page::next_cursor`].
    pub cursor: Option<String>,
}

impl ListQuery {
    /// All agents.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only agents of this status.
    #[must_use]
    pub fn status(mut self, status: AgentStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// At most so many, up to 1,000.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// After the page that ended here.
    #[must_use]
    pub fn after(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Page {
    /// The agents, by id.
    pub agents: Vec<AgentRecord>,
    /// Where the next page begins; `None` after the last.
    pub next_cursor: Option<String>,
}

/// What to search for. A text alone is one, too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SearchQuery {
    /// The words; each has to begin a word of the capability's name, tags or description.
    pub q: String,
    /// Only agents of this status.
    pub status: Option<AgentStatus>,
    /// Only matches whose `healthy` field has this value, and those without the field.
    pub healthy: Option<bool>,
    /// At most so many, up to 1,000; by default 100.
    pub limit: Option<usize>,
}

impl SearchQuery {
    /// Searches for words.
    #[must_use]
    pub fn new(q: impl Into<String>) -> Self {
        Self { q: q.into(), status: None, healthy: None, limit: None }
    }

    /// Only agents of this status.
    #[must_use]
    pub fn status(mut self, status: AgentStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Only healthy agents (`true`), or only unhealthy ones (`false`), by the `healthy` field of their matches.
    ///
    /// The registry filters before it applies the limit. A registry that does not know this filter ignores it, and the matches
    /// that contradict it are dropped from its response: agents beyond its limit are then missed. A match without the field is
    /// kept, since nothing is known of its health.
    #[must_use]
    pub fn healthy(mut self, healthy: bool) -> Self {
        self.healthy = Some(healthy);
        self
    }

    /// At most so many, up to 1,000.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Whether the reported health of a match does not contradict the filter.
    pub(crate) fn accepts_health(&self, found: &CapabilityMatch) -> bool {
        self.healthy.zip(found.healthy).is_none_or(|(wanted, reported)| wanted == reported)
    }
}

impl<T: Into<String>> From<T> for SearchQuery {
    fn from(q: T) -> Self {
        Self::new(q)
    }
}
