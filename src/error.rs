//! Errors of inputs: one enum for each operation that can refuse an input.

use std::num::NonZeroU64;

use thiserror::Error;

use crate::layout::{MAX_ROUTES, MAX_TEXT};

/// Why a string is not acceptable as an ID, a name or an address.
///
/// The `Display` text is a reason without a subject ("is empty"), so that a caller can put the name of its own field in
/// front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TextError {
    /// The string has no bytes.
    #[error("is empty")]
    Empty,
    /// The string has more bytes than [`MAX_TEXT`].
    #[error("is {len} bytes long, the limit is {limit}", limit = MAX_TEXT)]
    TooLong {
        /// How many bytes the string has.
        len: usize,
    },
    /// The string has a control character.
    #[error("has the control character {character:?} at byte {at}")]
    Control {
        /// The first such character.
        character: char,
        /// Its offset in bytes.
        at: usize,
    },
    /// The string is not `host:port`.
    #[error("is not host:port")]
    NotHostPort,
    /// The host has a character that is no letter or digit of any script, and not `-`, `.` or `_`. Such characters may
    /// be invisible.
    #[error("has the character {character:?} at byte {at}, which no host has")]
    NotInHost {
        /// The first such character.
        character: char,
        /// Its offset in bytes.
        at: usize,
    },
    /// The host is `0.0.0.0`, `[::]` or another spelling of them: an address to listen on.
    #[error("has an unspecified address, which no proxy can dial")]
    Unspecified,
}

/// Why a string is not a node ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("node ID {0}")]
#[non_exhaustive]
pub struct NodeIdError(#[source] pub TextError);

/// A string is not a [`NodeCursor`](crate::NodeCursor) or [`ProxyCursor`](crate::ProxyCursor).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a cursor that a table returned")]
#[non_exhaustive]
pub struct CursorError;

/// The part of a [`Proxy`](crate::Proxy) that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyField {
    /// [`Proxy::id`](crate::Proxy::id)
    Id,
    /// [`Proxy::cluster_name`](crate::Proxy::cluster_name)
    ClusterName,
    /// [`Proxy::addr`](crate::Proxy::addr)
    Addr,
}

impl std::fmt::Display for ProxyField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ProxyField::Id => "proxy ID",
            ProxyField::ClusterName => "cluster name",
            ProxyField::Addr => "proxy address",
        })
    }
}

/// Why a proxy was not registered. The table is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// One of the proxy's strings is not acceptable.
    #[error("{field} {reason}")]
    Invalid {
        /// The string that was refused.
        field: ProxyField,
        /// What is wrong with the string.
        reason: TextError,
    },
    /// The table has no room for another proxy: it holds its maximum of proxies, or the routes of many removed proxies
    /// are not swept yet.
    #[error(
        "the table has no room for another proxy: it holds up to {limit}, and removed proxies until they are swept"
    )]
    TooManyProxies {
        /// The limit that was reached.
        limit: usize,
    },
    /// The client that reports the proxy has its maximum of proxies, or many of its removed proxies have routes that
    /// are not swept yet: see [`Builder::max_proxies_per_client`](crate::Builder::max_proxies_per_client).
    #[error("the client has its maximum of {limit} proxies, and of removed proxies until they are swept")]
    TooManyProxiesOfClient {
        /// The limit that was reached.
        limit: usize,
    },
    /// The table holds its maximum of text: see [`Builder::max_text_bytes`](crate::Builder::max_text_bytes).
    #[error("the table holds its maximum of {limit} bytes of names, IDs and addresses")]
    TooMuchText {
        /// The limit that was reached.
        limit: usize,
    },
}

/// Why an incarnation may not begin: a later incarnation has begun, or this incarnation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("incarnation {incarnation} is stale: {}", Latest(*.latest, *.is_over))]
#[non_exhaustive]
pub struct StaleIncarnation {
    /// The incarnation that was refused.
    pub incarnation: NonZeroU64,
    /// The latest incarnation that has begun.
    pub latest: NonZeroU64,
    /// Whether [`remove_proxy`](crate::RouteTable::remove_proxy) ended the latest incarnation, so that only a greater
    /// incarnation may begin.
    pub is_over: bool,
}

/// The latest incarnation, and whether it is over.
struct Latest(NonZeroU64, bool);

