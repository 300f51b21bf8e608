//! The results of searches, for later attempts and for outages of the registry.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::candidate::Candidate;
use super::freshness::Freshness;
use crate::query::SearchQuery;

/// Number of searches that an orchestrator keeps for outages of the registry.
const REMEMBERED: usize = 256;

/// The results of an orchestrator's last searches, by their query string. While the registry is unavailable, tasks go to those of the
/// agents that report themselves healthy.
#[derive(Clone, Debug, Default)]
pub(super) struct LastSearches(Arc<Mutex<HashMap<String, Found>>>);

/// The agents that earlier attempts of a delegation found and tried, so that failing over needs no registry.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    found: Mutex<HashMap<String, Found>>,
    /// Agents that have, or had, the task. They do not get it again.
    tried: Mutex<HashSet<String>>,
}

/// The result of a search for a capability, in the registry's order.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) candidates: Vec<Candidate>,
    pub(super) freshness: Freshness,
    /// Whether the registry's health data is too old to be relied on.
    pub(super) needs_check: bool,
    pub(super) at: Instant,
    /// Whether unhealthy agents are included.
    pub(super) is_complete: bool,
}

impl Found {
    pub(super) fn new(candidates: Vec<Candidate>, freshness: Freshness, is_complete: bool) -> Self {
        Self { candidates, freshness, needs_check: freshness.is_stale(), at: Instant::now(), is_complete }
    }
}

impl LastSearches {
    pub(super) fn get(&self, search: &SearchQuery) -> Option<Found> {
        lock(&self.0).get(&search.to_query_string()).cloned()
    }

    pub(super) fn set(&self, search: &SearchQuery, found: &Found) {
        let search = search.to_query_string();
        let mut searches = lock(&self.0);
        // Queries may consist of any words.
        if searches.len() >= REMEMBERED && !searches.contains_key(&search) {
            searches.clear();
        }
        searches.insert(search, found.clone());
    }
}

impl Earlier {
    pub(super) fn get(&self, capability: &str) -> Option<Found> {
        lock(&self.found).get(capability).cloned()
    }

    pub(super) fn set(&self, capability: &str, found: &Found) {
        lock(&self.found).insert(capability.to_owned(), found.clone());
    }

    pub(super) fn has(&self, capability: &str) -> bool {
        lock(&self.found).contains_key(capability)
    }

    pub(super) fn is_incomplete(&self, capability: &str) -> bool {
        lock(&self.found).get(capability).is_some_and(|found| !found.is_complete)
    }

    pub(super) fn was_tried(&self, agent_id: &str) -> bool {
        lock(&self.tried).contains(agent_id)
    }

    /// Records that an agent gets the task.
    pub(super) fn add_tried(&self, agent_id: &str) {
        lock(&self.tried).insert(agent_id.to_owned());
    }

    /// Records that an agent may get the task again.
    pub(super) fn remove_tried(&self, agent_id: &str) {
        lock(&self.tried).remove(agent_id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
