//! The index: finds agents by their capabilities.

use super::documents::Documents;
use super::query::{Mode, Query};
use super::score::Hit;
use super::{match_all, match_best, match_name};
use crate::contract::Capability;

/// An index that finds agents by their capabilities.
#[derive(Debug, Default)]
pub struct SearchIndex {
    documents: Documents,
}

impl SearchIndex {
    /// Adds an agent with all its capabilities. Returns its slot, which a removed agent may have had before.
    pub fn insert(&mut self, capabilities: &[Capability]) -> u32 {
        self.documents.insert(capabilities)
    }

    /// Removes an agent with all its capabilities.
    pub fn remove(&mut self, slot: u32) {
        self.documents.remove(slot);
    }

    /// Returns all agents with a matching capability that is accepted, each with its best capability, or the first of several
    /// equally good ones. The hits are in no particular order. `accepts` gets the agent's slot and the capability's position.
    pub fn search(&self, query: &Query, mut accepts: impl FnMut(u32, u16) -> bool) -> Vec<Hit> {
        if query.is_empty() {
            return Vec::new();
        }
        let matches = match &query.mode {
            Mode::Name(name) => match_name::search(&self.documents, &query.key, name),
            Mode::All => match_all::search(&self.documents, query),
            Mode::Best => return match_best::search(&self.documents, query, accepts),
        };
        let mut hits: Vec<Hit> = Vec::with_capacity(matches.len());
        // The capabilities of an agent are adjacent.
        for found in matches {
            if !query.accepts(found.score, found.description_only) {
                continue;
            }
            let Some(document) = self.documents.get(found.id) else { continue };
            let (slot, position) = (document.slot, document.position);
            let hit = Hit { slot, position, score: found.score };
            match hits.last_mut().filter(|last| last.slot == slot) {
                Some(last) if hit.score <= last.score => {}
                _ if !accepts(slot, position) => {}
                Some(last) => *last = hit,
                None => hits.push(hit),
            }
        }
        hits
    }

    /// Returns whether a search visits fewer capabilities than `max`.
    #[must_use]
    pub fn is_quick(&self, query: &Query, max: usize) -> bool {
        match &query.mode {
            Mode::Name(_) => match_name::is_quick(&self.documents, &query.key, max),
            Mode::All => match_all::is_quick(&self.documents, query, max),
            Mode::Best => self.documents.counts().0 < max,
        }
    }

    /// Returns the number of capabilities and of distinct names.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.documents.counts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_is_found_by_its_best_capability_until_it_is_removed() {
        let mut index = SearchIndex::default();
        let slot = index.insert(&[Capability::new("documentation"), Capability::new("security_scanning")]);
        let sentence = Query::best("Who can scan my code for holes?").min_score(0.1);
        for query in [Query::all("security scanner"), Query::exact("security_scanning"), sentence] {
            let hits = index.search(&query, |_, _| true);
            assert_eq!((hits[0].slot, hits[0].position), (slot, 1));
            assert!(index.search(&query, |found, _| found != slot).is_empty());
        }
        assert!(Query::all("--").is_empty(), "nothing to search for");
        index.remove(slot);
        assert!(index.search(&Query::all("security"), |_, _| true).is_empty());
    }
}
