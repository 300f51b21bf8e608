//! The contract's search.
#![cfg(feature = "__internal")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod compatibility;
mod words;

use registry_sdk::contract::Capability;
use registry_sdk::internal::{Hit, Query, SearchIndex};

/// Registers an agent for each capability, and returns what a query finds, best first.
fn hits(capabilities: &[Capability], query: &Query) -> Vec<Hit> {
    let mut index = SearchIndex::default();
    for capability in capabilities {
        index.insert(std::slice::from_ref(capability));
    }
    let mut hits = index.search(query, |_, _| true);
    hits.sort_by(|one, other| other.score.total_cmp(&one.score).then(one.slot.cmp(&other.slot)));
    hits
}

/// Returns the names that words find.
fn found<'a>(capabilities: &'a [Capability], words: &str) -> Vec<&'a str> {
    let hits = hits(capabilities, &Query::all(words));
    hits.iter().map(|hit| capabilities[hit.slot as usize].name.as_str()).collect()
}

/// Returns the names that a sentence finds, and their scores.
fn scored(capabilities: &[Capability], sentence: &str) -> Vec<(String, f64)> {
    let hits = hits(capabilities, &Query::best(sentence));
    hits.iter().map(|hit| (capabilities[hit.slot as usize].name.clone(), hit.score)).collect()
}
