//! An orchestrator's knowledge of agents, from the tasks that it gave them. Clones of an orchestrator share it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::budget::{BudgetState, RetryBudget};
use super::candidate::Candidate;
use super::ejection::{Ejection, EjectionSettings, EjectionState, Ticket};
use super::failure_kind::FailureKind;
use super::load::Load;
use crate::metrics;
use crate::retry::deadline_after;

/// Number of agents above which those without recent tasks are forgotten.
const MANY: usize = 1_024;

/// The states of all agents, and the budget for further attempts.
#[derive(Clone, Debug)]
pub(super) struct AgentStates {
    settings: EjectionSettings,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    agents: HashMap<String, AgentState>,
    budget: BudgetState,
    pub(super) random: fastrand::Rng,
    /// Number of tasks so far.
    count: u64,
    /// The agent that had the last turn for each capability.
    turns: HashMap<String, String>,
    /// Number of agents at which states are forgotten next.
    many: usize,
}

/// The state of an agent.
#[derive(Debug)]
pub(super) struct AgentState {
    /// The agent's `base_url` when it got its last task.
    base_url: String,
    pub(super) ejection: Ejection,
    pub(super) load: Load,
    /// Until when the agent asked to be avoided.
    busy_until: Option<Instant>,
    /// The number of the agent's last task among all tasks.
    pub(super) last_task: u64,
    used: Instant,
}

/// A task that was given to an agent. It counts as in flight until its outcome is reported or this is dropped.
#[derive(Debug)]
pub(super) struct Call {
    states: AgentStates,
    agent_id: String,
    began: Instant,
    ticket: Ticket,
    has_ended: AtomicBool,
}

/// A task that an agent refused without beginning it. It may turn out later that this was the agent's fault.
#[derive(Debug)]
pub(super) struct Refusal {
    agent_id: String,
    ticket: Ticket,
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Succeeded,
    Failed,
    /// The agent did its part, but the task cannot be done.
    Answered,
    /// The agent did not begin the task.
    Refused,
    /// The caller gave up, or the outcome is unknown.
    Released,
}

impl AgentStates {
    pub(super) fn new(settings: EjectionSettings, budget: RetryBudget, random: fastrand::Rng) -> Self {
        let (agents, budget) = (HashMap::new(), BudgetState::new(budget));
        let turns = HashMap::new();
        let inner = Inner { agents, budget, random, count: 0, turns, many: MANY };
        Self { settings, inner: Arc::new(Mutex::new(inner)) }
    }

    pub(super) fn ejection(&self, agent_id: &str) -> EjectionState {
        let inner = self.lock();
        let state = inner.agents.get(agent_id);
        state.map_or(EjectionState::Admitted, |agent| agent.ejection.state(Instant::now()))
    }

    /// Gives a task to an agent while the states are locked, so that no concurrent selection chooses at the same moment.
    ///
    /// If an ejected agent is let in, or its ejection is over, the task is its trial. A task that it gets for lack of another agent is
    /// not.
    pub(super) fn begin(&self, inner: &mut Inner, candidate: &Candidate, is_let_in: bool) -> Call {
        let began = Instant::now();
        inner.count += 1;
        let count = inner.count;
        let agent = inner.agent(&self.settings, candidate.agent_id(), began);
        if agent.base_url != candidate.base_url() {
            candidate.base_url().clone_into(&mut agent.base_url);
            agent.ejection.forget();
            agent.load.forget_latency();
            agent.busy_until = None;
        }
        agent.load.begin();
        agent.last_task = count;
        let ticket = agent.ejection.begin(began, is_let_in);
        Call {
            states: self.clone(),
            agent_id: candidate.agent_id().to_owned(),
            began,
            ticket,
            has_ended: AtomicBool::new(false),
        }
    }

    /// Counts a task for the retry budget.
    pub(super) fn deposit(&self) {
        self.lock().budget.deposit(Instant::now());
    }

    /// Makes a refusal count against an agent after all.
    pub(super) fn charge(&self, refusal: &Refusal) {
        let now = Instant::now();
        let mut inner = self.lock();
        let agent = inner.agent(&self.settings, &refusal.agent_id, now);
        let ejected = agent.ejection.failed(&self.settings, refusal.ticket, now);
        drop(inner);
        log_ejection(&refusal.agent_id, ejected);
    }

    /// Takes a further attempt from the retry budget, if there is one.
    pub(super) fn withdraw(&self) -> bool {
        self.lock().budget.withdraw(Instant::now())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Returns the state of a candidate, or none if it has moved to another `base_url` since its last task.
    pub(super) fn get(&self, candidate: &Candidate) -> Option<&AgentState> {
        self.agents.get(candidate.agent_id()).filter(|state| state.base_url == candidate.base_url())
    }

    /// Returns the agent that had the last turn for a capability.
    pub(super) fn last_turn(&self, capability: &str) -> Option<&str> {
        self.turns.get(capability).map(String::as_str)
    }

    /// Records which agent has the turn.
    pub(super) fn set_turn(&mut self, capability: &str, agent_id: &str) {
        // Queries may consist of any words. If the last turn is forgotten, a new round begins.
        if self.turns.len() >= MANY && !self.turns.contains_key(capability) {
            self.turns.clear();
        }
        self.turns.insert(capability.to_owned(), agent_id.to_owned());
    }

    /// Returns for how long an agent still wants to be avoided.
    pub(super) fn busy_for(&self, candidate: &Candidate, now: Instant) -> Option<Duration> {
        let until = self.get(candidate)?.busy_until?;
        Some(until.saturating_duration_since(now)).filter(|time| !time.is_zero())
    }

    fn agent(&mut self, settings: &EjectionSettings, agent_id: &str, now: Instant) -> &mut AgentState {
        if self.agents.len() >= self.many && !self.agents.contains_key(agent_id) {
            let memory = settings.memory();
            self.agents.retain(|_, agent| !agent.load.is_idle() || now - agent.used < memory);
            self.many = MANY.max(2 * self.agents.len());
        }
        let agent = self.agents.entry(agent_id.to_owned()).or_insert_with(|| AgentState {
            base_url: String::new(),
            ejection: Ejection::default(),
            load: Load::default(),
            busy_until: None,
            last_task: 0,
            used: now,
        });
        agent.used = now;
        agent
    }
}

impl Call {
    /// Reports that the task succeeded.
    pub(super) fn succeeded(&self) {
        self.end(End::Succeeded, None);
    }

