//! Messages and statuses of the wire, as the types of the common API. Nothing that a tracker sends makes a conversion
//! panic.

use std::error::Error;
use std::time::SystemTime;

use nodetracker_proto::v1;
use prost_types::Timestamp;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::client::batch::Batch;
use crate::connect::addr::TrackerAddr;
use crate::tracker::{Route, TrackerError};
use crate::wire::proxy_details;

pub(super) fn routes(reply: v1::GetProxiesResponse) -> Result<Vec<Route>, TrackerError> {
    let routes = reply.routes.into_iter();
    routes
        .map(|message| route(message.proxy.as_ref(), message.last_refresh_time))
        .collect()
}

/// Returns the routes of a batch's nodes, in the order of the list.
pub(super) fn batch_routes(
    batch: &Batch,
    reply: &v1::BatchGetProxiesResponse,
) -> Result<Vec<Vec<Route>>, TrackerError> {
    let (nodes, asked) = (reply.nodes.len(), batch.len());
    if nodes != asked {
        return Err(malformed(&format!("has {nodes} nodes, not {asked}")));
    }
    let mut all = vec![Vec::new(); asked];
    for (node, &at) in reply.nodes.iter().zip(&batch.positions) {
        let routes = node.routes.iter().map(|message| {
            let proxy = usize::try_from(message.proxy_index).ok();
            route(
                proxy.and_then(|index| reply.proxies.get(index)),
                message.last_refresh_time,
            )
        });
        all[at] = routes.collect::<Result<_, _>>()?;
    }
    Ok(all)
}

fn route(proxy: Option<&v1::Proxy>, time: Option<Timestamp>) -> Result<Route, TrackerError> {
    let proxy = proxy.ok_or_else(|| malformed("has a route without its proxy"))?;
    let time = time.ok_or_else(|| malformed("has a route without its time"))?;
    let last_refresh = SystemTime::try_from(time).map_err(|error| malformed(&format!("has a bad time: {error}")))?;
    Ok(Route {
        proxy: proxy_details(proxy),
        last_refresh,
    })
}

fn malformed(reason: &str) -> TrackerError {
    TrackerError::Internal(format!("Internal: the answer {reason}"))
}

/// Returns the error of a call on the tracker at `addr`.
pub(super) fn error(addr: &TrackerAddr, status: &Status) -> TrackerError {
    let message = format!("{addr}: {}", status.message());
    // A status with a source comes from this side: there was no connection, or it ended.
    if let Some(source) = status.source() {
        return TrackerError::Unavailable(format!("{addr}: {}", root_cause(source)));
    }
    match status.code() {
        Code::Unavailable => TrackerError::Unavailable(message),
        Code::InvalidArgument => TrackerError::InvalidArgument(message),
        Code::PermissionDenied | Code::Unauthenticated => TrackerError::PermissionDenied(message),
        Code::ResourceExhausted => TrackerError::ResourceExhausted {
            message,
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
        },
        code => TrackerError::Internal(format!("{code:?}: {message}")),
    }
}

/// Returns the innermost error, which names the system's report.
fn root_cause<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nodetracker::NodeId;
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::client::batch::split;

    #[test]
    fn statuses_become_errors_that_name_the_tracker() {
        let addr: TrackerAddr = "tracker:1".parse().unwrap();
        let delay = Some(Duration::from_secs(10));
        let details = ErrorDetails::with_retry_info(delay);
        let message = "http://tracker:1: text".to_owned();
        let exhausted = |retry_after| TrackerError::ResourceExhausted {
            message: "http://tracker:1: text".to_owned(),
            retry_after,
        };
        for (status, expected) in [
            (Status::unavailable("text"), TrackerError::Unavailable(message.clone())),
            (
                Status::invalid_argument("text"),
                TrackerError::InvalidArgument(message.clone()),
            ),
            (
                Status::permission_denied("text"),
                TrackerError::PermissionDenied(message.clone()),
            ),
            (
                Status::unauthenticated("text"),
                TrackerError::PermissionDenied(message.clone()),
            ),
            (Status::new(Code::ResourceExhausted, "text"), exhausted(None)),
            (
                Status::with_error_details(Code::ResourceExhausted, "text", details),
                exhausted(delay),
            ),
            (
                Status::unimplemented("text"),
                TrackerError::Internal(format!("Unimplemented: {message}")),
            ),
            (
                // The end of a connection has no code of its own.
                Status::from_error(Box::new(std::io::Error::other("reset by the test"))),
                TrackerError::Unavailable("http://tracker:1: reset by the test".into()),
            ),
        ] {
            assert_eq!(error(&addr, &status), expected);
        }
    }

    #[test]
    fn an_answer_that_breaks_the_contract_is_an_error() {
        let time = Some(Timestamp::default());
        let proxy = Some(v1::Proxy::default());
        for (proxy, time, reason) in [
            (None, time, "has a route without its proxy"),
            (proxy.clone(), None, "has a route without its time"),
        ] {
            let route = v1::Route {
                proxy,
                last_refresh_time: time,
            };
            let error = routes(v1::GetProxiesResponse { routes: vec![route] })
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{error}");
        }

        let nodes: Vec<NodeId> = ["node-1", "node-2"].map(|name| name.parse().unwrap()).into();
        let batch = split(&nodes).next().unwrap();
        let route = |proxy_index| v1::NodeRoutes {
            node: None,
            routes: vec![v1::IndexedRoute {
                proxy_index,
                last_refresh_time: time,
            }],
        };
        for (nodes, reason) in [
            (vec![route(0)], "has 1 nodes, not 2"),
            (vec![route(0); 3], "has 3 nodes, not 2"),
            (vec![route(0), route(1)], "has a route without its proxy"),
        ] {
            let reply = v1::BatchGetProxiesResponse {
                proxies: proxy.iter().cloned().collect(),
                nodes,
            };
            let error = batch_routes(&batch, &reply).unwrap_err().to_string();
            assert!(error.ends_with(reason), "{error}");
        }
    }
}
