//! The gRPC calls that this client makes, each by the type of its request.

use std::future::Future;

use crate::connect::channel::Channel;
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use tonic::{Response, Status};

/// A request, which names its method by its type.
pub(super) trait Call: Clone + Send + Sync {
    /// The answer.
    type Reply: Send;

    /// Whether a repeated call has the effect of one call. Otherwise, a call that a tracker may have done is not made
    /// again.
    const IS_REPEATABLE: bool;

    /// Makes the call. If the future is dropped, the call is cancelled.
    fn send(self, channel: Channel) -> impl Future<Output = Result<Response<Self::Reply>, Status>> + Send;
}

macro_rules! calls {
    ($($client:ident :: $method:ident ($request:ident) -> $reply:ident, repeatable: $is_repeatable:literal;)+) => {
        $(impl Call for v1::$request {
            type Reply = v1::$reply;

            const IS_REPEATABLE: bool = $is_repeatable;

            async fn send(self, channel: Channel) -> Result<Response<Self::Reply>, Status> {
                $client::new(channel).$method(self).await
            }
        })+
    };
}

calls! {
    RouteServiceClient::add_nodes(AddNodesRequest) -> AddNodesResponse, repeatable: true;
    RouteServiceClient::get_proxies(GetProxiesRequest) -> GetProxiesResponse, repeatable: true;
    RouteServiceClient::batch_get_proxies(BatchGetProxiesRequest) -> BatchGetProxiesResponse, repeatable: true;
    RouteServiceClient::remove_nodes(RemoveNodesRequest) -> RemoveNodesResponse, repeatable: true;
    // The tracker counts the complaints.
    RouteServiceClient::report_unreachable(ReportUnreachableRequest) -> ReportUnreachableResponse, repeatable: false;
    // The proxy may have registered again between two calls.
    AdminServiceClient::remove_proxy(RemoveProxyRequest) -> RemoveProxyResponse, repeatable: false;
}
