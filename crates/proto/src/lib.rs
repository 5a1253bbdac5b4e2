//! The wire contracts of nodetracker, and the types generated from them.

mod codec;

pub use codec::SmallCodec;

/// `api.NodeTrackerService`, the frozen contract of RFD 47's first prototype: existing Go clients speak it, so package,
/// service, method and field numbers never change.
pub mod api {
    #![allow(missing_docs, reason = "generated; proto/api/nodetracker.proto has the comments")]
    #![allow(clippy::pedantic, reason = "generated")]
    tonic::include_proto!("api");
}
