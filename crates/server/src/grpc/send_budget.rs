//! The send budget: bytes of large replies that one connection may hold for a client that does not read.
//!
//! HTTP/2's windows bound the bytes on the wire, not the replies that wait in the server. A reply is built whole, and a
//! client can make as many calls as it may have streams and read none of the replies. So a call with a large reply begins
//! once the budget covers the largest possible reply. When the reply is built, the call returns the excess. The rest
//! returns when HTTP/2 has written or dropped the bytes. Calls that exceed the budget wait in order; a client that reads
//! its replies never notices.
//!
//! Replies that are always small need no budget: the number of streams bounds them. Nor does a watch that sends changes
//! unmodified: all watches share the bytes of those.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{MAX_REPLY_SIZE, SEND_BUDGET, SMALL_REPLY_SIZE};

// Otherwise no call with a large reply could begin.
const _: () = assert!(MAX_REPLY_SIZE <= SEND_BUDGET && SEND_BUDGET <= u32::MAX as usize);

/// The free bytes of one connection's budget.
#[derive(Debug, Clone)]
pub(crate) struct SendBudget(Arc<Semaphore>);

impl Default for SendBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SEND_BUDGET)))
    }
}

impl SendBudget {
    /// Reserves the size of the largest reply, if that many bytes are free and no call waits for them.
    pub(crate) fn try_reserve(&self) -> Option<Reservation> {
        Arc::clone(&self.0)
            .try_acquire_many_owned(MAX_REPLY_SIZE as u32)
            .ok()
            .map(Reservation)
    }

    /// Waits until the size of the largest reply is free, and reserves it.
    pub(crate) async fn reserve(&self) -> Reservation {
        let permit = Arc::clone(&self.0).acquire_many_owned(MAX_REPLY_SIZE as u32);
        Reservation(permit.await.expect("the semaphore is never closed"))
    }
}

/// Bytes of the budget for replies that are about to be built. Returned to the budget on drop.
#[derive(Debug)]
pub(crate) struct Reservation(OwnedSemaphorePermit);

impl Reservation {
    /// Charges a reply to this reservation until the last reference to its bytes is dropped.
    pub(crate) fn charge(&mut self, reply: Bytes) -> Bytes {
        if reply.len() <= SMALL_REPLY_SIZE {
            return reply;
        }
        // A reply larger than the reservation takes all of it.
        let size = reply.len().min(self.0.num_permits());
        match self.0.split(size) {
            Some(permit) => Bytes::from_owner(ChargedBytes { reply, _permit: permit }),
            None => reply,
        }
    }
}

/// Bytes that return their part of the budget on drop.
struct ChargedBytes {
    reply: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(budget: &SendBudget) -> usize {
        budget.0.available_permits()
    }

    #[test]
    fn a_reply_is_charged_until_it_is_dropped() {
        let budget = SendBudget::default();
        let mut reservation = budget.try_reserve().expect("all is free");
        assert_eq!(free(&budget), SEND_BUDGET - MAX_REPLY_SIZE);
        let reply = reservation.charge(vec![7; 10_000].into());
        let small = reservation.charge(vec![7; SMALL_REPLY_SIZE].into());
        drop(reservation);
        assert_eq!(free(&budget), SEND_BUDGET - 10_000);
        // A slice of the bytes keeps the whole charge.
        let part = reply.slice(1..2);
        drop((reply, small));
        assert_eq!((free(&budget), &part[..]), (SEND_BUDGET - 10_000, &[7][..]));
        drop(part);
        assert_eq!(free(&budget), SEND_BUDGET);
    }

    #[test]
    fn a_call_begins_once_the_budget_covers_the_largest_reply() {
        let budget = SendBudget::default();
        let mut held = Vec::new();
        while let Some(mut reservation) = budget.try_reserve() {
            held.push(reservation.charge(vec![0; MAX_REPLY_SIZE].into()));
        }
        assert_eq!(held.len(), SEND_BUDGET / MAX_REPLY_SIZE);
        held.pop();
        assert!(budget.try_reserve().is_some());
    }

    #[test]
    fn a_reply_larger_than_its_reservation_takes_no_more() {
        let budget = SendBudget::default();
        let mut reservation = budget.try_reserve().expect("all is free");
        let parts = [0; 3].map(|byte| reservation.charge(vec![byte; MAX_REPLY_SIZE / 2 + 1].into()));
        drop(reservation);
        assert_eq!(free(&budget), SEND_BUDGET - MAX_REPLY_SIZE);
        drop(parts);
        assert_eq!(free(&budget), SEND_BUDGET);
    }
}
