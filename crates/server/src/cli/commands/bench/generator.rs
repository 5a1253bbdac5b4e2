//! The threads that make the calls of a phase.
//!
//! Each thread has a runtime, a tally, and its share of the connections, so the threads share nothing while they make
//! calls. All connections are open before the first call is due.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cli::commands::bench::calls::Calls;
use crate::cli::commands::bench::connection::{Connection, Failed};
use crate::cli::commands::bench::cpu::{CpuReading, CpuUse};
use crate::cli::commands::bench::lane::{Bounds, Lane, drive, lock};
use crate::cli::commands::bench::progress::{INTERVAL, Progress};
use crate::cli::commands::bench::schedule::{Phase, Schedule};
use crate::cli::commands::bench::session::Session;
use crate::cli::commands::bench::tally::Tally;
use crate::cli::commands::bench::timer::KernelTimer;
use crate::cli::commands::bench::work::{Population, Work};
use crate::cli::commands::{CommandError, TrackerArgs};
use crate::cli::signals::{ReceivedSignal, Signals};

/// The time from the last connection's opening to the begin of the schedule. All lanes reach their loops meanwhile.
const HEAD_START: Duration = Duration::from_millis(10);

/// The calls of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaneCalls {
    Unary(Work),
    /// Heartbeats in the session of the proxy with the number of the lane.
    Session,
}

/// The load on a tracker.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) at: TrackerArgs,
    /// `None` for plaintext.
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) population: Population,
    pub(super) connections: u32,
    /// Calls in flight on each connection.
    pub(super) in_flight: usize,
    pub(super) threads: u32,
    /// How long a call may take, and how long calls may wait after the last call was due.
    pub(super) timeout: Duration,
    /// The server's process, if it is known.
    pub(super) server_pid: Option<i32>,
}

/// The measurements of a phase.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) tally: Tally,
    /// From when all connections were open.
    pub(super) cpu: CpuUse,
}

/// The end of a run before its time.
#[derive(Debug)]
pub(super) struct Interrupts {
    signals: Signals,
    stop: CancellationToken,
    first: Option<ReceivedSignal>,
}

impl Interrupts {
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self {
            signals: Signals::install()?,
            stop: CancellationToken::new(),
            first: None,
        })
    }

    /// Fails if a signal has come.
    pub(super) fn check(&self) -> Result<(), CommandError> {
        self.first
            .map_or(Ok(()), |signal| Err(CommandError::Interrupted(signal)))
    }

    /// Waits for a signal. Cancels `stop` at the first signal; a second signal is an error.
    pub(super) async fn next(&mut self) -> Result<(), CommandError> {
        let signal = self.signals.next().await;
        self.check()?;
        self.first = Some(signal);
        self.stop.cancel();
        Ok(())
    }

    /// Waits for something that must not be stopped by the first signal.
    pub(super) async fn unless_second<T>(&mut self, work: impl Future<Output = T>) -> Result<T, CommandError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                signal = self.next() => signal?,
            }
        }
    }
}

/// The data that a thread needs for its lanes.
#[derive(Clone)]
struct Thread {
    load: Load,
    kind: LaneCalls,
    phase: Phase,
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
    /// When all connections are open: the begin of the schedule.
    begin: watch::Receiver<Option<Instant>>,
    /// Gets a message when a lane is connected. Closed when all lanes have ended.
    connected: mpsc::Sender<Result<(), CommandError>>,
}

impl Load {
    /// Makes the calls of a phase. Ends early, and successfully, at the first signal.
    ///
    /// # Errors
    ///
    /// A connection that cannot be opened, or a second signal.
    pub(super) async fn run(
        &self,
        name: &'static str,
        kind: LaneCalls,
        phase: Phase,
        interrupts: &mut Interrupts,
    ) -> Result<Measured, CommandError> {
        let (begin, begun) = watch::channel(None);
        let (connected, mut lanes) = mpsc::channel(1);
        let mut tallies = Vec::new();
        for number in 0..self.threads.min(self.connections) {
            let tally = Arc::new(Mutex::new(Tally::new()));
            tallies.push(Arc::clone(&tally));
            let thread = Thread {
                load: self.clone(),
                kind,
                phase,
                tally,
                stop: interrupts.stop.clone(),
                begin: begun.clone(),
                connected: connected.clone(),
            };
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(CommandError::Thread)?;
            let name = format!("bench-{number}");
            let spawned = thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(thread.run(number)));
            spawned.map_err(CommandError::Thread)?;
        }
        drop(connected);

