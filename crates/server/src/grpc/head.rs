//! The head of a request: checks that all methods share, and the client's timeout.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataValue;

use crate::limits::MAX_METADATA_SIZE;
use crate::refusal::{Reason, Refusals};

/// Bytes that HTTP/2 counts for each header besides its name and value.
const HEADER_OVERHEAD: usize = 32;

/// Checks a request's head. Returns how long the client allows the call to take, if it has set a timeout.
///
/// # Errors
///
/// The response that refuses the call: an HTTP status if the request is not gRPC, as gRPC specifies, or a gRPC status.
pub(super) fn check<B>(request: &Request<B>, refusals: &Refusals) -> Result<Option<Duration>, Box<Response<Body>>> {
    let (mut content_type, mut encoding, mut timeout) = (None, None, None);
    let mut size = 0;
    // One pass over the few headers costs less than three look-ups.
    for (name, value) in request.headers() {
        let name = HeaderName::as_str(name);
        size += name.len() + value.len() + HEADER_OVERHEAD;
        let found = match name {
            "content-type" => &mut content_type,
            "grpc-encoding" => &mut encoding,
            "grpc-timeout" => &mut timeout,
            _ => continue,
        };
        found.get_or_insert(HeaderValue::as_bytes(value));
    }
    if request.method() != Method::POST {
        return Err(http_status(StatusCode::METHOD_NOT_ALLOWED));
    }
    let format = content_type.and_then(|value: &[u8]| value.strip_prefix(b"application/grpc"));
    if !matches!(format, Some([] | [b'+' | b';', ..])) {
        return Err(http_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    if size > MAX_METADATA_SIZE {
        let message = format!("the request has {size} bytes of metadata, the limit is {MAX_METADATA_SIZE}");
        let status = refusals.refuse(Reason::MetadataSize).status(message);
        return Err(Box::new(status.into_http()));
    }
    if encoding.is_some_and(|encoding| encoding != b"identity") {
        let mut status = Status::unimplemented("requests cannot be compressed here");
        let accepted = MetadataValue::from_static("identity");
        status.metadata_mut().insert("grpc-accept-encoding", accepted);
        return Err(Box::new(status.into_http()));
    }
    let malformed = || Box::new(Status::internal("grpc-timeout is not one to eight digits and a unit").into_http());
    timeout
        .map(|value| parse_timeout(value).ok_or_else(malformed))
        .transpose()
}

fn http_status(status: StatusCode) -> Box<Response<Body>> {
    let mut response = Box::new(Response::new(Body::empty()));
    *response.status_mut() = status;
    response
}

/// Parses the value of `grpc-timeout`: one to eight digits, and a unit.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0, |amount, digit| 10 * amount + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(3600 * amount),
        b'M' => Duration::from_secs(60 * amount),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_parsed_as_specified() {
        let parse = |value: &str| parse_timeout(value.as_bytes());
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(359_999_996_400)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse("00000007m"), Some(Duration::from_millis(7)));
        assert_eq!(parse("5u"), Some(Duration::from_micros(5)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        for malformed in [
            "",
            "S",
            "1",
            "1s",
            "1h",
            "-1S",
            "+1S",
            " 1S",
            "1 S",
            "1.5S",
            "123456789n",
        ] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
    }
}
