//! Writes of one transaction.

use std::sync::Arc;

use super::agent::StoredAgent;
use super::card::CardWrite;
use super::log::{Event, EventKind};

/// Writes of one transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    /// New states of agents of which only `last_heartbeat` changes.
    pub(crate) heartbeats: Vec<Arc<StoredAgent>>,
    /// Agents that are created, replaced or removed, each at most once.
    ///
    /// Their revisions continue the head's without a gap.
    pub(crate) events: Vec<Event>,
    /// Cards of agents in `events`.
    pub(crate) cards: Vec<CardWrite>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.heartbeats.is_empty() && self.events.is_empty()
    }

    pub(super) fn upserts(&self) -> impl Iterator<Item = &StoredAgent> {
        self.events.iter().filter(|event| event.kind != EventKind::Deregistered).map(|event| &*event.agent)
    }

    /// Returns the cards to store, each with the id of its agent.
    pub(super) fn new_cards(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cards.iter().filter_map(|write| Some((write.agent_id.as_str(), write.card.as_ref()?.as_str())))
    }

    /// Returns the ids of agents that must not have a card afterwards.
    pub(super) fn agents_without_cards(&self) -> Vec<&str> {
        let removed = self.cards.iter().filter(|write| write.card.is_none());
        let mut agent_ids = self.deletes();
        agent_ids.extend(removed.map(|write| write.agent_id.as_str()));
        agent_ids
    }

    pub(super) fn deletes(&self) -> Vec<&str> {
        let removed = self.events.iter().filter(|event| event.kind == EventKind::Deregistered);
        removed.map(|event| event.agent.agent_id.as_str()).collect()
    }
}
