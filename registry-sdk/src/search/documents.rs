//! Documents: the capabilities of all agents, and the inverted index over them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::analysis::{Compound, Source, analyze, key};
use super::dictionary::{Dictionary, TermId};
use super::fields::{Fields, texts};
use super::postings::{DocumentId, Posting};
use crate::contract::Capability;

/// A capability of an agent.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) name: Arc<str>,
    /// The numbers of the distinct terms.
    terms: Box<[DocumentTerm]>,
    pub(super) slot: u32,
    pub(super) position: u16,
}

/// A term of a document and the fields that contain it, in four bytes.
#[derive(Clone, Copy, Debug)]
struct DocumentTerm(u32);

impl DocumentTerm {
    /// Returns `None` if the term's number is above 67 million and does not fit.
    fn new(id: TermId, fields: Fields) -> Option<Self> {
        let shifted = id.checked_mul(1 << Fields::BITS)?;
        Some(Self(shifted | u32::from(fields.bits())))
    }

    fn id(self) -> TermId {
        self.0 >> Fields::BITS
    }

    fn fields(self) -> Fields {
        Fields::from_bits(self.0.to_le_bytes()[0] & ((1 << Fields::BITS) - 1))
    }
}

/// The consecutive numbers of an agent's documents.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: DocumentId,
    len: usize,
}

impl Range {
    /// Capacity in documents: a power of two, so that free ranges have few sizes.
    fn capacity(self) -> usize {
        self.len.next_power_of_two()
    }
}

#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) dictionary: Dictionary,
    by_id: Vec<Option<Document>>,
    /// Number of words of each document, weighted by field. Stored separately, because a search reads many of them.
    lengths: Vec<u16>,
    /// The free ranges of each capacity.
    free_ranges: BTreeMap<usize, Vec<DocumentId>>,
    agents: Vec<Option<Range>>,
    free_slots: Vec<u32>,
    /// Number of capabilities with each name.
    names: HashMap<Arc<str>, usize>,
    count: usize,
    total_length: u64,
}

