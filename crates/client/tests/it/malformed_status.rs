//! Trackers that answer what tonic does not expect.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response};
use nodetracker::RouteTable;
use nodetracker_client::replica::{Replica, ReplicaConfig};
use nodetracker_client::session::{ProxySession, SessionConfig};
use nodetracker_client::tracker::{NodeTracker, TrackerError};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::fleet::PATIENCE;
use crate::support::{PROXY, at, client, node, patient};

/// Answers each call with a status whose details are not base64, in the headers or in the trailers.
async fn tracker_with_bad_details(in_trailers: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut call))) = connection.accept().await {
                    let mut response = Response::new(());
                    let headers = response.headers_mut();
                    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                    let status = HeaderMap::from_iter(
                        [
                            ("grpc-status", "8"),
                            ("grpc-message", "no room"),
                            ("grpc-status-details-bin", "*not base64*"),
                        ]
                        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))),
                    );
                    if in_trailers {
                        let mut body = call.send_response(response, false).unwrap();
                        body.send_trailers(status).unwrap();
                    } else {
                        headers.extend(status);
                        call.send_response(response, true).unwrap();
                    }
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn details_that_are_not_base64_end_no_task() {
    for in_trailers in [false, true] {
        let addr = at(tracker_with_bad_details(in_trailers).await);
        let client = client([addr.clone()], patient());
        let error = client.get_proxies(&node("node-1")).await.unwrap_err();
        let TrackerError::ResourceExhausted { message, retry_after } = &error else {
            panic!("{error:?}")
        };
        assert!(message.contains("no room") && retry_after.is_none(), "{error:?}");
        let has_probed = client.wait_until(|stats| stats[0].round_trip.is_some());
        timeout(PATIENCE, has_probed).await.expect("the probes continue");

        let session = ProxySession::start(SessionConfig::new(PROXY, vec![addr.clone()])).unwrap();
        let mut stats = session.subscribe().remove(0);
        let has_failed = stats.wait_for(|stats| stats.counters.lost_streams > 1);
        let stats = timeout(PATIENCE, has_failed).await.expect("the session continues");
        let error = stats.expect("the task lives").last_error.clone();
        assert!(
            error.as_ref().is_some_and(|error| error.contains("no room")),
            "{error:?}"
        );

        let replica = Replica::start(ReplicaConfig::new([addr]), Arc::new(RouteTable::new())).unwrap();
        let has_failed = replica.wait_until(|stats| stats.ended > 1);
        timeout(PATIENCE, has_failed).await.expect("the replica continues");
    }
}
