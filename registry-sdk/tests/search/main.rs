//! The contract's search, through its public API.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod compatibility;
mod words;

use registry_sdk::contract::Capability;
use registry_sdk::search::{Query, SearchIndex};

/// Registers an agent for each capability, and returns the names that a query finds, best first.
fn found<'a>(capabilities: &'a [Capability], query: &str) -> Vec<&'a str> {
    let mut index = SearchIndex::default();
    for capability in capabilities {
        index.insert(std::slice::from_ref(capability));
    }
    let mut hits = index.search(&Query::all(query), |_, _| true);
    hits.sort_by(|one, other| other.score.total_cmp(&one.score).then(one.slot.cmp(&other.slot)));
    hits.iter().map(|hit| capabilities[hit.slot as usize].name.as_str()).collect()
}
