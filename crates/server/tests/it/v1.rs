//! `nodetracker.v1` call by call, over real connections: effects and rejections.

use std::time::Duration;

use nodetracker::{Clock, ManualClock, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use nodetracker_server::Config;
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::{Running, manual, pass};

const INTERVAL: Duration = Duration::from_secs(300);

async fn routes(server: &Running) -> RouteServiceClient<Channel> {
    RouteServiceClient::new(server.channel().await)
}

async fn admin(server: &Running) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(server.channel().await)
}

pub(crate) fn proxy(id: &str) -> v1::Proxy {
    v1::Proxy {
        proxy_id: id.into(),
        cluster_name: "cluster".into(),
        addr: format!("{id}:3080"),
    }
}

pub(crate) fn nodes(uuids: &[u128], names: &[&str]) -> Option<v1::NodeIds> {
    Some(v1::NodeIds {
        uuids: uuids.iter().flat_map(|uuid| uuid.to_be_bytes()).collect(),
        names: names.iter().map(ToString::to_string).collect(),
    })
}

fn add(id: &str, nodes: Option<v1::NodeIds>) -> v1::AddNodesRequest {
    v1::AddNodesRequest {
        proxy: Some(proxy(id)),
        nodes,
    }
}

fn named(name: &str) -> Option<v1::NodeId> {
    Some(v1::NodeId {
        id: Some(Id::Name(name.into())),
    })
}

fn with_uuid(bytes: Vec<u8>) -> Option<v1::NodeId> {
    Some(v1::NodeId {
        id: Some(Id::Uuid(bytes)),
    })
}

/// The proxies of a node, newest first.
async fn proxies(client: &mut RouteServiceClient<Channel>, node: Option<v1::NodeId>) -> Vec<String> {
    let answer = client.get_proxies(v1::GetProxiesRequest { node }).await.unwrap();
    let routes = answer.into_inner().routes.into_iter();
    routes.map(|route| route.proxy.unwrap().proxy_id).collect()
}

#[tokio::test]
async fn many_nodes_are_added_and_each_is_found() {
    let (clock, table) = manual(INTERVAL);
    let server = Running::with_table(table).await;
    let mut client = routes(&server).await;
    let mut report = async |id, nodes| {
        let added = client.add_nodes(add(id, nodes)).await.unwrap().into_inner();
        (added.inserted_count, added.refreshed_count)
    };
    assert_eq!(report("p1", nodes(&[1, 2], &["a", "b"])).await, (4, 0));
    clock.advance(Duration::from_secs(1));
    assert_eq!(report("p2", nodes(&[2, 3], &["b", "c"])).await, (4, 0));
    clock.advance(Duration::from_secs(1));
    // The same node twice, in two spellings.
    let spelled = Uuid::from_u128(2).to_string();
    assert_eq!(report("p1", nodes(&[2], &[&spelled])).await, (0, 2));
    assert_eq!(report("p3", None).await, (0, 0));

    let answer = client.get_proxies(v1::GetProxiesRequest { node: named(&spelled) });
    let [first, second] = answer.await.unwrap().into_inner().routes.try_into().unwrap();
    assert_eq!((first.proxy, second.proxy), (Some(proxy("p1")), Some(proxy("p2"))));
    assert_eq!(first.last_refresh_time, Some(clock.wall().into()));
    let before = clock.wall() - Duration::from_secs(1);
    assert_eq!(second.last_refresh_time, Some(before.into()));
    let bytes = with_uuid(3_u128.to_be_bytes().into());
    assert_eq!(proxies(&mut client, bytes).await, ["p2"]);
    assert_eq!(proxies(&mut client, named("b")).await, ["p2", "p1"]);
    assert_eq!(proxies(&mut client, named("d")).await, [""; 0]);
    assert_eq!(server.table.stats().proxies, 3);
    assert_eq!(server.table.stats().routes, 8);
}

