//! [`AgentPool`]: a [`PoolMachine`] connected to a transport.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time;

use crate::clock::now;
use crate::control::proto::agent_message::Message as ToProxy;
use crate::control::{Verify, proto};
use crate::pool::config::{PoolConfig, Target};
use crate::pool::counts::{Counts, PoolStats, PoolStatus};
use crate::pool::machine::{Action, Input, PoolMachine, TunnelId};
use crate::pool::tunnel;
use crate::transport::{Transport, Tunnel, TunnelStream};

/// How many streams may wait for [`AgentPool::accept`]. Further streams wait in their tunnels.
const MAX_INCOMING: usize = 64;

/// How many messages to a proxy may wait to be written. If more messages wait, the proxy does not read, and the pool
/// ends the tunnel.
const MAX_UNWRITTEN: usize = 16;

/// Keeps an agent connected. A pool has one tokio task. Each tunnel has another task, and the tasks of its transport.
///
/// Dropping the pool closes all tunnels at once. [`PoolHandle::close`] waits for their streams.
pub struct AgentPool {
    handle: PoolHandle,
    incoming: mpsc::Receiver<IncomingStream>,
    timer: AbortHandle,
}

/// Changes and observes an [`AgentPool`], from any thread.
#[derive(Clone)]
pub struct PoolHandle {
    shared: Arc<Shared>,
}

/// A stream that a proxy has opened.
pub struct IncomingStream {
    /// The ID of the proxy.
    pub proxy_id: String,
    /// The target whose load balancer has chosen the proxy.
    pub target: Target,
    /// The stream.
    pub stream: TunnelStream,
}

/// The state that the tasks of a pool share.
pub(super) struct Shared {
    state: Mutex<PoolState>,
    /// Wakes the timer.
    changed: Notify,
    /// The sender is in `state`.
    status: watch::Receiver<PoolStatus>,
    pub(super) transport: Box<dyn Transport>,
    pub(super) verify: Box<Verify>,
    runtime: Handle,
}

struct PoolState {
    machine: PoolMachine,
    tunnels: HashMap<TunnelId, TunnelTask>,
    incoming: Option<mpsc::Sender<IncomingStream>>,
    /// `None` after the end of the pool, so that receivers notice the end.
    status: Option<watch::Sender<PoolStatus>>,
    is_closing: bool,
}

struct TunnelTask {
    messages: mpsc::Sender<proto::AgentMessage>,
    abort: AbortHandle,
    /// The task has the tunnel.
    tunnel: Option<Weak<dyn Tunnel>>,
}

impl AgentPool {
    /// Creates a pool without targets, which believes each proxy's ID. Needs a tokio runtime.
    #[must_use]
    pub fn start(config: PoolConfig, transport: impl Transport) -> Self {
        Self::start_with_verify(config, transport, Box::new(|_, _| Ok(())))
    }

    /// Like [`AgentPool::start`], with a check of the ID in each proxy's welcome.
    #[must_use]
    pub fn start_with_verify(config: PoolConfig, transport: impl Transport, verify: Box<Verify>) -> Self {
        let (sender, incoming) = mpsc::channel(MAX_INCOMING);
        let (status_sender, status) = watch::channel(PoolStatus::default());
        let shared = Arc::new(Shared {
            state: Mutex::new(PoolState {
                machine: PoolMachine::new(config, fastrand::u64(..)),
                tunnels: HashMap::new(),
                incoming: Some(sender),
                status: Some(status_sender),
                is_closing: false,
            }),
            changed: Notify::new(),
            status,
            transport: Box::new(transport),
            verify,
            runtime: Handle::current(),
        });
        let timer = tokio::spawn(run_timer(Arc::clone(&shared))).abort_handle();
        Self {
            handle: PoolHandle { shared },
            incoming,
            timer,
        }
    }

    /// Returns the pool's handle. Clones share the pool.
    #[must_use]
    pub fn handle(&self) -> &PoolHandle {
        &self.handle
    }

    /// Returns the next stream that a proxy opens, or `None` after the end of a [`PoolHandle::close`].
    pub async fn accept(&mut self) -> Option<IncomingStream> {
        self.incoming.recv().await
    }
}

impl Drop for AgentPool {
    fn drop(&mut self) {
        self.timer.abort();
        // Through the machine, so that a `close` that waits for the end of the tunnels returns.
        self.handle.shared.update(|state, now| {
            let PoolState {
                machine,
                tunnels,
                incoming,
                is_closing,
                ..
            } = state;
            *is_closing = true;
            // No new tunnels begin.
            *incoming = None;
            machine.remove_all_targets(now);
            for (id, task) in tunnels.drain() {
                task.abort.abort();
                machine.handle(now, id, Input::Ended("the pool was dropped".to_owned()));
            }
        });
        // After the last status.
        self.handle.shared.state.lock().status = None;
    }
}

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHandle")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl PoolHandle {
    /// Begins to keep tunnels to a target. No effect if the target is already there, or if the pool closes.
    pub fn add_target(&self, target: Target) {
        self.shared.update(|state, now| {
            if !state.is_closing {
                state.machine.add_target(now, target);
            }
        });
    }

    /// Leaves a target. The streams of its tunnels may last for [`close_timeout`](PoolConfig::close_timeout).
    pub fn remove_target(&self, target: &Target) {
        self.shared
            .update(|state, now| state.machine.remove_target(now, target));
    }

    /// Leaves all targets, and waits until the streams of their tunnels have ended, at most for
    /// [`close_timeout`](PoolConfig::close_timeout). [`AgentPool::accept`] still returns streams meanwhile.
    pub async fn close(&self) {
        let mut status = self.status();
        self.shared.update(|state, now| {
            state.is_closing = true;
            state.machine.remove_all_targets(now);
        });
        status.wait_for(|status| status.counts.is_empty()).await;
    }

    /// Returns a receiver of the status and its changes.
    #[must_use]
    pub fn status(&self) -> StatusReceiver {
        let mut status = self.shared.status.clone();
        status.mark_unchanged();
        StatusReceiver(status)
    }

    /// Returns how many tunnels of each cluster are in which state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.status.borrow().counts.clone()
    }

    /// Returns what has happened so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.shared.status.borrow().stats
    }
}

