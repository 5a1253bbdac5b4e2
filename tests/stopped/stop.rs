//! Stopping a thread at any instruction, and noticing that another thread waits for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence};
use std::sync::mpsc;
use std::thread::{self, Scope, ScopedJoinHandle};

/// The victim's state. Stores are Release and loads Acquire. So the victim's steps before it stopped come before the
/// next steps of the main thread, and the other way round.
static STATE: AtomicU32 = AtomicU32::new(RUNS);
const RUNS: u32 = 0;
/// The signal was sent to the victim.
const ASKED: u32 = 1;
const STOPPED: u32 = 2;
/// The signal arrived at a place where the victim must not stop.
const DECLINED: u32 = 3;

/// The stopped thread waits for a byte from here before it continues.
static PIPE: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];

/// Calls that have ended, of all threads, and how many there were at the last alarm.
static CALLS: AtomicU64 = AtomicU64::new(0);
static CALLS_AT_ALARM: AtomicU64 = AtomicU64::new(u64::MAX);
static HAS_WAITED: AtomicBool = AtomicBool::new(false);
/// Seconds between two alarms. The longest call is a `write_snapshot` that finds the registry's lock taken: it yields
/// ten thousand times, which takes many seconds on a busy machine.
const PATIENCE: u32 = 60;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

// Without a destructor, so that the signal's handler may use them.
thread_local! {
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
    static IN_ALLOCATOR: Cell<bool> = const { Cell::new(false) };
}

/// Sets a flag of this thread for its signal's handler while `f` runs.
fn with<R>(flag: &'static thread::LocalKey<Cell<bool>>, f: impl FnOnce() -> R) -> R {
    flag.set(true);
    compiler_fence(Ordering::SeqCst);
    let result = f();
    compiler_fence(Ordering::SeqCst);
    flag.set(false);
    result
}

/// Makes a call in which the thread may be stopped.
pub(crate) fn stoppable<R>(call: impl FnOnce() -> R) -> R {
    let result = with(&IN_CALL, || hint::black_box(call()));
    // Relaxed: a count alone.
    CALLS.fetch_add(1, Ordering::Relaxed);
    result
}

/// The system's allocator, in which no thread is stopped.
struct Unstoppable;

// SAFETY: each method passes its arguments to the system's allocator, and returns its result.
unsafe impl GlobalAlloc for Unstoppable {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: a count alone, as below.
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        with(&IN_ALLOCATOR, || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        with(&IN_ALLOCATOR, || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        with(&IN_ALLOCATOR, || unsafe { System.dealloc(ptr, layout) })
    }
}

#[global_allocator]
static ALLOCATOR: Unstoppable = Unstoppable;

pub(crate) fn live_bytes() -> usize {
    LIVE_BYTES.load(Ordering::Relaxed)
}

/// The victim's signal. Async-signal-safe: it uses its own thread's flags, atomics, and `read`.
extern "C" fn on_stop(_signal: libc::c_int) {
    if !IN_CALL.get() || IN_ALLOCATOR.get() {
        STATE.store(DECLINED, Ordering::Release);
        return;
    }
    let errno = Errno::current();
    STATE.store(STOPPED, Ordering::Release);
    let mut byte = 0_u8;
    // SAFETY: `read` writes at most one byte, and `byte` has room for it.
    while unsafe { libc::read(PIPE[0].load(Ordering::Relaxed), (&raw mut byte).cast(), 1) } != 1 {}
    errno.restore();
}

/// The thread's `errno`, which a handler must leave as it was.
struct Errno(libc::c_int);

impl Errno {
    fn current() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    fn restore(self) {
        // SAFETY: `__errno_location` has no preconditions.
        let place = unsafe { libc::__errno_location() };
        // SAFETY: the pointer is valid as long as this thread lives, and no other thread uses it.
        unsafe { *place = self.0 };
    }
}

/// Lets the victim continue if it is stopped. Async-signal-safe.
fn go_on() {
    let stopped = STATE.compare_exchange(STOPPED, RUNS, Ordering::AcqRel, Ordering::Relaxed);
    if stopped.is_ok() {
        // SAFETY: `write` reads one byte, which the literal has.
        let written = unsafe { libc::write(PIPE[1].load(Ordering::Relaxed), c"!".as_ptr().cast(), 1) };
        if written != 1 {
            abort(c"the pipe is broken\n");
        }
    }
}

fn abort(message: &std::ffi::CStr) -> ! {
    // SAFETY: `write` reads `count_bytes` bytes, which the message has.
    unsafe { libc::write(2, message.as_ptr().cast(), message.count_bytes()) };
    std::process::abort()
}

extern "C" fn on_alarm(_signal: libc::c_int) {
    let calls = CALLS.load(Ordering::Relaxed);
    if CALLS_AT_ALARM.swap(calls, Ordering::Relaxed) == calls {
        if HAS_WAITED.swap(true, Ordering::Relaxed) {
            abort(c"no call ends, though no thread is stopped\n");
        }
        go_on();
    }
    // SAFETY: `alarm` has no preconditions.
    unsafe { libc::alarm(PATIENCE) };
}

/// Whether a call waited for the victim; if so, the alarm let the victim continue.
pub(crate) fn has_waited() -> bool {
    HAS_WAITED.load(Ordering::Relaxed)
}

/// Detects calls that wait, until it is dropped. Set one at a time.
pub(crate) struct Alarm;

impl Alarm {
    pub(crate) fn set() -> Self {
        let mut pipe = [-1; 2];
        // SAFETY: `pipe` writes two descriptors, for which the array has room.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        for (to, from) in PIPE.iter().zip(pipe) {
            to.store(from, Ordering::Relaxed);
        }
        for (signal, handler) in [
            (libc::SIGUSR1, on_stop as extern "C" fn(libc::c_int)),
            (libc::SIGALRM, on_alarm),
        ] {
            // SAFETY: a `sigaction` of zeros is valid: the default action, no flags, an empty mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: the action is valid, and its handler is async-signal-safe.
            assert_eq!(unsafe { libc::sigaction(signal, &action, null_mut()) }, 0);
        }
        // SAFETY: `alarm` has no preconditions.
        unsafe { libc::alarm(PATIENCE) };
        Self
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: `alarm` has no preconditions.
        unsafe { libc::alarm(0) };
    }
}

