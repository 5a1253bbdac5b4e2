//! A thread that is stopped in the first call of the process. The only test of its process: the first call makes the
//! state that all tables share.

#[path = "common/stopping.rs"]
mod stopping;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nodetracker::{ManualClock, NodeId, RouteTable};
use uuid::Uuid;

/// Stops a thread at its next allocation.
struct Stopping;

// SAFETY: each method passes its arguments to the system's allocator, and returns its result.
unsafe impl GlobalAlloc for Stopping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        stopping::point();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Stopping = Stopping;

#[test]
fn a_thread_that_is_stopped_in_the_first_call_delays_no_other_thread() {
    let builder = RouteTable::builder().clock(ManualClock::new());
    let table = builder.build().expect("possible limits");
    let node: NodeId = Uuid::from_u128(1).into();
    let look_up = || assert_eq!(table.get_proxies(&node).len(), 0);
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            stopping::stop_here();
            look_up();
        });
        let stopped = stopping::wait_for_stop();
        let (send, receive) = mpsc::channel();
        let look_up = &look_up;
        scope.spawn(move || {
            look_up();
            send.send(())
        });
        let ended = receive.recv_timeout(Duration::from_secs(10));
        drop(stopped);
        ended
    });
    assert_eq!(
        ended,
        Ok(()),
        "a call waits for a thread that is stopped in the first call"
    );
}
