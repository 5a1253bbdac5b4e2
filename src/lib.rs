//! A lock-free table of which proxies hold the tunnels to which nodes.

mod clock;
mod error;
mod node_id;
mod proxies;
mod route;

pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{AddError, NodeIdError, ProxyField, RegisterError, TextError};
pub use node_id::{MAX_TEXT, NodeId};
pub use proxies::{Proxy, ProxyDetails, ProxyRef};
pub use route::{Added, Route};
