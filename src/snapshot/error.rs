//! What can be wrong with a snapshot, and where.

use std::fmt;
use std::io;

use compact_str::CompactString;
use thiserror::Error;

use crate::error::{NodeIdError, RegisterError};
use crate::types::node_id::NodeId;

/// Why a snapshot was not loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The reader failed.
    #[error("cannot read the snapshot on from byte {offset}: {source}")]
    Read {
        /// How many bytes were read before.
        offset: u64,
        /// What it failed with.
        source: io::Error,
    },
    /// The stream does not begin as every snapshot does.
    #[error("not a snapshot: it does not begin with a snapshot's first eight bytes")]
    NotASnapshot,
    /// The snapshot is of a version that this program does not read.
    #[error("the snapshot's version is {found}, this program reads version {known}")]
    Version {
        /// The snapshot's version.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// The snapshot is not whole, or something in it is not as it has to be.
    #[error("the snapshot is damaged: {part}, byte {offset}: {fault}")]
    Damaged {
        /// What kind of part it is in.
        part: SnapshotPart,
        /// Where in the snapshot; the first byte has offset 0.
        offset: u64,
        /// What is wrong there.
        fault: SnapshotFault,
    },
    /// The table has no room for the snapshot's routes.
    #[error("the snapshot brings {needed} new routes or more, and the table holds at most {limit}")]
    TooManyRoutes {
        /// How many routes the table would have to take in; there may be more of them.
        needed: usize,
        /// The table's limit.
        limit: usize,
    },
    /// The table has no room for the snapshot's proxies.
    #[error("the snapshot brings {needed} new proxies or more, and the table holds at most {limit}")]
    TooManyProxies {
        /// How many proxies the table would have to take in; there may be more of them.
        needed: usize,
        /// The table's limit.
        limit: usize,
    },
    /// There is no memory for it.
    #[error("out of memory")]
    OutOfMemory,
}

/// A kind of part that a snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SnapshotPart {
    /// What a snapshot begins with.
    Header,
    /// The first bytes of a section.
    Head,
    /// A section of proxies.
    Proxies,
    /// A section of nodes with a UUID.
    Uuids,
    /// A section of nodes with a name.
    Names,
    /// What a snapshot ends with.
    End,
}

impl fmt::Display for SnapshotPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotPart::Header => "header",
            SnapshotPart::Head => "head of a section",
            SnapshotPart::Proxies => "section of proxies",
            SnapshotPart::Uuids => "section of UUIDs",
            SnapshotPart::Names => "section of names",
            SnapshotPart::End => "end",
        })
    }
}

/// What is wrong with a part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SnapshotFault {
    /// The stream ends before the snapshot does.
    #[error("the snapshot ends here")]
    Truncated,
    /// The bytes up to here are not the ones that were written.
    #[error("the checksum is {stored:#010x}, but the bytes before it give {computed:#010x}")]
    Checksum {
        /// The checksum in the snapshot.
        stored: u32,
        /// The checksum of what was read.
        computed: u32,
    },
    /// There is no such kind of section.
    #[error("there are no sections of kind {0}")]
    Kind(u8),
    /// The section's kind stands before that of the section before it.
    #[error("such a section cannot stand behind a {after}")]
    Order {
        /// The section before.
        after: SnapshotPart,
    },
    /// The section is larger than any that is written.
    #[error("the section has {bytes} bytes, at most {most} are allowed")]
    TooLarge {
        /// Bytes of the payload.
        bytes: u32,
        /// The most that there may be.
        most: u32,
    },
    /// The section has fewer bytes than its items.
    #[error("an item goes on beyond the end of its section")]
    Short,
    /// The section has more bytes than its items.
    #[error("{bytes} bytes are left behind the section's last item")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// A varint is not below 2^64, or could be shorter.
    #[error("a number has more than 64 bits, or zeros in front")]
    Varint,
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Utf8,
    /// A proxy's text is not acceptable.
    #[error(transparent)]
    Proxy(RegisterError),
    /// A node's name is not acceptable.
    #[error(transparent)]
    NodeId(NodeIdError),
    /// A node's name is a UUID, so the node cannot be among those with names.
    #[error("the UUID {0} stands among the names")]
    UuidAsName(NodeId),
    /// A node has no routes, or too many.
    #[error("a node has {0} routes, not 1 to 64")]
    Routes(u8),
    /// A route is through a proxy that the snapshot does not have.
    #[error("a route is through proxy number {index}, the snapshot has {proxies} of them")]
    NoSuchProxy {
        /// The proxy's number.
        index: u64,
        /// How many proxies there are.
        proxies: usize,
    },
    /// A node has two routes through one proxy.
    #[error("a node has two routes through proxy number {0}")]
    SameProxy(u32),
    /// A route is older than any can be.
    #[error("a route is older than 8.7 years")]
    Age,
    /// Two proxies have one ID.
    #[error("proxy {id:?} is there already, in the section at byte {first}")]
    DuplicateProxy {
        /// The ID.
        id: CompactString,
        /// Where the other one's section begins.
        first: u64,
    },
    /// A node is there twice.
    #[error("node {node} is there already, in the section at byte {first}")]
    DuplicateNode {
        /// The node.
        node: NodeId,
        /// Where the other one's section begins.
        first: u64,
    },
    /// The snapshot does not have what its end says.
    #[error("there should be {stored} {of}, and {found} were found")]
    Total {
        /// What was counted.
        of: &'static str,
        /// The number at the snapshot's end.
        stored: u64,
        /// How many there are.
        found: u64,
    },
    /// The stream goes on behind the snapshot's end.
    #[error("something follows the snapshot's end")]
    Trailing,
}
