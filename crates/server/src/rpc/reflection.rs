//! `grpc.reflection`: the descriptors of every service of the port.

use tonic_reflection::server::Builder;

/// The descriptors that reflection serves.
pub(super) const FILE_DESCRIPTOR_SETS: [&[u8]; 4] = [
    nodetracker_proto::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    // Each version of reflection describes both.
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Returns a builder of the reflection services with all descriptors.
pub(super) fn builder() -> Builder<'static> {
    FILE_DESCRIPTOR_SETS
        .into_iter()
        .fold(Builder::configure(), Builder::register_encoded_file_descriptor_set)
}
