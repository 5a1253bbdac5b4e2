//! Any text as a node ID and as the strings of a proxy, any number as a handle. See `fuzz/README.md`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodetracker::{NodeId, Proxy, RouteHandle, RouteTable};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(node) = text.parse::<NodeId>() {
        let shown = node.to_string();
        assert_eq!(
            shown.parse::<NodeId>().as_ref(),
            Ok(&node),
            "{text:?} is shown as {shown:?}"
        );
        assert!(shown == *text || shown.len() == 36);
    }
    let table = RouteTable::new();
    let mut fields = text.splitn(3, '\n');
    let mut field = || fields.next().unwrap_or_default();
    let proxy = Proxy {
        id: field(),
        cluster_name: field(),
        addr: field(),
    };
    if let Ok(reference) = table.register_proxy(&proxy) {
        let details = table.proxy(reference).expect("it was registered");
        assert_eq!(
            (details.id(), details.cluster_name(), details.addr()),
            (proxy.id, proxy.cluster_name, proxy.addr)
        );
        let handles: Vec<_> = data
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| RouteHandle::from_bits(u64::from_le_bytes(*bytes)))
            .collect();
        let refreshed = table.refresh_routes(&handles, reference).expect("it is registered");
        assert_eq!((refreshed.refreshed, refreshed.gone.len()), (0, handles.len()));
    }
});
