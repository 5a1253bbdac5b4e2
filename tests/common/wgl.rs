//! A checker of linearizability: Wing and Gong's search with the memory of failed states that Lowe added.
//!
//! A history is linearizable if its operations have an order with two properties. Each operation, run alone in this
//! order, gives its result in the history. An operation that returned before another was invoked precedes the other.

use std::collections::HashSet;
use std::hash::Hash;

/// A sequential specification.
pub(crate) trait Spec {
    /// A state of the object.
    type State: Clone + Eq + Hash;
    /// An operation together with its result.
    type Call;

    /// The state after the call; `None` if the call could not have this result.
    fn apply(state: &Self::State, call: &Self::Call) -> Option<Self::State>;
}

/// A call in a history, with the instants of its invocation and its return. No two instants of a history are the same.
#[derive(Debug, Clone)]
pub(crate) struct Event<C> {
    pub(crate) invoked: u64,
    pub(crate) returned: u64,
    pub(crate) call: C,
}

/// Whether the history, of complete calls, is linearizable from the given state.
///
/// Each step of the search adds a call that no other remaining call precedes. Two orders of the same calls that lead to
/// the same state have the same future, and the search visits this future once.
pub(crate) fn is_linearizable<S: Spec>(initial: S::State, history: &[Event<S::Call>]) -> bool {
    assert!(
        history.len() < 64,
        "{} calls do not fit a set of 64 bits",
        history.len()
    );
    let all = (1_u64 << history.len()) - 1;
    let mut seen = HashSet::new();
    let mut open = vec![(0_u64, initial)];
    while let Some((done, state)) = open.pop() {
        if done == all {
            return true;
        }
        if !seen.insert((done, state.clone())) {
            continue;
        }
        let remaining = || history.iter().enumerate().filter(|(index, _)| done & (1 << index) == 0);
        let first_return = remaining().map(|(_, event)| event.returned).min().unwrap_or(u64::MAX);
        for (index, event) in remaining().filter(|(_, event)| event.invoked < first_return) {
            if let Some(next) = S::apply(&state, &event.call) {
                open.push((done | 1 << index, next));
            }
        }
    }
    false
}
