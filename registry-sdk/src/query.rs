//! What to list and what to search for.

use crate::contract::{AgentRecord, AgentStatus};

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
    /// At most so many, up to 1,000; by default 100.
    pub limit: Option<usize>,
}

impl SearchQuery {
    /// Searches for words.
    #[must_use]
    pub fn new(q: impl Into<String>) -> Self {
        Self { q: q.into(), status: None, limit: None }
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
}

impl<T: Into<String>> From<T> for SearchQuery {
    fn from(q: T) -> Self {
        Self::new(q)
    }
}
