//! What to list and what to search for, on both sides of the wire.

mod cursor;
mod events_query;
mod filter;
mod match_mode;
mod parameters;
mod prepared;
mod search_query;

use std::time::Duration;

use serde_json::value::RawValue;

use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch, is_valid_agent_id};
pub use events_query::EventsQuery;
use filter::query_methods;
pub use filter::{AgentFilter, MetadataFilter};
pub use match_mode::MatchMode;
pub use parameters::InvalidParameter;
use parameters::{Parameters, invalid};
pub use prepared::PreparedSearch;
pub use search_query::SearchQuery;

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

    query_methods!();

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
        Parameters { filter, limit, cursor, ..Parameters::default() }
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

/// One page of a list, as the registry sent it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawPage {
    /// The agents' records as JSON, by id.
    pub agents: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` after the last.
    pub next_cursor: Option<String>,
    /// How old the records are. Zero, unless the registry answers from memory because its database is away.
    pub age: Duration,
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
