//! Tests of the prices of requests that arrive in several frames, or after their reply.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use tonic::body::Body;

use crate::grpc::handler::Handler;
use crate::grpc::request::RequestBody;
use crate::http2::connection::tests::frame;
use crate::http2::served::{Served, Silent};
use crate::limits::{
    BYTES_PER_WORK, CALL_MEMORY, CALL_WORK, FIELD_INPUT, INPUT_PER_WORK, SMALL_BLOCK, UNREAD_STEP, WAITING_CALL_WORK,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Bytes that the stream between the client and the server keeps: more than all replies of a test.
const BETWEEN: usize = 1 << 20;

/// The head of a request.
const HEAD: &[u8] = b"\x83\x86\x04\x0e/Counting/Call\x0f\x10\x10application/grpc";

/// The head of a request for a method that the server does not have.
const UNKNOWN_METHOD: &[u8] = b"\x83\x86\x04\x0e/Counting/None\x0f\x10\x10application/grpc";

/// Otherwise a client would have large replies for the price of small replies.
#[tokio::test]
async fn a_request_in_two_frames_costs_as_much_as_in_one_frame() {
    const REPLY: usize = 50_000;
    let message = [0, 0, 0, 0, 2, 7, 7];
    let cases: [(&[&[u8]], usize); 3] = [
        (&[&message], 0),
        // Some clients end each request with an empty frame.
        (&[&message, &[]], 0),
        (&[&message[..6], &message[6..]], WAITING_CALL_WORK),
    ];
    for (frames, more) in cases {
        let handler = Handler::Immediate(Arc::new(|message, _| {
            assert_eq!(message, [7, 7]);
            Ok(Bytes::from(vec![0; REPLY]))
        }));
        let mut served = Served::plaintext(BETWEEN, handler, 1 << 30).await;
        let mut request = frame(HEADERS, END_HEADERS, 1, HEAD);
        for (at, data) in frames.iter().enumerate() {
            let flags = if at + 1 == frames.len() { END_STREAM } else { 0 };
            request.extend(frame(DATA, flags, 1, data));
        }
        let before = served.worker.spent();
        served.send(&request).await;
        let spent = served.worker.spent() - before;
        assert_eq!(spent, CALL_WORK + REPLY / BYTES_PER_WORK + more, "{frames:?}");
    }
}

/// Otherwise a client would have milliseconds of work for the price of some kilobytes.
#[tokio::test]
async fn many_fields_cost_more_than_their_bytes() {
    // Less work than that of a pass.
    const MANY: usize = 4_000;
    // `accept-encoding: gzip, deflate`, a byte each.
    const FIELD: u8 = 0x90;
    let handler = Handler::Immediate(Arc::new(|_, _| Ok(Bytes::new())));
    let mut served = Served::plaintext(BETWEEN, handler, 1 << 30).await;
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[HEAD, &[FIELD; MANY]].concat());
    let before = served.worker.spent();
    served.send(&request).await;
    let spent = served.worker.spent() - before;
    assert!(spent >= (MANY - SMALL_BLOCK) * FIELD_INPUT / INPUT_PER_WORK, "{spent}");
}

/// h2 drops the rest of a request that has its reply. Otherwise the client's other calls would fill the budget while it
/// has a session, and the session's connection would end.
#[tokio::test]
async fn data_that_h2_drops_is_not_charged_while_a_call_reads() {
    const LATE: u32 = 50;
    let handler = Handler::Streaming(Arc::new(|request: Request<RequestBody>, _, _| {
        tokio::spawn(async move {
            let mut body = request.into_body();
            while poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some() {}
        });
        Box::pin(async { Response::new(Body::new(Silent)) })
    }));
    let mut served = Served::plaintext(BETWEEN, handler, 1 << 30).await;
    served.send(&frame(HEADERS, END_HEADERS, 1, HEAD)).await;
    assert_eq!(served.memory.used(), CALL_MEMORY);
    let heartbeat = frame(DATA, 0, 1, &[0; 10]);
    for stream in (3..).step_by(2).take(LATE as usize) {
        served.send(&frame(HEADERS, END_HEADERS, stream, UNKNOWN_METHOD)).await;
        served.send(&heartbeat).await;
        served.send(&frame(DATA, 0, stream, &[0; 16_000])).await;
        // The last frame counts until another frame arrives, because it may be incomplete.
        assert!(served.memory.used() <= CALL_MEMORY + UNREAD_STEP, "{stream}");
    }
    assert!(!served.task.is_finished());
    served.send(&heartbeat).await;
    assert_eq!(served.memory.used(), CALL_MEMORY);
}
