//! Corrects status codes: tonic has other codes than this server for some errors.
//!
//! gRPC's specification lists RESOURCE_EXHAUSTED for a message over the limit, and other servers reply so. tonic
//! replies OUT_OF_RANGE, which nothing in this server does.

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::refusal::{Reason, Refusals};

/// Corrects the code in the head of a response. If the code is corrected, counts a refusal.
pub(crate) fn correct_response(mut response: Response<Body>, refusals: &Refusals) -> Response<Body> {
    if let Some(code) = response.headers_mut().get_mut(Status::GRPC_STATUS)
        && Code::from_bytes(code.as_bytes()) == Code::OutOfRange
    {
        refusals.refuse(Reason::MessageSize);
        *code = (Code::ResourceExhausted as i32).into();
    }
    response
}

/// Corrects the code of a status that tonic made for a request. If the code is corrected, counts a refusal.
pub(crate) fn correct_status(status: Status, refusals: &Refusals) -> Status {
    match status.code() {
        Code::OutOfRange => refusals.refuse(Reason::MessageSize).status(status.message()),
        _ => status,
    }
}
