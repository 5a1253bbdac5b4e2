//! The `watch` command: prints what the table holds, and then each change, a line each.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use nodetracker_proto::v1::watch_service_client::WatchServiceClient;
use nodetracker_proto::v1::{NodeChangeReason, ProxyChangeReason};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::cli::commands::{CommandError, generation, node_name, routes};
use crate::cli::print::{Format, Print, ProxyRow, RouteRow, cell, json_line};
use crate::cli::signals::Signals;

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Only these nodes; all nodes if there are none
    #[arg(value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    nodes: Vec<String>,
    /// Continue after this change of an earlier watch, without a snapshot if the tracker still has the changes since
    #[arg(long, value_name = "GENERATION:SEQUENCE", value_parser = place)]
    resume: Option<v1::WatchPlace>,
    #[command(flatten)]
    print: Print,
}

/// The event of a message that says that nothing has changed.
const KEEP_ALIVE: &str = "keep_alive";

/// A line of the output.
#[derive(Debug, Default, Serialize)]
struct Event {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<Vec<RouteRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<ProxyRow>,
}

/// Parses a generation and a sequence number as the command prints them.
fn place(text: &str) -> Result<v1::WatchPlace, String> {
    let parsed = text.split_once(':').and_then(|(generation, sequence)| {
        Some(v1::WatchPlace {
            generation: u64::from_str_radix(generation, 16).ok()?,
            sequence: sequence.parse().ok()?,
        })
    });
    parsed.ok_or_else(|| "not a generation and a sequence number, as in 00c0ffee00c0ffee:42".into())
}

/// Messages that wait until the lines of the messages before are written. Then the tracker has to wait, too.
const MAX_WAITING: usize = 16;

/// How long the last lines may take after a signal.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Follows the table until SIGINT or SIGTERM, which is how a watch ends without a failure.
pub(crate) async fn watch(watch: Watch) -> Result<(), CommandError> {
    let mut signals = Signals::install().map_err(CommandError::Signals)?;
    let (lines, mut written) = printer().map_err(CommandError::Thread)?;
    let reader_left = reader_left().map_err(CommandError::Thread)?;
    let (followed, limit) = tokio::select! {
        followed = follow(watch, lines) => (followed, Duration::MAX),
        _ = signals.next() => (Ok(()), LAST_LINES),
        // stdout has no reader any more.
        written = &mut written => return Ok(written.unwrap_or(Ok(()))?),
        Ok(()) = reader_left => return Ok(()),
    };
    // The lines have an end now.
    let written = tokio::select! {
        written = timeout(limit, written) => written.ok().and_then(Result::ok).unwrap_or(Ok(())),
        _ = signals.next() => Ok(()),
    };
    written?;
    followed
}

/// The result of writing all lines.
type Written = oneshot::Receiver<io::Result<()>>;

/// Starts a thread that writes lines to stdout, and returns the result when the lines end. If the reader of stdout
/// stops to read, only this thread waits: signals and pings are still handled.
fn printer() -> io::Result<(mpsc::Sender<Vec<u8>>, Written)> {
    let (lines, mut waiting) = mpsc::channel::<Vec<u8>>(MAX_WAITING);
    let (done, written) = oneshot::channel();
    let print = move || {
        let mut print = || {
            while let Some(lines) = waiting.blocking_recv() {
                let mut out = io::stdout().lock();
                out.write_all(&lines)?;
                out.flush()?;
            }
            Ok(())
        };
        let _ = done.send(print());
    };
    thread::Builder::new().spawn(print)?;
    Ok((lines, written))
}

/// Returns a message when stdout has no reader any more. Otherwise, `watch | head -1` would wait for the next change,
/// whose line cannot be written.
fn reader_left() -> io::Result<oneshot::Receiver<()>> {
    let (left, receiver) = oneshot::channel();
    let wait = move || {
        let stdout = io::stdout();
        // Without events, only a hangup or an error ends the wait.
        let mut stdout = [PollFd::new(&stdout, PollFlags::empty())];
        while let Err(error) = poll(&mut stdout, None) {
            if error != Errno::INTR {
                return;
            }
        }
        let _ = left.send(());
    };
    thread::Builder::new().spawn(wait)?;
    Ok(receiver)
}

async fn follow(watch: Watch, lines: mpsc::Sender<Vec<u8>>) -> Result<(), CommandError> {
    let Print { format, at } = watch.print;
    let mut client = WatchServiceClient::with_origin(at.transport().await?, at.origin());
    let nodes = v1::NodeIds {
        names: watch.nodes,
        ..v1::NodeIds::default()
    };
    let request = v1::WatchRequest {
        nodes: Some(nodes),
        resume: watch.resume,
        accepts_resync: true,
    };
    let mut stream = at.call(client.watch(request)).await?;
    loop {
        match stream.message().await {
            Ok(Some(response)) => {
                let printed = lines.send(print(format, &events(response))?).await;
                if printed.is_err() {
                    // The thread returns the error.
                    return Ok(());
                }
            }
            Ok(None) => {
                return Err(at
                    .failed(tonic::Status::unavailable("the tracker ended the watch"))
                    .await);
            }
            Err(status) if is_lost(&status) => {
                let reason = format!("the connection broke, or a ping had no answer within {}", at.limit());
                return Err(at.failed(tonic::Status::unavailable(reason)).await);
            }
            Err(status) => return Err(at.failed(status).await),
        }
    }
}

