//! Queries: which agents to list and what to search for, on both sides of the wire.

#[cfg(any(feature = "client", feature = "__internal"))]
mod cursor;
pub(crate) mod events_query;
pub(crate) mod filter;
pub(crate) mod from_query_string;
mod match_mode;
pub(crate) mod parameters;
#[cfg(any(feature = "client", feature = "__internal"))]
pub(crate) mod prepared;
mod search_query;

use crate::contract::validate::is_valid_agent_id;
use crate::contract::{AgentRecord, AgentStatus, CapabilityMatch};
use filter::query_methods;
pub use filter::{AgentFilter, MetadataFilter};
use from_query_string::FromQueryString;
pub use match_mode::{MatchMode, ParseMatchModeError};
use parameters::{InvalidParameter, Parameters, invalid};
pub use search_query::SearchQuery;

/// The agents to list. Default: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListQuery {
    /// Only agents that pass this filter.
    pub filter: AgentFilter,
    /// Maximum number of agents on a page, up to 1,000. Without it, the registry returns all agents at once.
    pub limit: Option<usize>,
    /// Continues after the page with this [`Page::next_cursor`].
    pub cursor: Option<String>,
}

impl ListQuery {
    /// Lists all agents.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    query_methods!();

    /// Formats the query of a `GET /agents`.
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

/// The query of a `GET /agents`.
impl FromQueryString for ListQuery {
    fn from_query_string(query: &str) -> Result<Self, InvalidParameter> {
        let Parameters { filter, limit, cursor, .. } = Parameters::read(query)?;
        if cursor.as_deref().is_some_and(|cursor| !is_valid_agent_id(cursor)) {
            return Err(invalid("cursor has to be one that a Link header gave"));
        }
        Ok(Self { filter, limit, cursor })
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Page {
    /// The agents, ordered by id.
    pub agents: Vec<AgentRecord>,
    /// The cursor of the next page; `None` on the last page.
    pub next_cursor: Option<String>,
}

/// One page of the matches of a search.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MatchPage {
    /// The matches, ordered by score and id.
    pub matches: Vec<CapabilityMatch>,
    /// The cursor of the next page; `None` on the last page.
    pub next_cursor: Option<String>,
}
