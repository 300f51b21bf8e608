//! Search queries.

#[cfg(feature = "client")]
use super::cursor::SearchCursor;
use super::filter::{AgentFilter, MetadataFilter, query_methods};
use super::match_mode::MatchMode;
use super::parameters::Parameters;
use crate::contract::AgentStatus;
#[cfg(feature = "client")]
use crate::contract::CapabilityMatch;
#[cfg(any(feature = "client", feature = "__internal"))]
use crate::search::Query;

/// A search for capabilities. A plain text is a query for its words.
///
/// ```
/// use registry_sdk::SearchQuery;
/// let words = SearchQuery::new("security scan").tag("rust");
/// let sentence = SearchQuery::sentence("Who can look for holes in my code?").min_score(0.1);
/// let name = SearchQuery::exact("security_scanning");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SearchQuery {
    /// The words or the sentence. May be empty if the filter names a capability.
    pub q: String,
    /// How the words are matched.
    pub match_mode: MatchMode,
    /// Minimum score of a match, between 0 and 1. Default: 0.
    pub min_score: f64,
    /// Whether to include capabilities that have the query's words only in their description. Default: `true`.
    pub description_only: bool,
    /// Only agents that pass this filter.
    pub filter: AgentFilter,
    /// Maximum number of matches on a page, up to 1,000. Default: 100.
    pub limit: Option<usize>,
    /// Continues after the page with this [`MatchPage::next_cursor`](crate::MatchPage::next_cursor). With a cursor, matches are
    /// ordered by score and id.
    pub cursor: Option<String>,
}

impl SearchQuery {
    /// Searches for words, all of which a capability has to have.
    #[must_use]
    pub fn new(q: impl Into<String>) -> Self {
        Self {
            q: q.into(),
            match_mode: MatchMode::default(),
            min_score: 0.0,
            description_only: true,
            filter: AgentFilter::default(),
            limit: None,
            cursor: None,
        }
    }

    /// Searches for the topic of a sentence. Any word may match, and the score says how relevant a capability is.
    ///
    /// A registry that does not know this mode finds only capabilities that have every word of the sentence. A
    /// [`Directory`](crate::discovery::Directory) supports it with any registry.
    #[must_use]
    pub fn sentence(text: impl Into<String>) -> Self {
        Self::new(text).match_mode(MatchMode::Best)
    }

    /// Searches for a capability by its exact name.
    #[must_use]
    pub fn exact(capability: impl Into<String>) -> Self {
        Self::new("").capability(capability)
    }

    query_methods!();

    /// Sets how the words are matched. Default: [`MatchMode::All`].
    #[must_use]
    pub fn match_mode(mut self, mode: MatchMode) -> Self {
        self.match_mode = mode;
        self
    }

    /// Sets the minimum score of a match, between 0 and 1. Default: 0.
    #[must_use]
    pub fn min_score(mut self, min_score: f64) -> Self {
        self.min_score = min_score;
        self
    }

    /// Sets whether to include capabilities that have the query's words only in their description. Default: `true`.
    #[must_use]
    pub fn description_only(mut self, is_found: bool) -> Self {
        self.description_only = is_found;
        self
    }

    /// Formats the query of a `GET /capabilities/search`.
    #[must_use]
    pub fn to_query_string(&self) -> String {
        self.parameters().write()
    }

    /// Returns the query for an index.
    #[cfg(any(feature = "client", feature = "__internal"))]
    pub(super) fn analyzed(&self) -> Query {
        let query = match (&self.filter.capability, self.match_mode) {
            (Some(name), _) if self.q.is_empty() => return Query::exact(name),
            (_, MatchMode::All) => Query::all(&self.q),
            (_, MatchMode::Best) => Query::best(&self.q),
        };
        query.min_score(self.min_score).description_only(self.description_only)
    }

    /// Drops matches that do not pass, as far as their fields show that. A registry may not know all parameters.
    #[cfg(feature = "client")]
    pub(crate) fn check(&self, matches: &mut Vec<CapabilityMatch>) {
        let is_in_description_alone = (!self.description_only).then(|| self.in_description_alone());
        matches.retain(|found| {
            let has_score = found.score.is_none_or(|score| score >= self.min_score);
            let is_elsewhere = is_in_description_alone.as_ref().is_none_or(|is_alone| !is_alone(found));
            self.filter.accepts_match(found) && has_score && is_elsewhere
        });
    }

    /// Returns whether a match has the query's words only in its description.
    #[cfg(feature = "client")]
    pub(crate) fn in_description_alone(&self) -> impl Fn(&CapabilityMatch) -> bool {
        let words = self.analyzed();
        move |found| {
            let tags_and_examples = found.tags.iter().chain(&found.examples);
            let elsewhere = tags_and_examples.chain([&found.capability]).chain(&found.title);
            words.is_only_in(&found.description, elsewhere.map(String::as_str))
        }
    }

    fn parameters(&self) -> Parameters {
        let Self { q, match_mode, min_score, description_only, filter, limit, cursor } = self.clone();
        let q = Some(q).filter(|q| !q.is_empty() || filter.capability.is_none());
        // Defaults are omitted, because an older registry has no other values.
        let match_mode = (match_mode != MatchMode::default()).then(|| match_mode.to_string());
        let min_score = (min_score != 0.0).then(|| min_score.to_string());
        let description_only = (!description_only).then(|| description_only.to_string());
        Parameters { q, match_mode, min_score, description_only, filter, limit, cursor }
    }

    #[cfg(feature = "client")]
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        self.parameters().pairs()
    }

    /// Returns the query for its first page, unless it has a cursor already.
    #[cfg(feature = "client")]
    pub(crate) fn paged(mut self) -> Self {
        self.cursor.get_or_insert_with(|| SearchCursor::START.to_owned());
        self
    }
}

impl Default for SearchQuery {
    fn default() -> Self {
        Self::new("")
    }
}

impl<T: Into<String>> From<T> for SearchQuery {
    fn from(q: T) -> Self {
        Self::new(q)
    }
}
