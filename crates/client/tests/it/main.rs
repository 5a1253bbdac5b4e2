//! The tests of the client's parts, in one program.

mod session;
