//! Decides whether a history is linearizable (Herlihy and Wing, 1990): whether each operation can be assigned
//! a moment between its call and its response, such that executing the operations in the order of these
//! moments gives the same responses.
//!
//! The search is Wing and Gong's (1993), with Lowe's memory of visited states ("Testing for linearizability",
//! 2017): it takes one operation after another, and continues only once from orders that took the same
//! operations and led to the same state. `n` concurrent writes have `n!` orders, but at most `n * 2^n` such
//! pairs.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// The specified behaviour of one object, in one state.
pub(crate) trait Model: Clone + Debug + Default + Eq + Hash {
    type Op: Debug;
    type Answer: Debug;

    /// Returns the state after an operation, or `None` if this state does not permit the answer.
    ///
    /// Without an answer, any answer is permitted.
    fn after(&self, op: &Self::Op, answer: Option<&Self::Answer>) -> Option<Self>;
}

/// The operations of all clients on one object.
#[derive(Debug)]
pub(crate) struct History<M: Model> {
    operations: Vec<Operation<M>>,
    /// Number of calls and answers so far.
    moment: usize,
}

#[derive(Debug)]
struct Operation<M: Model> {
    op: M::Op,
    called: usize,
    /// The moment of the answer, and the answer. Without one, the operation may have happened at any time
    /// since, or never.
    answered: Option<(usize, M::Answer)>,
}

impl<M: Model> Default for History<M> {
    fn default() -> Self {
        Self { operations: Vec::new(), moment: 0 }
    }
}

impl<M: Model> History<M> {
    /// Records a call, and returns its number.
    pub(crate) fn call(&mut self, op: M::Op) -> usize {
        self.moment += 1;
        self.operations.push(Operation { op, called: self.moment, answered: None });
        self.operations.len() - 1
    }

    /// Records the answer to a call.
    pub(crate) fn answer(&mut self, number: usize, answer: M::Answer) {
        self.moment += 1;
        self.operations[number].answered = Some((self.moment, answer));
    }

    /// Returns the numbers of answered and unanswered operations.
    pub(crate) fn count(&self) -> (usize, usize) {
        let answered = self.operations.iter().filter(|operation| operation.answered.is_some()).count();
        (answered, self.operations.len() - answered)
    }

    /// Searches for an order that explains every answer. Gives up after `max_states`.
    pub(crate) fn check(&self, max_states: usize) -> Check {
        assert!(self.operations.len() <= 128, "a set of operations is kept in the bits of one number");
        let start = Partial { taken: 0, state: M::default() };
        let mut seen = HashSet::from([start.clone()]);
        let mut open = vec![start];
        while let Some(partial) = open.pop() {
            let Some(first_answer) = self.first_answer(&partial) else {
                return Check { verdict: Verdict::Linearizable, states: seen.len() };
            };
            let next = self.next(&partial, first_answer);
            open.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
            if seen.len() > max_states {
                return Check { verdict: Verdict::GaveUp, states: seen.len() };
            }
        }
        Check { verdict: Verdict::NotLinearizable, states: seen.len() }
    }

    /// Returns the moment of the first answer that a partial order does not explain yet.
    fn first_answer(&self, partial: &Partial<M>) -> Option<usize> {
        self.left(partial).filter_map(|(_, operation)| Some(operation.answered.as_ref()?.0)).min()
    }

    /// Returns the operations that a partial order has not taken yet, with their numbers.
    fn left(&self, partial: &Partial<M>) -> impl Iterator<Item = (usize, &Operation<M>)> {
        let taken = partial.taken;
        self.operations.iter().enumerate().filter(move |(number, _)| taken & (1 << number) == 0)
    }

    /// Returns the partial orders with one more operation.
    fn next(&self, partial: &Partial<M>, first_answer: usize) -> Vec<Partial<M>> {
        let mut next = Vec::new();
        // Operations called after the first answer come after the answered operation.
        for (number, operation) in self.left(partial).filter(|(_, left)| left.called < first_answer) {
            let answer = operation.answered.as_ref().map(|(_, answer)| answer);
            let Some(state) = partial.state.after(&operation.op, answer) else { continue };
            let changes = state != partial.state;
            let longer = Partial { taken: partial.taken | 1 << number, state };
            match answer {
                // Any other next operation could also be taken after this one, so no other order needs to be
                // tried.
                Some(_) if !changes => return vec![longer],
                // An unanswered operation without effect explains nothing.
                None if !changes => {}
                _ => next.push(longer),
            }
        }
        next
    }
}

