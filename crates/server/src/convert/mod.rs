//! Between the messages of `nodetracker.v1` and the table's types.

pub(crate) mod encode;
pub(crate) mod parse;
