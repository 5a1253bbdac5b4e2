//! A correct follower of a table: a copy that the change feed keeps up to date.
//!
//! Subscribe first, then read the whole table, then drain events and look each node up. After `Lagged`, read the part
//! that has lost changes again.
//!
//! `cargo run --example replica`

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nodetracker::{Event, LostChanges, NodeId, Proxy, ProxyRef, RouteTable, Subscription};

#[derive(Default)]
struct Replica {
    proxies: HashMap<NodeId, Vec<ProxyRef>>,
}

impl Replica {
    /// Copies the whole table.
    fn copy(&mut self, table: &RouteTable) {
        self.proxies.clear();
        table.for_each_route(|node, route| self.proxies.entry(node.clone()).or_default().push(route.proxy));
    }

    /// Reads again the part whose changes were lost.
    fn copy_again(&mut self, table: &RouteTable, lost: LostChanges) {
        match lost {
            LostChanges::OfPart(part) => {
                self.proxies.retain(|node, _| table.part_of(node) != part);
                let mut place = None;
                loop {
                    place = table.nodes_of_part(part, place.as_ref(), usize::MAX, |node, routes| {
                        let routes = routes.iter().map(|route| route.proxy).collect();
                        self.proxies.insert(node.clone(), routes);
                    });
                    if place.is_none() {
                        break;
                    }
                }
            }
            LostChanges::OfProxies => self.proxies.retain(|_, proxies| {
                proxies.retain(|&proxy| table.proxy(proxy).is_some());
                !proxies.is_empty()
            }),
        }
    }

    /// Applies an event to the copy.
    fn apply(&mut self, table: &RouteTable, event: &Event) {
        match event {
            Event::Node { node, .. } => {
                let routes: Vec<_> = table.get_proxies(node).iter().map(|route| route.proxy).collect();
                if routes.is_empty() {
                    self.proxies.remove(node);
                } else {
                    self.proxies.insert(node.clone(), routes);
                }
            }
            // The table returns none of its routes from now on. The nodes have no events of their own until the sweeper
            // comes.
            Event::ProxyRemoved { proxy, .. } => self.proxies.retain(|_, proxies| {
                proxies.retain(|other| other != proxy);
                !proxies.is_empty()
            }),
            // Addresses are looked up when they are needed: nothing to copy.
            _ => {}
        }
    }

    fn follow(&mut self, table: &RouteTable, changes: &mut Subscription<'_>, is_stopping: &AtomicBool) {
        self.copy(table);
        loop {
            // Read the flag before the drain, so that the drain takes the changes that were made before the program
            // stops.
            let is_last = is_stopping.load(Ordering::Acquire);
            match changes.drain_events(1_000, |event| self.apply(table, event)) {
                Ok(0) if is_last => return,
                Ok(0) => _ = changes.wait(Duration::from_millis(100)),
                Ok(_) => {}
                Err(lagged) => {
                    eprintln!("{lagged}");
                    self.copy_again(table, lagged.lost);
                }
            }
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let table = Arc::new(RouteTable::new());
    let is_stopping = Arc::new(AtomicBool::new(false));
    let follower = thread::spawn({
        let (table, is_stopping) = (Arc::clone(&table), Arc::clone(&is_stopping));
        move || {
            let mut replica = Replica::default();
            replica.follow(&table, &mut table.subscribe(), &is_stopping);
            replica
        }
    });

    let proxy = |id: &str| {
        table.register_proxy(&Proxy {
            id,
            cluster_name: "main",
            addr: "10.0.0.1:3080",
        })
    };
    let (first, second) = (proxy("proxy-1")?, proxy("proxy-2")?);
    for number in 0..1_000 {
        let node = format!("node-{number}").parse()?;
        table.add_node(&node, if number % 2 == 0 { first } else { second })?;
    }
    table.remove_proxy(second);

    is_stopping.store(true, Ordering::Release);
    let replica = follower.join().map_err(|_| "the follower panicked")?;
    println!("the replica has {} nodes", replica.proxies.len());
    assert_eq!(replica.proxies.len(), 500);
    Ok(())
}
