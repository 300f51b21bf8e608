//! Which candidate gets the task: the policies, and ejected agents last.

use tokio::time::Instant;

use super::agent_states::{AgentStates, Call, Inner};
use super::candidate::Candidate;
use super::ejection::EjectionState;
use super::load::{Load, ReportedLoad};
use super::query::Policy;

/// How candidates are ordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub(super) capability: &'a str,
    pub(super) policy: Policy,
    /// Whether the load that agents reported is of now.
    pub(super) is_fresh: bool,
}

impl AgentStates {
    /// Removes the candidates that are ejected.
    pub(super) fn extract_ejected(&self, candidates: &mut Vec<Candidate>) -> Vec<Candidate> {
        self.lock().extract_ejected(candidates)
    }

    /// Brings candidates, which come in the registry's order, into that of a policy.
    pub(super) fn sort(&self, order: Order<'_>, candidates: &mut [Candidate]) {
        self.lock().sort(order, candidates);
    }

    /// Gives the task to the first candidate, at the same moment at which it is chosen: so concurrent selections choose others.
    ///
    /// Candidates that are ejected by now, or whose trial somebody else has begun, are moved to `ejected`, if it is given.
    pub(super) fn choose(
        &self,
        order: Order<'_>,
        candidates: &mut Vec<Candidate>,
        ejected: Option<&mut Vec<Candidate>>,
    ) -> Option<Call> {
        let mut inner = self.lock();
        if let Some(ejected) = ejected {
            ejected.extend(inner.extract_ejected(candidates));
        }
        // Another selection may have chosen the same one since they were sorted.
        if matches!(order.policy, Policy::RoundRobin | Policy::LeastRecentlyUsed) {
            inner.sort(order, candidates);
        }
        let first = candidates.first()?.agent_id();
        if order.policy == Policy::RoundRobin {
            inner.set_turn(order.capability, first);
        }
        Some(self.begin_locked(&mut inner, first))
    }
}

impl Inner {
    fn extract_ejected(&self, candidates: &mut Vec<Candidate>) -> Vec<Candidate> {
        let now = Instant::now();
        let is_ejected = |agent: &mut Candidate| {
            matches!(self.ejection(agent.agent_id(), now), EjectionState::Ejected { .. })
        };
        candidates.extract_if(.., is_ejected).collect()
    }

    fn sort(&mut self, order: Order<'_>, candidates: &mut [Candidate]) {
        if order.policy != Policy::Rank {
            for equals in candidates.chunk_by_mut(Candidate::is_equal_match) {
                self.sort_equals(order, equals);
            }
        }
    }

    /// Brings candidates that match equally well into the order of a policy.
    fn sort_equals(&mut self, order: Order<'_>, equals: &mut [Candidate]) {
        let last_task =
            |inner: &Self, agent: &Candidate| inner.get(agent.agent_id()).map_or(0, |state| state.last_task);
        match order.policy {
            Policy::Rank => {}
            Policy::Random => self.random.shuffle(equals),
            Policy::RoundRobin => {
                equals.sort_by(|a, b| a.agent_id().cmp(b.agent_id()));
                let last = self.last_turn(order.capability).unwrap_or_default();
                let next = equals.iter().position(|agent| agent.agent_id() > last).unwrap_or_default();
                equals.rotate_left(next);
            }
            Policy::LeastRecentlyUsed => equals.sort_by_key(|agent| last_task(self, agent)),
            Policy::LeastLoaded => {
                self.random.shuffle(equals);
                if let [first, second, ..] = equals
                    && self.is_less_loaded(order, second, first)
                {
                    equals.swap(0, 1);
                }
            }
        }
    }

    fn is_less_loaded(&self, order: Order<'_>, one: &Candidate, other: &Candidate) -> bool {
        let load = |agent: &Candidate| self.get(agent.agent_id()).map(|state| &state.load);
        let reported = |agent: &Candidate| {
            if order.is_fresh { agent.reported_load() } else { ReportedLoad::default() }
        };
        let unused = Load::default();
        let (mine, others) = (load(one).unwrap_or(&unused), load(other).unwrap_or(&unused));
        mine.is_less_than(reported(one), others, reported(other), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;
    use crate::contract::{AgentStatus, Capability, CapabilityMatch};
    use crate::discovery::FailureKind;
    use crate::discovery::{EjectionSettings, RetryBudget};

    const FRESH: Order<'_> = Order { capability: "work", policy: Policy::LeastLoaded, is_fresh: true };

    fn candidate(id: &str, score: f64) -> Candidate {
        let mut found = CapabilityMatch::new(id, AgentStatus::Active, Capability::new("work"));
        found.score = Some(score);
        Candidate::FromRegistry(Arc::new(found))
    }

    fn states(seed: u64) -> AgentStates {
        let random = fastrand::Rng::with_seed(seed);
        AgentStates::new(EjectionSettings::default(), RetryBudget::default(), random)
    }

    fn ids(candidates: &[Candidate]) -> Vec<&str> {
        candidates.iter().map(Candidate::agent_id).collect()
    }

    #[tokio::test]
    async fn ejected_agents_are_told_apart_from_the_others() {
        let states = states(1);
        for id in ["b", "d"] {
            (0..3).for_each(|_| states.begin(id).failed(FailureKind::Agent, true));
        }
        let mut candidates = ["a", "b", "c", "d"].map(|id| candidate(id, 1.0)).to_vec();
        let ejected = states.extract_ejected(&mut candidates);
        assert_eq!((ids(&candidates), ids(&ejected)), (vec!["a", "c"], vec!["b", "d"]));
    }

    #[tokio::test]
    async fn a_policy_chooses_among_the_best_matches_alone() {
        for policy in [Policy::LeastLoaded, Policy::RoundRobin, Policy::Random, Policy::LeastRecentlyUsed] {
            let states = states(1);
            let mut first = HashSet::new();
            for _ in 0..40 {
                let agents = [("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 0.5), ("e", 0.5)];
                let mut candidates = agents.map(|(id, score)| candidate(id, score)).to_vec();
                let order = Order { policy, ..FRESH };
                states.sort(order, &mut candidates);
                let call = states.choose(order, &mut candidates, None);
                let ids = ids(&candidates);
                first.insert(ids[0].to_owned());
                assert!(ids[3..].iter().all(|id| ["d", "e"].contains(id)), "{policy:?}: {ids:?}");
                drop(call);
            }
            assert_eq!(first.len(), 3, "{policy:?}");
        }
    }

    #[tokio::test]
    async fn choices_count_when_they_are_made() {
        for policy in [Policy::LeastLoaded, Policy::RoundRobin, Policy::LeastRecentlyUsed] {
            let states = states(2);
            let order = Order { policy, ..FRESH };
            // All at once: none of the tasks has ended.
            let mut calls = Vec::new();
            let mut to_a = 0;
            for _ in 0..4 {
                let mut candidates = ["a", "b"].map(|id| candidate(id, 1.0)).to_vec();
                states.sort(order, &mut candidates);
                calls.push(states.choose(order, &mut candidates, None));
                to_a += usize::from(ids(&candidates)[0] == "a");
            }
            assert_eq!(to_a, 2, "{policy:?}");
        }
    }
}