#[tokio::test]
async fn many_nodes_are_looked_up_at_once() {
    let (clock, table) = manual(INTERVAL);
    let server = Running::with_table(table).await;
    let mut client = routes(&server).await;
    client.add_nodes(add("p1", nodes(&[1, 2], &["a"]))).await.unwrap();
    let first = clock.wall();
    clock.advance(Duration::from_secs(1));
    client.add_nodes(add("p2", nodes(&[2], &["a"]))).await.unwrap();
    let second = clock.wall();

    let request = v1::BatchGetProxiesRequest {
        nodes: nodes(&[2, 9, 1, 2], &["a", "b"]),
    };
    let answer = client.batch_get_proxies(request).await.unwrap().into_inner();
    assert_eq!(answer.proxies.len(), 2, "{answer:?}");
    let answers: Vec<Vec<_>> = answer
        .nodes
        .iter()
        .map(|node| {
            assert_eq!(node.node, None);
            let routes = node.routes.iter();
            routes
                .map(|route| {
                    let proxy = &answer.proxies[route.proxy_index as usize];
                    (proxy.proxy_id.as_str(), route.last_refresh_time.unwrap())
                })
                .collect()
        })
        .collect();
    let both = vec![("p2", second.into()), ("p1", first.into())];
    let one = vec![("p1", first.into())];
    assert_eq!(answers, [both.clone(), vec![], one, both.clone(), both, vec![]]);

    let answer = client.batch_get_proxies(v1::BatchGetProxiesRequest { nodes: None });
    assert_eq!(
        answer.await.unwrap().into_inner(),
        v1::BatchGetProxiesResponse::default()
    );
}

