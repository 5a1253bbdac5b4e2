//! Errors in snapshots, and their places.

use std::fmt;
use std::io;

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
        /// The reader's error.
        source: io::Error,
    },
    /// The stream does not begin with the magic of snapshots.
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
    /// The snapshot is incomplete, or a part of it is wrong.
    #[error("the snapshot is damaged: {part}, byte {offset}: {fault}")]
    Damaged {
        /// The kind of the part.
        part: SnapshotPart,
        /// The place in the snapshot; the first byte has offset 0.
        offset: u64,
        /// What is wrong with the part.
        fault: SnapshotFault,
    },
    /// The table has no room for the snapshot's routes.
    #[error("the snapshot brings {needed} new routes or more, and the table holds at most {limit}")]
    TooManyRoutes {
        /// A lower bound of the routes that the snapshot adds.
        needed: usize,
        /// The table's limit.
        limit: usize,
    },
    /// The table has no room for the snapshot's proxies.
    #[error("the snapshot brings {needed} new proxies or more, and the table holds at most {limit}")]
    TooManyProxies {
        /// A lower bound of the proxies that the snapshot adds.
        needed: usize,
        /// The table's limit.
        limit: usize,
    },
    /// The table cannot remember the ended incarnations of the snapshot.
    #[error("the snapshot has {needed} ended incarnations or more, and the table remembers at most {limit}")]
    TooManyIncarnations {
        /// A lower bound of the ended incarnations in the snapshot.
        needed: usize,
        /// The table's limit.
        limit: usize,
    },
    /// The table has routes, and [`Ages::Grace`](crate::snapshot::Ages::Grace) is only for a table without routes.
    #[error("the table has routes already, so no routes can be restored")]
    NotEmpty,
    /// There is no memory for the snapshot.
    #[error("out of memory")]
    OutOfMemory,
}

/// A kind of part of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SnapshotPart {
    /// The beginning of a snapshot.
    Header,
    /// The first bytes of a section.
    Head,
    /// A section of proxies.
    Proxies,
    /// A section of nodes with a UUID.
    Uuids,
    /// A section of nodes with a name.
    Names,
    /// A section of ended incarnations.
    Incarnations,
    /// The end of a snapshot.
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
            SnapshotPart::Incarnations => "section of ended incarnations",
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
    /// The bytes up to here differ from the bytes that were written.
    #[error("the checksum is {stored:#010x}, but the bytes before it give {computed:#010x}")]
    Checksum {
        /// The checksum in the snapshot.
        stored: u32,
        /// The checksum of the bytes that were read.
        computed: u32,
    },
    /// There is no such kind of section.
    #[error("there are no sections of kind {0}")]
    Kind(u8),
    /// The section's kind belongs before that of the previous section.
    #[error("such a section cannot stand behind a {after}")]
    Order {
        /// The previous section.
        after: SnapshotPart,
    },
    /// The section is larger than the maximum.
    #[error("the section has {bytes} bytes, at most {most} are allowed")]
    TooLarge {
        /// The length of the payload.
        bytes: u32,
        /// The maximum length.
        most: u32,
    },
    /// The items need more bytes than the section has.
    #[error("an item exceeds the end of its section")]
    Short,
    /// The section has more bytes than its items need.
    #[error("{bytes} bytes are left behind the section's last item")]
    Long {
        /// The number of remaining bytes.
        bytes: usize,
    },
    /// A section of nodes has no items. No writer writes such a section.
    #[error("the section has no nodes")]
    Empty,
    /// A varint is not below 2^64, or is not as short as possible.
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
    /// A UUID is in a section of names.
    #[error("the UUID {0} stands among the names")]
    UuidAsName(NodeId),
    /// A node has no routes, or too many.
    #[error("a node has {0} routes, not 1 to 64")]
    Routes(u8),
    /// A route's proxy number is out of range.
    #[error("a route is through proxy number {index}, the snapshot has {proxies} of them")]
    NoSuchProxy {
        /// The proxy's number.
        index: u64,
        /// How many proxies the snapshot has.
        proxies: usize,
    },
    /// A node has two routes through one proxy.
    #[error("a node has two routes through proxy number {0}")]
    SameProxy(u32),
    /// The age of a route or of an ended incarnation is greater than the maximum.
    #[error("an age is more than 8.7 years")]
    Age,
    /// An ended incarnation has no number.
    #[error("an ended incarnation has the number 0")]
    NoIncarnation,
    /// How an incarnation ended is neither 0 nor 1.
    #[error("an incarnation ended by {0}, not by 0 or 1")]
    End(u8),
    /// Two proxies, or two ended incarnations, have the same ID.
    #[error("proxy {id:?} is there already, in the section at byte {first}")]
    DuplicateProxy {
        /// The ID.
        id: String,
        /// Where the section of the first proxy begins.
        first: u64,
    },
    /// A node is in the snapshot twice.
    #[error("node {node} is there already, in the section at byte {first}")]
    DuplicateNode {
        /// The node.
        node: NodeId,
        /// Where the section of the node's first item begins.
        first: u64,
    },
    /// A total at the snapshot's end is wrong.
    #[error("there should be {stored} {of}, and {found} were found")]
    Total {
        /// What the total counts.
        of: &'static str,
        /// The total at the snapshot's end.
        stored: u64,
        /// The counted number.
        found: u64,
    },
    /// Bytes follow the snapshot's end.
    #[error("something follows the snapshot's end")]
    Trailing,
}
