//! Health and reflection cover every service of the port.

use prost_types::{FileDescriptorProto, FileDescriptorSet};
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::{Raw, Running};

/// Every service of the port.
const SERVICES: [&str; 8] = [
    "api.NodeTrackerService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "nodetracker.v1.AdminService",
    "nodetracker.v1.RouteService",
    "nodetracker.v1.SessionService",
    "nodetracker.v1.WatchService",
];

async fn health(server: &Running) -> HealthClient<Channel> {
    HealthClient::new(server.channel().await)
}

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.into(),
    }
}

#[tokio::test]
async fn every_service_is_healthy() {
    let server = Running::start().await;
    let mut client = health(&server).await;
    for service in SERVICES.into_iter().chain([""]) {
        let answer = client.check(of(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let status = client.check(of("nobody")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

async fn next(watch: &mut Streaming<HealthCheckResponse>) -> Result<ServingStatus, tonic::Status> {
    watch
        .message()
        .await
        .map(|answer| answer.expect("the stream does not end by itself").status())
}

#[tokio::test]
async fn a_server_that_stops_tells_who_watches_its_health() {
    let server = Running::start().await;
    let mut client = health(&server).await;
    let mut watch = client.watch(of("api.NodeTrackerService")).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await.unwrap(), ServingStatus::Serving);
    let stopped = tokio::spawn(server.stop());
    assert_eq!(next(&mut watch).await.unwrap(), ServingStatus::NotServing);
    // The stream does not keep the server from stopping.
    assert_eq!(next(&mut watch).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(stopped.await.unwrap(), nodetracker_server::Drained::Completely);
}

/// The services that reflection lists, and the file that one of them is in.
async fn reflected(server: &Running, symbol: &str) -> (Vec<String>, FileDescriptorProto) {
    use v1::server_reflection_request::MessageRequest::{FileContainingSymbol, ListServices};
    use v1::server_reflection_response::MessageResponse;

    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let requests = [ListServices(String::new()), FileContainingSymbol(symbol.into())];
    let requests = requests.map(|request| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    });
    let mut answers = client
        .server_reflection_info(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let mut answer = async || answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer().await else {
        panic!("not a list");
    };
    let MessageResponse::FileDescriptorResponse(files) = answer().await else {
        panic!("not a file");
    };
    let file = prost::Message::decode(&*files.file_descriptor_proto[0]).unwrap();
    (services.service.into_iter().map(|service| service.name).collect(), file)
}

#[tokio::test]
async fn reflection_knows_every_service() {
    let server = Running::start().await;
    for service in SERVICES {
        let (mut listed, file) = reflected(&server, service).await;
        listed.sort();
        assert_eq!(listed, SERVICES);
        let found = file
            .service
            .iter()
            .any(|found| service.strip_prefix(file.package()) == Some(&format!(".{}", found.name())[..]));
        assert!(found, "{service} is not in {}", file.name());
    }
}

#[tokio::test]
async fn old_tools_find_the_older_reflection() {
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;

    let server = Running::start().await;
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileByFilename("api/nodetracker.proto".into())),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer else {
        panic!("not a file");
    };
    let files = FileDescriptorSet {
        file: vec![prost::Message::decode(&*files.file_descriptor_proto[0]).unwrap()],
    };
    assert_eq!(files.file[0].service[0].name(), "NodeTrackerService");
}

#[tokio::test]
async fn a_method_that_no_service_has_is_unimplemented() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for service in SERVICES {
        let ended = raw.call(&format!("/{service}/Nothing"), vec![0; 5]).await;
        assert_eq!(ended.grpc, Some(Code::Unimplemented as i32), "{service}");
        assert!(ended.message.contains("no"), "{ended:?}");
        assert!(ended.message.contains("method"), "{ended:?}");
    }
}
