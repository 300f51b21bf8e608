//! The contract's search over many agents: an inverted index, from a term to the capabilities that have it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::rank::Field;
use super::terms::{score, terms};
use crate::contract::Capability;

/// One capability of one agent: the agent's slot and the capability's position in its list. In this order, all
/// capabilities of an agent come one after another.
type Posting = (u32, u16);

/// The number of a distinct term. Capabilities keep numbers, so that each text is held once.
type TermId = u32;

/// An agent that was found, by its best capability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The agent's number, as [`SearchIndex::insert`] gave it.
    pub slot: u32,
    /// The position of the capability among those of the agent.
    pub position: u16,
    /// How well it matches: see [`score`].
    pub score: f64,
}

/// Finds agents by what they can do, as the contract says: a sorted map from term to capabilities, so that all
/// terms with a prefix stand side by side.
///
/// ```
/// use registry_sdk::contract::Capability;
/// use registry_sdk::search::SearchIndex;
/// let mut index = SearchIndex::default();
/// let slot = index.insert(&[Capability::new("documentation"), Capability::new("security_scanning")]);
/// let found = index.search("security scan");
/// assert_eq!((found[0].slot, found[0].position), (slot, 1));
/// index.remove(slot);
/// assert!(index.search("security scan").is_empty());
/// ```
#[derive(Debug, Default)]
pub struct SearchIndex {
    ids: BTreeMap<Arc<str>, TermId>,
    terms: Vec<Term>,
    free_terms: Vec<TermId>,
    /// The capabilities of each agent, by its slot.
    agents: Vec<Option<Box<[Indexed]>>>,
    free_slots: Vec<u32>,
    /// How many capabilities have each name.
    names: HashMap<Arc<str>, usize>,
    capabilities: usize,
}

#[derive(Debug)]
struct Term {
    text: Arc<str>,
    postings: BTreeSet<Posting>,
}

/// A capability's terms, for ranking it and for removing it.
#[derive(Debug)]
struct Indexed {
    name: Arc<str>,
    /// How many terms the name has, in order: they come first in `terms`.
    in_name: usize,
    terms: Box<[(TermId, Field)]>,
}

impl SearchIndex {
    /// Adds an agent with all its capabilities. Answers with its number, which may be that of an agent that was
    /// removed before.
    pub fn insert(&mut self, capabilities: &[Capability]) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.agents.push(None);
            u32::try_from(self.agents.len() - 1).unwrap_or(u32::MAX)
        });
        let indexed =
            (0..).zip(capabilities).map(|(position, capability)| self.index((slot, position), capability));
        let indexed = indexed.collect();
        if let Some(agent) = self.agents.get_mut(slot as usize) {
            *agent = Some(indexed);
        }
        slot
    }

    /// Removes an agent with all its capabilities.
    pub fn remove(&mut self, slot: u32) {
        let Some(indexed) = self.agents.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        for (position, capability) in (0..).zip(&indexed) {
            self.capabilities -= 1;
            if let Some(count) = self.names.get_mut(&capability.name) {
                *count -= 1;
                if *count == 0 {
                    self.names.remove(&capability.name);
                }
            }
            for (id, _) in &capability.terms {
                let Some(term) = self.terms.get_mut(*id as usize) else {
                    continue;
                };
                let was_there = term.postings.remove(&(slot, position));
                if was_there && term.postings.is_empty() {
                    self.ids.remove(&term.text);
                    self.free_terms.push(*id);
                }
            }
        }
        self.free_slots.push(slot);
    }

    /// All agents with a capability in which every term of the query begins a term, each by its best one; of
    /// equals the first that it named. In no order that means anything. A query without a term finds nobody.
    #[must_use]
    pub fn search(&self, query: &str) -> Vec<Hit> {
        let wanted: Vec<String> = terms(query).collect();
        let mut found: Vec<Hit> = Vec::new();
        for (slot, position) in self.candidates(&wanted) {
            let indexed = self.agents.get(slot as usize).and_then(Option::as_ref);
            let indexed = indexed.and_then(|capabilities| capabilities.get(usize::from(position)));
            let Some(score) = indexed.and_then(|capability| self.score(&wanted, capability)) else {
                continue;
            };
            match found.last_mut() {
                Some(last) if last.slot == slot => {
                    if score > last.score {
                        *last = Hit { slot, position, score };
                    }
                }
                _ => found.push(Hit { slot, position, score }),
            }
        }
        found
    }

    /// How many capabilities there are, and how many distinct names they have.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.capabilities, self.names.len())
    }

    fn index(&mut self, posting: Posting, capability: &Capability) -> Indexed {
        self.capabilities += 1;
        let name = self.count_name(&capability.name);
        let in_name = terms(&capability.name).map(|term| (term, Field::Name));
        let tags = capability.tags.iter().flat_map(|tag| terms(tag)).map(|term| (term, Field::Tag));
        let description = terms(&capability.description).map(|term| (term, Field::Description));
        let mut indexed = Vec::new();
        let mut terms_in_name = 0;
        for (text, field) in in_name.chain(tags).chain(description) {
            let id = self.term(text);
            // A name's terms are kept as they stand, for comparing whole names; of the others, one each.
            if field == Field::Name {
                terms_in_name += 1;
            } else if indexed.iter().any(|(known, _)| *known == id) {
                continue;
            }
            if let Some(term) = self.terms.get_mut(id as usize) {
                term.postings.insert(posting);
            }
            indexed.push((id, field));
        }
        Indexed { name, in_name: terms_in_name, terms: indexed.into() }
    }

    fn count_name(&mut self, name: &str) -> Arc<str> {
        let name = self.names.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone());
        *self.names.entry(name.clone()).or_default() += 1;
        name
    }

    /// The capabilities in which one term of the query is found, by the term for which they are fewest. An
    /// agent's capabilities come one after another.
    fn candidates(&self, query: &[String]) -> Vec<Posting> {
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
    fn score(&self, query: &[String], capability: &Indexed) -> Option<f64> {
        let text = |id: TermId| self.terms.get(id as usize).map_or("", |term| &*term.text);
        let best = |wanted: &String| {
            let found = capability.terms.iter().filter(|(id, _)| text(*id).starts_with(wanted.as_str()));
            found.map(|(_, field)| *field).min()
        };
        let found = query.iter().map(best).collect::<Option<Vec<_>>>()?;
        let name = &capability.terms[..capability.in_name];
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
        let id = if let Some(id) = self.free_terms.pop() {
            if let Some(free) = self.terms.get_mut(id as usize) {
                *free = term;
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
