//! The ID of a running tracker.

use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

/// A number that differs each time a tracker starts; on the wire it is the `generation`.
///
/// A proxy recognizes a restart by it: a restarted tracker has no routes and accepts no handle of an earlier run. The
/// numbers have no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InstanceId(u64);

impl InstanceId {
    /// Draws the ID of a tracker that starts now. It is never 0, the value of a field that is not set.
    pub(crate) fn draw() -> Self {
        // The first seed of a thread comes from the system's random numbers.
        Self(RandomState::new().hash_one(SystemTime::now()).max(1))
    }

    /// Returns the number that is sent.
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_ids_differ_and_are_not_zero() {
        let [one, two] = [(), ()].map(|()| InstanceId::draw());
        assert!(one != two && one.get() != 0 && two.get() != 0);
    }
}