    /// Reports that the task failed.
    pub(super) fn failed(&self, kind: FailureKind, is_charged: bool) {
        let (end, busy) = match kind {
            _ if is_charged => (End::Failed, None),
            FailureKind::Task => (End::Answered, None),
            FailureKind::Busy { retry_after } => (End::Refused, Some(FailureKind::busy_time(retry_after))),
            _ => (End::Refused, None),
        };
        self.end(end, busy);
    }

    /// Reports that the agent refused the task, which does not count against it yet.
    pub(super) fn refused(&self) -> Refusal {
        self.end(End::Refused, None);
        Refusal { agent_id: self.agent_id.clone(), ticket: self.ticket }
    }

    /// Ends the call, unless it has ended already.
    fn end(&self, end: End, busy: Option<Duration>) {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let settings = self.states.settings;
        let mut inner = self.states.lock();
        let agent = inner.agent(&settings, &self.agent_id, now);
        agent.load.end();
        if let Some(busy) = busy {
            agent.busy_until = Some(deadline_after(now, busy));
        }
        let elapsed = now - self.began;
        match end {
            End::Succeeded => agent.load.observe(elapsed, now),
            End::Failed | End::Answered | End::Released => agent.load.observe_at_least(elapsed, now),
            End::Refused => {}
        }
        let ejected = match end {
            End::Succeeded | End::Answered => {
                agent.ejection.succeeded(&settings, self.ticket, now);
                None
            }
            End::Failed => agent.ejection.failed(&settings, self.ticket, now),
            End::Refused | End::Released => {
                agent.ejection.release(self.ticket);
                None
            }
        };
        drop(inner);
        log_ejection(&self.agent_id, ejected);
    }
}

fn log_ejection(agent_id: &str, time: Option<Duration>) {
    if let Some(time) = time {
        // Until then, its tasks go to the other candidates.
        tracing::warn!(agent_id, ?time, "ejected");
        metrics::ejected();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(End::Released, None);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::contract::{AgentStatus, Capability, CapabilityMatch};

    fn candidate(id: &str, base_url: &str) -> Candidate {
        let mut found = CapabilityMatch::new(id, AgentStatus::Active, Capability::new("work"));
        base_url.clone_into(&mut found.base_url);
        Candidate::FromRegistry(Arc::new(found))
    }

    fn begin(states: &AgentStates, id: &str) -> Call {
        states.begin(&mut states.lock(), &candidate(id, "http://agent:8000"), false)
    }

    /// Agents come and go under random ids, as pods do. The states of present agents are kept.
    #[tokio::test(start_paused = true)]
    async fn agents_without_recent_tasks_are_forgotten() {
        let settings = EjectionSettings::default();
        let states = AgentStates::new(settings, RetryBudget::default(), fastrand::Rng::with_seed(1));
        let in_flight = begin(&states, "in-flight");
        let mut most = 0;
        for round in 0..20 {
            for number in 0..500 {
                begin(&states, &format!("pod-{round}-{number}")).failed(FailureKind::Agent, true);
            }
            if round % 10 < 3 {
                begin(&states, "failing").failed(FailureKind::Agent, true);
            }
            most = most.max(states.lock().agents.len());
            sleep(Duration::from_secs(100)).await;
            // Its third failure was at most that long ago.
            if round == 9 {
                assert!(states.lock().agents.contains_key("failing"), "800 s are within the memory");
            }
        }
        // Within the memory of 900 s there are 4,500 of them, and as many again until states are forgotten next.
        assert!(most <= 2 * 5_000, "{most}");
        assert!(states.lock().agents.contains_key("in-flight"));
        in_flight.succeeded();
    }

    /// The failures of the previous process say nothing about the one that has replaced it.
    #[tokio::test(start_paused = true)]
    async fn agent_with_another_base_url_starts_over() {
        let states = AgentStates::new(
            EjectionSettings::default(),
            RetryBudget::default(),
            fastrand::Rng::with_seed(1),
        );
        let late = begin(&states, "a");
        (0..3).for_each(|_| begin(&states, "a").failed(FailureKind::Agent, true));
        assert_ne!(states.ejection("a"), EjectionState::Admitted);
        let moved = candidate("a", "http://agent:8001");
        assert!(states.lock().get(&moved).is_none());
        let call = states.begin(&mut states.lock(), &moved, false);
        drop(call);
        late.failed(FailureKind::Agent, true);
        assert_eq!(states.ejection("a"), EjectionState::Admitted);
    }
}
