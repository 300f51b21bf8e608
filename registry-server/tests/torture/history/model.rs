//! The specified behaviour of an agent's record while no deadline is missed.

use registry_sdk::contract::{AgentRecord, AgentStatus};

use super::linearizability::Model;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Registration with a capability that no other registration has.
    Register(usize),
    SetStatus(AgentStatus),
    Heartbeat,
    Get,
    Remove,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Agent { capability: usize, status: AgentStatus, revision: u64 },
    Alive(AgentStatus),
    Removed,
    NotFound,
}

impl Answer {
    pub(crate) fn of(record: &AgentRecord) -> Self {
        let capability = record.capabilities[0].name.parse().unwrap();
        Self::Agent { capability, status: record.status, revision: record.revision.unwrap() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    /// Capability and status.
    agent: Option<(usize, AgentStatus)>,
    /// The last revision in an answer.
    revision: u64,
    /// Whether there were later changes whose revision was in no answer.
    is_newer: bool,
}

impl Model for Record {
    type Op = Op;
    type Answer = Answer;

    fn after(&self, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        let mut after = self.clone();
        after.agent = match (*op, self.agent) {
            (Op::Register(capability), _) => Some((capability, AgentStatus::Active)),
            (Op::SetStatus(status), Some((capability, _))) => Some((capability, status)),
            (Op::Remove, _) => None,
            (_, agent) => agent,
        };
        after.is_newer |= after.agent != self.agent;
        let Some(answer) = answer else { return Some(after) };
        let fits = match (op, answer) {
            (
                Op::Register(_) | Op::SetStatus(_) | Op::Get,
                Answer::Agent { capability, status, revision },
            ) => {
                let in_order =
                    if after.is_newer { *revision > self.revision } else { *revision == self.revision };
                (after.revision, after.is_newer) = (*revision, false);
                in_order && after.agent == Some((*capability, *status))
            }
            (Op::Heartbeat, Answer::Alive(told)) => self.agent.is_some_and(|(_, status)| status == *told),
            (Op::Remove, Answer::Removed) => self.agent.is_some(),
            (Op::SetStatus(_) | Op::Heartbeat | Op::Get | Op::Remove, Answer::NotFound) => {
                self.agent.is_none()
            }
            _ => false,
        };
        fits.then_some(after)
    }
}

#[cfg(test)]
mod tests {
    use super::super::linearizability::{History, Verdict};
    use super::*;

    const fn agent(capability: usize, status: AgentStatus, revision: u64) -> Answer {
        Answer::Agent { capability, status, revision }
    }

    fn is_linearizable(operations: Vec<(Op, Option<Answer>)>) -> bool {
        let mut history = History::<Record>::default();
        for (op, answer) in operations {
            let number = history.call(op);
            if let Some(answer) = answer {
                history.answer(number, answer);
            }
        }
        history.check(1_000).verdict == Verdict::Linearizable
    }

    #[test]
    fn record_shows_the_last_change_and_no_other() {
        let first = (Op::Register(1), Some(agent(1, AgentStatus::Active, 5)));
        let second = (Op::Register(2), Some(agent(2, AgentStatus::Active, 6)));
        let removed = (Op::Remove, Some(Answer::Removed));
        let get = |answer| (Op::Get, Some(answer));
        let stale = || get(agent(1, AgentStatus::Active, 5));
        assert!(is_linearizable(vec![first.clone(), stale(), removed.clone(), get(Answer::NotFound)]));
        assert!(!is_linearizable(vec![first.clone(), second, stale()]));
        assert!(!is_linearizable(vec![first.clone(), get(Answer::NotFound)]));
        assert!(!is_linearizable(vec![first.clone(), removed.clone(), stale()]));
        assert!(
            !is_linearizable(vec![first.clone(), get(agent(1, AgentStatus::Active, 6))]),
            "nothing changed"
        );
        assert!(!is_linearizable(vec![first, (Op::Heartbeat, Some(Answer::NotFound))]));
        assert!(!is_linearizable(vec![removed]));
    }

    #[test]
    fn unanswered_change_may_be_seen_from_its_call_on() {
        let first = (Op::Register(1), Some(agent(1, AgentStatus::Active, 5)));
        let unanswered = (Op::SetStatus(AgentStatus::Busy), None);
        let get = |status, revision| (Op::Get, Some(agent(1, status, revision)));
        assert!(is_linearizable(vec![first.clone(), unanswered.clone(), get(AgentStatus::Busy, 6)]));
        assert!(is_linearizable(vec![first.clone(), unanswered.clone(), get(AgentStatus::Active, 5)]));
        assert!(!is_linearizable(vec![first.clone(), unanswered.clone(), get(AgentStatus::Active, 6)]));
        assert!(!is_linearizable(vec![first, get(AgentStatus::Busy, 6), unanswered]));
    }
}
