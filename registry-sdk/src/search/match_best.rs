//! Matching any word of a sentence, ranked by BM25F.
//!
//! This is the simple form of Robertson, Zaragoza and Taylor (2004), to which the review of 2009 refers: the frequencies of a
//! term in the fields, and the lengths of the fields, are weighted and added up before a single saturation.

use std::collections::HashSet;

use super::analysis::{Word, stem};
use super::documents::Documents;
use super::fields::Fields;
use super::postings::Postings;
use super::query::Query;
use super::score::{Hit, round};

/// BM25's k1: how slowly additional occurrences of a term lose weight.
const K1: f32 = 1.5;

/// BM25's b: how much the length of a document counts, between 0 and 1.
const B: f32 = 0.3;

/// Number of imaginary capabilities without any word of the query. Without them, a word of one agent out of three would count
/// as little as a word of a third of thousands of agents.
const IMAGINED: f32 = 30.0;

/// Returns the best match of each accepted agent. `accepts` gets the agent's slot and the capability's position.
pub(super) fn search(
    documents: &Documents,
    query: &Query,
    accepts: impl FnMut(u32, u16) -> bool,
) -> Vec<Hit> {
    let mut scores = Scores::new(documents);
    let mut bound = 0.0;
    for term in terms(documents, query) {
        bound += scores.add(&term) * (K1 + 1.0);
    }
    scores.hits(bound, query, accepts)
}

/// A term of the query: the postings of all its forms.
type Term<'a> = Vec<&'a Postings>;

/// Returns the distinct terms of a query. That includes words that no document has, because a document that lacks them is not a
/// perfect match.
///
/// A word with several parts is one term if any document has it whole, so that `TypeScript` equals `typescript`. Otherwise its
/// parts are the terms.
fn terms<'a>(documents: &'a Documents, query: &Query) -> Vec<Term<'a>> {
    let (mut known, mut terms) = (HashSet::new(), Vec::new());
    let find = |text: &str| {
        let stem = stem(text).into_owned();
        let ids = documents.dictionary.with_stem(&stem);
        let term: Term<'a> = ids.filter_map(|id| documents.dictionary.postings(id)).collect();
        (stem, term)
    };
    let mut add = |(stem, term)| {
        if known.insert(stem) {
            terms.push(term);
        }
    };
    for compound in &query.compounds {
        if let ([Word { whole: Some(many), .. }], Some(one)) = (compound.words.as_slice(), &compound.joined) {
            // The plural of an abbreviation, or the abbreviation itself.
            let ((stem, mut term), (other_stem, others)) = (find(one), find(many));
            if other_stem != stem {
                term.extend(others);
            }
            add((stem, term));
            continue;
        }
        for word in compound.words.iter().filter(|word| query.counts(word)) {
            match word.whole.as_deref().map(find) {
                Some((stem, term)) if word.parts.is_empty() || !term.is_empty() => add((stem, term)),
                _ => word.parts.iter().for_each(|part| add(find(part))),
            }
        }
        let joined = compound.joined.as_deref().map(find);
        joined.into_iter().filter(|(_, term)| !term.is_empty()).for_each(&mut add);
    }
    terms
}

/// The scores of all documents.
struct Scores<'a> {
    documents: &'a Documents,
    lengths: &'a [u16],
    by_id: Vec<Score>,
    /// Frequencies of the current term if it has several forms. All are 0 between terms.
    frequencies: Vec<u16>,
    /// How much each word of a document adds to the value with which a term's frequency is compared.
    length_weight: f32,
}

/// The score of a document, and the fields that contain terms of the query.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    value: f32,
    fields: Fields,
}

impl<'a> Scores<'a> {
    fn new(documents: &'a Documents) -> Self {
        let by_id = vec![Score::default(); documents.end()];
        let (lengths, length_weight) = (documents.lengths(), K1 * B / documents.mean_length());
        Self { documents, lengths, by_id, frequencies: Vec::new(), length_weight }
    }

    /// Adds a term's score to each document that has it. Returns the term's inverse document frequency.
    fn add(&mut self, term: &Term<'_>) -> f32 {
        if let [postings] = term.as_slice() {
            let weight = self.inverse_document_frequency(postings.len());
            for posting in postings.iter() {
                self.add_to(posting.document as usize, posting.frequency, posting.fields, weight);
            }
            return weight;
        }
        self.frequencies.resize(self.by_id.len(), 0);
        let mut touched = Vec::new();
        for posting in term.iter().flat_map(|postings| Postings::iter(postings)) {
            let document = posting.document as usize;
            if self.frequencies[document] == 0 {
                touched.push(document);
            }
            self.frequencies[document] = self.frequencies[document].saturating_add(posting.frequency);
            self.by_id[document].fields = self.by_id[document].fields.union(posting.fields);
        }
        let weight = self.inverse_document_frequency(touched.len());
        for document in touched {
            let frequency = std::mem::take(&mut self.frequencies[document]);
            self.add_to(document, frequency, Fields::default(), weight);
        }
        weight
    }

    fn add_to(&mut self, document: usize, frequency: u16, fields: Fields, weight: f32) {
        let length = f32::from(self.lengths[document]);
        let frequency = f32::from(frequency) / f32::from(Fields::DESCRIPTION.weight());
        let saturation = frequency / (frequency + K1 * (1.0 - B) + length * self.length_weight);
        let score = &mut self.by_id[document];
        score.value += weight * saturation * (K1 + 1.0);
        score.fields = score.fields.union(fields);
    }

    #[expect(clippy::cast_precision_loss, reason = "six digits of a count are enough")]
    fn inverse_document_frequency(&self, documents: usize) -> f32 {
        let (all, documents) = (self.documents.counts().0 as f32 + IMAGINED, documents as f32);
        ((all - documents + 0.5) / (documents + 0.5)).ln_1p()
    }

    fn hits(&self, bound: f32, query: &Query, mut accepts: impl FnMut(u32, u16) -> bool) -> Vec<Hit> {
        let mut hits = Vec::new();
        for (slot, documents) in self.documents.agents() {
            let (mut best, mut best_value) = (None::<Hit>, 0.0);
            for (position, found) in (0..).zip(&self.by_id[documents]) {
                if found.value <= best_value {
                    continue;
                }
                let score = round((found.value / bound).into());
                if best.is_none_or(|best| score > best.score)
                    && query.accepts(score, found.fields == Fields::DESCRIPTION)
                    && accepts(slot, position)
                {
                    (best, best_value) = (Some(Hit { slot, position, score }), found.value);
                }
            }
            hits.extend(best);
        }
        hits
    }
}