/// A thread that makes one call again and again. There is one at a time.
pub(crate) struct Victim<'scope, C> {
    thread: Option<ScopedJoinHandle<'scope, C>>,
    id: libc::pthread_t,
    shall_end: Arc<AtomicBool>,
}

impl<'scope, C: Send + 'scope> Victim<'scope, C> {
    pub(crate) fn spawn(scope: &'scope Scope<'scope, '_>, mut caller: C, call: fn(&mut C)) -> Self {
        let shall_end = Arc::new(AtomicBool::new(false));
        let (send, receive) = mpsc::channel();
        let ends = Arc::clone(&shall_end);
        let thread = scope.spawn(move || {
            // First make the thread's first allocations, such as its registration with the collector.
            for _ in 0..3 {
                call(&mut caller);
            }
            // SAFETY: `pthread_self` has no preconditions.
            send.send(unsafe { libc::pthread_self() })
                .expect("the main thread waits for it");
            while !ends.load(Ordering::Relaxed) {
                call(&mut caller);
            }
            caller
        });
        Self {
            thread: Some(thread),
            id: receive.recv().expect("the victim has not failed"),
            shall_end,
        }
    }

    /// Stops the thread in its call. Returns how many signals that took. Spins `spins()` times before each signal.
    pub(crate) fn stop(&self, mut spins: impl FnMut() -> u32) -> usize {
        for tries in 1..1_000_000 {
            for _ in 0..spins() {
                hint::spin_loop();
            }
            STATE.store(ASKED, Ordering::Release);
            // SAFETY: the thread has not been joined, so its ID is valid.
            assert_eq!(unsafe { libc::pthread_kill(self.id, libc::SIGUSR1) }, 0);
            while STATE.load(Ordering::Acquire) == ASKED {
                let has_failed = self.thread.as_ref().is_none_or(ScopedJoinHandle::is_finished);
                assert!(!has_failed, "the victim has failed");
                thread::yield_now();
            }
            if STATE.load(Ordering::Acquire) == STOPPED {
                return tries;
            }
        }
        panic!("the victim is never in its call");
    }

    pub(crate) fn go_on(&self) {
        go_on();
    }

    /// Lets the thread end after its call.
    pub(crate) fn end(mut self) -> C {
        self.shall_end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("the victim has not failed")
    }
}

impl<C> Drop for Victim<'_, C> {
    fn drop(&mut self) {
        self.shall_end.store(true, Ordering::Relaxed);
        go_on();
    }
}
