//! The cards that an orchestrator has read, so that it can call agents while the registry is unavailable.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::target::Target;
use crate::client::RegistryClient;
use crate::contract::CapabilityMatch;
use crate::error::{Error, with_causes};

/// Maximum number of agents whose cards are kept.
const CAPACITY: usize = 1_024;

/// How long a card is used if the registry's matches have no digest of it.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Time limit of the first read of a changed card. Each further one has twice as long, until one succeeds.
const MIN_REFRESH_WAIT: Duration = Duration::from_secs(1);

/// Minimum interval between reads that fail. Otherwise each attempt would wait for a registry that hangs. If no interface is known, it
/// is at most as long as the failed read took: if the registry fails at once, agents can then be called soon after it is back.
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
    /// When a card was read; `None` if that never succeeded.
    read_at: Option<Instant>,
    used_at: Instant,
    /// The last read, if it failed.
    failed: Option<FailedRead>,
}

/// A read of a card that failed.
#[derive(Clone, Copy, Debug)]
struct FailedRead {
    at: Instant,
    /// How long the read took, or the longest of those that failed in a row while an interface was known.
    waited: Duration,
    /// Whether the read was given up, although it might have succeeded with more time.
    is_given_up: bool,
}

impl FailedRead {
    fn new(began: Instant, is_given_up: bool) -> Self {
        Self { at: Instant::now(), waited: began.elapsed(), is_given_up }
    }

    /// Returns the time limit that makes a further read worthwhile.
    fn next_wait(&self) -> Duration {
        MIN_REFRESH_WAIT.max(self.waited * 2)
    }
}

impl Kept {
    fn new(target: Result<Target, String>, digest: Option<String>) -> Self {
        let now = Instant::now();
        Self { target: target.map(Arc::new), digest, read_at: Some(now), used_at: now, failed: None }
    }

    /// Returns whether the card need not be read, given the digest in the match and the time that is left: that digest is known, or
    /// reading the card failed a moment ago.
    fn is_current(&self, digest: Option<&str>, left: Duration) -> bool {
        let is_recent = |failed: &FailedRead| {
            let interval =
                if self.target.is_ok() { MIN_READ_INTERVAL } else { MIN_READ_INTERVAL.min(failed.waited) };
            failed.at.elapsed() < interval
        };
        if let Some(failed) = self.failed.filter(is_recent) {
            // A delegation with little time must not keep one with more time from reading a card for the first time.
            return self.target.is_ok() || !failed.is_given_up || left < failed.next_wait();
        }
        match digest {
            Some(_) => self.digest.as_deref() == digest,
            None => self.read_at.is_some_and(|at| at.elapsed() < MAX_AGE),
        }
    }

    /// Returns the time limit of the next read. If an interface is known, half of the time is left to the agent. Otherwise the read may
    /// take all of the time.
    fn max_wait(&self, left: Duration) -> Duration {
        if self.target.is_err() {
            return left;
        }
        self.failed.map_or(MIN_REFRESH_WAIT, |failed| failed.next_wait()).min(left / 2)
    }
}

impl Cards {
    /// Returns the interface by which an agent is called. The card is read from the registry if the match has another digest than the card that
    /// was read last. If it cannot be read, the earlier card is used, unless the agent could not be called by that one either. In that
    /// case the next calls fail at once for some time, without another read, unless they have more time than a read that was given up.
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
        let began = Instant::now();
        let left = deadline.saturating_duration_since(began);
        let earlier = self.get(agent_id);
        if let Some(kept) = earlier.as_ref().filter(|kept| kept.is_current(digest, left)) {
            return kept.target.clone();
        }
        let wait = earlier.map_or(left, |kept| kept.max_wait(left));
        let card = match timeout(wait, client.card_with_digest(agent_id)).await {
            Ok(Ok((card, read))) => {
                Kept::new(Target::of_card(&card), read.or_else(|| digest.map(str::to_owned)))
            }
            Ok(Err(Error::NotFound { .. })) => {
                Kept::new(Err("it registered no A2A agent card".to_owned()), None)
            }
            Ok(Err(Error::Unsupported { .. })) => {
                Kept::new(Err("the registry does not keep A2A agent cards".to_owned()), None)
            }
            Ok(Err(error)) => {
                let why = format!("its A2A agent card cannot be read: {}", with_causes(&error));
                return self.keep_failure(agent_id, why, FailedRead::new(began, false));
            }
            Err(_) => {
                let why = "its A2A agent card was not read in time".to_owned();
                return self.keep_failure(agent_id, why, FailedRead::new(began, true));
            }
        };
        let target = card.target.clone();
        insert(&mut self.lock(), agent_id, card);
        target
    }

    fn get(&self, agent_id: &str) -> Option<Kept> {
        let mut kept = self.lock();
        let kept = kept.get_mut(agent_id)?;
        kept.used_at = Instant::now();
        Some(kept.clone())
    }

    /// Records that a card could not be read. Returns the interface in the earlier one, which another attempt may have read meanwhile.
    fn keep_failure(
        &self,
        agent_id: &str,
        why: String,
        mut failed: FailedRead,
    ) -> Result<Arc<Target>, String> {
        let mut kept = self.lock();
        if let Some(earlier) = kept.get_mut(agent_id).filter(|earlier| earlier.target.is_ok()) {
            failed.waited = earlier.failed.map_or(failed.waited, |last| last.waited.max(failed.waited));
            earlier.failed = Some(failed);
            return earlier.target.clone();
        }
        let unread = Kept { read_at: None, failed: Some(failed), ..Kept::new(Err(why.clone()), None) };
        insert(&mut kept, agent_id, unread);
        Err(why)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds a card to the kept ones, in place of the least recently used one if there are too many.
fn insert(kept: &mut HashMap<String, Kept>, agent_id: &str, card: Kept) {
    if kept.len() >= CAPACITY && !kept.contains_key(agent_id) {
        let oldest = kept.iter().min_by_key(|(_, kept)| kept.used_at).map(|(id, _)| id.clone());
        oldest.and_then(|id| kept.remove(&id));
    }
    kept.insert(agent_id.to_owned(), card);
}
