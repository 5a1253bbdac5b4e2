//! The services of the port, and which of them a request is for.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response};
use nodetracker_proto::FILE_DESCRIPTOR_SET;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower_service::Service;

use crate::grpc::send_budget::SendBudget;
use crate::grpc::unary::{Arriving, Unary};
use crate::limits::MAX_MESSAGE_SIZE;
use crate::rpc::watch::WatchServer;

/// What the generated services make of a request.
pub(crate) type BoxedCall = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A service behind a pointer; it is called over a connection with some room.
pub(crate) type BoxedService = Box<dyn Fn(Request<Arriving>, &SendBudget) -> BoxedCall + Send + Sync>;

/// A service, as tonic generates them.
pub(crate) trait Generated:
    Service<Request<Arriving>, Response = Response<Body>, Error = Infallible, Future = BoxedCall>
    + NamedService
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Generated for S where
    S: Service<Request<Arriving>, Response = Response<Body>, Error = Infallible, Future = BoxedCall>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// One of the services.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    /// Its calls are answered at once.
    Unary(Arc<dyn Unary>),
    /// Its calls are answered as tonic's generated services do.
    Generated {
        call: BoxedService,
        /// Whether each of them has one answer that can be large, and takes no room for it by itself.
        large: bool,
    },
}

/// Services by name. They are few, so the name is compared with one after the other.
#[derive(Default)]
pub(crate) struct Services(Vec<Entry>);

impl Services {
    /// Adds a service; those that are called often come first.
    pub(crate) fn with<S: Generated>(self, service: S) -> Self {
        self.with_generated(service, false)
    }

    /// Adds a service whose methods all have one answer, which can be large.
    pub(crate) fn with_large<S: Generated>(self, service: S) -> Self {
        self.with_generated(service, true)
    }

    fn with_generated<S: Generated>(self, service: S, large: bool) -> Self {
        let call = Box::new(move |request, _: &SendBudget| service.clone().call(request));
        self.and(S::NAME, Kind::Generated { call, large })
    }

    /// Adds the watch service, which takes room itself.
    pub(crate) fn with_watches(self, watches: WatchServer) -> Self {
        let call = Box::new(move |request, budget: &SendBudget| watches.call(request, budget));
        self.and(WatchServer::NAME, Kind::Generated { call, large: false })
    }

    /// Adds a service whose calls are answered at once.
    pub(crate) fn with_unary(self, service: impl Unary + 'static) -> Self {
        self.and(service.name(), Kind::Unary(Arc::new(service)))
    }

    fn and(mut self, name: &'static str, kind: Kind) -> Self {
        self.0.push(Entry { name, kind });
        self
    }

    /// The service of this name, where there is one.
    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.0.iter().find(|service| service.name == name)
    }

    /// Adds server reflection, in its version 1 and in the older one that many tools still ask for.
    pub(crate) fn with_reflection(self) -> Self {
        let descriptors = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // Each version tells of the other too.
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        };
        let v1 = descriptors()
            .build_v1()
            .expect("the descriptors were made by the compiler");
        let v1alpha = descriptors()
            .build_v1alpha()
            .expect("the descriptors were made by the compiler");
        self.with(v1.max_decoding_message_size(MAX_MESSAGE_SIZE))
            .with(v1alpha.max_decoding_message_size(MAX_MESSAGE_SIZE))
    }

    /// Adds the health service, which calls all services here and the server as a whole ("") healthy until it is told
    /// otherwise.
    pub(crate) async fn with_health(self) -> (Self, Health) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let services = self.with(service.max_decoding_message_size(MAX_MESSAGE_SIZE));
        let names = services.0.iter().map(|service| service.name).chain([""]);
        let health = Health {
            reporter,
            names: names.collect(),
        };
        health.set(ServingStatus::Serving).await;
        (services, health)
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.0.iter().map(|service| service.name))
            .finish()
    }
}

/// What `grpc.health.v1` says of every service.
#[derive(Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    names: Vec<&'static str>,
}

impl Health {
    /// Says from here on that no service takes calls; watchers are told.
    pub(crate) async fn stopping(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        for name in &self.names {
            self.reporter.set_service_status(name, status).await;
        }
    }
}
