//! The inverted index: from a term to the capabilities that have it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use registry_sdk::contract::{Capability, Field, score, terms};

/// Where an agent stands in the view.
pub(super) type Slot = u32;

/// One capability of one agent: the agent's slot and the capability's place in its list. In this order, all
/// capabilities of an agent come one after another.
type Posting = (Slot, u16);

/// The number of a distinct term. Capabilities keep numbers, so that each text is held once.
type TermId = u32;

/// A capability's terms, for the index and for ranking.
#[derive(Debug, Default)]
pub(super) struct CapabilityTerms {
    /// How many terms the name has, in order: they come first in `all`.
    in_name: usize,
    all: Box<[(TermId, Field)]>,
}

/// A sorted map from term to capabilities, so that a prefix is a range.
#[derive(Debug, Default)]
pub(super) struct Index {
    ids: BTreeMap<Arc<str>, TermId>,
    terms: Vec<Term>,
    free: Vec<TermId>,
    /// How many capabilities have each name.
    names: HashMap<String, usize>,
    capabilities: usize,
}

#[derive(Debug)]
struct Term {
    text: Arc<str>,
    postings: BTreeSet<Posting>,
}

impl Index {
    /// Adds all capabilities of an agent, and answers with their terms, which [`Index::remove`] wants back.
    pub(super) fn add(&mut self, slot: Slot, capabilities: &[Capability]) -> Box<[CapabilityTerms]> {
        let added = (0..).zip(capabilities).map(|(place, capability)| {
            self.capabilities += 1;
            *self.names.entry(capability.name.clone()).or_default() += 1;
            let name = terms(&capability.name).map(|term| (term, Field::Name));
            let tags = capability.tags.iter().flat_map(|tag| terms(tag)).map(|term| (term, Field::Tag));
            let description = terms(&capability.description).map(|term| (term, Field::Description));
            let mut all = Vec::new();
            let mut in_name = 0;
            for (text, field) in name.chain(tags).chain(description) {
                let id = self.term(text);
                // A name's terms are kept as they stand, for comparing whole names; of the others, one each.
                if field == Field::Name {
                    in_name += 1;
                } else if all.iter().any(|(known, _)| *known == id) {
                    continue;
                }
                if let Some(term) = self.terms.get_mut(id as usize) {
                    term.postings.insert((slot, place));
                }
                all.push((id, field));
            }
            CapabilityTerms { in_name, all: all.into() }
        });
        added.collect()
    }

    /// Removes all capabilities of an agent.
    pub(super) fn remove(&mut self, slot: Slot, capabilities: &[Capability], terms: &[CapabilityTerms]) {
        for ((place, capability), terms) in (0..).zip(capabilities).zip(terms) {
            self.capabilities -= 1;
            if let Some(count) = self.names.get_mut(&capability.name) {
                *count -= 1;
                if *count == 0 {
                    self.names.remove(&capability.name);
                }
            }
            for (id, _) in &terms.all {
                let Some(term) = self.terms.get_mut(*id as usize) else {
                    continue;
                };
                let was_there = term.postings.remove(&(slot, place));
                if was_there && term.postings.is_empty() {
                    self.ids.remove(&term.text);
                    self.free.push(*id);
                }
            }
        }
    }

    /// How many capabilities there are, and how many distinct names they have.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.capabilities, self.names.len())
    }

    /// The capabilities in which one term of the query is found, by the term for which they are fewest. An
    /// agent's capabilities come one after another.
    pub(super) fn candidates(&self, query: &[String]) -> Vec<Posting> {
        let count = |term: &&String| self.with_prefix(term).map(|term| term.postings.len()).sum::<usize>();
        let Some(rarest) = query.iter().min_by_key(count) else {
            return Vec::new();
        };
        let mut found: Vec<_> = self.with_prefix(rarest).flat_map(|term| &term.postings).copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// How well a capability matches, where every term of the query is a prefix of one of its terms.
    pub(super) fn score(&self, query: &[String], capability: &CapabilityTerms) -> Option<f64> {
        let text = |id: TermId| self.terms.get(id as usize).map_or("", |term| &*term.text);
        let best = |wanted: &String| {
            let found = capability.all.iter().filter(|(id, _)| text(*id).starts_with(wanted.as_str()));
            found.map(|(_, field)| *field).min()
        };
        let found = query.iter().map(best).collect::<Option<Vec<_>>>()?;
        let name = &capability.all[..capability.in_name];
        let whole_name =
            name.len() == query.len() && name.iter().zip(query).all(|((id, _), q)| text(*id) == q);
        Some(score(whole_name, &found))
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Term> {
        self.ids
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(text, _)| text.starts_with(prefix))
            .filter_map(|(_, id)| self.terms.get(*id as usize))
    }

    fn term(&mut self, text: String) -> TermId {
        if let Some(id) = self.ids.get(text.as_str()) {
            return *id;
        }
        let text: Arc<str> = text.into();
        let term = Term { text: text.clone(), postings: BTreeSet::new() };
        let id = if let Some(id) = self.free.pop() {
            if let Some(place) = self.terms.get_mut(id as usize) {
                *place = term;
            }
            id
        } else {
            self.terms.push(term);
            u32::try_from(self.terms.len() - 1).unwrap_or(TermId::MAX)
        };
        self.ids.insert(text, id);
        id
    }
}
