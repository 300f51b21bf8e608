//! What to list and what to search for, on both sides of the wire.

mod cursor;
mod filter;
mod parameters;

use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch, is_valid_agent_id};
use crate::search::{Hit, Query, Rank, SearchIndex};
use cursor::SearchCursor;
use filter::filter_methods;
pub use filter::{AgentFilter, MetadataFilter};
pub use parameters::InvalidParameter;
use parameters::{Parameters, invalid};

/// Which agents to list. By default all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListQuery {
    /// Only agents that pass.
    pub filter: AgentFilter,
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

    filter_methods!();

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

    /// Reads the query of a `GET /agents`, as a registry does. Unknown parameters are ignored.
    ///
    /// # Errors
    /// If a parameter is invalid.
    pub fn from_query_string(query: &str) -> Result<Self, InvalidParameter> {
        let Parameters { filter, limit, cursor, .. } = Parameters::read(query)?;
        if cursor.as_deref().is_some_and(|cursor| !is_valid_agent_id(cursor)) {
            return Err(invalid("cursor has to be one that a Link header gave"));
        }
        Ok(Self { filter, limit, cursor })
    }

    /// Writes the query of a `GET /agents`.
    #[must_use]
    pub fn to_query_string(&self) -> String {
        self.parameters().write()
    }

    fn parameters(&self) -> Parameters {
        let Self { filter, limit, cursor } = self.clone();
        Parameters { q: None, filter, limit, cursor }
    }

    #[cfg(feature = "client")]
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        self.parameters().pairs()
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

/// One page of the matches of a search.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MatchPage {
    /// The matches, by score and id.
    pub matches: Vec<CapabilityMatch>,
    /// Where the next page begins; `None` after the last.
    pub next_cursor: Option<String>,
}

/// What to search for. A text alone is one, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SearchQuery {
    /// The words; each has to begin a word of the capability's name, tags or description. May be empty if a capability is
    /// named.
    pub q: String,
    /// Only agents that pass.
    pub filter: AgentFilter,
    /// At most so many, up to 1,000; by default 100.
    pub limit: Option<usize>,
    /// Where the page before ended: [`MatchPage::next_cursor`]. Matches are in the order of pages then.
    pub cursor: Option<String>,
}

impl SearchQuery {
    /// Searches for words.
    #[must_use]
    pub fn new(q: impl Into<String>) -> Self {
        Self { q: q.into(), ..Self::default() }
    }

    /// Searches for a capability by its exact name.
    #[must_use]
    pub fn exact(capability: impl Into<String>) -> Self {
        Self::default().capability(capability)
    }

    filter_methods!();

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

    /// Reads the query of a `GET /capabilities/search`, as a registry does. Unknown parameters are ignored.
    ///
    /// # Errors
    /// If a parameter is invalid, or there is nothing to search for.
    pub fn from_query_string(query: &str) -> Result<Self, InvalidParameter> {
        let Parameters { q, filter, limit, cursor } = Parameters::read(query)?;
        let q = q.unwrap_or_default();
        let may_be_empty = q.is_empty() && filter.capability.is_some();
        if !may_be_empty && Query::all(&q).is_empty() {
            return Err(invalid("q has to have at least one letter or digit to search for"));
        }
        cursor.as_deref().map(str::parse::<SearchCursor>).transpose()?;
        Ok(Self { q, filter, limit, cursor })
    }

    /// Writes the query of a `GET /capabilities/search`.
    #[must_use]
    pub fn to_query_string(&self) -> String {
        self.parameters().write()
    }

    /// What is searched for, in words: the exact name if there are none.
    #[must_use]
    pub fn words(&self) -> &str {
        self.filter.capability.as_deref().filter(|_| self.q.is_empty()).unwrap_or(&self.q)
    }

    /// Finds the agents of an index, each by its best capability that is accepted, in no order. `accepts` gets an agent's slot
    /// and a capability's position.
    pub fn find(&self, index: &SearchIndex, accepts: impl FnMut(u32, u16) -> bool) -> Vec<Hit> {
        index.search(&self.query(), accepts)
    }

    /// Returns whether the search looks at fewer capabilities of an index than `max`.
    #[must_use]
    pub fn is_quick(&self, index: &SearchIndex, max: usize) -> bool {
        index.is_quick(&self.query(), max)
    }

    fn query(&self) -> Query {
        match &self.filter.capability {
            Some(name) if self.q.is_empty() => Query::named(name),
            _ => Query::all(&self.q),
        }
    }

    /// Brings matches into their order, and keeps those of one answer: up to a limit, or the page after the cursor. Returns the
    /// cursor of the next page, if more follow.
    pub fn arrange<T>(
        &self,
        found: &mut Vec<T>,
        limit: usize,
        rank: impl Fn(&T) -> Rank<'_>,
    ) -> Option<String> {
        let cursor = self.cursor.as_deref().and_then(|cursor| cursor.parse::<SearchCursor>().ok());
        let Some(cursor) = cursor else {
            keep_first(found, limit, |one, other| rank(one).cmp(&rank(other)));
            return None;
        };
        found.retain(|one| cursor.is_before(rank(one)));
        let has_more = found.len() > limit;
        keep_first(found, limit, |one, other| SearchCursor::order(rank(one), rank(other)));
        let last = found.last().filter(|_| has_more)?;
        Some(SearchCursor::after(rank(last)).to_string())
    }

    fn parameters(&self) -> Parameters {
        let Self { q, filter, limit, cursor } = self.clone();
        let q = Some(q).filter(|q| !q.is_empty() || filter.capability.is_none());
        Parameters { q, filter, limit, cursor }
    }

    #[cfg(feature = "client")]
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        self.parameters().pairs()
    }

    /// The same query for its first page, unless it is for a later one.
    #[cfg(feature = "client")]
    pub(crate) fn paged(mut self) -> Self {
        self.cursor.get_or_insert_with(|| SearchCursor::START.to_owned());
        self
    }
}

impl<T: Into<String>> From<T> for SearchQuery {
    fn from(q: T) -> Self {
        Self::new(q)
    }
}

/// Sorts the first items, and drops all others.
fn keep_first<T>(items: &mut Vec<T>, limit: usize, compare: impl Fn(&T, &T) -> std::cmp::Ordering) {
    if items.len() > limit {
        items.select_nth_unstable_by(limit, &compare);
        items.truncate(limit);
    }
    items.sort_unstable_by(compare);
}
