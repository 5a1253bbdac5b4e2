//! Page tokens: a place in a list, and the generation of the tracker that it is good under.

use std::fmt::Display;
use std::str::FromStr;

use tonic::Status;

use crate::rpc::instance_id::Generation;

/// Between the generation, in hexadecimal, and the place.
const DOT: char = '.';

/// The token of the next page; empty after the last one.
pub(super) fn write(generation: Generation, next: Option<impl Display>) -> String {
    match next {
        Some(place) => format!("{:x}{DOT}{place}", generation.get()),
        None => String::new(),
    }
}

/// The place that the field `page_token` names; an empty one names the beginning.
pub(super) fn read<P: FromStr + Default>(generation: Generation, token: &str) -> Result<P, Status> {
    if token.is_empty() {
        return Ok(P::default());
    }
    let parsed = token.split_once(DOT).and_then(|(of, place)| {
        let of = u64::from_str_radix(of, 16).ok()?;
        Some((of, place.parse().ok()?))
    });
    match parsed {
        None => Err(Status::invalid_argument(
            "page_token is none that was given out for this list",
        )),
        Some((of, _)) if of != generation.get() => Err(Status::failed_precondition(
            "page_token is from before a restart: begin the list anew",
        )),
        Some((_, place)) => Ok(place),
    }
}
