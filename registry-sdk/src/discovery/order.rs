//! Who is asked first: the policies.

use std::collections::HashMap;

use super::candidate::Candidate;
use super::query::Policy;

/// What the policies remember of earlier choices, and where they draw from.
#[derive(Debug)]
pub(super) struct Order {
    random: fastrand::Rng,
    /// How many choices there were.
    count: u64,
    /// Which of them was each agent's last.
    last: HashMap<String, u64>,
}

impl Order {
    pub(super) fn new(random: fastrand::Rng) -> Self {
        Self { random, count: 0, last: HashMap::new() }
    }

    /// Notes that an agent was chosen.
    pub(super) fn note(&mut self, agent_id: &str) {
        self.count += 1;
        match self.last.get_mut(agent_id) {
            Some(last) => *last = self.count,
            None => {
                self.last.insert(agent_id.to_owned(), self.count);
            }
        }
    }

    /// Brings candidates, which come in the registry's order, into that of a policy.
    pub(super) fn sort(&mut self, policy: Policy, candidates: &mut [Candidate]) {
        match policy {
            Policy::Rank => {}
            Policy::Random => self.random.shuffle(candidates),
            Policy::RoundRobin => {
                candidates.sort_by(|a, b| a.agent_id().cmp(b.agent_id()));
                // After the one that was chosen last.
                let last = (0..candidates.len())
                    .filter_map(|index| Some((self.last.get(candidates[index].agent_id())?, index)))
                    .max();
                if let Some((_, index)) = last {
                    candidates.rotate_left(index + 1);
                }
            }
            // Never chosen comes first; of equals, the better match.
            Policy::LeastRecentlyUsed => {
                candidates.sort_by_key(|agent| self.last.get(agent.agent_id()).copied());
            }
            Policy::LeastLoaded => self.two_choices(candidates),
        }
    }

    /// Two that are drawn come first, the one with the lower load before the other; the rest stays behind them, for
    /// the case that neither is healthy.
    fn two_choices(&mut self, candidates: &mut [Candidate]) {
        if candidates.len() < 2 {
            return;
        }
        let one = self.random.usize(..candidates.len());
        // Any but that one.
        let other = (one + 1 + self.random.usize(..candidates.len() - 1)) % candidates.len();
        let (better, worse) =
            if is_less_loaded(&candidates[other], &candidates[one]) { (other, one) } else { (one, other) };
        candidates[..=better].rotate_right(1);
        // It has moved where it stood before the other.
        let worse = if worse < better { worse + 1 } else { worse };
        candidates[1..=worse].rotate_right(1);
    }
}

/// By the load where both tell it, else by the number of tasks, else by what the status says.
fn is_less_loaded(one: &Candidate, other: &Candidate) -> bool {
    match (one.load(), other.load()) {
        ((Some(a), _), (Some(b), _)) if a.total_cmp(&b).is_ne() => a < b,
        ((_, Some(a)), (_, Some(b))) if a != b => a < b,
        _ => one.status() < other.status(),
    }
}
