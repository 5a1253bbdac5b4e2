//! The method table of the port. A new RPC is a row here, and the function that the row names.

use std::sync::Arc;

use nodetracker::RouteTable;

use crate::grpc::handler::{bidirectional, deferred, encoded_stream, external, immediate, immediate_encoded};
use crate::grpc::method::ReplyKind::{LargeUnary, Streaming, Unary};
use crate::grpc::method::{Method, MethodTable};
use crate::limits::{Limits, MAX_BATCH_MESSAGE_SIZE as BATCH, MAX_MESSAGE_SIZE as SMALL};
use crate::rpc::admin::Admin;
use crate::rpc::health::Health;
use crate::rpc::instance_id::InstanceId;
use crate::rpc::node_tracker::NodeTracker;
use crate::rpc::reflection;
use crate::rpc::routes::Routes;
use crate::rpc::session::Sessions;
use crate::rpc::watch::{self, Watches};

/// Returns the methods of a tracker that starts now, and the health that they report.
#[rustfmt::skip]
pub(crate) fn methods(
    table: &Arc<RouteTable>,
    watches: &Arc<Watches>,
    instance_id: InstanceId,
    limits: &Limits,
) -> (MethodTable, Health) {
    let tracker = Arc::new(NodeTracker::new(Arc::clone(table)));
    let routes = Arc::new(Routes::new(Arc::clone(table)));
    let sessions = Arc::new(Sessions::new(Arc::clone(table), instance_id, limits.call));
    let admin = Arc::new(Admin::new(Arc::clone(table), Arc::clone(watches), instance_id));
    let (reporter, health) = tonic_health::server::health_reporter();
    let health = health.max_decoding_message_size(SMALL);
    let valid = "the descriptors were made by the compiler";
    let reflection_v1 = reflection::builder().build_v1().expect(valid).max_decoding_message_size(SMALL);
    let reflection_v1alpha = reflection::builder().build_v1alpha().expect(valid).max_decoding_message_size(SMALL);

    let row = Method::new;
    let methods = MethodTable::new(vec![
        row("/api.NodeTrackerService/AddNode", SMALL, Unary, immediate(&tracker, NodeTracker::add_node)),
        row("/api.NodeTrackerService/GetProxies", SMALL, Unary, immediate(&tracker, NodeTracker::get_proxies)),
        row("/api.NodeTrackerService/RemoveNode", SMALL, Unary, immediate(&tracker, NodeTracker::remove_node)),

        row("/nodetracker.v1.RouteService/AddNodes", BATCH, Unary, immediate(&routes, Routes::add_nodes)),
        row("/nodetracker.v1.RouteService/GetProxies", BATCH, Unary, immediate(&routes, Routes::get_proxies)),
        row("/nodetracker.v1.RouteService/BatchGetProxies", BATCH, LargeUnary, immediate_encoded(&routes, Routes::batch_get_proxies)),
        row("/nodetracker.v1.RouteService/RemoveNodes", BATCH, Unary, immediate(&routes, Routes::remove_nodes)),

        row("/nodetracker.v1.SessionService/Session", SMALL, Streaming, bidirectional(&sessions, Sessions::session)),

        row("/nodetracker.v1.WatchService/Watch", BATCH, Streaming, encoded_stream(watches, watch::watch)),

        row("/nodetracker.v1.AdminService/RemoveProxy", SMALL, LargeUnary, deferred(&admin, Admin::remove_proxy)),
        row("/nodetracker.v1.AdminService/ListProxies", SMALL, LargeUnary, deferred(&admin, Admin::list_proxies)),
        row("/nodetracker.v1.AdminService/ListNodes", SMALL, LargeUnary, deferred(&admin, Admin::list_nodes)),
        row("/nodetracker.v1.AdminService/Explain", SMALL, LargeUnary, deferred(&admin, Admin::explain)),
        row("/nodetracker.v1.AdminService/Stats", SMALL, LargeUnary, deferred(&admin, Admin::stats)),

        row("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", SMALL, Streaming, external(reflection_v1)),
        row("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", SMALL, Streaming, external(reflection_v1alpha)),

        row("/grpc.health.v1.Health/Check", SMALL, Unary, external(health.clone())),
        row("/grpc.health.v1.Health/Watch", SMALL, Streaming, external(health)),
    ]);
    let health = Health::new(reporter, methods.services());
    (methods, health)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_declared_method_has_a_row_and_every_row_is_declared() {
        let mut declared = BTreeMap::new();
        for set in reflection::FILE_DESCRIPTOR_SETS {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        declared.insert(path, method.server_streaming());
                    }
                }
            }
        }
        let table = Arc::new(RouteTable::new());
        let instance_id = InstanceId::draw();
        let watches = Watches::new(Arc::clone(&table), instance_id, Limits::default().watch_resume);
        let (methods, _) = methods(&table, &watches, instance_id, &Limits::default());
        let rows: BTreeMap<_, _> = methods
            .rows()
            .iter()
            .map(|method| (method.path.to_owned(), method.reply == Streaming))
            .collect();
        assert_eq!(rows.len(), methods.rows().len(), "two rows have one path");
        assert_eq!(rows, declared);
    }
}
