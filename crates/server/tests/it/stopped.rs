//! A server that the system stops for longer than the keep-alive interval, as a suspended or migrated machine does.

use std::time::Duration;

use nodetracker_proto::v1::session_response::Response;
use tokio::time::{sleep, timeout};

use crate::session::{Session, heartbeat, hello, node};
use crate::support::{Process, add, channel, connect, proxies};

const KEEP_ALIVE: &str = "4s";
const STOP: Duration = Duration::from_secs(5);

/// The longest wait for a reply. A server that stays silent makes the test fail, instead of hanging.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn routes_and_sessions_outlive_a_stop_of_the_process() {
    let mut server = Process::serve(&["--proxy-keep-alive-interval", KEEP_ALIVE]);
    let mut client = connect(server.addr).await;
    client.add_node(add("single", "proxy-2", "proxy:2")).await.unwrap();
    let mut session = Session::over(channel(server.addr).await).await;
    session.welcome(hello(1)).await;
    let handles = session.up(&[node(1)]).await;

    server.signal("STOP");
    // The client continues. The system keeps the message until the server runs again.
    session.send(heartbeat(&handles)).await;
    // Not for an order: the stop has to be longer than the interval.
    sleep(STOP).await;
    server.signal("CONT");

    let after_the_stop = async {
        // No call has refreshed this route for longer than the interval.
        assert_eq!(proxies(&mut client, "single").await, ["proxy-2"]);
        match session.answer().await.unwrap() {
            Some(Response::Ack(ack)) => assert!(ack.gone_handles.is_empty(), "{ack:?}"),
            other => panic!("{other:?}"),
        }
        assert!(session.beat(&handles).await.is_empty());
    };
    timeout(LIMIT, after_the_stop).await.expect("the server answers");
    let log = server.logged("no route expires for a heartbeat interval");
    let line = log.lines().next_back().unwrap();
    let text = " WARN the process was stopped or its clock jumped: nothing happened for ";
    assert!(line.contains(text), "{line}");

    server.logged(" INFO the grace after the stop is over: routes expire again");
    let rest = timeout(LIMIT, proxies(&mut client, "single")).await;
    assert_eq!(rest.expect("the server answers"), [""; 0]);
}
