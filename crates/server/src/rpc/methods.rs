//! The method table of the port. A new RPC is a row here, and the function that the row names.

use std::sync::Arc;

use nodetracker::RouteTable;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::grpc::handler::{bidirectional, encoded_stream, external, immediate, unary, unary_encoded};
use crate::grpc::method::{Method, MethodTable};
use crate::limits::{Limits, MAX_BATCH_MESSAGE_SIZE as BATCH, MAX_MESSAGE_SIZE as SMALL};
use crate::memory::MemoryBudget;
use crate::rpc::admin::Admin;
use crate::rpc::health::{self, Health};
use crate::rpc::instance_id::InstanceId;
use crate::rpc::node_tracker::NodeTracker;
use crate::rpc::reflection;
use crate::rpc::routes::Routes;
use crate::rpc::session::Sessions;
use crate::rpc::shutdown::{DrainRequest, Shutdown};
use crate::rpc::watch::{self, Watches};

/// Returns the methods of a tracker that starts now, and those of its services that have to know when it stops.
#[rustfmt::skip]
pub(crate) fn methods(
    table: &Arc<RouteTable>,
    watches: &Arc<Watches>,
    instance_id: InstanceId,
    memory: &Arc<MemoryBudget>,
    limits: &Limits,
    drain: &DrainRequest,
) -> (MethodTable, Shutdown) {
    let refusals = memory.refusals();
    let tracker = Arc::new(NodeTracker::new(Arc::clone(table), Arc::clone(refusals)));
    let routes = Arc::new(Routes::new(Arc::clone(table), Arc::clone(refusals)));
    let sessions = Arc::new(Sessions::new(Arc::clone(table), instance_id, Arc::clone(refusals), limits));
    let admin = Arc::new(Admin::new(Arc::clone(table), Arc::clone(watches), instance_id, Arc::clone(memory), drain.clone()));
    let reporter = HealthReporter::new();
    let health = Arc::new(HealthService::from_health_reporter(reporter.clone()));
    let health_watches = HealthServer::from_arc(Arc::clone(&health)).max_decoding_message_size(SMALL);
    let valid = "the descriptors were made by the compiler";
    let reflection_v1 = reflection::builder().build_v1().expect(valid).max_decoding_message_size(SMALL);
    let reflection_v1alpha = reflection::builder().build_v1alpha().expect(valid).max_decoding_message_size(SMALL);

    let row = Method::new;
    let methods = MethodTable::new(vec![
        row("/api.NodeTrackerService/AddNode", SMALL, immediate(&tracker, NodeTracker::add_node)),
        row("/api.NodeTrackerService/GetProxies", SMALL, immediate(&tracker, NodeTracker::get_proxies)),
        row("/api.NodeTrackerService/RemoveNode", SMALL, immediate(&tracker, NodeTracker::remove_node)),

        row("/nodetracker.v1.RouteService/AddNodes", BATCH, unary(&routes, Routes::add_nodes)),
        row("/nodetracker.v1.RouteService/GetProxies", BATCH, immediate(&routes, Routes::get_proxies)),
        row("/nodetracker.v1.RouteService/BatchGetProxies", BATCH, unary_encoded(&routes, Routes::batch_get_proxies)),
        row("/nodetracker.v1.RouteService/RemoveNodes", BATCH, unary(&routes, Routes::remove_nodes)),

        row("/nodetracker.v1.SessionService/Session", SMALL, bidirectional(&sessions, Sessions::session)),

        row("/nodetracker.v1.WatchService/Watch", BATCH, encoded_stream(watches, watch::watch)),

        row("/nodetracker.v1.AdminService/RemoveProxy", SMALL, unary(&admin, Admin::remove_proxy)),
        row("/nodetracker.v1.AdminService/ListProxies", SMALL, unary(&admin, Admin::list_proxies)),
        row("/nodetracker.v1.AdminService/ListNodes", SMALL, unary_encoded(&admin, Admin::list_nodes)),
        row("/nodetracker.v1.AdminService/Explain", SMALL, unary(&admin, Admin::explain)),
        row("/nodetracker.v1.AdminService/Stats", SMALL, unary(&admin, Admin::stats)),
        row("/nodetracker.v1.AdminService/Drain", SMALL, unary(&admin, Admin::drain)),
        row("/nodetracker.v1.AdminService/SetLogLevel", SMALL, unary(&admin, Admin::set_log_level)),

        row("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", SMALL, external(reflection_v1)),
        row("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", SMALL, external(reflection_v1alpha)),

        row("/grpc.health.v1.Health/Check", SMALL, unary(&health, health::check)),
        row("/grpc.health.v1.Health/Watch", SMALL, external(health_watches)),
    ]);
    let health = Health::new(reporter, methods.services());
    (methods, Shutdown::new(health, sessions))
}

/// The methods of a tracker with an empty table, for tests.
#[cfg(test)]
pub(crate) fn methods_of_empty_table() -> MethodTable {
    use std::time::Duration;

    let table = Arc::new(RouteTable::new());
    let instance_id = InstanceId::draw();
    let limits = Limits::default();
    let watches = Watches::new(Arc::clone(&table), instance_id, limits.watch_resume);
    let memory = MemoryBudget::new(0, Arc::default());
    let drain = DrainRequest::new(Duration::ZERO, limits.drain);
    methods(&table, &watches, instance_id, &memory, &limits, &drain).0
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::grpc::handler::Handler;

    #[test]
    fn every_declared_method_has_a_row_and_every_row_is_declared() {
        let mut declared = BTreeMap::new();
        for set in reflection::FILE_DESCRIPTOR_SETS {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        declared.insert(path, method.client_streaming() || method.server_streaming());
                    }
                }
            }
        }
        let methods = methods_of_empty_table();
        let rows: BTreeSet<_> = methods.rows().iter().map(|method| method.path.to_owned()).collect();
        assert_eq!(rows.len(), methods.rows().len(), "two rows have one path");
        assert!(rows.iter().eq(declared.keys()), "{rows:?} are not {declared:?}");
        for method in methods.rows() {
            let has_stream = declared[method.path];
            assert!(
                !has_stream || matches!(method.handler, Handler::Streaming(_)),
                "{}",
                method.path
            );
        }
    }
}
