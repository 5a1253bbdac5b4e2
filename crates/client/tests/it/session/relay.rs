//! A TCP relay, whose connections a test can cut, and whose target a test can change.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections to `addr` go to the present target.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    target: watch::Sender<SocketAddr>,
    _task: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (target, targets) = watch::channel(target);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(relay(client, targets.clone()));
            }
        });
        Self {
            addr,
            target,
            _task: task,
        }
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.target.send_modify(|_| {});
    }

    /// Ends all connections; the next connections go to another target.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }
}

async fn relay(mut client: TcpStream, mut targets: watch::Receiver<SocketAddr>) {
    let target = *targets.borrow_and_update();
    if let Ok(mut server) = TcpStream::connect(target).await {
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => {}
            _ = targets.changed() => {}
        }
    }
}
