//! A neighbour of an attacker: a client that makes calls at a constant rate, even if the server is slow.
//!
//! Each call has an intended time. The neighbour measures from the intended time, so a stall of the server delays every
//! call that was due meanwhile. (A client that waits for each reply before its next call would count a stall once.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nodetracker_proto::api;
use rustix::process::setpriority_process;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::client::Failure;
use crate::client::wire::{ADD, Client, GET, call, connect};

/// The longest time for a call.
const DEADLINE: Duration = Duration::from_secs(10);

/// The most calls in flight. Further calls wait, and their latency includes the wait.
const IN_FLIGHT: usize = 100;

/// The measurement of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) intended: Instant,
    /// From the intended time to the reply, or `None` if the call failed.
    pub(crate) took: Option<Duration>,
}

/// The latencies of calls, sorted.
pub(crate) struct Latencies {
    times: Vec<Duration>,
    pub(crate) failed: usize,
}

impl Latencies {
    /// Selects the calls whose intended time `selects`.
    pub(crate) fn of(samples: &[Sample], selects: impl Fn(Instant) -> bool) -> Self {
        let selected = || samples.iter().filter(|sample| selects(sample.intended));
        let mut times: Vec<_> = selected().filter_map(|sample| sample.took).collect();
        times.sort_unstable();
        let failed = selected().count() - times.len();
        Self { times, failed }
    }

    pub(crate) fn count(&self) -> usize {
        self.times.len() + self.failed
    }

    /// Returns a quantile in milliseconds.
    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        let at = (self.times.len() as f64 * quantile) as usize;
        let time = self.times.get(at).or(self.times.last());
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// A client that makes calls until it is stopped.
pub(crate) struct Neighbour {
    is_stopped: Arc<AtomicBool>,
    caller: JoinHandle<Vec<Sample>>,
}

/// Gives this thread the highest priority, if the process may do so. A neighbour on another machine would not wait for
/// the cores that the server and the attackers use here.
fn prefer_this_thread() {
    let _ = setpriority_process(None, -20);
}

impl Neighbour {
    /// Begins to make `rate` calls a second.
    pub(crate) fn start(addr: &str, rate: u32) -> Result<Self, Failure> {
        let is_stopped = Arc::<AtomicBool>::default();
        let (due, calls) = mpsc::unbounded_channel();
        let stopped = Arc::clone(&is_stopped);
        // A thread of its own: tokio's timers are late by up to a millisecond.
        thread::Builder::new().spawn(move || {
            prefer_this_thread();
            let begun = Instant::now();
            for number in 1.. {
                let intended = begun + Duration::from_secs(1) * number / rate;
                thread::sleep(intended.saturating_duration_since(Instant::now()));
                // Relaxed: the flag guards no data.
                if stopped.load(Ordering::Relaxed) || due.send((number, intended)).is_err() {
                    break;
                }
            }
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let addr = addr.to_owned();
        let caller = thread::Builder::new().spawn(move || {
            prefer_this_thread();
            runtime.block_on(make(addr, calls))
        })?;
        Ok(Self { is_stopped, caller })
    }

    /// Stops, and returns all calls.
    pub(crate) fn stop(self) -> Vec<Sample> {
        // Relaxed: see the load.
        self.is_stopped.store(true, Ordering::Relaxed);
        self.caller.join().unwrap_or_default()
    }
}

/// Makes each call when it is due, on one connection.
async fn make(addr: String, mut due: mpsc::UnboundedReceiver<(u32, Instant)>) -> Vec<Sample> {
    let client = Arc::new(Mutex::new(None));
    let free = Arc::new(Semaphore::new(IN_FLIGHT));
    let addr: Arc<str> = addr.into();
    let mut calls = JoinSet::new();
    let mut samples = Vec::new();
    loop {
        tokio::select! {
            next = due.recv() => match next {
                Some((number, intended)) => {
                    let (addr, client, free) = (Arc::clone(&addr), Arc::clone(&client), Arc::clone(&free));
                    calls.spawn(async move {
                        let _permit = free.acquire().await;
                        let deadline = (intended + DEADLINE).into();
                        let done = timeout_at(deadline, one(&addr, &client, number)).await;
                        let took = matches!(done, Ok(Ok(()))).then(|| intended.elapsed());
                        if took.is_none() {
                            // The next call connects again.
                            *client.lock().await = None;
                        }
                        Sample { intended, took }
                    });
                }
                None => break,
            },
            Some(done) = calls.join_next(), if !calls.is_empty() => samples.extend(done),
        }
    }
    samples.extend(calls.join_all().await);
    samples
}

async fn one(addr: &str, client: &Mutex<Option<Client>>, number: u32) -> Result<(), Failure> {
    let mut client = {
        let mut client = client.lock().await;
        match &*client {
            Some(client) => client.clone(),
            None => client.insert(connect(addr).await?).clone(),
        }
    };
    if number.is_multiple_of(2) {
        let request = api::GetProxiesRequest {
            node_id: "neighbour".into(),
        };
        call(&mut client, GET, &request).await?;
    } else {
        let request = api::AddNodeRequest {
            node_id: "neighbour".into(),
            proxy_id: "neighbour".into(),
            cluster_name: "main".into(),
            addr: "neighbour:1".into(),
        };
        call(&mut client, ADD, &request).await?;
    }
    Ok(())
}
