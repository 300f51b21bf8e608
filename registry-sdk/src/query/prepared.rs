//! Searches that are ready to run.

use super::cursor::SearchCursor;
use super::from_query_string::FromQueryString;
use super::parameters::{InvalidParameter, Parameters, invalid, read_bool, read_match_mode, read_min_score};
use super::search_query::SearchQuery;
use crate::search::{Hit, Query, Rank, SearchIndex};

/// A search query whose words were analyzed and whose cursor was parsed, once for all its uses.
#[derive(Clone, Debug)]
pub struct PreparedSearch {
    query: SearchQuery,
    analyzed: Query,
    cursor: Option<SearchCursor>,
}

/// The query of a `GET /capabilities/search`. A query without anything to search for is invalid.
impl FromQueryString for PreparedSearch {
    fn from_query_string(query: &str) -> Result<Self, InvalidParameter> {
        let Parameters { q, match_mode, min_score, description_only, filter, limit, cursor } =
            Parameters::read(query)?;
        let page = cursor.as_deref().map(str::parse).transpose()?;
        let query = SearchQuery {
            q: q.unwrap_or_default(),
            match_mode: match_mode.as_deref().map(read_match_mode).transpose()?.unwrap_or_default(),
            min_score: min_score.as_deref().map(read_min_score).transpose()?.unwrap_or_default(),
            description_only: description_only
                .map_or(Ok(true), |value| read_bool("description_only", &value))?,
            filter,
            limit,
            cursor,
        };
        let analyzed = query.analyzed();
        if analyzed.is_empty() {
            return Err(invalid("q has to have at least one letter or digit to search for"));
        }
        Ok(Self { query, analyzed, cursor: page })
    }
}

impl PreparedSearch {
    /// Returns the query.
    #[must_use]
    pub fn query(&self) -> &SearchQuery {
        &self.query
    }

    /// Returns whether the search visits fewer capabilities of an index than `max`.
    #[must_use]
    pub fn is_quick(&self, index: &SearchIndex, max: usize) -> bool {
        index.is_quick(&self.analyzed, max)
    }

    /// Searches an index and returns one page of matches in order, up to a limit.
    ///
    /// Also returns the cursor of the next page if there are more matches.
    ///
    /// An agent is represented by its best capability that `accepts` accepts, which gets the agent's slot and the capability's
    /// position. `candidate` returns `None` for an agent that does not pass. It is called for the best hits first, and not for
    /// all of them.
    pub fn search<T>(
        &self,
        index: &SearchIndex,
        limit: usize,
        accepts: impl FnMut(u32, u16) -> bool,
        mut candidate: impl FnMut(&Hit) -> Option<T>,
        rank: impl Fn(&T) -> Rank<'_>,
    ) -> (Vec<T>, Option<String>) {
        let cursor = self.cursor.as_ref();
        let mut hits = index.search(&self.analyzed, accepts);
        let (mut found, mut rest) = (Vec::new(), hits.as_mut_slice());
        // One match beyond the limit shows that there is another page.
        while !rest.is_empty() && found.len() <= limit {
            let (best, others) = split_best(rest, limit.saturating_add(1));
            let candidates = best.iter().filter_map(&mut candidate);
            found.extend(candidates.filter(|one| cursor.is_none_or(|cursor| cursor.is_before(rank(one)))));
            rest = others;
        }
        let has_more = found.len() > limit;
        keep_first(&mut found, limit, |one, other| {
            let (one, other) = (rank(one), rank(other));
            if cursor.is_some() { SearchCursor::order(one, other) } else { one.cmp(&other) }
        });
        let last = found.last().filter(|_| has_more && cursor.is_some());
        let next = last.map(|last| SearchCursor::after(rank(last)).to_string());
        (found, next)
    }
}

/// An invalid cursor counts as none.
#[cfg(feature = "client")]
impl From<SearchQuery> for PreparedSearch {
    fn from(query: SearchQuery) -> Self {
        let cursor = query.cursor.as_deref().and_then(|cursor| cursor.parse().ok());
        Self { analyzed: query.analyzed(), query, cursor }
    }
}

/// Splits off the hits with the best scores: `count` hits, and all others whose score equals that of the last one.
fn split_best(hits: &mut [Hit], count: usize) -> (&mut [Hit], &mut [Hit]) {
    if hits.len() <= count {
        return (hits, &mut []);
    }
    let (_, last, others) =
        hits.select_nth_unstable_by(count - 1, |one, other| other.score.total_cmp(&one.score));
    let mut equal = 0;
    for index in 0..others.len() {
        if others[index].score >= last.score {
            others.swap(index, equal);
            equal += 1;
        }
    }
    hits.split_at_mut(count + equal)
}

/// Sorts the first items and drops the others.
fn keep_first<T>(items: &mut Vec<T>, limit: usize, compare: impl Fn(&T, &T) -> std::cmp::Ordering) {
    if items.len() > limit {
        items.select_nth_unstable_by(limit, &compare);
        items.truncate(limit);
    }
    items.sort_unstable_by(compare);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn query_is_read_and_checked() {
        let search = PreparedSearch::from_query_string("q=security+scan&limit=10").unwrap();
        assert_eq!(search.query().limit, Some(10));
        for (query, error) in [
            ("q=scan&limit=none", "limit has to be 1 to 1000, is \"none\""),
            ("q=scan&match=some", "match: \"some\" is not a match mode: use all or best"),
            ("q=--", "q has to have at least one letter or digit to search for"),
        ] {
            assert_eq!(PreparedSearch::from_query_string(query).unwrap_err().to_string(), error);
        }
    }
}
