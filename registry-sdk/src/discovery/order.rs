//! The order of candidates: the policies, and ejected agents last.

use tokio::time::Instant;

use super::agent_states::{AgentStates, Call, Inner};
use super::candidate::Candidate;
use super::ejection::EjectionState;
use super::load::{Load, ReportedLoad};
use super::query::Policy;

/// The settings of the order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub(super) capability: &'a str,
    pub(super) policy: Policy,
    /// Whether the loads that agents reported are current.
    pub(super) is_fresh: bool,
}

/// The ejected candidates, out of a number of candidates.
#[derive(Debug, Default)]
pub(super) struct KeptOut {
    pub(super) candidates: Vec<Candidate>,
    /// Beyond this number, ejected candidates are kept out only for a tenth of their time.
    most: usize,
}

impl AgentStates {
    /// Removes the ejected candidates. Candidates that were tried before count towards the half that may be ejected.
    pub(super) fn keep_out(&self, candidates: &mut Vec<Candidate>, tried: usize) -> KeptOut {
        let everyone = candidates.len() + tried;
        let mut kept_out = KeptOut { candidates: Vec::new(), most: everyone / 2 };
        self.lock().keep_out(candidates, &mut kept_out);
        kept_out
    }

    /// Sorts candidates, which come in the registry's order, by a policy.
    pub(super) fn sort(&self, order: Order<'_>, candidates: &mut [Candidate]) {
        self.lock().sort(order, candidates);
    }

    /// Gives the task to the first candidate at the moment when it is chosen, so that concurrent selections choose others.
    ///
    /// Candidates that have been ejected meanwhile, or whose trial another selection has begun, are moved to `kept_out`.
    /// Without `kept_out`, nothing is moved, and an ejected candidate gets the task, too.
    pub(super) fn choose(
        &self,
        order: Order<'_>,
        candidates: &mut Vec<Candidate>,
        kept_out: Option<&mut KeptOut>,
    ) -> Option<Call> {
        let mut inner = self.lock();
        let is_let_in = kept_out.is_some();
        if let Some(kept_out) = kept_out {
            inner.keep_out(candidates, kept_out);
        }
        // Another selection may have chosen the same candidate since they were sorted.
        if matches!(order.policy, Policy::RoundRobin | Policy::LeastRecentlyUsed) {
            inner.sort(order, candidates);
        }
        let first = candidates.first()?;
        if order.policy == Policy::RoundRobin {
            inner.set_turn(order.capability, first.agent_id());
        }
        Some(self.begin(&mut inner, first, is_let_in))
    }
}

impl Inner {
    /// Moves ejected candidates to those that are kept out, except for early trials of those beyond half.
    fn keep_out(&self, candidates: &mut Vec<Candidate>, kept_out: &mut KeptOut) {
        let now = Instant::now();
        let ejection = |agent: &Candidate| {
            let ejection = &self.get(agent)?.ejection;
            matches!(ejection.state(now), EjectionState::Ejected { .. }).then_some(ejection)
        };
        let mut early: Vec<_> = candidates
            .iter()
            .filter_map(|agent| Some((ejection(agent)?.early(now)?, agent.agent_id().to_owned())))
            .collect();
        let all = kept_out.candidates.len() + candidates.iter().filter_map(ejection).count();
        early.sort_unstable();
        early.truncate(all.saturating_sub(kept_out.most));
        let is_kept_out = |agent: &mut Candidate| {
            ejection(agent).is_some() && early.iter().all(|(_, agent_id)| agent_id != agent.agent_id())
        };
        kept_out.candidates.extend(candidates.extract_if(.., is_kept_out));
    }

    fn sort(&mut self, order: Order<'_>, candidates: &mut [Candidate]) {
        if order.policy != Policy::Rank {
            for equals in candidates.chunk_by_mut(Candidate::is_equal_match) {
                self.sort_equals(order, equals);
            }
        }
    }

    /// Sorts candidates that match equally well by a policy.
    fn sort_equals(&mut self, order: Order<'_>, equals: &mut [Candidate]) {
        let last_task = |inner: &Self, agent: &Candidate| inner.get(agent).map_or(0, |state| state.last_task);
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
        let load = |agent: &Candidate| self.get(agent).map(|state| &state.load);
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
    use std::time::Duration;

    use tokio::time::sleep;

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

    fn eject(states: &AgentStates, id: &str) {
        let agent = candidate(id, 1.0);
        for _ in 0..3 {
            let call = states.begin(&mut states.lock(), &agent, false);
            call.failed(FailureKind::Agent, true);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ejected_agents_are_kept_out_and_more_than_half_only_for_a_tenth_of_their_time() {
        let states = states(1);
        let all = || ["a", "b", "c", "d", "e", "f"].map(|id| candidate(id, 1.0)).to_vec();
        let parted = |tried| {
            let mut candidates = all();
            let kept_out = states.keep_out(&mut candidates, tried);
            (ids(&candidates).join(""), ids(&kept_out.candidates).join(""))
        };
        let is = |admitted: &str, kept_out: &str| (admitted.to_owned(), kept_out.to_owned());
        assert_eq!(parted(0), is("abcdef", ""));
        for id in ["b", "d", "a", "f", "c"] {
            eject(&states, id);
            sleep(Duration::from_millis(100)).await;
        }
        // Five are ejected, for 30 s.
        assert_eq!(parted(0), is("e", "abcdf"));
        sleep(Duration::from_millis(2_500)).await;
        assert_eq!(parted(0), is("be", "acdf"), "the first one's tenth is over");
        sleep(Duration::from_millis(500)).await;
        assert_eq!(parted(0), is("bde", "acf"), "that is half of them");
        assert_eq!(parted(1), is("bde", "acf"));
        assert_eq!(parted(2), is("be", "acdf"), "of eight, four may be");
        // One trial at a time.
        let mut candidates = all();
        let mut kept_out = states.keep_out(&mut candidates, 0);
        let order = Order { policy: Policy::Rank, ..FRESH };
        let trial = states.choose(order, &mut candidates, Some(&mut kept_out)).unwrap();
        assert_eq!(ids(&candidates)[0], "b");
        assert_eq!(parted(0), is("ade", "bcf"), "the next one is let in");
        drop(trial);
        assert_eq!(parted(0), is("bde", "acf"));
    }

    #[tokio::test]
    async fn policy_chooses_only_among_the_best_matches() {
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
