//! The memory budget: bytes that all clients together may make the server hold.
//!
//! A limit for each connection bounds nothing if there are ten thousand connections. So all large memory that clients
//! can make the server hold is charged to one budget. The budget has connections, calls in flight, parts of requests
//! that have arrived, replies that the client has not read, and snapshots of watches. If the budget has no room, the
//! call fails with RESOURCE_EXHAUSTED, or the connection is not served. The table has limits of its own.
//!
//! Small amounts are not charged: of each connection, the first [`UNREAD_STEP`](crate::limits::UNREAD_STEP) of the
//! requests that the server has not read yet, and small replies.
//!
//! Two rules share the budget. A connection may always hold an equal share: the budget, divided by the number of
//! connections. Beyond its share, a connection may hold as many bytes as are free. So the first connections cannot take
//! everything from later connections, and a connection that is alone can use half of the budget. (The second rule is
//! from Choudhury and Hahne, "Dynamic queue length thresholds in a shared memory switch", 1998.) While the number of
//! connections stays the same, each rule alone keeps to the budget. So both together hold at most twice the budget. If
//! connections come one after the other, the first connections had larger shares. Then all together still hold at most
//! twice the budget, and the last connections get less than a share.
//!
//! Also, all connections of one client together hold at most the share that the client's [quota](crate::quota) allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use crate::quota::ClientQuota;
use crate::refusal::{CountedRefusal, Reason, Refusals};

/// The least number of shares: with fewer connections, each share is as large as with this many.
const LEAST_SHARES: usize = 16;

/// The budget of the server.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit: usize,
    used: AtomicUsize,
    connections: AtomicUsize,
    refusals: Arc<Refusals>,
}

impl MemoryBudget {
    /// Returns a budget of `limit` bytes.
    pub(crate) fn new(limit: usize, refusals: Arc<Refusals>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            refusals,
        })
    }

    /// Returns the part of the budget for a new connection of `client`.
    pub(crate) fn for_connection(self: &Arc<Self>, client: ClientQuota) -> ConnectionMemory {
        // Relaxed, as all accesses here: the counters guard no data.
        self.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionMemory(Arc::new(ConnectionUse {
            budget: Arc::clone(self),
            used: AtomicUsize::new(0),
            client,
        }))
    }

    /// Returns the bytes that are charged now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the size of the budget.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns the counters of the server's refusals, of any reason.
    pub(crate) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// Returns the bytes that every connection may hold.
    fn share(&self) -> usize {
        self.limit / self.connections.load(Ordering::Relaxed).max(LEAST_SHARES)
    }
}

/// The part of the budget that one connection uses. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionMemory(Arc<ConnectionUse>);

#[derive(Debug)]
struct ConnectionUse {
    budget: Arc<MemoryBudget>,
    used: AtomicUsize,
    client: ClientQuota,
}