/// The operations taken so far, as bits, and the state to which they lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Partial<M> {
    taken: u128,
    state: M,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    NotLinearizable,
    /// There were too many states.
    GaveUp,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) verdict: Verdict,
    /// Number of distinct pairs of taken operations and state.
    pub(crate) states: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that can be read, written and incremented.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
    struct Number(u32);

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Read,
        Write(u32),
        Increment,
    }
    use Op::{Increment, Read, Write};

    impl Model for Number {
        type Op = Op;
        type Answer = u32;

        fn after(&self, op: &Op, answer: Option<&u32>) -> Option<Self> {
            let after = match *op {
                Read => self.0,
                Write(number) => number,
                Increment => self.0 + 1,
            };
            answer.is_none_or(|answer| *answer == after).then_some(Self(after))
        }
    }

    const ENOUGH: usize = 1_000_000;

    fn one_by_one(operations: &[(Op, u32)]) -> History<Number> {
        let mut history = History::default();
        for (op, answer) in operations {
            let number = history.call(*op);
            history.answer(number, *answer);
        }
        history
    }

    /// Adds operations that are all called before any of them is answered.
    fn add_at_once(history: &mut History<Number>, operations: &[(Op, u32)]) {
        let called: Vec<_> = operations.iter().map(|(op, answer)| (history.call(*op), *answer)).collect();
        for (number, answer) in called {
            history.answer(number, answer);
        }
    }

    fn concurrent(operations: &[(Op, u32)]) -> History<Number> {
        let mut history = History::default();
        add_at_once(&mut history, operations);
        history
    }

    fn verdict(history: &History<Number>) -> Verdict {
        history.check(ENOUGH).verdict
    }

    #[test]
    fn history_with_an_order_is_linearizable() {
        assert_eq!(verdict(&History::default()), Verdict::Linearizable);
        assert_eq!(verdict(&one_by_one(&[(Write(3), 3), (Increment, 4), (Read, 4)])), Verdict::Linearizable);
        // The order of the answers differs from the order that explains them.
        assert_eq!(
            verdict(&concurrent(&[(Read, 8), (Read, 7), (Increment, 8), (Write(7), 7)])),
            Verdict::Linearizable
        );
    }

    #[test]
    fn stale_read_is_detected() {
        assert_eq!(
            verdict(&one_by_one(&[(Write(1), 1), (Write(2), 2), (Read, 1)])),
            Verdict::NotLinearizable
        );
        // Two reads concurrent with a write may differ, but only forwards.
        for (first, second, expected) in [(0, 1, Verdict::Linearizable), (1, 0, Verdict::NotLinearizable)] {
            let mut history = History::default();
            let write = history.call(Write(1));
            for answer in [first, second] {
                let read = history.call(Read);
                history.answer(read, answer);
            }
            history.answer(write, 1);
            assert_eq!(verdict(&history), expected, "{first} then {second}");
        }
    }

    #[test]
    fn lost_update_is_detected() {
        assert_eq!(verdict(&concurrent(&[(Increment, 1), (Increment, 2)])), Verdict::Linearizable);
        assert_eq!(verdict(&concurrent(&[(Increment, 1), (Increment, 1)])), Verdict::NotLinearizable);
    }

    #[test]
    fn unanswered_write_happened_at_most_once_and_after_its_call() {
        let after_unanswered = |reads: &[u32]| {
            let mut history = one_by_one(&[(Write(1), 1)]);
            history.call(Write(2));
            for answer in reads {
                let read = history.call(Read);
                history.answer(read, *answer);
            }
            verdict(&history)
        };
        for reads in [&[1, 1][..], &[2, 2], &[1, 2]] {
            assert_eq!(after_unanswered(reads), Verdict::Linearizable, "{reads:?}");
        }
        assert_eq!(after_unanswered(&[2, 1]), Verdict::NotLinearizable);

        let mut too_early = one_by_one(&[(Read, 2)]);
        too_early.call(Write(2));
        assert_eq!(verdict(&too_early), Verdict::NotLinearizable);
    }

    /// Trying every order of twelve writes would take 479,001,600 attempts.
    #[test]
    fn number_of_states_stays_small_despite_many_orders() {
        let writes: Vec<_> = (1..=12).map(|number| (Write(number), number)).collect();
        let mut history = concurrent(&writes);
        add_at_once(&mut history, &[(Read, 99)]);
        let check = history.check(ENOUGH);
        assert_eq!(check.verdict, Verdict::NotLinearizable);
        // Each set of writes with each of its members as the last one, and the beginning.
        assert_eq!(check.states, 12 * (1 << 11) + 1);
    }

    #[test]
    fn concurrent_reads_are_tried_in_one_order() {
        let mut history = concurrent(&[(Read, 0); 100]);
        add_at_once(&mut history, &[(Read, 99)]);
        let check = history.check(ENOUGH);
        assert_eq!((check.verdict, check.states), (Verdict::NotLinearizable, 101));
    }

    #[test]
    fn check_gives_up_beyond_its_limit() {
        let writes: Vec<_> = (1..=12).map(|number| (Write(number), number)).collect();
        let mut history = concurrent(&writes);
        add_at_once(&mut history, &[(Read, 99)]);
        let check = history.check(1_000);
        assert_eq!(check.verdict, Verdict::GaveUp);
        assert!(check.states <= 1_000 + 12, "{}", check.states);
    }
}
