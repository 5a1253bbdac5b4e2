//! Connections to trackers.
//!
//! | module | contents |
//! | --- | --- |
//! | [`addr`] | a tracker's address |
//! | [`channel`] | a connection that is made, and made again, when a call needs it |

pub mod addr;
pub mod channel;
mod status_details;

use crate::connect::addr::TrackerAddr;

/// The address asks for TLS, and the configuration names no authority to trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} needs TLS: set ConnectConfig::tls")]
pub struct NoTls(pub TrackerAddr);

/// To which of several trackers a proxy reports its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WriteTo {
    /// To all trackers. For trackers that do not share their routes. A tracker that cannot be reached delays no other
    /// tracker.
    #[default]
    All,
    /// To one tracker that can be reached. For trackers that share their routes.
    One,
}