/// Returns whether the connection broke. hyper breaks the connection as well, if a ping has no answer in time.
fn is_lost(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.downcast_ref().is_some_and(h2::Error::is_io) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Returns the lines of some events.
fn print(format: Format, events: &[Event]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for event in events {
        match format {
            // For programs that resume.
            Format::Table if event.event == KEEP_ALIVE => {}
            Format::Table => writeln!(out, "{}", line(event))?,
            Format::Json => json_line(&mut out, event)?,
        }
    }
    Ok(out)
}

/// Returns the event, the node or proxy, and the proxies that now reach the node or the new data of the proxy.
fn line(event: &Event) -> String {
    let (subject, detail) = match (&event.node, &event.proxy) {
        (Some(node), _) => {
            let proxies = event.routes.iter().flatten().map(|route| cell(&route.proxy.proxy_id));
            (node.as_str(), proxies.collect::<Vec<_>>().join(","))
        }
        (_, Some(proxy)) if !proxy.addr.is_empty() => {
            let detail = format!("{}  {}", cell(&proxy.cluster_name), cell(&proxy.addr));
            (proxy.proxy_id.as_str(), detail)
        }
        (_, Some(proxy)) => (proxy.proxy_id.as_str(), String::new()),
        (None, None) => return event.event.to_owned(),
    };
    // The detail is escaped already, and escaping twice changes nothing.
    format!("{:13}  {}  {}", event.event, cell(subject), cell(&detail))
}

fn events(response: v1::WatchResponse) -> Vec<Event> {
    match response.message {
        Some(Message::Snapshot(snapshot)) => {
            let proxies = proxies(snapshot.proxies);
            let of_node = |node| node_event("snapshot", None, &node, &proxies);
            snapshot.nodes.into_iter().map(of_node).collect()
        }
        Some(Message::SnapshotEnd(end)) => vec![Event {
            event: "snapshot_end",
            generation: Some(generation(end.generation)),
            sequence: Some(end.sequence),
            ..Event::default()
        }],
        Some(Message::Changes(changes)) => {
            let proxies = proxies(changes.proxies);
            let changes = changes.changes.into_iter();
            changes.filter_map(|change| change_event(change, &proxies)).collect()
        }
        Some(Message::LostPlace(_)) => vec![Event {
            event: "lost_place",
            ..Event::default()
        }],
        Some(Message::KeepAlive(keep_alive)) => vec![Event {
            event: KEEP_ALIVE,
            sequence: Some(keep_alive.sequence),
            ..Event::default()
        }],
        // A newer tracker's message.
        None => Vec::new(),
    }
}

fn change_event(change: v1::WatchChange, proxies: &[v1::Proxy]) -> Option<Event> {
    let sequence = Some(change.sequence);
    match change.change? {
        Change::Node(node) => {
            let event = match node.reason() {
                NodeChangeReason::Added => "added",
                NodeChangeReason::Removed => "removed",
                NodeChangeReason::Expired => "expired",
                NodeChangeReason::Resync => "sent_again",
                NodeChangeReason::Unspecified => "changed",
            };
            Some(node_event(event, sequence, &node.routes.unwrap_or_default(), proxies))
        }
        Change::Proxy(proxy) => Some(Event {
            event: match proxy.reason() {
                ProxyChangeReason::Removed => "proxy_removed",
                ProxyChangeReason::Moved => "proxy_moved",
                ProxyChangeReason::Resync => "proxy_sent_again",
                ProxyChangeReason::Unspecified => "proxy_changed",
            },
            sequence,
            proxy: Some(proxy.proxy.and_then(|watched| watched.proxy).unwrap_or_default().into()),
            ..Event::default()
        }),
        Change::Resync(resync) => Some(Event {
            event: if resync.is_complete { "resync_end" } else { "resync" },
            sequence,
            part: resync.part,
            ..Event::default()
        }),
    }
}

fn node_event(event: &'static str, sequence: Option<u64>, node: &v1::NodeRoutes, proxies: &[v1::Proxy]) -> Event {
    Event {
        event,
        sequence,
        node: Some(node_name(node.node.as_ref())),
        routes: Some(routes(node, proxies).collect()),
        ..Event::default()
    }
}

fn proxies(watched: Vec<v1::WatchedProxy>) -> Vec<v1::Proxy> {
    let proxy = |watched: v1::WatchedProxy| watched.proxy.unwrap_or_default();
    watched.into_iter().map(proxy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_one_line() {
        let proxy = |addr: &str| ProxyRow {
            proxy_id: "p\u{200b}".into(),
            cluster_name: String::new(),
            addr: addr.into(),
        };
        let node = |routes| Event {
            event: "added",
            node: Some("n\n1".into()),
            routes: Some(routes),
            ..Event::default()
        };
        let route = RouteRow {
            proxy: proxy("p:1"),
            ..RouteRow::default()
        };
        assert_eq!(line(&node(vec![route])), r"added          n\u{a}1  p\u{200b}");
        assert_eq!(line(&node(vec![])), r"added          n\u{a}1  -");
        let of_proxy = |event, addr| Event {
            event,
            proxy: Some(proxy(addr)),
            ..Event::default()
        };
        assert_eq!(
            line(&of_proxy("proxy_moved", "p:1")),
            r"proxy_moved    p\u{200b}  -  p:1"
        );
        assert_eq!(line(&of_proxy("proxy_removed", "")), r"proxy_removed  p\u{200b}  -");
        let lost = v1::WatchResponse {
            message: Some(Message::LostPlace(v1::WatchLostPlace {})),
        };
        assert_eq!(line(&events(lost)[0]), "lost_place");
    }

    #[test]
    fn a_place_is_read_as_it_is_printed() {
        let printed = format!("{}:{}", generation(0xc0ffee), 42);
        let read = v1::WatchPlace {
            generation: 0xc0ffee,
            sequence: 42,
        };
        assert_eq!(place(&printed), Ok(read));
        for bad in ["", ":", "1", "1:", ":1", "g:1", "1:x"] {
            place(bad).expect_err(bad);
        }
    }
}
