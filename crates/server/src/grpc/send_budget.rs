//! The send budget: bytes of replies that one connection may hold for a client that does not read.
//!
//! HTTP/2's windows bound the bytes on the wire, not the replies that wait in the server. A reply is built whole, and a
//! client can make as many calls as it may have streams and read none of the replies. So a call that may have a large
//! reply begins once the budget covers the largest possible reply. When the reply is built, the call returns the
//! excess. The budget gets the rest back when HTTP/2 has written or dropped the bytes. Calls that exceed the budget
//! wait in order; a client that reads its replies never waits long.
//!
//! The bytes that a reply really takes are also charged to the [memory](crate::memory) of the whole server. If the
//! memory has no room, the call fails.
//!
//! Replies of up to [`SMALL_REPLY_SIZE`] are not charged. The number of streams bounds them, and each stream has few
//! frames in HTTP/2 at one time ([`MAX_UNSENT_FRAMES`](crate::limits::MAX_UNSENT_FRAMES)). A watch charges its messages
//! in full, although watches share the bytes of most messages.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::fair_queue::Permit;
use crate::limits::{LARGE_REPLY_SIZE, MAX_REPLY_SIZE, SEND_BUDGET, SMALL_REPLY_SIZE};
use crate::memory::{Charge, ConnectionMemory, OutOfBudget};
use crate::turns::Turns;

// Otherwise no call with a large reply could begin.
const _: () = assert!(MAX_REPLY_SIZE <= SEND_BUDGET && SEND_BUDGET <= u32::MAX as usize);

/// The budget of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SendBudget {
    free: Arc<Semaphore>,
    memory: ConnectionMemory,
}

impl SendBudget {
    /// Returns the budget of a new connection.
    pub(crate) fn new(memory: ConnectionMemory) -> Self {
        Self {
            free: Arc::new(Semaphore::new(SEND_BUDGET)),
            memory,
        }
    }

    /// Waits until the size of the largest reply is free, and reserves it.
    pub(crate) async fn reserve(&self) -> Reservation {
        let permit = Arc::clone(&self.free).acquire_many_owned(MAX_REPLY_SIZE as u32);
        Reservation {
            permit: permit.await.expect("the semaphore is never closed"),
            charge: self.memory.no_charge(),
            large: None,
        }
    }

    /// Charges a reply that was built without a reservation, and is never one of the largest.
    ///
    /// # Errors
    ///
    /// The server's memory has no room.
    pub(crate) fn charge(&self, reply: Bytes) -> Result<Bytes, OutOfBudget> {
        if reply.len() <= SMALL_REPLY_SIZE {
            return Ok(reply);
        }
        let charge = self.memory.charge(reply.len())?;
        Ok(charged(reply, (charge, None)))
    }

    /// Returns the memory that the budget is part of.
    pub(crate) fn memory(&self) -> &ConnectionMemory {
        &self.memory
    }
}

/// Bytes of the budget for a reply that is about to be built. On drop, the budget gets the bytes back.
#[derive(Debug)]
pub(crate) struct Reservation {
    permit: OwnedSemaphorePermit,
    charge: Charge,
    /// The permit among the calls of the worker that build a large reply.
    large: Option<Permit>,
}

impl Reservation {
    /// Charges the bytes of a reply that is being built, from time to time while it grows.
    ///
    /// # Errors
    ///
    /// The server's memory has no room.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), OutOfBudget> {
        self.charge.grow(bytes.saturating_sub(self.charge.bytes()))
    }

    /// As [`grow_to`](Self::grow_to), for a call that builds its reply in turns. Once the reply is large, waits until
    /// few calls build a large reply.
    pub(crate) async fn grow_in_turn(&mut self, bytes: usize, turns: &Turns) -> Result<(), OutOfBudget> {
        if bytes > LARGE_REPLY_SIZE && self.large.is_none() {
            self.large = turns.large_reply().await;
        }
        self.grow_to(bytes)
    }

    /// Charges a reply to this reservation until the last reference to its bytes is dropped.
    ///
    /// # Errors
    ///
    /// The server's memory has no room.
    pub(crate) fn charge(&mut self, reply: Bytes) -> Result<Bytes, OutOfBudget> {
        if reply.len() <= SMALL_REPLY_SIZE {
            return Ok(reply);
        }
        self.grow_to(reply.len())?;
        let charge = self.charge.split(reply.len());
        // A reply larger than the reservation takes all of it.
        let permit = self.permit.split(reply.len().min(self.permit.num_permits()));
        Ok(charged(reply, (charge, permit)))
    }
}

