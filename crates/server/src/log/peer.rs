//! The client whose connection causes the current work, so that lines of the log name the client.
//!
//! A span of tracing alone would not do: the span of a connection that began before the level was raised would not
//! exist. So [`OfPeer`] looks at the level at each poll.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::field::{DisplayValue, display};
use tracing::{Level, Span, debug_span, enabled};

thread_local! {
    static CURRENT: Cell<Option<SocketAddr>> = const { Cell::new(None) };
}

/// Returns the client whose connection causes the current work.
pub(crate) fn current() -> Option<SocketAddr> {
    CURRENT.get()
}

/// Returns the [current] client for a field of a line. `None` within a span, which names the client already.
pub(crate) fn field() -> Option<DisplayValue<SocketAddr>> {
    current().filter(|_| Span::current().is_disabled()).map(display)
}

/// Runs a function whose work a client causes.
pub(crate) fn with_peer<T>(peer: Option<SocketAddr>, work: impl FnOnce() -> T) -> T {
    let _before = Restore(CURRENT.replace(peer));
    work()
}

/// Puts the client before back on drop, also after a panic.
struct Restore(Option<SocketAddr>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// A future whose work a client causes. If lines of the level debug are logged, they name the client.
pub(crate) struct OfPeer<F> {
    peer: Option<SocketAddr>,
    /// Exists only while lines of the level debug are logged.
    span: Span,
    future: F,
}

impl<F: Future + Unpin> OfPeer<F> {
    /// Returns a future whose work `peer` causes.
    pub(crate) fn new(peer: SocketAddr, future: F) -> Self {
        let peer = Some(peer);
        let span = Span::none();
        Self { peer, span, future }
    }

    /// Returns a future whose work the [current] client causes.
    pub(crate) fn of_current(future: F) -> Self {
        let (peer, span) = (current(), Span::none());
        Self { peer, span, future }
    }
}

impl<F: Future + Unpin> Future for OfPeer<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { peer, span, future } = &mut *self;
        // At the level info, one load and a comparison.
        let is_wanted = enabled!(Level::DEBUG);
        if is_wanted == span.is_disabled() {
            *span = match peer {
                Some(peer) if is_wanted => debug_span!(parent: None, "connection", %peer),
                _ => Span::none(),
            };
        }
        with_peer(*peer, || span.in_scope(|| Pin::new(future).poll(cx)))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{poll_fn, ready};
    use std::task::Waker;

    use tracing::dispatcher;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::log::filter::LevelControl;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5);

    #[test]
    fn work_knows_its_client_and_no_work_after_it() {
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(current(), None);
        let mut task = OfPeer::new(PEER, ready(()));
        let _ = Pin::new(&mut task).poll(&mut cx);
        let mut inner = None;
        with_peer(Some(PEER), || {
            inner = Some(OfPeer::of_current(poll_fn(|_| Poll::Ready(current()))))
        });
        assert_eq!(current(), None);
        let inner = Pin::new(inner.as_mut().expect("it was made")).poll(&mut cx);
        assert_eq!(inner, Poll::Ready(Some(PEER)));
        let panicked = std::panic::catch_unwind(|| with_peer(Some(PEER), || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(current(), None);
    }

    #[test]
    fn a_level_that_rises_reaches_connections_that_are_open() {
        let control = LevelControl::new("info".parse().unwrap());
        let logger = tracing_subscriber::registry().with(control.filter());
        let mut task = OfPeer::new(PEER, poll_fn(|_| Poll::<()>::Pending));
        dispatcher::with_default(&logger.into(), || {
            let mut cx = Context::from_waker(Waker::noop());
            let mut has_span = || {
                let _ = Pin::new(&mut task).poll(&mut cx);
                !task.span.is_disabled()
            };
            assert!(!has_span());
            control.set(Some("debug".parse().unwrap()), None);
            assert!(has_span());
            let mut named = OfPeer::new(PEER, poll_fn(|_| Poll::Ready(field().is_none())));
            assert_eq!(
                Pin::new(&mut named).poll(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(true)
            );
            assert!(with_peer(Some(PEER), field).is_some());
            control.set(None, None);
            assert!(!has_span());
        });
    }
}
