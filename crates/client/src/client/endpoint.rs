//! One tracker of a client: its connection, its health, and its share of repeated attempts.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tracing::{info, warn};

use crate::client::calls::Call;
use crate::client::config::ClientConfig;
use crate::client::convert;
use crate::client::health::{Health, Input};
use crate::client::retry::{Failure, RetryBudget};
use crate::client::stats::{Counters, TrackerStats};
use crate::clock::{bounded, now};
use crate::connect::addr::TrackerAddr;
use crate::connect::channel::{Channel, is_unreachable};
use crate::tracker::TrackerError;

/// When a call of the common API has to be complete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// The time from the call's begin.
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now() + bounded(limit),
            limit,
        }
    }
}

/// One tracker.
#[derive(Debug)]
pub(super) struct Endpoint {
    addr: TrackerAddr,
    channel: Channel,
    attempt_timeout: Duration,
    probe_timeout: Duration,
    state: Mutex<State>,
    /// Notified when the next probe may be due earlier than before.
    probe_moved: Notify,
    /// Notified after each probe, and when the tracker becomes healthy or unhealthy.
    changed: watch::Sender<()>,
    pub(super) counters: Counters,
}

#[derive(Debug)]
struct State {
    health: Health,
    budget: RetryBudget,
}

impl Endpoint {
    pub(super) fn new(addr: TrackerAddr, config: &ClientConfig, changed: watch::Sender<()>) -> Self {
        let seed = fastrand::u64(..);
        Self {
            channel: config.connect.channel(&addr),
            addr,
            attempt_timeout: bounded(config.attempt_timeout),
            probe_timeout: config.health.timeout,
            state: Mutex::new(State {
                health: Health::new(now(), config.health, seed),
                budget: RetryBudget::new(),
            }),
            probe_moved: Notify::new(),
            changed,
            counters: Counters::default(),
        }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.state.lock().health.is_healthy()
    }

    pub(super) fn allows_retry(&self) -> bool {
        self.state.lock().budget.allows_retry()
    }

    /// Orders healthy trackers before others, and near trackers before distant trackers. A tracker that never answered
    /// is the most distant.
    pub(super) fn distance(&self) -> (bool, Duration) {
        let state = self.state.lock();
        let round_trip = state.health.round_trip();
        (!state.health.is_healthy(), round_trip.unwrap_or(Duration::MAX))
    }

    pub(super) fn stats(&self) -> TrackerStats {
        let (is_healthy, round_trip) = {
            let state = self.state.lock();
            (state.health.is_healthy(), state.health.round_trip())
        };
        TrackerStats {
            addr: self.addr.clone(),
            is_healthy,
            round_trip,
            attempts: self.counters.attempts.get(),
            failed_attempts: self.counters.failed_attempts.get(),
            probes: self.counters.probes.get(),
            failed_probes: self.counters.failed_probes.get(),
            missed_writes: self.counters.missed_writes.get(),
        }
    }

    /// Makes a call once.
    pub(super) async fn attempt<C: Call>(&self, request: C, deadline: Deadline) -> Result<C::Reply, Failure> {
        self.counters.attempts.add_one();
        let end = deadline.at.min(Instant::now() + self.attempt_timeout);
        let (error, is_sent) = match timeout_at(end, request.send(self.channel.clone())).await {
            Ok(Ok(reply)) => {
                self.handle(Input::CallAnswered);
                return Ok(reply.into_inner());
            }
            Ok(Err(status)) => (convert::error(&self.addr, &status), !is_unreachable(&status)),
            Err(_) if end == deadline.at => (TrackerError::DeadlineExceeded(deadline.limit), true),
            Err(_) => {
                let text = format!("{}: no answer within {:?}", self.addr, self.attempt_timeout);
                (TrackerError::Unavailable(text), true)
            }
        };
        match error {
            TrackerError::Unavailable(_) => {
                self.counters.failed_attempts.add_one();
                self.handle(Input::CallFailed);
            }
            // The call may have begun too late for an answer.
            TrackerError::DeadlineExceeded(_) => self.counters.failed_attempts.add_one(),
            _ => self.handle(Input::CallAnswered),
        }
        Err(Failure::of::<C>(error, is_sent))
    }

    /// Probes the tracker whenever a probe is due.
    pub(super) async fn probe_forever(&self) {
        loop {
            let due = self.state.lock().health.next_timeout().map(Instant::from_std);
            // `None` only while a probe is in flight, and this task alone sends probes.
            let wait = sleep_until(due.unwrap_or_else(Instant::now));
            tokio::select! {
                () = wait => {}
                () = self.probe_moved.notified() => continue,
            }
            if self.state.lock().health.poll_probe(now()) {
                let result = self.probe().await;
                self.handle(result);
                self.changed.send_replace(());
            }
        }
    }

    async fn probe(&self) -> Input {
        self.counters.probes.add_one();
        let begin = Instant::now();
        let mut client = HealthClient::new(self.channel.clone());
        // The empty name is the tracker as a whole.
        let call = client.check(HealthCheckRequest::default());
        let status = match timeout(self.probe_timeout, call).await {
            Ok(Ok(reply)) => reply.into_inner().status(),
            // A tracker without this service answers, too.
            Ok(Err(status)) if !matches!(convert::error(&self.addr, &status), TrackerError::Unavailable(_)) => {
                ServingStatus::Serving
            }
            _ => {
                self.counters.failed_probes.add_one();
                return Input::ProbeFailed;
            }
        };
        match status {
            ServingStatus::Serving => Input::ProbeServing(begin.elapsed()),
            _ => Input::ProbeNotServing,
        }
    }

    fn handle(&self, input: Input) {
        let mut state = self.state.lock();
        match input {
            Input::CallFailed => state.budget.failed(),
            Input::CallAnswered => state.budget.answered(),
            Input::ProbeServing(_) | Input::ProbeNotServing | Input::ProbeFailed => {}
        }
        let was_healthy = state.health.is_healthy();
        state.health.handle(now(), input);
        let is_healthy = state.health.is_healthy();
        drop(state);
        if was_healthy == is_healthy {
            return;
        }
        match is_healthy {
            true => info!("tracker {} is healthy", self.addr),
            false if input == Input::ProbeNotServing => info!("tracker {} stops serving", self.addr),
            false => warn!("tracker {} is unhealthy: it does not answer", self.addr),
        }
        self.probe_moved.notify_one();
        self.changed.send_replace(());
    }
}
