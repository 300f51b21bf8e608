//! Matching all words of a query.

use std::cell::OnceCell;

use super::analysis::{Compound, Word, stem};
use super::dictionary::{Dictionary, TermId};
use super::documents::{Document, Documents};
use super::fields::Fields;
use super::postings::{DocumentId, Posting, Postings};
use super::query::Query;
use super::score::{Match, round};

/// How a word was found, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// Unchanged.
    Exact,
    /// In another form, with the same stem.
    Inflected,
    /// As the beginning of a word.
    Prefix,
}

/// Where a word was found, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MatchedField {
    /// The name equals the whole query.
    WholeName,
    Name,
    TitleOrTag,
    ExampleOrDescription,
}

/// The field counts before the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    field: MatchedField,
    form: Form,
    description_only: bool,
}

impl Found {
    fn new(fields: Fields, form: Form) -> Self {
        let field = if fields.intersects(Fields::NAME) {
            MatchedField::Name
        } else if fields.intersects(Fields::TITLE.union(Fields::TAG)) {
            MatchedField::TitleOrTag
        } else {
            MatchedField::ExampleOrDescription
        };
        Self { field, form, description_only: fields == Fields::DESCRIPTION }
    }
}

/// Returns all matches, ordered by document.
pub(super) fn search(documents: &Documents, query: &Query) -> Vec<Match> {
    let compounds: Vec<_> = query
        .compounds
        .iter()
        .map(|compound| MatchedCompound::new(&documents.dictionary, compound))
        .collect();
    let mut found = match compounds.as_slice() {
        // A single plain word, as in most queries: its postings say everything.
        [MatchedCompound { joined: None, words }] if words.len() == 1 && words[0].parts.is_empty() => {
            let found = words[0].whole.iter().flat_map(MatchedTerm::found);
            found.map(|(id, found)| score(id, &[found])).collect()
        }
        _ => documents_with_all(documents, &compounds),
    };
    found.extend(documents_with_name(documents, &query.key));
    // The best match of each document comes first.
    found.sort_unstable_by(|one, other| one.id.cmp(&other.id).then(other.score.total_cmp(&one.score)));
    found.dedup_by_key(|found| found.id);
    found
}

/// Returns whether a search looks up fewer words in documents than `max`.
pub(super) fn is_quick(documents: &Documents, query: &Query, max: usize) -> bool {
    let words = query.compounds.iter().map(|compound| compound.words.len()).sum::<usize>();
    let max = max / words.max(1);
    query.compounds.iter().any(|compound| {
        let compound = MatchedCompound::new(&documents.dictionary, compound);
        compound.words.iter().any(|word| compound.alternatives(word, max).count < max)
    })
}

fn documents_with_all(documents: &Documents, compounds: &[MatchedCompound<'_>]) -> Vec<Match> {
    let Some(mut candidates) = candidates(compounds) else { return Vec::new() };
    candidates.sort_unstable();
    candidates.dedup();
    let mut all = Vec::new();
    let scored = candidates.into_iter().filter_map(|id| {
        let document = documents.get(id)?;
        all.clear();
        compounds.iter().all(|compound| compound.find(document, &mut all)).then(|| score(id, &all))
    });
    scored.collect()
}

/// Returns the documents that have one of the query's words, one of the rarest. The other words are counted only until they are
/// known to be more frequent, because a short word may be the beginning of very many terms.
fn candidates(compounds: &[MatchedCompound<'_>]) -> Option<Vec<DocumentId>> {
    let words =
        || compounds.iter().flat_map(|compound| compound.words.iter().map(move |word| (compound, word)));
    let limits = std::iter::successors(Some(64_usize), |limit| limit.checked_mul(4));
    let mut rare = limits.flat_map(|limit| {
        let alternatives = move |(compound, word)| MatchedCompound::alternatives(compound, word, limit);
        words().map(alternatives).filter(move |alternatives| alternatives.count < limit)
    });
    let found = |term: &MatchedTerm<'_>| term.found().map(|(id, _)| id).collect::<Vec<_>>();
    rare.next().map(|alternatives| alternatives.terms.into_iter().flat_map(found).collect())
}

/// The terms for one word of the query. Every match has at least one of them.
struct Alternatives<'a> {
    terms: Vec<&'a MatchedTerm<'a>>,
    /// Number of their postings, counted up to a limit.
    count: usize,
}

/// Returns the documents whose whole name equals the query, in this or another form.
fn documents_with_name(documents: &Documents, key: &str) -> Vec<Match> {
    let term = MatchedTerm::new(&documents.dictionary, key);
    let postings = term.forms().flat_map(|(id, form)| term.postings(id).map(move |posting| (posting, form)));
    let named = postings.filter(|(posting, _)| posting.fields.intersects(Fields::WHOLE_NAME));
    let found = |form| Found { field: MatchedField::WholeName, form, description_only: false };
    named.map(|(posting, form)| score(posting.document, &[found(form)])).collect()
}

/// A term of the query, which stands for terms of the dictionary.
#[derive(Debug)]
struct MatchedTerm<'a> {
    dictionary: &'a Dictionary,
    text: &'a str,
    /// All terms with the same stem.
    forms: Vec<TermId>,
    /// All terms that it stands for, unless there are many.
    few: OnceCell<Option<Vec<(TermId, Form)>>>,
}

