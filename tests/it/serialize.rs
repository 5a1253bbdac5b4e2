//! The plain data types through JSON, with the feature `serde`.

use nodetracker::{ExplainedRoute, NodeId, Proxy, RouteHandle, RouteTable, Stats};

#[test]
fn plain_data_comes_back_as_it_was() {
    for text in ["550e8400-e29b-41d4-a716-446655440000", "node-1", "node \"1\""] {
        let node: NodeId = text.parse().expect("a good ID");
        let json = serde_json::to_string(&node).expect("it can be written");
        assert_eq!(json, serde_json::to_string(text).expect("it can be written"));
        assert_eq!(serde_json::from_str::<NodeId>(&json).expect("it can be read"), node);
    }
    let handle = RouteHandle::from_bits(77);
    assert_eq!(serde_json::to_string(&handle).expect("it can be written"), "77");

    let table = RouteTable::new();
    let proxy = Proxy {
        id: "proxy-1",
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    };
    let proxy = table.register_proxy(&proxy).expect("there is room");
    let node = "node-1".parse().expect("a good ID");
    table.add_node(&node, proxy).expect("there is room");
    let explained = table.explain(&node);
    let json = serde_json::to_string(&explained).expect("it can be written");
    assert_eq!(
        serde_json::from_str::<Vec<ExplainedRoute>>(&json).expect("it can be read"),
        explained
    );
    let stats = table.stats();
    let json = serde_json::to_string(&stats).expect("it can be written");
    assert_eq!(serde_json::from_str::<Stats>(&json).expect("it can be read"), stats);
}

#[test]
fn a_bad_id_is_refused_with_its_reason() {
    let error = serde_json::from_str::<NodeId>("\"\"").expect_err("an empty ID");
    assert!(error.to_string().contains("empty"), "{error}");
}
