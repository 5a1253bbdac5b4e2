//! Keeps `bench` from harming a tracker that is in use, and removes what a run has added.

use nodetracker_proto::v1;
use tonic::{Code, Status};

use crate::cli::commands::bench::work::Population;
use crate::cli::commands::{CommandError, TrackerArgs};
use crate::cli::remark;

/// Fails if the tracker cannot be reached. Unless the user has agreed, fails also if the tracker may be in use. A
/// tracker may be in use if it is not on the loopback interface, has registered proxies, or refuses to list its
/// proxies.
pub(super) async fn check(at: &TrackerArgs, is_agreed: bool) -> Result<(), CommandError> {
    let refuse = |reason: &str| {
        let load = "a benchmark may take all of its CPU, and fills its table";
        Err(CommandError::Usage(format!(
            "{}: {reason}; {load}: repeat with --yes if you mean it",
            at.addr
        )))
    };
    let mut client = at.admin().await?;
    if is_agreed {
        return Ok(());
    }
    if !at.addr.is_loopback().await {
        return refuse("the tracker is not on the loopback interface");
    }
    let request = v1::ListProxiesRequest {
        page_size: 1,
        ..v1::ListProxiesRequest::default()
    };
    match at.answer(client.list_proxies(request)).await {
        Ok(listed) if listed.proxies.is_empty() => Ok(()),
        Ok(_) => refuse("proxies report to the tracker"),
        // Another server of the frozen contract.
        Err(status) if status.code() == Code::Unimplemented => Ok(()),
        Err(status) if is_refused(&status) => refuse("the tracker does not say whether it is in use"),
        Err(status) => Err(at.failed(status).await),
    }
}

/// Removes the proxies of a run, with all their routes. If routes stay, prints a remark.
pub(super) async fn remove_proxies(at: &TrackerArgs, population: &Population) {
    if let Err(reason) = try_remove(at, population).await {
        remark(&format!("the routes of this run stay until they expire: {reason}"));
    }
}

async fn try_remove(at: &TrackerArgs, population: &Population) -> Result<(), CommandError> {
    let mut client = at.admin().await?;
    for proxy in 0..population.proxies {
        let proxy_id = population.proxy_id(proxy);
        at.call(client.remove_proxy(v1::RemoveProxyRequest { proxy_id }))
            .await?;
    }
    Ok(())
}

fn is_refused(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
}
