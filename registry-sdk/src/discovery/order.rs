//! Which candidate is asked first: ejected agents and the policies.

use tokio::time::Instant;

use super::agent_states::{AgentStates, Call, Inner};
use super::candidate::Candidate;
use super::ejection::EjectionState;
use super::load::Load;
use super::query::Policy;

/// Candidates in the order in which they are asked.
#[derive(Debug, Default)]
pub(super) struct Ordered {
    /// Those that get tasks.
    pub(super) admitted: Vec<Candidate>,
    /// Those that are kept out, the first to come back first. They are asked only if none of the others can do the task.
    pub(super) ejected: Vec<Candidate>,
    /// The first one has the task already, so that selections at the same moment choose others.
    pub(super) first: Option<Call>,
}

impl AgentStates {
    /// Brings candidates, which come in the registry's order, into that of a policy, and gives the task to the first.
    ///
    /// Of the candidates, and those that were tried before, at most half are kept out because they are ejected: so the others are not
    /// overloaded, and an outage of all agents ends for a half of them at once.
    pub(super) fn order(&self, policy: Policy, candidates: Vec<Candidate>, tried: usize) -> Ordered {
        let mut inner = self.lock();
        let everyone = candidates.len() + tried;
        let most = everyone / 2;
        let (mut admitted, ejected) = self.part(&inner, candidates, most);
        if policy != Policy::Rank {
            for equals in admitted.chunk_by_mut(Candidate::is_equal_match) {
                inner.sort(policy, equals);
            }
        }
        let first = admitted.first().map(|agent| self.begin_locked(&mut inner, agent.agent_id()));
        Ordered { admitted, ejected, first }
    }

    /// Parts the candidates into those that get tasks and those that are kept out, at most so many.
    fn part(
        &self,
        inner: &Inner,
        candidates: Vec<Candidate>,
        most: usize,
    ) -> (Vec<Candidate>, Vec<Candidate>) {
        let now = Instant::now();
        let remaining = |agent: &Candidate| match inner.ejection(self.settings(), agent.agent_id(), now) {
            EjectionState::Ejected { remaining } => Some(remaining),
            EjectionState::Admitted | EjectionState::OnTrial => None,
        };
        let mut ejections: Vec<_> = candidates
            .iter()
            .enumerate()
            .filter_map(|(index, agent)| Some((remaining(agent)?, index)))
            .collect();
        if ejections.is_empty() {
            return (candidates, Vec::new());
        }
        // The longest ejections stay.
        ejections.sort_unstable_by(|one, other| other.cmp(one));
        ejections.truncate(most);
        let mut candidates: Vec<_> = candidates.into_iter().map(Some).collect();
        let kept_out = ejections.iter().rev().filter_map(|(_, index)| candidates[*index].take()).collect();
        (candidates.into_iter().flatten().collect(), kept_out)
    }
}

impl Inner {
    /// Brings candidates that match equally well into the order of a policy.
    fn sort(&mut self, policy: Policy, equals: &mut [Candidate]) {
        let last_task =
            |inner: &Self, agent: &Candidate| inner.get(agent.agent_id()).map_or(0, |state| state.last_task);
        match policy {
            Policy::Rank => {}
            Policy::Random => self.random.shuffle(equals),
            Policy::RoundRobin => {
                equals.sort_by(|a, b| a.agent_id().cmp(b.agent_id()));
                // After the one that got the last task.
                let last = (0..equals.len()).max_by_key(|index| last_task(self, &equals[*index]));
                if let Some(last) = last.filter(|last| last_task(self, &equals[*last]) > 0) {
                    equals.rotate_left(last + 1);
                }
            }
            Policy::LeastRecentlyUsed => equals.sort_by_key(|agent| last_task(self, agent)),
            Policy::LeastLoaded => {
                self.random.shuffle(equals);
                if let [first, second, ..] = equals
                    && self.is_less_loaded(second, first)
                {
                    equals.swap(0, 1);
                }
            }
        }
    }