/// Returns bytes that hold their part of the budgets until they are dropped.
fn charged(reply: Bytes, held: (Charge, Option<OwnedSemaphorePermit>)) -> Bytes {
    Bytes::from_owner(ChargedBytes { reply, _held: held })
}

struct ChargedBytes {
    reply: Bytes,
    _held: (Charge, Option<OwnedSemaphorePermit>),
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::grpc::handler::StreamContext;
    use crate::memory::MemoryBudget;
    use crate::quota::ClientQuota;

    impl Default for SendBudget {
        fn default() -> Self {
            Self::new(MemoryBudget::new(1 << 30, Arc::default()).for_connection(ClientQuota::alone()))
        }
    }

    impl Default for StreamContext {
        fn default() -> Self {
            Self {
                turns: Turns::of_one_client(Arc::default()),
                budget: SendBudget::default(),
                watches: Arc::new(Semaphore::new(1)),
            }
        }
    }

    impl SendBudget {
        /// Reserves the size of the largest reply, if it is free now.
        pub(crate) fn try_reserve(&self) -> Option<Reservation> {
            let permit = Arc::clone(&self.free).try_acquire_many_owned(MAX_REPLY_SIZE as u32);
            Some(Reservation {
                permit: permit.ok()?,
                charge: self.memory.no_charge(),
                large: None,
            })
        }
    }

    fn free(budget: &SendBudget) -> usize {
        budget.free.available_permits()
    }

    #[test]
    fn a_reply_is_charged_until_it_is_dropped() {
        let memory = MemoryBudget::new(1 << 20, Arc::default());
        let budget = SendBudget::new(memory.for_connection(ClientQuota::alone()));
        let mut reservation = budget.try_reserve().expect("all is free");
        assert_eq!((free(&budget), memory.used()), (SEND_BUDGET - MAX_REPLY_SIZE, 0));
        reservation.grow_to(20_000).unwrap();
        assert_eq!(memory.used(), 20_000);
        let reply = reservation.charge(vec![7; 10_000].into()).unwrap();
        let small = reservation.charge(vec![7; SMALL_REPLY_SIZE].into()).unwrap();
        drop(reservation);
        assert_eq!((free(&budget), memory.used()), (SEND_BUDGET - 10_000, 10_000));
        // A slice of the bytes keeps the whole charge.
        let part = reply.slice(1..2);
        drop((reply, small));
        assert_eq!((free(&budget), &part[..]), (SEND_BUDGET - 10_000, &[7][..]));
        drop(part);
        assert_eq!((free(&budget), memory.used()), (SEND_BUDGET, 0));

        let unreserved = budget.charge(vec![7; 10_000].into()).unwrap();
        assert_eq!((free(&budget), memory.used()), (SEND_BUDGET, 10_000));
        drop(unreserved);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_reply_that_the_server_has_no_room_for_is_refused() {
        let budget = SendBudget::new(MemoryBudget::new(100_000, Arc::default()).for_connection(ClientQuota::alone()));
        let mut reservation = budget.try_reserve().expect("all is free");
        assert!(reservation.charge(vec![7; 60_000].into()).is_err());
        assert!(budget.charge(vec![7; 60_000].into()).is_err());
        assert!(budget.charge(vec![7; 40_000].into()).is_ok());
    }

    #[test]
    fn a_call_begins_once_the_budget_covers_the_largest_reply() {
        let budget = SendBudget::default();
        let mut held = Vec::new();
        while let Some(mut reservation) = budget.try_reserve() {
            held.push(reservation.charge(vec![0; MAX_REPLY_SIZE].into()).unwrap());
        }
        assert_eq!(held.len(), SEND_BUDGET / MAX_REPLY_SIZE);
        held.pop();
        assert!(budget.try_reserve().is_some());
    }

    #[test]
    fn a_reply_larger_than_its_reservation_takes_no_more() {
        let budget = SendBudget::default();
        let mut reservation = budget.try_reserve().expect("all is free");
        let parts = [0; 3].map(|byte| reservation.charge(vec![byte; MAX_REPLY_SIZE / 2 + 1].into()).unwrap());
        drop(reservation);
        assert_eq!(free(&budget), SEND_BUDGET - MAX_REPLY_SIZE);
        drop(parts);
        assert_eq!(free(&budget), SEND_BUDGET);
    }
}
