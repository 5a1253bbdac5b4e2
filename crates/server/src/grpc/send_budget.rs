//! The room that a connection has for answers which its client has yet to read.
//!
//! HTTP/2's windows bound what is on its way to a client, not what waits here until it may go: an answer is built whole,
//! and a client may ask for as many as it may have streams and read none. So a call whose answer may be large begins only
//! once there is room for the largest there is. What the answer does not take of it is given back when it is there, and
//! the rest as soon as HTTP/2 has written or dropped the bytes, on whichever way they came. Calls that find no room wait
//! for their turn, which a client that reads does not notice.
//!
//! Answers that are small whatever is asked for need none: there are only as many as streams. Neither do changes that a
//! watch sends as they are, since all watches send the same bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;

use crate::limits::{MAX_ANSWER_SIZE, MAX_UNREAD_ANSWERS, SMALL_ANSWER_SIZE};

// Or no call could begin.
const _: () = assert!(MAX_ANSWER_SIZE <= MAX_UNREAD_ANSWERS && MAX_UNREAD_ANSWERS <= u32::MAX as usize);

/// What is free of one connection's room, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_UNREAD_ANSWERS)))
    }
}

impl Room {
    /// Takes the room of the largest answer, if it is free and nobody waits for it.
    pub(crate) fn try_take(&self) -> Option<Share> {
        Arc::clone(&self.0)
            .try_acquire_many_owned(MAX_ANSWER_SIZE as u32)
            .ok()
            .map(Share)
    }

    /// Waits for the room of the largest answer.
    pub(crate) async fn take(&self) -> Share {
        let permit = Arc::clone(&self.0).acquire_many_owned(MAX_ANSWER_SIZE as u32);
        Share(permit.await.expect("the semaphore is never closed"))
    }
}

/// Room that is taken, for answers that are about to be built. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share(OwnedSemaphorePermit);

impl Share {
    /// Lets bytes of an answer have their part of this, until they are dropped.
    pub(crate) fn hold(&mut self, answer: Bytes) -> Bytes {
        if answer.len() <= SMALL_ANSWER_SIZE {
            return answer;
        }
        // If there is less than that, then all of it.
        let size = answer.len().min(self.0.num_permits());
        match self.0.split(size) {
            Some(share) => Bytes::from_owner(Held { answer, _share: share }),
            None => answer,
        }
    }

    /// Lets the one message of a response, which is one frame, have its part of this.
    pub(crate) fn hold_body(self, response: Response<Body>) -> Response<Body> {
        let holds = |body| {
            Body::new(Holds {
                body,
                share: Some(self),
            })
        };
        response.map(holds)
    }
}

/// A body whose first frame has a share, of which there is nothing left then.
struct Holds {
    body: Body,
    share: Option<Share>,
}

impl http_body::Body for Holds {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let share = self.share.take();
        Poll::Ready(frame.map(|frame| {
            Ok(match share {
                Some(mut share) => frame?.map_data(|data| share.hold(data)),
                None => frame?,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Bytes with their part of the room.
struct Held {
    answer: Bytes,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body::Body as _;

    use super::*;

    fn free(room: &Room) -> usize {
        room.0.available_permits()
    }

    #[test]
    fn an_answer_has_its_bytes_of_the_room_until_it_is_dropped() {
        let room = Room::default();
        let mut share = room.try_take().expect("all is free");
        assert_eq!(free(&room), MAX_UNREAD_ANSWERS - MAX_ANSWER_SIZE);
        let answer = share.hold(vec![7; 10_000].into());
        let small = share.hold(vec![7; SMALL_ANSWER_SIZE].into());
        drop(share);
        assert_eq!(free(&room), MAX_UNREAD_ANSWERS - 10_000);
        // A part of the bytes keeps all of them.
        let part = answer.slice(1..2);
        drop((answer, small));
        assert_eq!((free(&room), &part[..]), (MAX_UNREAD_ANSWERS - 10_000, &[7][..]));
        drop(part);
        assert_eq!(free(&room), MAX_UNREAD_ANSWERS);
    }

    #[test]
    fn a_call_begins_once_there_is_room_for_the_largest_answer() {
        let room = Room::default();
        let mut held = Vec::new();
        while let Some(mut share) = room.try_take() {
            held.push(share.hold(vec![0; MAX_ANSWER_SIZE].into()));
        }
        assert_eq!(held.len(), MAX_UNREAD_ANSWERS / MAX_ANSWER_SIZE);
        held.pop();
        assert!(room.try_take().is_some());
    }

    #[test]
    fn a_body_has_the_bytes_of_its_message_and_no_more() {
        let room = Room::default();
        let share = room.try_take().expect("all is free");
        let message = Body::new(HeadOf(vec![7; 10_000].into()));
        let mut body = share.hold_body(Response::new(message)).into_body();
        assert_eq!(free(&room), MAX_UNREAD_ANSWERS - MAX_ANSWER_SIZE);
        let cx = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(cx) else {
            panic!("no message");
        };
        let message = frame.into_data().expect("a message");
        assert_eq!((free(&room), message.len()), (MAX_UNREAD_ANSWERS - 10_000, 10_000));
        drop(message);
        assert_eq!(free(&room), MAX_UNREAD_ANSWERS);
    }

    /// A body with one message, after which more is to come.
    struct HeadOf(Bytes);

    impl http_body::Body for HeadOf {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match std::mem::take(&mut self.0) {
                empty if empty.is_empty() => Poll::Pending,
                message => Poll::Ready(Some(Ok(Frame::data(message)))),
            }
        }
    }

    #[test]
    fn more_than_the_largest_answer_takes_no_more_than_was_taken() {
        let room = Room::default();
        let mut share = room.try_take().expect("all is free");
        let parts = [0; 3].map(|byte| share.hold(vec![byte; MAX_ANSWER_SIZE / 2 + 1].into()));
        drop(share);
        assert_eq!(free(&room), MAX_UNREAD_ANSWERS - MAX_ANSWER_SIZE);
        drop(parts);
        assert_eq!(free(&room), MAX_UNREAD_ANSWERS);
    }
}
