//! Conversions between protobuf messages and the table's types.

pub(crate) mod encode;
pub(crate) mod parse;
pub(crate) mod status;
