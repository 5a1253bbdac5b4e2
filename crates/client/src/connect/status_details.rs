//! A tracker that sends a `grpc-status-details-bin` that is not base64 must not end the caller's task: tonic 0.14
//! panics when it reads such a status. So the field is dropped first. The status keeps its code and its message.

use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;

/// Drops bad details from the headers and the trailers of an answer.
pub(super) fn drop_bad(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    drop_from(&mut parts.headers);
    let body = body.map_frame(|mut frame| {
        frame.trailers_mut().into_iter().for_each(drop_from);
        frame
    });
    Response::from_parts(parts, Body::new(body))
}

fn drop_from(headers: &mut HeaderMap) {
    // tonic reads the first value.
    let Some(value) = headers.get(Status::GRPC_STATUS_DETAILS) else {
        return;
    };
    let details = HeaderMap::from_iter([(Status::GRPC_STATUS_DETAILS, value.clone())]);
    let details = MetadataMap::from_headers(details);
    let decoded = details
        .get_bin(Status::GRPC_STATUS_DETAILS.as_str())
        .map(|value| value.to_bytes());
    if !matches!(decoded, Some(Ok(_))) {
        headers.remove(Status::GRPC_STATUS_DETAILS);
    }
}
