//! The content of a table, for a comparison with another table.

use std::collections::HashMap;
use std::time::SystemTime;

use nodetracker::{NodeId, RouteTable};

/// Proxies' strings and times, node by node, newest first.
pub(crate) type Content = HashMap<NodeId, Vec<([String; 3], SystemTime)>>;

pub(crate) fn content(table: &RouteTable) -> Content {
    let mut content = Content::new();
    table.for_each_route(|node, route| {
        let details = table.proxy(route.proxy).expect("its routes are reported");
        let strings = details.into_parts().into();
        content
            .entry(node.clone())
            .or_default()
            .push((strings, route.last_refresh));
    });
    for (node, routes) in &content {
        assert_eq!(table.get_proxies(node).len(), routes.len(), "{node}");
    }
    content
}
