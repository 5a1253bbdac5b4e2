//! The table's errors as gRPC statuses. Every service uses this mapping.
//!
//! | error | status |
//! | --- | --- |
//! | a string is not acceptable | INVALID_ARGUMENT, and the message begins with the path of the field |
//! | a limit of the table is reached | RESOURCE_EXHAUSTED with a `RetryInfo`; the refusal is counted |
//! | any other | INTERNAL |

use std::fmt::Display;

use nodetracker::{
    AddError, AddNodesError, BeginError, NodeIdError, ProxyField, RegisterError, ReportError, ReportNodesError,
    TextError,
};
use tonic::Status;

use crate::refusal::{Reason, Refusals};

/// A string in `field` is not acceptable.
pub(crate) fn text(field: impl Display, reason: TextError) -> Status {
    Status::invalid_argument(format!("{field} {reason}"))
}

/// A string in `field` is not a node ID.
pub(crate) fn node_id(field: impl Display, error: NodeIdError) -> Status {
    text(field, error.0)
}

/// A proxy was not registered. `path` is the prefix of the proxy's fields.
pub(crate) fn register(refusals: &Refusals, path: &str, error: RegisterError) -> Status {
    match error {
        RegisterError::Invalid { field, reason } => text(format_args!("{path}{}", proxy_field(field)), reason),
        RegisterError::TooManyProxies { .. } => refusals.refuse(Reason::TableProxies).status(error.to_string()),
        RegisterError::TooManyProxiesOfClient { .. } => {
            refusals.refuse(Reason::ClientProxies).status(error.to_string())
        }
        RegisterError::TooMuchText { .. } => refusals.refuse(Reason::TableMemory).status(error.to_string()),
        error => Status::internal(error.to_string()),
    }
}

/// An incarnation has not begun, though it is not stale. `path` is the prefix of the proxy's fields.
pub(crate) fn begin(refusals: &Refusals, path: &str, error: BeginError) -> Status {
    match error {
        BeginError::Proxy(error) => register(refusals, path, error),
        BeginError::RestartsTooOften => refusals.refuse(Reason::ProxyRestarts).status(error.to_string()),
        BeginError::TooManyIncarnationsOfClient { .. } => {
            refusals.refuse(Reason::ClientProxies).status(error.to_string())
        }
        BeginError::TooManyIncarnations { .. } => refusals.refuse(Reason::TableProxies).status(error.to_string()),
        error => Status::internal(error.to_string()),
    }
}

/// A report of one node failed. `path` is the prefix of the proxy's fields.
pub(crate) fn report(refusals: &Refusals, path: &str, error: ReportError) -> Status {
    match error {
        ReportError::Proxy(error) => register(refusals, path, error),
        ReportError::Route(error) => add(refusals, error, error),
        error => Status::internal(error.to_string()),
    }
}

/// A report of many nodes failed. `path` is the prefix of the proxy's fields.
pub(crate) fn report_nodes(refusals: &Refusals, path: &str, error: ReportNodesError) -> Status {
    match error {
        ReportNodesError::Proxy(error) => register(refusals, path, error),
        ReportNodesError::Nodes(error @ AddNodesError { error: cause, .. }) => add(refusals, cause, error),
        error => Status::internal(error.to_string()),
    }
}

fn add(refusals: &Refusals, error: AddError, message: impl Display) -> Status {
    let reason = match error {
        AddError::TooManyRoutes { .. } => Reason::TableRoutes,
        AddError::TooManyRoutesOfProxy { .. } => Reason::ProxyRoutes,
        AddError::TooManyRoutesOfClient { .. } => Reason::ClientRoutes,
        AddError::TooMuchText { .. } | AddError::OutOfMemory => Reason::TableMemory,
        _ => return Status::internal(message.to_string()),
    };
    refusals.refuse(reason).status(message.to_string())
}

/// Returns the name of a proxy's field, which is the same in every service.
fn proxy_field(field: ProxyField) -> &'static str {
    match field {
        ProxyField::Id => "proxy_id",
        ProxyField::ClusterName => "cluster_name",
        ProxyField::Addr => "addr",
    }
}
