//! The method table of the port. A new RPC is a row here, and the function that the row names.
//!
//! The third column is the rule: who may call the method. `docs/authorization.md` explains the rules.

use std::sync::Arc;

use nodetracker::RouteTable;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::grpc::handler::{
    bidirectional, encoded_stream, external, immediate, immediate_write, unary, unary_encoded, unary_write,
};
use crate::grpc::method::{ADMIN, EVERYONE, MethodTable, OWN_PROXY, READ, row};
use crate::limits::{Limits, MAX_BATCH_MESSAGE_SIZE as BATCH, MAX_MESSAGE_SIZE as SMALL};
use crate::memory::MemoryBudget;
use crate::rpc::admin::Admin;
use crate::rpc::complaints::Complaints;
use crate::rpc::health::{self, Health};
use crate::rpc::instance_id::InstanceId;
use crate::rpc::node_tracker::NodeTracker;
use crate::rpc::reflection;
use crate::rpc::routes::Routes;
use crate::rpc::session::Sessions;
use crate::rpc::shutdown::{DrainRequest, Shutdown};
use crate::rpc::statistics::Statistics;
use crate::rpc::watch::{self, Watches};
use crate::snapshot_status::SnapshotStatus;

/// Returns the methods of a tracker that starts now, those of its services that have to know when it stops, and the
/// tracker's statistics.
#[rustfmt::skip]
pub(crate) fn methods(
    table: &Arc<RouteTable>,
    watches: &Arc<Watches>,
    instance_id: InstanceId,
    memory: &Arc<MemoryBudget>,
    snapshots: Option<Arc<SnapshotStatus>>,
    limits: &Limits,
    drain: &DrainRequest,
) -> (MethodTable, Shutdown, Arc<Statistics>) {
    let refusals = memory.refusals();
    let api = Arc::new(NodeTracker::new(Arc::clone(table), Arc::clone(refusals)));
    let complaints = Arc::new(Complaints::default());
    let routes = Arc::new(Routes::new(Arc::clone(table), Arc::clone(&complaints), Arc::clone(refusals)));
    let sessions = Arc::new(Sessions::new(Arc::clone(table), instance_id, Arc::clone(refusals), limits));
    let statistics = Statistics::new(Arc::clone(table), Arc::clone(watches), Arc::clone(&sessions), complaints, Arc::clone(memory), snapshots, limits);
    let statistics = Arc::new(statistics);
    let admin = Arc::new(Admin::new(instance_id, Arc::clone(&statistics), drain.clone()));
    let reporter = HealthReporter::new();
    let health = Arc::new(HealthService::from_health_reporter(reporter.clone()));
    let health_watches = HealthServer::from_arc(Arc::clone(&health)).max_decoding_message_size(SMALL);
    let valid = "the descriptors were made by the compiler";
    let v1 = reflection::builder().build_v1().expect(valid).max_decoding_message_size(SMALL);
    let v1alpha = reflection::builder().build_v1alpha().expect(valid).max_decoding_message_size(SMALL);

    let methods = MethodTable::new(vec![
        row("/api.NodeTrackerService/AddNode", SMALL, OWN_PROXY, immediate_write(&api, NodeTracker::add_node)),
        row("/api.NodeTrackerService/GetProxies", SMALL, READ, immediate(&api, NodeTracker::get_proxies)),
        row("/api.NodeTrackerService/RemoveNode", SMALL, OWN_PROXY, immediate_write(&api, NodeTracker::remove_node)),

        row("/nodetracker.v1.RouteService/AddNodes", BATCH, OWN_PROXY, unary_write(&routes, Routes::add_nodes)),
        row("/nodetracker.v1.RouteService/GetProxies", SMALL, READ, immediate(&routes, Routes::get_proxies)),
        row("/nodetracker.v1.RouteService/BatchGetProxies", BATCH, READ,
            unary_encoded(&routes, Routes::batch_get_proxies)),
        row("/nodetracker.v1.RouteService/RemoveNodes", BATCH, OWN_PROXY, unary_write(&routes, Routes::remove_nodes)),
        row("/nodetracker.v1.RouteService/ReportUnreachable", SMALL, OWN_PROXY,
            immediate_write(&routes, Routes::report_unreachable)),

        row("/nodetracker.v1.SessionService/Session", SMALL, OWN_PROXY, bidirectional(&sessions, Sessions::session)),

        row("/nodetracker.v1.WatchService/Watch", BATCH, READ, encoded_stream(watches, watch::watch)),

        row("/nodetracker.v1.AdminService/RemoveProxy", SMALL, ADMIN, unary(&admin, Admin::remove_proxy)),
        row("/nodetracker.v1.AdminService/ListProxies", SMALL, READ, unary(&admin, Admin::list_proxies)),
        row("/nodetracker.v1.AdminService/ListNodes", SMALL, READ, unary_encoded(&admin, Admin::list_nodes)),
        row("/nodetracker.v1.AdminService/Explain", SMALL, READ, unary(&admin, Admin::explain)),
        row("/nodetracker.v1.AdminService/Stats", SMALL, READ, unary(&admin, Admin::stats)),
        row("/nodetracker.v1.AdminService/Drain", SMALL, ADMIN, unary(&admin, Admin::drain)),
        row("/nodetracker.v1.AdminService/SetLogLevel", SMALL, ADMIN, unary(&admin, Admin::set_log_level)),

        row("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", SMALL, EVERYONE, external(v1)).passive(),
        row("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", SMALL, EVERYONE, external(v1alpha)).passive(),

        row("/grpc.health.v1.Health/Check", SMALL, EVERYONE, unary(&health, health::check)),
        row("/grpc.health.v1.Health/Watch", SMALL, EVERYONE, external(health_watches)).passive(),
    ]);
    let health = Health::new(reporter, methods.services());
    (methods, Shutdown::new(health, sessions), statistics)
}

/// The methods of a tracker with an empty table, for tests.
#[cfg(test)]
pub(crate) fn methods_of_empty_table() -> MethodTable {
    methods_of(Arc::new(RouteTable::new()))
}

/// The methods of a tracker with this table, for tests.
#[cfg(test)]
pub(crate) fn methods_of(table: Arc<RouteTable>) -> MethodTable {
    use std::time::Duration;

    let instance_id = InstanceId::draw();
    let limits = Limits::default();
    let watches = Watches::new(Arc::clone(&table), instance_id, &limits);
    let memory = MemoryBudget::new(0, Arc::default());
    let drain = DrainRequest::new(Duration::ZERO, limits.drain);
    methods(&table, &watches, instance_id, &memory, None, &limits, &drain).0
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