/// Maximum number of terms that are looked up in a document. With more, all terms of the document are visited instead.
const FEW: usize = 8;

impl<'a> MatchedTerm<'a> {
    fn new(dictionary: &'a Dictionary, text: &'a str) -> Self {
        let mut forms: Vec<_> = dictionary.with_stem(&stem(text)).collect();
        // A term may equal the stem of others and have a different stem itself.
        forms.extend(dictionary.get(text).filter(|id| !forms.contains(id)));
        Self { dictionary, text, forms, few: OnceCell::new() }
    }

    /// Returns the term itself and its other forms.
    fn forms(&self) -> impl Iterator<Item = (TermId, Form)> {
        self.forms.iter().map(|id| (*id, self.form(*id).unwrap_or(Form::Inflected)))
    }

    /// Returns the term, its other forms, and all terms that begin with it.
    fn terms(&self) -> impl Iterator<Item = (TermId, Form)> {
        let longer = self.dictionary.with_prefix(self.text).map(|(id, _)| id);
        self.forms().chain(longer.filter(|id| !self.forms.contains(id)).map(|id| (id, Form::Prefix)))
    }

    /// Returns the form in which a term of the dictionary matches this one.
    fn form(&self, id: TermId) -> Option<Form> {
        let text = self.dictionary.text(id);
        if text == self.text {
            Some(Form::Exact)
        } else if self.forms.contains(&id) {
            Some(Form::Inflected)
        } else {
            text.starts_with(self.text).then_some(Form::Prefix)
        }
    }

    fn postings(&self, id: TermId) -> impl Iterator<Item = &'a Posting> + use<'a> {
        self.dictionary.postings(id).into_iter().flat_map(Postings::iter)
    }

    /// Counts postings up to a limit, which the last term may exceed.
    fn count(&self, limit: usize) -> usize {
        let mut count = 0;
        let lengths = self.terms().filter_map(|(id, _)| self.dictionary.postings(id)).map(Postings::len);
        for length in lengths {
            count += length;
            if count >= limit {
                break;
            }
        }
        count
    }

    fn found(&self) -> impl Iterator<Item = (DocumentId, Found)> {
        self.terms().flat_map(|(id, form)| {
            self.postings(id).map(move |posting| (posting.document, Found::new(posting.fields, form)))
        })
    }

    fn find(&self, document: &Document) -> Option<Found> {
        let few = self.few.get_or_init(|| {
            let few: Vec<_> = self.terms().take(FEW + 1).collect();
            (few.len() <= FEW).then_some(few)
        });
        if let Some(few) = few {
            let found = |(id, form): &(TermId, Form)| Some(Found::new(document.fields_of(*id)?, *form));
            return few.iter().filter_map(found).min();
        }
        document.terms().filter_map(|(id, fields)| Some(Found::new(fields, self.form(id)?))).min()
    }
}

/// A word of the query, found whole or in all its parts.
#[derive(Debug)]
struct MatchedWord<'a> {
    whole: Option<MatchedTerm<'a>>,
    parts: Vec<MatchedTerm<'a>>,
}

impl<'a> MatchedWord<'a> {
    fn new(dictionary: &'a Dictionary, word: &'a Word) -> Self {
        let term = |text: &'a String| MatchedTerm::new(dictionary, text);
        Self { whole: word.whole.as_ref().map(term), parts: word.parts.iter().map(term).collect() }
    }

