//! Who calls, and what each caller may do.
//!
//! A connection has one [`Caller`], which the server finds out from the client's certificate after the TLS handshake.
//! Each method has a rule, [`Access`], in the [method table](crate::rpc::methods). The router checks the rule before it
//! looks at the request. A unary method with the rule [`Access::OwnProxy`] gets its request as an [`UncheckedWrite`],
//! which gives the request away only with a check of the proxy. A session checks the proxy of its first message itself.
//!
//! `docs/authorization.md` has the rules for users.

mod access;
mod caller;
mod certificate;
mod unchecked_write;

pub(crate) use access::Access;
pub(crate) use caller::Caller;
pub(crate) use unchecked_write::UncheckedWrite;