impl std::fmt::Display for Latest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Latest(latest, is_over) = self;
        match is_over {
            false => write!(f, "{latest} has begun"),
            true => write!(f, "{latest} is over"),
        }
    }
}

/// Why an incarnation has not begun. The table is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BeginError {
    /// The proxy could not be registered.
    #[error(transparent)]
    Proxy(#[from] RegisterError),
    /// The table has numbers only for restarts, and the routes of older incarnations are not swept yet. Either the
    /// proxy has restarted before, or its client's proxies have used half of these numbers. Other proxies can still
    /// restart.
    #[error("the proxy restarts too often: the routes of its older incarnation are not swept yet")]
    RestartsTooOften,
    /// The table remembers its maximum of incarnations, those of removed proxies included. It forgets the incarnation
    /// of a removed proxy a keep-alive interval after the removal.
    #[error("the table remembers its maximum of {limit} incarnations, those of removed proxies included")]
    TooManyIncarnations {
        /// The limit that was reached.
        limit: usize,
    },
    /// The table remembers the client's maximum of incarnations, those of removed proxies included. The maximum is a
    /// sixteenth and 8 more than [`Builder::max_proxies_per_client`](crate::Builder::max_proxies_per_client).
    #[error("the table remembers the client's maximum of {limit} incarnations, those of removed proxies included")]
    TooManyIncarnationsOfClient {
        /// The limit that was reached.
        limit: usize,
    },
    /// The incarnation is stale.
    #[error(transparent)]
    Stale(#[from] StaleIncarnation),
}

/// The part of a message about a full shard, if the limit of routes is so near [`MAX_ROUTES`] that a shard may
/// be full before the table is.
fn or_of_nodes(limit: usize) -> &'static str {
    match limit > MAX_ROUTES / 2 {
        true => ", or a shard its maximum of nodes",
        false => "",
    }
}

/// Why a route was not added. The table is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddError {
    /// The proxy was removed, or dropped because it had no routes. Register it again.
    #[error("the proxy is no longer registered")]
    UnknownProxy,
    /// The table holds its maximum of routes, or the node's shard its maximum of nodes. A shard reaches its maximum
    /// only near [`MAX_ROUTES`](crate::Builder::MAX_ROUTES).
    #[error("the table holds its maximum of {limit} routes{}", or_of_nodes(*limit))]
    TooManyRoutes {
        /// The limit that was reached.
        limit: usize,
    },
    /// The proxy has its maximum of routes: see
    /// [`Builder::max_routes_per_proxy`](crate::Builder::max_routes_per_proxy).
    #[error("the proxy has its maximum of {limit} routes")]
    TooManyRoutesOfProxy {
        /// The limit that was reached.
        limit: usize,
    },
    /// The client of the proxy has its maximum of routes: see
    /// [`Builder::max_routes_per_client`](crate::Builder::max_routes_per_client).
    #[error("the proxy's client has its maximum of {limit} routes")]
    TooManyRoutesOfClient {
        /// The limit that was reached.
        limit: usize,
    },
    /// The table holds its maximum of text, so it has no room for the node's name: see
    /// [`Builder::max_text_bytes`](crate::Builder::max_text_bytes). A node with a UUID needs no such room.
    #[error("the table holds its maximum of {limit} bytes of names, IDs and addresses")]
    TooMuchText {
        /// The limit that was reached.
        limit: usize,
    },
    /// There is no memory for the route.
    #[error("out of memory")]
    OutOfMemory,
}

/// Why a report was refused. The table is unchanged, except that the proxy may have been registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The proxy could not be registered.
    #[error(transparent)]
    Proxy(#[from] RegisterError),
    /// The route could not be added.
    #[error(transparent)]
    Route(#[from] AddError),
}

/// Why not all nodes of a batch were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{error}, after {added} nodes")]
#[non_exhaustive]
pub struct AddNodesError {
    /// How many of the nodes were added, from the first node on. These nodes stay in the table.
    pub added: usize,
    /// Why the next node was not added.
    #[source]
    pub error: AddError,
}

/// Why not all nodes of a report were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReportNodesError {
    /// The proxy could not be registered. If it was registered and then removed meanwhile, nodes may have been added;
    /// otherwise the table is unchanged.
    #[error(transparent)]
    Proxy(#[from] RegisterError),
    /// A node could not be added.
    #[error(transparent)]
    Nodes(#[from] AddNodesError),
}
