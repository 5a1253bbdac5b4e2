//! Page tokens: a position in a list, and the tracker instance that it is valid for.
//!
//! A client could invent a position that makes the table read much for a small page. So a token has a code that only
//! this instance can compute, and the table gets no other positions than those that it returned.

use std::fmt::Display;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use aws_lc_rs::rand::SystemRandom;
use tonic::Status;

use crate::rpc::instance_id::InstanceId;

/// Separates the instance ID and the code, both in hexadecimal, and the position.
const SEPARATOR: char = '.';

/// The tokens of one list.
#[derive(Debug)]
pub(super) struct PageTokens {
    instance_id: InstanceId,
    key: Key,
}

impl PageTokens {
    /// Returns the tokens of a list with a random key.
    pub(super) fn new(instance_id: InstanceId) -> Self {
        let key = Key::generate(HMAC_SHA256, &SystemRandom::new());
        Self {
            instance_id,
            key: key.expect("the system has random numbers: TLS needs them, too"),
        }
    }

    /// Returns the first half of the HMAC of a position.
    fn code(&self, position: &str) -> u128 {
        let tag = sign(&self.key, position.as_bytes());
        tag.as_ref().first_chunk().map_or(0, |half| u128::from_be_bytes(*half))
    }

    /// Returns the token of the next page. It is empty after the last page.
    pub(super) fn write(&self, next: Option<impl Display>) -> String {
        let Some(position) = next else { return String::new() };
        let (id, position) = (self.instance_id.get(), position.to_string());
        let code = self.code(&position);
        format!("{id:x}{SEPARATOR}{code:x}{SEPARATOR}{position}")
    }

    /// Returns the position in the field `page_token`. An empty token is the start of the list.
    pub(super) fn read<P: FromStr + Default>(&self, token: &str) -> Result<P, Status> {
        if token.is_empty() {
            return Ok(P::default());
        }
        let not_a_token = || Status::invalid_argument("page_token is not a token of this list");
        let (id, rest) = token.split_once(SEPARATOR).ok_or_else(not_a_token)?;
        let id = u64::from_str_radix(id, 16).map_err(|_| not_a_token())?;
        if id != self.instance_id.get() {
            return Err(Status::failed_precondition(
                "page_token is from before a restart: list again from the first page",
            ));
        }
        rest.split_once(SEPARATOR)
            .filter(|(code, position)| self.is_code(code, position))
            .and_then(|(_, position)| position.parse().ok())
            .ok_or_else(not_a_token)
    }

    fn is_code(&self, code: &str, position: &str) -> bool {
        u128::from_str_radix(code, 16)
            .is_ok_and(|code| verify_slices_are_equal(&code.to_be_bytes(), &self.code(position).to_be_bytes()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn only_tokens_that_the_list_has_written_are_read() {
        let [instance, restarted] = [(); 2].map(|()| InstanceId::draw());
        let [list, other_list] = [(); 2].map(|()| PageTokens::new(instance));
        let refused = |tokens: &PageTokens, token: &str| tokens.read::<u64>(token).expect_err(token).code();

        assert_eq!(list.write(None::<u64>), "");
        assert_eq!(list.read::<u64>("").expect("the beginning"), 0);
        let token = list.write(Some(77_u64));
        assert_eq!(list.read::<u64>(&token).expect("its own"), 77);
        assert_eq!(refused(&other_list, &token), Code::InvalidArgument);
        assert_eq!(refused(&PageTokens::new(restarted), &token), Code::FailedPrecondition);
        for at in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[at] ^= 1;
            let altered = String::from_utf8(altered).expect("ASCII");
            assert!(list.read::<u64>(&altered).is_err(), "{altered}");
        }
        let id = instance.get();
        for invented in ["x", ".", "..", &format!("{id:x}.77"), &format!("{id:x}..77")] {
            assert_eq!(refused(&list, invented), Code::InvalidArgument, "{invented}");
        }
    }
}
