//! The wire contracts of nodetracker, and their generated types.

mod codec;

pub use codec::{Raw, RawRequestCodec, SmallCodec};

/// `api.NodeTrackerService`, the frozen contract of RFD 47's first prototype. Existing Go clients use it, so the names
/// of the package, service and methods and the numbers of the fields never change.
pub mod api {
    #![allow(missing_docs, reason = "generated; proto/api/nodetracker.proto has the comments")]
    #![allow(clippy::pedantic, reason = "generated")]
    tonic::include_proto!("api");
}

/// `nodetracker.v1`, the contract of all newer services. Each role has one service, so access can be granted by the
/// service's name.
pub mod v1 {
    #![allow(missing_docs, reason = "generated; proto/nodetracker/v1 has the comments")]
    #![allow(clippy::pedantic, reason = "generated")]
    tonic::include_proto!("nodetracker.v1");
}

/// The messages of agents and proxies on tunnels.
pub mod agent {
    /// `nodetracker.agent.v1`, the protocol of a tunnel's control stream.
    pub mod v1 {
        #![allow(missing_docs, reason = "generated; proto/nodetracker/agent/v1 has the comments")]
        #![allow(clippy::pedantic, reason = "generated")]
        tonic::include_proto!("nodetracker.agent.v1");
    }
}

/// The messages of proxies to each other on tunnels.
pub mod peer {
    /// `nodetracker.peer.v1`, the beginning of each stream between proxies.
    pub mod v1 {
        #![allow(missing_docs, reason = "generated; proto/nodetracker/peer/v1 has the comments")]
        #![allow(clippy::pedantic, reason = "generated")]
        tonic::include_proto!("nodetracker.peer.v1");
    }
}

/// An encoded `google.protobuf.FileDescriptorSet` of all `.proto` files and their imports, with comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