#[tokio::test]
async fn routes_are_removed_by_node_and_by_node_and_proxy() {
    let server = Running::start().await;
    let mut client = routes(&server).await;
    client.add_nodes(add("p1", nodes(&[1, 2], &["a"]))).await.unwrap();
    client.add_nodes(add("p2", nodes(&[2, 3], &["a"]))).await.unwrap();
    let mut remove = async |nodes, proxy_id: &str| {
        let proxy_id = proxy_id.into();
        let removed = client.remove_nodes(v1::RemoveNodesRequest { nodes, proxy_id }).await;
        let removed = removed.unwrap().into_inner();
        (removed.removed_count, removed.absent_indexes)
    };
    // Only that proxy's route.
    assert_eq!(remove(nodes(&[1, 2, 3], &["a", "b"]), "p1").await, (3, vec![2, 4]));
    assert_eq!(remove(nodes(&[1], &[]), "p1").await, (0, vec![0]));
    assert_eq!(remove(nodes(&[2], &[]), "nobody").await, (0, vec![0]));
    assert_eq!(server.table.len(), 3);
    // The whole node.
    assert_eq!(remove(nodes(&[1, 2], &["a"]), "").await, (2, vec![0]));
    assert_eq!(remove(None, "").await, (0, vec![]));
    assert_eq!(
        proxies(&mut client, with_uuid(3_u128.to_be_bytes().into())).await,
        ["p2"]
    );
    assert_eq!(server.table.len(), 1);
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>, code: Code, message: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

/// A request that is refused has no effect, and the message names the field.
#[tokio::test]
async fn bad_fields_are_named_with_their_position() {
    let server = Running::start().await;
    let mut client = routes(&server).await;
    let mut operator = admin(&server).await;
    let bad = Code::InvalidArgument;
    let long = "x".repeat(256);

    let ids = [
        (
            v1::NodeIds {
                uuids: vec![0; 33],
                names: vec!["a".into()],
            },
            "nodes.uuids is 33 bytes long, which is no multiple of 16".to_owned(),
        ),
        (
            nodes(&[1], &["a", "", "b"]).unwrap(),
            "nodes.names[1] is empty".to_owned(),
        ),
        (
            nodes(&[], &[&long]).unwrap(),
            "nodes.names[0] is 256 bytes long, the limit is 255".to_owned(),
        ),
        (
            nodes(&[], &["a", "b\n"]).unwrap(),
            "nodes.names[1] has the control character '\\n' at byte 1".to_owned(),
        ),
        (
            nodes(&[7; 4096], &["one too many"]).unwrap(),
            "nodes has 4097 nodes, the limit is 4096".to_owned(),
        ),
    ];
    for (ids, message) in ids {
        let nodes = Some(ids);
        assert_refused(client.add_nodes(add("p1", nodes.clone())).await, bad, &message);
        let request = v1::BatchGetProxiesRequest { nodes: nodes.clone() };
        assert_refused(client.batch_get_proxies(request).await, bad, &message);
        let request = v1::RemoveNodesRequest {
            nodes,
            proxy_id: String::new(),
        };
        assert_refused(client.remove_nodes(request).await, bad, &message);
    }

    for (node, message) in [
        (None, "node is not set"),
        (Some(v1::NodeId { id: None }), "node is not set"),
        (with_uuid(vec![0; 15]), "node.uuid has 15 bytes, not 16"),
        (named(""), "node.name is empty"),
        (named("a\0"), "node.name has the control character '\\0' at byte 1"),
    ] {
        let request = v1::GetProxiesRequest { node: node.clone() };
        assert_refused(client.get_proxies(request).await, bad, message);
        assert_refused(operator.explain(v1::ExplainRequest { node }).await, bad, message);
    }

    let good = || nodes(&[1], &["a"]);
    let bad_proxy = |change: fn(&mut v1::Proxy)| {
        let mut request = add("p1", good());
        change(request.proxy.as_mut().unwrap());
        request
    };
    for (request, message) in [
        (
            v1::AddNodesRequest {
                proxy: None,
                nodes: good(),
            },
            "proxy is not set",
        ),
        (bad_proxy(|proxy| proxy.proxy_id.clear()), "proxy.proxy_id is empty"),
        (
            bad_proxy(|proxy| proxy.cluster_name = "\t".into()),
            "proxy.cluster_name has the control character '\\t' at byte 0",
        ),
        (
            bad_proxy(|proxy| proxy.addr = "p1".into()),
            "proxy.addr is not host:port",
        ),
    ] {
        assert_refused(client.add_nodes(request).await, bad, message);
    }

    for (proxy_id, message) in [
        ("", "proxy_id is empty"),
        (&long, "proxy_id is 256 bytes long, the limit is 255"),
    ] {
        let request = v1::RemoveProxyRequest {
            proxy_id: proxy_id.into(),
        };
        assert_refused(operator.remove_proxy(request).await, bad, message);
        if !proxy_id.is_empty() {
            let request = v1::RemoveNodesRequest {
                nodes: good(),
                proxy_id: proxy_id.into(),
            };
            assert_refused(client.remove_nodes(request).await, bad, message);
            let request = v1::ListNodesRequest {
                proxy_id: proxy_id.into(),
                ..Default::default()
            };
            assert_refused(operator.list_nodes(request).await, bad, message);
        }
    }
    let stats = server.table.stats();
    assert_eq!((stats.routes, stats.proxies), (0, 0));
}

#[tokio::test]
async fn as_many_nodes_as_allowed_are_taken() {
    let server = Running::start().await;
    let mut client = routes(&server).await;
    let all: Vec<u128> = (0..4096).collect();
    let added = client
        .add_nodes(add("p1", nodes(&all, &[])))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(added.inserted_count, 4096);
    let request = v1::BatchGetProxiesRequest {
        nodes: nodes(&all, &[]),
    };
    let found = client.batch_get_proxies(request).await.unwrap().into_inner();
    assert!(found.nodes.iter().all(|node| node.routes.len() == 1));
    assert_eq!((found.nodes.len(), found.proxies), (4096, vec![proxy("p1")]));
}

#[tokio::test]
async fn messages_and_answers_have_limits() {
    let server = Running::start().await;
    let mut client = routes(&server).await;
    let name = "x".repeat(200);
    let names = [&*name; 1400];
    let status = client.add_nodes(add("p1", nodes(&[], &names))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let request = v1::RemoveProxyRequest {
        proxy_id: "x".repeat(64 * 1024),
    };
    let status = admin(&server).await.remove_proxy(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");

    for number in 0..64 {
        let id = format!("p{number}");
        client.add_nodes(add(&id, nodes(&[1], &[]))).await.unwrap();
    }
    let ask = |count| v1::BatchGetProxiesRequest {
        nodes: nodes(&vec![1; count], &[]),
    };
    let status = client.batch_get_proxies(ask(4096)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().ends_with("nodes: ask for fewer"), "{status:?}");
    let found = client.batch_get_proxies(ask(1500)).await.unwrap().into_inner();
    assert!(found.nodes.iter().all(|node| node.routes.len() == 64));
    assert_eq!((found.nodes.len(), found.proxies.len()), (1500, 64));
}

#[tokio::test]
async fn a_full_table_tells_how_many_nodes_were_added() {
    let table = RouteTable::builder()
        .max_routes(2)
        .max_proxies(1)
        .build()
        .expect("possible limits");
    let server = Running::with_table(table).await;
    let mut client = routes(&server).await;
    assert_refused(
        client.add_nodes(add("p1", nodes(&[1], &["a", "b"]))).await,
        Code::ResourceExhausted,
        "the table holds its maximum of 2 routes, after 2 nodes",
    );
    assert_refused(
        client.add_nodes(add("p2", nodes(&[1], &[]))).await,
        Code::ResourceExhausted,
        "the table has no room for another proxy: it holds up to 1, and removed proxies until they are swept",
    );
    assert_eq!(proxies(&mut client, named("a")).await, ["p1"]);
}

#[tokio::test]
async fn removing_a_proxy_can_be_repeated() {
    let server = Running::start().await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    client.add_nodes(add("p1", nodes(&[1], &["a"]))).await.unwrap();
    client.add_nodes(add("p2", nodes(&[], &["a"]))).await.unwrap();
    let mut remove = async || {
        let request = v1::RemoveProxyRequest { proxy_id: "p1".into() };
        operator.remove_proxy(request).await.unwrap().into_inner().removed
    };
    assert_eq!((remove().await, remove().await), (true, false));
    assert_eq!(proxies(&mut client, named("a")).await, ["p2"]);
    // The proxy comes back with its next report, and has only the routes of this report.
    client.add_nodes(add("p1", nodes(&[2], &[]))).await.unwrap();
    assert_eq!(
        proxies(&mut client, with_uuid(1_u128.to_be_bytes().into())).await,
        [""; 0]
    );
    assert_eq!(
        proxies(&mut client, with_uuid(2_u128.to_be_bytes().into())).await,
        ["p1"]
    );
    assert!(remove().await);
}

#[tokio::test]
async fn proxies_are_listed_page_by_page() {
    let server = Running::start().await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    let mut expected = Vec::new();
    for number in 0..25 {
        let id = format!("p{number}");
        client.add_nodes(add(&id, None)).await.unwrap();
        expected.push(proxy(&id));
    }
    for page_size in [1, 10, 25, 26, 0, u32::MAX] {
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListProxiesRequest { page_size, page_token };
            let page = operator.list_proxies(request).await.unwrap().into_inner();
            assert!(page_size == 0 || page.proxies.len() <= page_size as usize);
            listed.extend(page.proxies);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        // They come in any order.
        listed.sort_by_key(|proxy| expected.iter().position(|other| other == proxy));
        assert_eq!(listed, expected, "in pages of {page_size}");
    }
}

/// All nodes with their proxies, page by page, in order.
async fn listed(
    client: &mut AdminServiceClient<Channel>,
    page_size: u32,
    proxy_id: &str,
) -> Vec<(v1::NodeId, Vec<String>)> {
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListNodesRequest {
            page_size,
            page_token,
            proxy_id: proxy_id.into(),
        };
        let page = client.list_nodes(request).await.unwrap().into_inner();
        assert!(page.nodes.len() <= if page_size == 0 { 1000 } else { page_size as usize });
        for node in page.nodes {
            let proxies = node.routes.iter();
            let proxies = proxies.map(|route| page.proxies[route.proxy_index as usize].proxy_id.clone());
            listed.push((node.node.unwrap(), proxies.collect()));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return listed;
        }
    }
}

#[tokio::test]
async fn nodes_are_listed_page_by_page() {
    let server = Running::start().await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    assert_eq!(listed(&mut operator, 0, "").await, []);
    let uuids: Vec<u128> = (0..2000).map(|number| number << 64).collect();
    client.add_nodes(add("p1", nodes(&uuids, &["a", "b"]))).await.unwrap();
    client
        .add_nodes(add("p2", nodes(&uuids[..30], &["b", "c"])))
        .await
        .unwrap();
    for page_size in [50, 999, 0] {
        let all = listed(&mut operator, page_size, "").await;
        assert_eq!(all.len(), 2003);
        let mut names: Vec<_> = all
            .iter()
            .filter_map(|(node, proxies)| match &node.id {
                Some(Id::Name(name)) => Some((name.as_str(), proxies.join(" "))),
                _ => None,
            })
            .collect();
        names.sort();
        assert_eq!(names, [("a", "p1".into()), ("b", "p2 p1".into()), ("c", "p2".into())]);
        let mut found: Vec<_> = all
            .iter()
            .filter_map(|(node, proxies)| match &node.id {
                Some(Id::Uuid(bytes)) => Some((u128::from_be_bytes(bytes[..].try_into().unwrap()), proxies.len())),
                _ => None,
            })
            .collect();
        found.sort();
        let expected = uuids.iter().map(|uuid| (*uuid, if *uuid < 30 << 64 { 2 } else { 1 }));
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
    let of_p2 = listed(&mut operator, 7, "p2").await;
    assert_eq!(of_p2.len(), 32);
    assert!(of_p2.iter().all(|(_, proxies)| proxies.contains(&"p2".to_owned())));
    assert_eq!(listed(&mut operator, 7, "nobody").await, []);
}

/// Many routes of each node, through proxies with the longest strings: the page becomes shorter.
#[tokio::test]
async fn a_page_of_nodes_fits_into_a_message() {
    let server = Running::start().await;
    let mut operator = admin(&server).await;
    let long = "x".repeat(240);
    for number in 0..150_u32 {
        for route in 0..64 {
            let id = format!("{number:0>10}-{route}-{long}");
            let proxy = nodetracker::Proxy {
                id: &id,
                cluster_name: &long,
                addr: &format!("{long}:3080"),
            };
            let node = Uuid::from_u128(u128::from(number) << 96).into();
            server.table.report_node(&node, &proxy).unwrap();
        }
    }
    let all = listed(&mut operator, 1000, "").await;
    assert_eq!(all.len(), 150);
    assert!(all.iter().all(|(_, proxies)| proxies.len() == 64));
}

#[tokio::test]
async fn page_tokens_are_good_for_their_list_and_their_tracker() {
    let server = Running::start().await;
    let mut operator = admin(&server).await;
    let generation = operator
        .stats(v1::StatsRequest {})
        .await
        .unwrap()
        .into_inner()
        .generation;
    let cases = [
        ("x".to_owned(), Code::InvalidArgument),
        (".".to_owned(), Code::InvalidArgument),
        (format!("{generation:x}."), Code::InvalidArgument),
        (format!("{generation:x}.1"), Code::InvalidArgument),
        (format!("{generation:x}.0.1"), Code::InvalidArgument),
        (format!("{:x}.1", generation ^ 1), Code::FailedPrecondition),
    ];
    for (page_token, code) in cases {
        let request = v1::ListNodesRequest {
            page_token: page_token.clone(),
            ..Default::default()
        };
        let status = operator.list_nodes(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{page_token}");
        assert!(status.message().starts_with("page_token is "), "{status:?}");
        let request = v1::ListProxiesRequest {
            page_token: page_token.clone(),
            ..Default::default()
        };
        let status = operator.list_proxies(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{page_token}");
    }
    let another = Running::start().await;
    let stats = admin(&another).await.stats(v1::StatsRequest {}).await.unwrap();
    assert_ne!(stats.into_inner().generation, generation);
}

#[tokio::test]
async fn a_complaint_is_shown_and_removes_nothing() {
    let server = Running::start().await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    client.add_nodes(add("p1", nodes(&[], &["a"]))).await.unwrap();
    client.add_nodes(add("p2", nodes(&[], &["a"]))).await.unwrap();
    let complaint = |node: &str, proxy_id: &str, reporter_id: &str| v1::ReportUnreachableRequest {
        node: named(node),
        proxy_id: proxy_id.into(),
        reporter_id: reporter_id.into(),
    };
    for (node, proxy_id, is_returned) in [
        ("a", "p1", true),
        ("a", "p1", true),
        ("a", "p9", false),
        ("b", "p1", false),
    ] {
        let reported = client
            .report_unreachable(complaint(node, proxy_id, "p3"))
            .await
            .unwrap();
        assert_eq!(
            reported.into_inner().is_returned,
            is_returned,
            "{node} through {proxy_id}"
        );
    }
    let explained = operator.explain(v1::ExplainRequest { node: named("a") }).await.unwrap();
    let complaints = explained.into_inner().routes.into_iter().map(|route| {
        let complaint = route
            .complaint
            .map(|complaint| (complaint.reporter_id, complaint.count));
        (route.proxy.unwrap().proxy_id, complaint)
    });
    let expected = [("p2".into(), None), ("p1".into(), Some(("p3".into(), 2)))];
    assert_eq!(complaints.collect::<Vec<_>>(), expected);
    let request = v1::GetProxiesRequest { node: named("a") };
    assert_eq!(client.get_proxies(request).await.unwrap().into_inner().routes.len(), 2);

    let long = "x".repeat(256);
    for (request, message) in [
        (complaint("", "p1", ""), "node.name is empty"),
        (complaint("a", "", ""), "proxy_id is empty"),
        (
            complaint("a", "p1", &long),
            "reporter_id is 256 bytes long, the limit is 255",
        ),
    ] {
        assert_refused(client.report_unreachable(request).await, Code::InvalidArgument, message);
    }
}

#[tokio::test]
async fn explain_tells_why_a_route_is_not_returned() {
    let (clock, table) = manual(INTERVAL);
    let server = Running::with_table(table).await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    let start = clock.wall();
    for id in ["p1", "p2", "p3"] {
        client.add_nodes(add(id, nodes(&[], &["a"]))).await.unwrap();
        pass(&server.table, &clock, INTERVAL / 2);
    }
    let request = v1::RemoveProxyRequest { proxy_id: "p2".into() };
    operator.remove_proxy(request).await.unwrap();
    let explained = operator.explain(v1::ExplainRequest { node: named("a") }).await;
    let explained = explained.unwrap().into_inner();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let verdicts: Vec<_> = explained
        .routes
        .iter()
        .map(|route| (route.proxy.clone(), route.age, route.verdict()))
        .collect();
    assert_eq!(
        verdicts,
        [
            (Some(proxy("p3")), seconds(150), v1::Verdict::Returned),
            (None, seconds(300), v1::Verdict::ProxyRemoved),
            (Some(proxy("p1")), seconds(450), v1::Verdict::Expired),
        ]
    );
    assert_eq!(explained.routes[2].last_refresh_time, Some(start.into()));
    assert_eq!(explained.keep_alive, seconds(300));
    let explained = operator.explain(v1::ExplainRequest { node: named("b") }).await;
    assert_eq!(explained.unwrap().into_inner().routes, []);
}

#[tokio::test]
async fn stats_tell_what_there_is() {
    let server = Running::start().await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    client.add_nodes(add("p1", nodes(&[1, 2], &["a"]))).await.unwrap();
    client.add_nodes(add("p2", nodes(&[1], &[]))).await.unwrap();
    let stats = operator.stats(v1::StatsRequest {}).await.unwrap().into_inner();
    assert_eq!((stats.route_count, stats.node_count, stats.proxy_count), (4, 3, 2));
    assert!(stats.record_count >= 3 && stats.generation != 0 && stats.uptime.is_some());
    assert_eq!(stats.keep_alive, Some(prost_types::Duration { seconds: 300, nanos: 0 }));
    assert_eq!(
        (stats.version.as_str(), stats.watch_count, stats.session_count),
        (env!("CARGO_PKG_VERSION"), 0, 0)
    );
    assert_eq!(stats.connection_count, 2);
    let resource = |name| {
        let named = stats.resources.iter().find(|of| of.resource == name).unwrap();
        [named.used, named.limit, named.client_limit, named.proxy_limit]
    };
    assert_eq!(resource("watches"), [0, 10_000, 5_000, 0]);
    assert_eq!(resource("routes"), [4, 16_777_216, 0, 0]);
    assert_eq!(resource("connections")[0], 2);
    let again = operator.stats(v1::StatsRequest {}).await.unwrap().into_inner();
    assert_eq!(again.generation, stats.generation);
}

#[tokio::test]
async fn after_a_stop_no_route_expires_for_a_heartbeat_interval() {
    const STOP: Duration = Duration::from_secs(3000);
    let (clock, table) = manual(INTERVAL);
    let server = Running::with_table(table).await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    let names: Vec<_> = (0..1_000).map(|number| format!("node-{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    client.add_nodes(add("p1", nodes(&[], &names))).await.unwrap();
    let mut returned = async || {
        let request = v1::BatchGetProxiesRequest {
            nodes: nodes(&[], &names),
        };
        let response = client.batch_get_proxies(request).await.unwrap().into_inner();
        response.nodes.iter().filter(|node| !node.routes.is_empty()).count()
    };
    let mut intervals = async || {
        let stats = operator.stats(v1::StatsRequest {}).await.unwrap().into_inner();
        let explained = operator.explain(v1::ExplainRequest { node: named("node-0") }).await;
        let explained = explained.unwrap().into_inner();
        assert_eq!(explained.effective_keep_alive, stats.effective_keep_alive);
        assert_eq!(explained.keep_alive, stats.keep_alive);
        let seconds = |interval: Option<prost_types::Duration>| interval.map(|interval| interval.seconds);
        let age = explained.routes.first().map(|route| route.age);
        [
            seconds(stats.keep_alive),
            seconds(stats.effective_keep_alive),
            age.and_then(seconds),
        ]
    };
    assert_eq!(intervals().await, [Some(300), Some(300), Some(0)]);

    clock.advance(STOP);
    assert_eq!(returned().await, 1_000);
    assert_eq!(intervals().await, [Some(300), Some(3300), Some(3000)]);
    pass(&server.table, &clock, INTERVAL / 3 - Duration::from_millis(1));
    for _ in 0..2 {
        while !server.table.sweep(4096).round_completed {}
    }
    assert_eq!(returned().await, 1_000);
    clock.advance(Duration::from_millis(1));
    assert_eq!(returned().await, 0);
    let [keep_alive, effective, _] = intervals().await;
    assert_eq!([keep_alive, effective], [Some(300); 2]);
}

#[tokio::test]
async fn the_brake_holds_expiry_and_the_admin_service_reports_the_hold() {
    let clock = ManualClock::new();
    let builder = Config::default().with("expiry_brake_routes", "10").unwrap().table();
    let server = Running::with_table(builder.clock(clock.clone()).build().unwrap()).await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    let numbers: Vec<u128> = (0..10).collect();
    client.add_nodes(add("p1", nodes(&numbers, &[]))).await.unwrap();
    client.add_nodes(add("p2", nodes(&[10], &[]))).await.unwrap();
    let uuid = |number| Uuid::from_u128(number).into_bytes().to_vec();
    let sweep = || while !server.table.sweep(4096).round_completed {};
    let mut state = async || {
        let stats = operator.stats(v1::StatsRequest {}).await.unwrap().into_inner();
        let request = v1::ExplainRequest {
            node: with_uuid(uuid(0)),
        };
        let explained = operator.explain(request).await.unwrap().into_inner();
        // The server's sweeper also runs, so the hold may begin earlier.
        let left = stats
            .expiry_hold_left
            .is_some_and(|left| (1..=600).contains(&left.seconds));
        (
            stats.expiry_hold(),
            left,
            explained.routes.first().map(|route| route.verdict()),
        )
    };
    sweep();
    assert_eq!(
        state().await,
        (v1::ExpiryHold::Unspecified, false, Some(v1::Verdict::Returned))
    );
    pass(&server.table, &clock, INTERVAL / 4 * 3);
    sweep();
    assert_eq!(
        state().await,
        (v1::ExpiryHold::Brake, true, Some(v1::Verdict::Returned))
    );
    pass(&server.table, &clock, INTERVAL);
    assert_eq!(state().await, (v1::ExpiryHold::Brake, true, Some(v1::Verdict::Held)));

    // The heartbeats return. The routes of a removed proxy are not held.
    client.add_nodes(add("p1", nodes(&numbers, &[]))).await.unwrap();
    let request = v1::RemoveProxyRequest { proxy_id: "p2".into() };
    admin(&server).await.remove_proxy(request).await.unwrap();
    let request = v1::GetProxiesRequest {
        node: with_uuid(uuid(10)),
    };
    assert_eq!(client.get_proxies(request).await.unwrap().into_inner().routes, []);
    sweep();
    sweep();
    assert_eq!(
        state().await,
        (v1::ExpiryHold::Unspecified, false, Some(v1::Verdict::Returned))
    );
}

#[tokio::test]
async fn a_proxy_has_a_limit_of_its_own_and_a_count() {
    let table = Config::default()
        .with("max_routes_per_proxy", "3")
        .unwrap()
        .table()
        .build()
        .unwrap();
    let server = Running::with_table(table).await;
    let (mut client, mut operator) = (routes(&server).await, admin(&server).await);
    let refused = client
        .add_nodes(add("p1", nodes(&[1, 2, 3, 4], &[])))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "the proxy has its maximum of 3 routes, after 3 nodes"
    );
    client.add_nodes(add("p2", nodes(&[4], &[]))).await.unwrap();
    let list = operator.list_proxies(v1::ListProxiesRequest::default()).await;
    let list = list.unwrap().into_inner();
    let mut counts: Vec<_> = list
        .proxies
        .iter()
        .map(|proxy| &*proxy.proxy_id)
        .zip(list.route_counts)
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [("p1", 3), ("p2", 1)]);
}
