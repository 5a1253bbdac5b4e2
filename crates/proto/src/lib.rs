//! The wire contracts of nodetracker, and the types generated from them.

mod codec;

pub use codec::{Raw, SmallCodec};

/// `api.NodeTrackerService`, the frozen contract of RFD 47's first prototype: existing Go clients speak it, so package,
/// service, method and field numbers never change.
pub mod api {
    #![allow(missing_docs, reason = "generated; proto/api/nodetracker.proto has the comments")]
    #![allow(clippy::pedantic, reason = "generated")]
    tonic::include_proto!("api");
}

/// `nodetracker.v1`: everything that is newer. One service for each role, so that what proxies may do and what operators
/// may do can be told apart by the service's name.
pub mod v1 {
    #![allow(missing_docs, reason = "generated; proto/nodetracker/v1 has the comments")]
    #![allow(clippy::pedantic, reason = "generated")]
    tonic::include_proto!("nodetracker.v1");
}

/// An encoded `google.protobuf.FileDescriptorSet` of all the `.proto` files, with their comments, and of what they import.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
