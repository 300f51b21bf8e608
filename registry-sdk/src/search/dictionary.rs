//! The dictionary: all distinct terms, by text and by stem.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::analysis::stem;
use super::postings::Postings;

/// The number of a distinct term. Documents store numbers, so that each text is stored only once.
pub(super) type TermId = u32;

/// All terms, sorted so that those with a common prefix are adjacent.
#[derive(Debug, Default)]
pub(super) struct Dictionary {
    ids: BTreeMap<Arc<str>, TermId>,
    terms: Vec<Term>,
    free: Vec<TermId>,
    /// The terms of each stem, except for terms that equal their stem.
    inflected: HashMap<Box<str>, Vec<TermId>>,
}

#[derive(Debug, Default)]
struct Term {
    text: Arc<str>,
    postings: Postings,
}

impl Dictionary {
    /// Returns the number of a term. Adds the term if it is new.
    pub(super) fn intern(&mut self, text: &str) -> TermId {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let shared: Arc<str> = text.into();
        let id = self.free.pop().unwrap_or_else(|| {
            self.terms.push(Term::default());
            u32::try_from(self.terms.len() - 1).unwrap_or(TermId::MAX)
        });
        if let Some(term) = self.terms.get_mut(id as usize) {
            term.text = shared.clone();
        }
        self.ids.insert(shared, id);
        let stem = stem(text);
        if stem != text {
            self.inflected.entry(stem.into()).or_default().push(id);
        }
        id
    }

    /// Removes a term if no document contains it any more.
    pub(super) fn remove_unused(&mut self, id: TermId) {
        let Some(term) = self.terms.get_mut(id as usize).filter(|term| term.postings.len() == 0) else {
            return;
        };
        let Term { text, .. } = std::mem::take(term);
        self.ids.remove(&text);
        let stem = stem(&text);
        if let Some(terms) = self.inflected.get_mut(&*stem) {
            terms.retain(|other| *other != id);
            if terms.is_empty() {
                self.inflected.remove(&*stem);
            }
        }
        self.free.push(id);
    }

    pub(super) fn get(&self, text: &str) -> Option<TermId> {
        self.ids.get(text).copied()
    }

    pub(super) fn postings(&self, id: TermId) -> Option<&Postings> {
        self.terms.get(id as usize).map(|term| &term.postings)
    }

    pub(super) fn postings_mut(&mut self, id: TermId) -> Option<&mut Postings> {
        self.terms.get_mut(id as usize).map(|term| &mut term.postings)
    }

    pub(super) fn text(&self, id: TermId) -> &str {
        self.terms.get(id as usize).map_or("", |term| &term.text)
    }

    /// Returns all terms with a prefix, and their texts.
    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (TermId, &'a str)> {
        let from = self.ids.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.take_while(move |(text, _)| text.starts_with(prefix)).map(|(text, id)| (*id, &**text))
    }

    /// Returns all terms with a stem.
    pub(super) fn with_stem(&self, stem: &str) -> impl Iterator<Item = TermId> {
        self.get(stem).into_iter().chain(self.inflected.get(stem).into_iter().flatten().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_found_by_prefix_and_stem_until_they_are_removed() {
        let mut dictionary = Dictionary::default();
        let [scan, scanner, scans] = ["scan", "scanner", "scans"].map(|text| dictionary.intern(text));
        assert_eq!(dictionary.intern("scan"), scan);
        assert_eq!(dictionary.with_prefix("scann").collect::<Vec<_>>(), [(scanner, "scanner")]);
        assert_eq!(dictionary.with_stem("scan").collect::<Vec<_>>(), [scan, scanner, scans]);
        dictionary.remove_unused(scanner);
        assert_eq!(dictionary.with_prefix("scan").collect::<Vec<_>>(), [(scan, "scan"), (scans, "scans")]);
        assert_eq!(dictionary.with_stem("scan").collect::<Vec<_>>(), [scan, scans]);
        assert_eq!(dictionary.intern("other"), scanner, "the number is reused");
    }

    /// "happi" is the stem of "happy", but not its own stem.
    #[test]
    fn term_that_only_looks_like_a_stem_is_found_by_its_own_stem() {
        let mut dictionary = Dictionary::default();
        let (happy, university) = (dictionary.intern("happy"), dictionary.intern("universe"));
        assert_eq!(dictionary.with_stem("happi").collect::<Vec<_>>(), [happy]);
        assert_eq!(dictionary.with_stem("univers").collect::<Vec<_>>(), [university]);
    }
}