        for _ in 0..self.connections {
            tokio::select! {
                lane = lanes.recv() => lane.unwrap_or(Ok(()))?,
                signal = interrupts.next() => {
                    signal?;
                    break;
                }
            }
        }
        let progress = Progress::new(name, phase);
        let cpu = || CpuReading::take(self.server_pid).map_err(CommandError::CpuTime);
        let cpu_before = cpu()?;
        begin.send_replace(Some(Instant::now() + HEAD_START));
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                lane = lanes.recv() => match lane {
                    Some(lane) => lane?,
                    None => break,
                },
                signal = interrupts.next() => signal?,
                _ = ticks.tick(), if progress.is_visible() => progress.show(&sum(&tallies)),
            }
        }
        Ok(Measured {
            tally: sum(&tallies),
            cpu: cpu_before.until(&cpu()?),
        })
    }
}

fn sum(tallies: &[Arc<Mutex<Tally>>]) -> Tally {
    let mut sum = Tally::new();
    tallies.iter().for_each(|tally| sum.add(&lock(tally)));
    sum
}

impl Thread {
    /// Runs the lanes of a thread: lane `number`, and each further lane after as many lanes as there are threads.
    async fn run(self, number: u32) {
        let lanes = (number..self.load.connections).step_by(self.load.threads as usize);
        let lanes: JoinSet<()> = lanes.map(|lane| self.clone().lane(lane)).collect();
        drop(self);
        lanes.join_all().await;
    }

    async fn lane(self, number: u32) {
        let Load {
            at,
            tls,
            population,
            timeout,
            ..
        } = &self.load;
        let lane = async {
            let connection = at.bench_connection(tls.clone()).await?;
            Ok((connection, KernelTimer::new().map_err(CommandError::Timer)?))
        };
        let (connection, timer) = match lane.await {
            Ok(lane) => lane,
            Err(error) => return self.report(Err(error)).await,
        };
        match self.kind {
            LaneCalls::Unary(work) => {
                let lane = Calls::new(connection, work, *population, *timeout);
                self.drive(lane, timer, number).await;
            }
            LaneCalls::Session => match Session::begin(connection, population, number, *timeout).await {
                Ok(lane) => self.drive(lane, timer, number).await,
                Err(Failed { status, .. }) => self.report(Err(at.failed(status).await)).await,
            },
        }
    }

    async fn report(&self, connected: Result<(), CommandError>) {
        // The receiver is gone if another lane has failed before.
        let _ = self.connected.send(connected).await;
    }

    async fn drive(mut self, mut lane: impl Lane, mut timer: KernelTimer, number: u32) {
        self.report(Ok(())).await;
        // Another lane may have failed before.
        let begin = match self.begin.wait_for(Option::is_some).await {
            Ok(begin) => *begin,
            Err(_) => None,
        };
        let Some(begin) = begin else {
            return;
        };
        let schedule = Schedule::new(self.phase, begin, number.into(), self.load.connections.into());
        let bounds = Bounds {
            in_flight: self.load.in_flight,
            patience: self.load.timeout,
        };
        drive(&mut lane, &mut timer, schedule, bounds, &self.tally, &self.stop).await;
    }
}

impl TrackerArgs {
    /// Connects, for the calls of `bench`.
    async fn bench_connection(&self, tls: Option<Arc<ClientConfig>>) -> Result<Connection, CommandError> {
        self.connected(async {
            let stream = self.addr.open(tls).await?;
            Connection::over(stream, &self.addr.origin()).await
        })
        .await
    }
}
