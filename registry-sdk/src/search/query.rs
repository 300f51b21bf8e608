//! Analyzed queries.

use std::collections::HashSet;

use super::analysis::stem;
use super::analysis::{Compound, Source, Word, analyze, key};

/// How a query is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// By exactly this name.
    Name(String),
    All,
    Best,
}

/// A search whose words were analyzed.
#[derive(Clone, Debug)]
pub struct Query {
    pub(super) mode: Mode,
    pub(super) compounds: Vec<Compound>,
    /// Whether there are words other than stop words.
    has_subject: bool,
    /// The whole query, as the name of a capability.
    pub(super) key: String,
    pub(super) min_score: f64,
    pub(super) description_only: bool,
}

impl Query {
    /// Creates a query for capabilities that have every word: unchanged, in another form, or as the beginning of a word.
    ///
    /// A name that equals the query scores 1. Other scores are between 0.05 and 0.95. They depend on the number of words found
    /// in the name, then in title and tags. Ties are broken by the form: unchanged words first, then other forms, then
    /// beginnings.
    #[must_use]
    pub fn all(text: &str) -> Self {
        Self::new(Mode::All, text)
    }

    /// Creates a query for capabilities that have any word of a sentence, in any form, scored by relevance.
    ///
    /// The score is BM25F ([Robertson and Zaragoza, 2009](https://doi.org/10.1561/1500000019)), divided by the score that no
    /// capability can exceed for this query, so it is between 0 and 1. English stop words are ignored unless the query has no
    /// other words.
    #[must_use]
    pub fn best(text: &str) -> Self {
        Self::new(Mode::Best, text)
    }

    /// Creates a query for capabilities with exactly this name, which score 1.
    #[must_use]
    pub fn exact(name: &str) -> Self {
        Self { compounds: Vec::new(), ..Self::new(Mode::Name(name.to_owned()), name) }
    }

    /// Sets the minimum score of a match. Default: 0.
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

    /// Returns whether there is nothing to search for: no letter and no digit. Such a query finds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.compounds.is_empty() && !matches!(self.mode, Mode::Name(_))
    }

    fn new(mode: Mode, text: &str) -> Self {
        let mut compounds = analyze(text, Source::Query);
        // A repeated word costs as much as another one, and adds no information.
        let mut known = HashSet::new();
        compounds.retain(|compound| known.insert(compound.clone()));
        let has_subject = compounds.iter().flat_map(|compound| &compound.words).any(|word| !word.is_stop);
        Self { mode, compounds, has_subject, key: key(text), min_score: 0.0, description_only: true }
    }

    /// Returns whether a word counts. Only the stop words of a sentence with other words do not.
    pub(super) fn counts(&self, word: &Word) -> bool {
        !(word.is_stop && self.has_subject && self.mode == Mode::Best)
    }

    /// Returns whether to include a match with this score. `description_only` says that only the description has words of the
    /// query.
    pub(super) fn accepts(&self, score: f64, description_only: bool) -> bool {
        score >= self.min_score && (self.description_only || !description_only)
    }

    /// Returns whether a description has a word of the query and no other text has one.
    ///
    /// In the other texts any part of a word counts, because a registry may match them differently than this index does.
    pub(crate) fn is_only_in<'a>(
        &self,
        description: &str,
        mut others: impl Iterator<Item = &'a str>,
    ) -> bool {
        !others.any(|text| self.is_in(text)) && self.is_in(description)
    }

    fn is_in(&self, text: &str) -> bool {
        let words = || self.compounds.iter().flat_map(|compound| &compound.words);
        let wanted = || words().filter(|word| self.counts(word)).flat_map(Word::forms);
        let found = analyze(text, Source::Text);
        let mut forms = found.iter().flat_map(|compound| compound.words.iter().flat_map(Word::forms));
        let is_there =
            |form: &str| wanted().any(|wanted| form.contains(wanted) || stem(form) == stem(wanted));
        forms.any(is_there) || key(text).contains(&self.key)
    }
}
