//! The tracker's generation.

use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

/// A number that is another one each time a tracker starts, so that a proxy notices a restart: a tracker that was started
/// anew knows no routes, and takes no handle of an earlier one. It says nothing else; it does not grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

impl Generation {
    /// Draws the generation of a tracker that starts now. Never 0, which is what a message without one has.
    pub(crate) fn draw() -> Self {
        // The first seed of a thread comes from the system's random numbers.
        Self(RandomState::new().hash_one(SystemTime::now()).max(1))
    }

    /// The number, as it is sent.
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_trackers_have_one_generation() {
        let [one, two] = [(), ()].map(|()| Generation::draw());
        assert!(one != two && one.get() != 0 && two.get() != 0);
    }
}