impl Documents {
    pub(super) fn insert(&mut self, capabilities: &[Capability]) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.agents.push(None);
            u32::try_from(self.agents.len() - 1).unwrap_or(u32::MAX)
        });
        let range = self.allocate(capabilities.len());
        for ((id, position), capability) in (range.start..).zip(0..).zip(capabilities) {
            self.add(id, slot, position, capability);
        }
        if let Some(agent) = self.agents.get_mut(slot as usize) {
            *agent = Some(range);
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let Some(range) = self.agents.get_mut(slot as usize).and_then(Option::take) else { return };
        for id in (range.start..).take(range.len) {
            let Some(document) = self.by_id.get_mut(id as usize).and_then(Option::take) else { continue };
            self.count -= 1;
            self.total_length -= u64::from(self.lengths.get(id as usize).copied().unwrap_or_default());
            if let Some(count) = self.names.get_mut(&document.name) {
                *count -= 1;
                if *count == 0 {
                    self.names.remove(&document.name);
                }
            }
            for term in document.terms.iter().map(|term| term.id()) {
                if let Some(postings) = self.dictionary.postings_mut(term) {
                    postings.remove(id);
                    self.dictionary.remove_unused(term);
                }
            }
        }
        self.free_ranges.entry(range.capacity()).or_default().push(range.start);
        self.free_slots.push(slot);
    }

    pub(super) fn get(&self, id: DocumentId) -> Option<&Document> {
        self.by_id.get(id as usize)?.as_ref()
    }

    /// Returns the number of documents and of distinct names.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.count, self.names.len())
    }

    /// Returns the number and the documents of each agent.
    pub(super) fn agents(&self) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> {
        let agents = (0..).zip(&self.agents);
        agents.filter_map(|(slot, range)| {
            let Range { start, len } = (*range)?;
            Some((slot, start as usize..start as usize + len))
        })
    }

    /// Returns one more than the highest document number.
    pub(super) fn end(&self) -> usize {
        self.by_id.len()
    }

    /// Returns the lengths of the documents by number, in words weighted by field.
    pub(super) fn lengths(&self) -> &[u16] {
        &self.lengths
    }

    /// Returns the mean length of the documents.
    #[expect(clippy::cast_precision_loss, reason = "a mean needs no more than six digits")]
    pub(super) fn mean_length(&self) -> f32 {
        self.total_length.max(1) as f32 / self.count.max(1) as f32
    }

    fn allocate(&mut self, len: usize) -> Range {
        let range = Range { start: 0, len };
        let start = self.free_ranges.get_mut(&range.capacity()).and_then(Vec::pop).unwrap_or_else(|| {
            let start = self.by_id.len();
            self.by_id.resize_with(start + range.capacity(), || None);
            self.lengths.resize(start + range.capacity(), 0);
            u32::try_from(start).unwrap_or(DocumentId::MAX)
        });
        Range { start, ..range }
    }

    fn add(&mut self, id: DocumentId, slot: u32, position: u16, capability: &Capability) {
        self.count += 1;
        let (mut found, mut length) = (Vec::new(), 0_u16);
        for (field, text) in texts(capability) {
            for compound in analyze(text, Source::Text) {
                length = length
                    .saturating_add(self.intern(&compound, field, &mut found).saturating_mul(field.weight()));
            }
        }
        self.total_length += u64::from(length);
        let whole_name = self.dictionary.intern(&key(&capability.name));
        found.sort_unstable_by_key(|(term, ..)| *term);
        found.dedup_by(|(term, frequency, fields), (kept, total, all)| {
            let is_same = term == kept;
            if is_same {
                *total = total.saturating_add(*frequency);
                *all = all.union(*fields);
            }
            is_same
        });
        match found.binary_search_by_key(&whole_name, |(term, ..)| *term) {
            Ok(index) => found[index].2 = found[index].2.union(Fields::WHOLE_NAME),
            Err(index) => {
                let fields = Fields::NAME.union(Fields::WHOLE_NAME);
                found.insert(index, (whole_name, Fields::NAME.weight(), fields));
            }
        }
        let mut terms = Vec::with_capacity(found.len());
        for (term, frequency, fields) in found {
            let Some(kept) = DocumentTerm::new(term, fields) else { continue };
            if let Some(postings) = self.dictionary.postings_mut(term) {
                postings.insert(Posting { document: id, frequency, fields });
            }
            terms.push(kept);
        }
        let name = self.count_name(&capability.name);
        if let (Some(entry), Some(known)) =
            (self.by_id.get_mut(id as usize), self.lengths.get_mut(id as usize))
        {
            *entry = Some(Document { name, terms: terms.into(), slot, position });
            *known = length;
        }
    }

    /// Adds all forms of a word, or of several words that are written as one. Returns the number of words that they count as.
    fn intern(&mut self, compound: &Compound, field: Fields, found: &mut Vec<(TermId, u16, Fields)>) -> u16 {
        let mut count = 0_u16;
        for word in &compound.words {
            for form in word.forms() {
                found.push((self.dictionary.intern(form), field.weight(), field));
            }
            count = count.saturating_add(u16::try_from(word.parts.len().max(1)).unwrap_or(u16::MAX));
        }
        if let Some(joined) = &compound.joined {
            found.push((self.dictionary.intern(joined), field.weight(), field));
        }
        count
    }

    fn count_name(&mut self, name: &str) -> Arc<str> {
        let name = self.names.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone());
        *self.names.entry(name.clone()).or_default() += 1;
        name
    }
}

impl Document {
    /// Returns the fields that contain a term.
    pub(super) fn fields_of(&self, term: TermId) -> Option<Fields> {
        let index = self.terms.binary_search_by_key(&term, |term| term.id()).ok()?;
        Some(self.terms[index].fields())
    }

    /// Returns the terms, ordered by number, with the fields that contain them.
    pub(super) fn terms(&self) -> impl Iterator<Item = (TermId, Fields)> {
        self.terms.iter().map(|term| (term.id(), term.fields()))
    }
}