    /// Returns the terms of which every match has at least one.
    fn alternatives(&self, limit: usize) -> impl Iterator<Item = &MatchedTerm<'a>> {
        self.whole.iter().chain(self.parts.iter().min_by_key(|part| part.count(limit)))
    }

    fn find(&self, document: &Document) -> Option<Found> {
        let whole = self.whole.as_ref().and_then(|whole| whole.find(document));
        let parts = self.parts.iter().map(|part| part.find(document)).collect::<Option<Vec<_>>>();
        let mut parts = parts.and_then(|parts| parts.into_iter().max());
        if let Some(parts) = &mut parts
            && self.whole.is_some()
        {
            // A word that is found whole matches better than its parts.
            parts.form = parts.form.max(Form::Inflected);
        }
        [whole, parts].into_iter().flatten().min()
    }
}

/// Words of the query that are written as one, found joined or one by one.
#[derive(Debug)]
struct MatchedCompound<'a> {
    joined: Option<MatchedTerm<'a>>,
    words: Vec<MatchedWord<'a>>,
}

impl<'a> MatchedCompound<'a> {
    fn new(dictionary: &'a Dictionary, compound: &'a Compound) -> Self {
        let joined = compound.joined.as_ref().map(|joined| MatchedTerm::new(dictionary, joined));
        Self { joined, words: compound.words.iter().map(|word| MatchedWord::new(dictionary, word)).collect() }
    }

    /// Returns the alternatives for one of the words. Counts up to a limit, which the last term may exceed.
    fn alternatives<'b>(&'b self, word: &'b MatchedWord<'a>, limit: usize) -> Alternatives<'b> {
        let terms: Vec<&'b MatchedTerm<'b>> = self.joined.iter().chain(word.alternatives(limit)).collect();
        let count = terms.iter().map(|term| term.count(limit)).sum();
        Alternatives { terms, count }
    }

    /// Adds how each word was found. Returns whether all of them were found.
    fn find(&self, document: &Document, all: &mut Vec<Found>) -> bool {
        let joined = self.joined.as_ref().and_then(|joined| joined.find(document));
        self.words.iter().all(|word| {
            let found = [word.find(document), joined].into_iter().flatten().min();
            all.extend(found);
            found.is_some()
        })
    }
}

/// Maximum part of the score that depends on the forms of the words.
const FORM_SHARE: f64 = 0.05;

/// Returns the score of a document from how each word of the query was found in it.
#[expect(clippy::cast_precision_loss, reason = "a query has few words")]
fn score(id: DocumentId, found: &[Found]) -> Match {
    let words = found.len().max(1) as f64;
    let count = |field| found.iter().filter(|one| one.field == field).count() as f64;
    let inexact = |found: &Found| match found.form {
        Form::Exact => 0.0,
        Form::Inflected => 0.5,
        Form::Prefix => 1.0,
    };
    // The counts are two digits of a number, so that no number of tags outweighs one more word in the name.
    let digit = 0.85 / (words * (words + 1.0));
    let places = 0.1 + digit * (count(MatchedField::Name) * (words + 1.0) + count(MatchedField::TitleOrTag));
    let places = if count(MatchedField::WholeName) > 0.0 { 1.0 } else { places };
    let forms = found.iter().map(inexact).sum::<f64>() / words;
    let score = round(places - forms * FORM_SHARE.min(digit / 2.0));
    Match { id, score, description_only: found.iter().all(|found| found.description_only) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(field: MatchedField, form: Form) -> Found {
        Found { field, form, description_only: false }
    }

    #[test]
    fn fields_decide_before_forms_and_a_word_in_the_name_before_any_number_in_tags() {
        use MatchedField::{ExampleOrDescription, Name, TitleOrTag, WholeName};
        for words in 1..=20 {
            let all = |field, form| score(0, &vec![found(field, form); words]).score;
            for (better, worse) in [(WholeName, Name), (Name, TitleOrTag), (TitleOrTag, ExampleOrDescription)]
            {
                // If the whole name matches, all words have the form of the whole query.
                let worst = if better == WholeName { Form::Inflected } else { Form::Prefix };
                assert!(all(better, Form::Exact) > all(better, worst), "{better:?}, {words} words");
                assert!(all(better, worst) > all(worse, Form::Exact), "{better:?}, {words} words");
            }
            if words > 1 {
                let mut one_in_name = vec![found(ExampleOrDescription, Form::Prefix); words];
                one_in_name[0].field = Name;
                assert!(score(0, &one_in_name).score > all(TitleOrTag, Form::Exact), "{words} words");
            }
        }
        let [best, worst] = [found(Name, Form::Exact), found(ExampleOrDescription, Form::Prefix)]
            .map(|one| score(0, &[one]).score);
        assert!((best - 0.95).abs() < 1e-9 && (worst - 0.05).abs() < 1e-9, "{best} {worst}");
    }
}
