//! The cards that an orchestrator has read, so that it can call agents while the registry is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::target::Target;
use crate::client::RegistryClient;
use crate::contract::CapabilityMatch;
use crate::error::{Error, with_causes};

/// Maximum number of agents whose cards are kept.
const CAPACITY: usize = 1_024;

/// How long a card is used if the registry's matches have no digest of it.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Time limit for reading a card if an earlier one is known.
const MAX_REFRESH_WAIT: Duration = Duration::from_secs(1);

/// How long an earlier card is used after a failed read. Otherwise each attempt would wait for a registry that hangs.
const MIN_READ_INTERVAL: Duration = Duration::from_secs(10);

/// The interfaces of agents, by their cards. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cards(Arc<Mutex<HashMap<String, Kept>>>);

/// The interface of one agent.
#[derive(Clone, Debug)]
struct Kept {
    /// The interface, or the reason why there is none.
    target: Result<Arc<Target>, String>,
    /// The digest of the card that was read.
    digest: Option<String>,
    read_at: Instant,
    used_at: Instant,
    /// When reading a later card failed.
    failed_at: Option<Instant>,
}

impl Kept {
    fn new(target: Result<Target, String>, digest: Option<String>) -> Self {
        let now = Instant::now();
        Self { target: target.map(Arc::new), digest, read_at: now, used_at: now, failed_at: None }
    }

    /// Whether the card need not be read again: the match has its digest, or reading it failed a moment ago.
    fn is_current(&self, digest: Option<&str>) -> bool {
        if self.failed_at.is_some_and(|at| at.elapsed() < MIN_READ_INTERVAL) {
            return true;
        }
        match digest {
            Some(_) => self.digest.as_deref() == digest,
            None => self.read_at.elapsed() < MAX_AGE,
        }
    }
}

impl Cards {
    /// Returns the interface by which an agent is called. The card is read from the registry if the match has another digest than the card that
    /// was read last. If it cannot be read, the earlier card is used, unless the agent could not be called by that one either.
    ///
    /// # Errors
    /// The reason if the agent cannot be called, as the second half of a sentence that begins with the agent's id.
    pub(crate) async fn target(
        &self,
        client: &RegistryClient,
        agent: &CapabilityMatch,
        deadline: Instant,
    ) -> Result<Arc<Target>, String> {
        let (agent_id, digest) = (&agent.agent_id, agent.card_digest.as_deref());
        let earlier = self.get(agent_id);
        if let Some(kept) = earlier.as_ref().filter(|kept| kept.is_current(digest)) {
            return kept.target.clone();
        }
        // A card by which the agent cannot be called is no reason to wait less.
        let earlier = earlier.filter(|kept| kept.target.is_ok());
        let latest = if earlier.is_some() { Instant::now() + MAX_REFRESH_WAIT } else { deadline };
        let read = timeout_at(latest.min(deadline), client.card_with_digest(agent_id)).await;
        let kept = match (read, earlier) {
            (Ok(Ok((card, read))), _) => {
                Kept::new(Target::of_card(&card), read.or_else(|| digest.map(str::to_owned)))
            }
            (Ok(Err(Error::NotFound { .. })), _) => {
                Kept::new(Err("it registered no A2A agent card".to_owned()), None)
            }
            (Ok(Err(Error::Unsupported { .. })), _) => {
                Kept::new(Err("the registry does not keep A2A agent cards".to_owned()), None)
            }
            (Ok(Err(error)), None) => {
                return Err(format!("its A2A agent card cannot be read: {}", with_causes(&error)));
            }
            (_, Some(earlier)) => {
                self.record_failed_read(agent_id);
                return earlier.target;
            }
            (Err(_), None) => return Err("its A2A agent card was not read in time".to_owned()),
        };
        let target = kept.target.clone();
        self.set(agent_id, kept);
        target
    }

    fn get(&self, agent_id: &str) -> Option<Kept> {
        let mut kept = self.lock();
        let kept = kept.get_mut(agent_id)?;
        kept.used_at = Instant::now();
        Some(kept.clone())
    }

    /// Does not replace the card, because another attempt may have read a later one meanwhile.
    fn record_failed_read(&self, agent_id: &str) {
        if let Some(kept) = self.lock().get_mut(agent_id) {
            kept.failed_at = Some(Instant::now());
        }
    }

    fn set(&self, agent_id: &str, card: Kept) {
        let mut kept = self.lock();
        if kept.len() >= CAPACITY && !kept.contains_key(agent_id) {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used_at).map(|(id, _)| id.clone());
            oldest.and_then(|id| kept.remove(&id));
        }
        kept.insert(agent_id.to_owned(), card);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