/// Receives the status of an [`AgentPool`]. Returns copies, so that no slow reader delays the pool.
#[derive(Debug, Clone)]
pub struct StatusReceiver(watch::Receiver<PoolStatus>);

impl StatusReceiver {
    /// Returns the present status.
    #[must_use]
    pub fn latest(&self) -> PoolStatus {
        self.0.borrow().clone()
    }

    /// Waits for a change since the last status that this receiver has returned here or in
    /// [`wait_for`](Self::wait_for), or since the receiver was made. Returns `None` after the end of the pool.
    pub async fn changed(&mut self) -> Option<PoolStatus> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Waits for a status that meets a condition. Returns `None` after the end of the pool.
    pub async fn wait_for(&mut self, mut condition: impl FnMut(&PoolStatus) -> bool) -> Option<PoolStatus> {
        let mut status = self.0.borrow_and_update().clone();
        while !condition(&status) {
            status = self.changed().await?;
        }
        Some(status)
    }
}

impl Shared {
    /// Records that a tunnel and its control stream are open.
    pub(super) fn opened(self: &Arc<Self>, id: TunnelId, tunnel: &Arc<dyn Tunnel>) {
        self.update(|state, now| {
            if let Some(task) = state.tunnels.get_mut(&id) {
                task.tunnel = Some(Arc::downgrade(tunnel));
            }
            state.machine.handle(now, id, Input::Opened);
        });
    }

    /// Passes an input about a tunnel to the machine.
    pub(super) fn input(self: &Arc<Self>, id: TunnelId, input: Input) {
        self.update(|state, now| {
            if let Input::Ended(_) = input {
                state.tunnels.remove(&id);
            }
            state.machine.handle(now, id, input);
        });
    }

    /// Changes the machine, and does what the machine then asks for.
    fn update(self: &Arc<Self>, change: impl FnOnce(&mut PoolState, Instant)) {
        let now = now();
        let mut state = self.state.lock();
        let PoolState { machine, tunnels, .. } = &mut *state;
        for (id, task) in tunnels {
            if let Some(tunnel) = task.tunnel.as_ref().and_then(Weak::upgrade) {
                machine.bytes_received(*id, tunnel.last_received());
            }
        }
        change(&mut state, now);
        while let Some(action) = state.machine.poll_action(now) {
            self.act(&mut state, now, action);
        }
        if state.is_closing && state.machine.is_empty() {
            state.incoming = None;
        }
        let status = PoolStatus {
            counts: state.machine.counts(),
            stats: state.machine.stats(),
            last_errors: state.machine.last_errors().clone(),
        };
        if let Some(sender) = &state.status {
            sender.send_if_modified(|old| {
                let is_modified = *old != status;
                *old = status;
                is_modified
            });
        }
        self.changed.notify_one();
    }

    fn act(self: &Arc<Self>, state: &mut PoolState, now: Instant, action: Action) {
        match action {
            Action::Connect(id, target) => {
                let Some(incoming) = state.incoming.clone() else { return };
                let (messages, receiver) = mpsc::channel(MAX_UNWRITTEN);
                let task = tunnel::run(Arc::clone(self), id, target, receiver, incoming);
                let abort = self.runtime.spawn(task).abort_handle();
                let task = TunnelTask {
                    messages,
                    abort,
                    tunnel: None,
                };
                state.tunnels.insert(id, task);
            }
            Action::Send(id, message) => {
                let sent = state.tunnels.get(&id).map(|task| task.messages.try_send(message));
                // If the task has just ended, its own reason follows. Pings may wait behind the bytes of busy streams.
                if let Some(Err(TrySendError::Full(unsent))) = sent
                    && !matches!(unsent.message, Some(ToProxy::Ping(_)))
                {
                    self.abort(state, id);
                    let reason = "the proxy does not read its messages".to_owned();
                    state.machine.handle(now, id, Input::Ended(reason));
                }
            }
            Action::Close(id) => self.abort(state, id),
        }
    }

    fn abort(&self, state: &mut PoolState, id: TunnelId) {
        if let Some(task) = state.tunnels.remove(&id) {
            task.abort.abort();
        }
    }
}

/// Calls the machine at its timeouts.
async fn run_timer(shared: Arc<Shared>) {
    loop {
        let next = shared.state.lock().machine.next_timeout();
        let due = async {
            match next {
                Some(next) => time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => shared.update(|_, _| {}),
            () = shared.changed.notified() => {}
        }
    }
}