impl Drop for ConnectionUse {
    fn drop(&mut self) {
        self.budget.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConnectionMemory {
    /// Charges bytes until the charge is dropped.
    ///
    /// # Errors
    ///
    /// With these bytes, the connection would hold more than its share, and more than would be free. Or all connections
    /// of the client together would hold more than the client's share.
    pub(crate) fn charge(&self, bytes: usize) -> Result<Charge, OutOfBudget> {
        let mut charge = self.no_charge();
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Charges bytes that the connection can do without. Returns `None` unless three quarters of the budget are free,
    /// which counts as no refusal.
    pub(crate) fn charge_spare(&self, bytes: usize) -> Option<Charge> {
        let ConnectionUse { budget, client, .. } = &*self.0;
        let is_spare = budget.used().saturating_add(bytes) <= budget.limit / 4 && client.has_memory(bytes);
        is_spare.then(|| self.charge(bytes).ok()).flatten()
    }

    /// Returns the counters of the server's refusals, of any reason.
    pub(crate) fn refusals(&self) -> &Arc<Refusals> {
        self.0.budget.refusals()
    }

    /// Returns the quota of the connection's client.
    pub(crate) fn client(&self) -> &ClientQuota {
        &self.0.client
    }

    /// Returns a charge of nothing, which can grow.
    pub(crate) fn no_charge(&self) -> Charge {
        Charge {
            memory: self.clone(),
            bytes: 0,
        }
    }
}

/// The budget has no room. The refusal is counted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfBudget(CountedRefusal);

impl From<OutOfBudget> for Status {
    fn from(OutOfBudget(refused): OutOfBudget) -> Self {
        refused.status(
            "this client holds more than its share of the tracker's memory: read the replies, or send less at a time",
        )
    }
}

/// Bytes that are charged to the budget. On drop, the budget gets the bytes back.
#[derive(Debug)]
pub(crate) struct Charge {
    memory: ConnectionMemory,
    bytes: usize,
}

impl Charge {
    /// Charges more bytes.
    ///
    /// # Errors
    ///
    /// As [`ConnectionMemory::charge`]. The charge stays as it was.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), OutOfBudget> {
        let ConnectionUse { budget, used, client } = &*self.memory.0;
        if !client.has_memory(bytes) {
            return Err(OutOfBudget(budget.refusals.refuse(Reason::AddressMemory)));
        }
        // Two threads can exceed the limit together, by one charge each.
        let own = used.load(Ordering::Relaxed).saturating_add(bytes);
        let all = budget.used().saturating_add(bytes);
        let is_free = own <= budget.limit.saturating_sub(all);
        if !is_free {
            let reason = if own > budget.share() {
                Some(Reason::ConnectionMemory)
            } else if all > budget.limit.saturating_mul(2) {
                Some(Reason::ClientMemory)
            } else {
                None
            };
            if let Some(reason) = reason {
                return Err(OutOfBudget(budget.refusals.refuse(reason)));
            }
        }
        budget.used.fetch_add(bytes, Ordering::Relaxed);
        used.fetch_add(bytes, Ordering::Relaxed);
        client.charge(bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Splits bytes off, at most all of them.
    pub(crate) fn split(&mut self, bytes: usize) -> Charge {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Charge {
            memory: self.memory.clone(),
            bytes,
        }
    }

    /// Returns the memory that the bytes are charged to.
    pub(crate) fn memory(&self) -> &ConnectionMemory {
        &self.memory
    }

    /// Returns the bytes that are charged.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let ConnectionUse { budget, used, client } = &*self.memory.0;
        used.fetch_sub(self.bytes, Ordering::Relaxed);
        budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        client.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_key::ClientKey;
    use crate::limits::Limits;
    use crate::quota::Quotas;

    const LIMIT: usize = 1 << 20;

    /// Returns the reasons of refusals, with their counts.
    fn refused(budget: &MemoryBudget) -> Vec<(Reason, u64)> {
        budget.refusals().counts().filter(|&(_, count)| count > 0).collect()
    }

    /// Charges as much as possible, 100 bytes at a time.
    fn take_all(connection: &ConnectionMemory) -> Charge {
        let mut charge = connection.charge(0).unwrap();
        while charge.grow(100).is_ok() {}
        charge
    }

    #[test]
    fn a_connection_that_is_alone_takes_half() {
        let budget = MemoryBudget::new(LIMIT, Arc::default());
        let charge = take_all(&budget.for_connection(ClientQuota::alone()));
        assert!((LIMIT / 2 - 200..=LIMIT / 2).contains(&charge.bytes()), "{charge:?}");
        assert_eq!(refused(&budget), [(Reason::ConnectionMemory, 1)]);
        drop(charge);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_connection_that_comes_late_has_its_share() {
        let budget = MemoryBudget::new(LIMIT, Arc::default());
        let connections: Vec<_> = (0..100).map(|_| budget.for_connection(ClientQuota::alone())).collect();
        let charges: Vec<_> = connections.iter().map(take_all).collect();
        for charge in &charges {
            assert!(charge.bytes() > LIMIT / 100 - 200, "{charge:?}");
        }
        assert!(budget.used() <= 2 * LIMIT);
        drop(charges);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_connection_that_ends_leaves_its_share_to_the_others() {
        let budget = MemoryBudget::new(LIMIT, Arc::default());
        let mut connections: Vec<_> = (0..1024).map(|_| budget.for_connection(ClientQuota::alone())).collect();
        assert_eq!(budget.share(), LIMIT / 1024);
        let charge = connections[0].charge(1).unwrap();
        connections.clear();
        assert_eq!(
            budget.share(),
            LIMIT / LEAST_SHARES,
            "a charge keeps its connection's share"
        );
        drop(charge);
        assert_eq!(budget.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn connections_that_come_one_after_the_other_hold_at_most_twice_the_budget() {
        let budget = MemoryBudget::new(LIMIT, Arc::default());
        let held: Vec<_> = (0..2_000)
            .map(|_| {
                let connection = budget.for_connection(ClientQuota::alone());
                let charge = take_all(&connection);
                (connection, charge)
            })
            .collect();
        assert!(budget.used() <= 2 * LIMIT, "{}", budget.used());
        let reasons: Vec<_> = refused(&budget).into_iter().map(|(reason, _)| reason).collect();
        assert_eq!(reasons, [Reason::ClientMemory, Reason::ConnectionMemory]);
        drop(held);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn all_connections_of_an_address_have_its_share() {
        let limits = Limits {
            memory: LIMIT,
            max_share_per_client: 25,
            ..Limits::default()
        };
        let quotas = Quotas::new(&limits);
        let budget = MemoryBudget::new(LIMIT, Arc::default());
        let of = |key| budget.for_connection(quotas.register(ClientKey::V6(key)));
        let greedy: Vec<_> = (0..100).map(|_| of(1)).collect();
        let charges: Vec<_> = greedy.iter().map(take_all).collect();
        assert!(
            (LIMIT / 4 - 100..=LIMIT / 4).contains(&budget.used()),
            "{}",
            budget.used()
        );
        assert_eq!(refused(&budget)[0].0, Reason::AddressMemory);
        let other = take_all(&of(2));
        assert!(other.bytes() > LIMIT / 4 - 200, "{other:?}");
        drop(charges);
        greedy[0].charge(LIMIT / 4).expect("the memory is free again");
    }

    #[test]
    fn spare_bytes_leave_three_quarters_and_are_no_refusal() {
        let budget = MemoryBudget::new(1000, Arc::default());
        let connection = budget.for_connection(ClientQuota::alone());
        let spare: Vec<_> = (0..10).filter_map(|_| connection.charge_spare(100)).collect();
        assert_eq!((spare.len(), budget.used()), (2, 200));
        assert_eq!(refused(&budget), []);
        drop(spare);
        assert!(connection.charge_spare(100).is_some());
    }

    #[test]
    fn a_charge_can_be_split() {
        let budget = MemoryBudget::new(1000, Arc::default());
        let connection = budget.for_connection(ClientQuota::alone());
        let mut whole = connection.charge(400).unwrap();
        let part = whole.split(300);
        assert_eq!((whole.bytes(), part.bytes(), budget.used()), (100, 300, 400));
        assert!(whole.grow(250).is_err());
        drop(part);
        assert_eq!(budget.used(), 100);
        whole.grow(250).unwrap();
        drop(whole);
        assert_eq!(budget.used(), 0);
    }
}
