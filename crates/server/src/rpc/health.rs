//! `grpc.health.v1`: the health of every service by its name, and of the server as a whole by `""`.

use tonic::{Request, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::Health as _;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::grpc::handler::CallContext;

/// Returns the health of one service.
pub(crate) async fn check(
    service: &HealthService,
    request: HealthCheckRequest,
    _: &mut CallContext,
) -> Result<HealthCheckResponse, Status> {
    Ok(service.check(Request::new(request)).await?.into_inner())
}

/// Reports the health of the services.
#[derive(Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    services: Vec<&'static str>,
}

impl Health {
    /// Returns the health of `services`. Reports nothing before [`serving`](Self::serving) is called.
    pub(crate) fn new(reporter: HealthReporter, services: Vec<&'static str>) -> Self {
        Self { reporter, services }
    }

    /// Reports that every service takes calls.
    pub(crate) async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// Reports that no service takes calls any more. Clients that watch the health are notified.
    pub(crate) async fn stopping(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        for service in self.services.iter().chain([&""]) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
