//! Page tokens: a position in a list, and the tracker instance that it is valid for.

use std::fmt::Display;
use std::str::FromStr;

use tonic::Status;

use crate::rpc::instance_id::InstanceId;

/// Separates the instance ID, in hexadecimal, from the position.
const SEPARATOR: char = '.';

/// Returns the token of the next page. It is empty after the last page.
pub(super) fn write(instance_id: InstanceId, next: Option<impl Display>) -> String {
    match next {
        Some(position) => format!("{:x}{SEPARATOR}{position}", instance_id.get()),
        None => String::new(),
    }
}

/// Returns the position in the field `page_token`. An empty token is the start of the list.
pub(super) fn read<P: FromStr + Default>(instance_id: InstanceId, token: &str) -> Result<P, Status> {
    if token.is_empty() {
        return Ok(P::default());
    }
    let parsed = token.split_once(SEPARATOR).and_then(|(id, position)| {
        let id = u64::from_str_radix(id, 16).ok()?;
        Some((id, position.parse().ok()?))
    });
    match parsed {
        None => Err(Status::invalid_argument("page_token is not a token of this list")),
        Some((id, _)) if id != instance_id.get() => Err(Status::failed_precondition(
            "page_token is from before a restart: list again from the first page",
        )),
        Some((_, position)) => Ok(position),
    }
}