    fn is_less_loaded(&self, one: &Candidate, other: &Candidate) -> bool {
        let load = |agent: &Candidate| self.get(agent.agent_id()).map(|state| &state.load);
        let unused = Load::default();
        let (mine, others) = (load(one).unwrap_or(&unused), load(other).unwrap_or(&unused));
        mine.is_less_than(one.reported_load(), others, other.reported_load(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::any;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;
    use crate::contract::{AgentStatus, Capability, CapabilityMatch};
    use crate::discovery::outcome::FailureKind;
    use crate::discovery::{EjectionSettings, RetryBudget};

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

    /// Whatever is ejected, and however many of the candidates were tried before.
    #[test]
    fn at_most_half_are_kept_out_and_those_stay_out_that_are_ejected_longest() {
        let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
        let ejected = proptest::collection::vec(any::<bool>(), 0..12);
        TestRunner::new(config)
            .run(&(ejected, 0..4_usize, any::<u64>()), |(ejected, tried, seed)| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
                runtime.unwrap().block_on(order(&ejected, tried, seed));
                Ok(())
            })
            .unwrap();
    }

    async fn order(ejected: &[bool], tried: usize, seed: u64) {
        let states = states(seed);
        let names: Vec<String> = (0..ejected.len()).map(|number| format!("a{number}")).collect();
        for (name, _) in names.iter().zip(ejected).filter(|(_, ejected)| **ejected) {
            // One after another, so each ejection ends later than the one before.
            tokio::time::sleep(Duration::from_millis(10)).await;
            (0..3).for_each(|_| states.begin(name).failed(FailureKind::Agent, true));
        }
        let candidates: Vec<_> = names.iter().map(|name| candidate(name, 1.0)).collect();
        let ordered = states.order(Policy::LeastLoaded, candidates, tried);
        let (admitted, kept_out) = (ids(&ordered.admitted), ids(&ordered.ejected));
        let all: HashSet<_> = admitted.iter().chain(&kept_out).collect();
        assert_eq!((all.len(), admitted.len() + kept_out.len()), (names.len(), names.len()));
        let expected: Vec<_> = names.iter().zip(ejected).filter(|(_, ejected)| **ejected).collect();
        let everyone = names.len() + tried;
        let most = everyone / 2;
        let expected: Vec<_> = expected.iter().skip(expected.len().saturating_sub(most)).collect();
        assert_eq!(kept_out, expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        assert_eq!(ordered.first.is_some(), !admitted.is_empty());
    }

    #[tokio::test]
    async fn a_policy_chooses_among_the_best_matches_alone() {
        for policy in [Policy::LeastLoaded, Policy::RoundRobin, Policy::Random, Policy::LeastRecentlyUsed] {
            let states = states(1);
            let mut first = HashSet::new();
            for _ in 0..40 {
                let candidates = [("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 0.5), ("e", 0.5)]
                    .map(|(id, score)| candidate(id, score));
                let ordered = states.order(policy, candidates.into(), 0);
                let ids = ids(&ordered.admitted);
                first.insert(ids[0].to_owned());
                assert!(ids[3..].iter().all(|id| ["d", "e"].contains(id)), "{policy:?}: {ids:?}");
            }
            assert_eq!(first.len(), 3, "{policy:?}");
        }
    }

    #[tokio::test]
    async fn choices_count_when_they_are_made() {
        for policy in [Policy::LeastLoaded, Policy::RoundRobin, Policy::LeastRecentlyUsed] {
            let states = states(2);
            // All at once: none of the tasks has ended.
            let chosen: Vec<_> = (0..4)
                .map(|_| states.order(policy, ["a", "b"].map(|id| candidate(id, 1.0)).into(), 0))
                .collect();
            let to_a = chosen.iter().filter(|ordered| ids(&ordered.admitted)[0] == "a").count();
            assert_eq!(to_a, 2, "{policy:?}");
        }
    }
}
