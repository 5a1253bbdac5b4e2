//! From a request to its reply: checks the head and the caller, finds the method, and limits how long the request and
//! the handler take.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{Request, Response};
use nodetracker_proto::Raw;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::debug;

use crate::auth::Caller;
use crate::connection_counters::ConnectionCounters;
use crate::grpc::call_counters::{CallCounters, CallStart};
use crate::grpc::drain_body::end_on_drain;
use crate::grpc::frame::PREFIX;
use crate::grpc::handler::{CallContext, Handler, UnaryHandler};
use crate::grpc::head;
use crate::grpc::method::{MethodTable, split};
use crate::grpc::panics::catch;
use crate::grpc::request::{RequestBody, receive};
use crate::grpc::send_budget::SendBudget;
use crate::grpc::status::correct_response;
use crate::grpc::unary::{self, FirstFrame};
use crate::grpc::unread::Unread;
use crate::grpc::worker_counters::WorkerCounters;
use crate::limits::{
    BYTES_PER_WORK, CALL_MEMORY, CALL_WORK, MAX_PASSIVE_CALLS, MAX_WATCHES_PER_CONNECTION, WAITING_CALL_WORK,
};
use crate::memory::ConnectionMemory;
use crate::refusal::{Reason, Refusals};
use crate::turns::Turns;

/// Routes the requests of all connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    methods: Arc<MethodTable>,
    /// How long a request may take to arrive, and a handler to complete.
    deadline: Duration,
}

impl Router {
    /// Returns a router to `methods`; `deadline` is how long a request may take to arrive, and then its handler to
    /// complete.
    pub(crate) fn new(methods: MethodTable, deadline: Duration) -> Self {
        Self {
            methods: Arc::new(methods),
            deadline,
        }
    }

    /// Returns the methods.
    pub(crate) fn methods(&self) -> &Arc<MethodTable> {
        &self.methods
    }

    /// Returns a router to the same methods for one connection of `caller`, whose reply streams end when `draining` is
    /// cancelled. `counters` are those of the connection's worker. `unread` counts the DATA that no call has read.
    pub(crate) fn for_connection(
        self,
        caller: Arc<Caller>,
        draining: CancellationToken,
        memory: ConnectionMemory,
        turns: Turns,
        counters: WorkerCounters,
        unread: Arc<Unread>,
    ) -> ConnectionRouter {
        ConnectionRouter {
            caller,
            methods: self.methods,
            deadline: self.deadline,
            draining,
            budget: SendBudget::new(memory),
            turns,
            counters,
            unread,
            watches: Arc::new(Semaphore::new(MAX_WATCHES_PER_CONNECTION)),
            passive: Arc::new(Semaphore::new(MAX_PASSIVE_CALLS)),
        }
    }
}

/// Routes the requests of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionRouter {
    /// Of this connection only: an `Arc` of many connections would be a cache line that all workers write.
    caller: Arc<Caller>,
    methods: Arc<MethodTable>,
    deadline: Duration,
    /// Cancelled when the connection drains.
    draining: CancellationToken,
    budget: SendBudget,
    turns: Turns,
    /// The counters of the connection's worker.
    counters: WorkerCounters,
    /// The DATA of the connection that no call has read.
    unread: Arc<Unread>,
    /// A permit for each watch that the connection may still begin.
    watches: Arc<Semaphore>,
    /// The same for calls that leave the connection idle.
    passive: Arc<Semaphore>,
}

/// A request that was looked at. It has no headers: a client could make the server hold megabytes of them.
#[derive(Debug)]
pub(crate) struct Accepted {
    target: Target,
    body: RecvStream,
    arrived: Instant,
}

#[derive(Debug)]
enum Target {
    Method {
        number: usize,
        /// How long the client allows the call to take.
        timeout: Option<Duration>,
    },
    /// The reply, for any body, and the number of the method, or the number of no method.
    Refused(usize, Box<Response<Body>>),
}

impl ConnectionRouter {
    /// Finds the method that a request names. `arrived`: when the head of the request was read.
    pub(crate) fn accept(&self, request: Request<RecvStream>, arrived: Instant) -> Accepted {
        let target = self.target(&request);
        let body = request.into_body();
        Accepted { target, body, arrived }
    }

    /// Returns the data of a call that the counters need.
    pub(crate) fn start_of(&self, request: &Accepted) -> CallStart {
        let method = match request.target {
            Target::Method { number, .. } | Target::Refused(number, _) => number,
        };
        let arrived = request.arrived;
        CallStart { method, arrived }
    }

    /// Returns the path of a call's method. Empty if no method has the path of the request.
    pub(crate) fn path_of(&self, call: CallStart) -> &'static str {
        self.methods.rows().get(call.method).map_or("", |method| method.path)
    }

    /// Reports whether a connection with only such calls in flight is idle.
    pub(crate) fn is_passive(&self, call: CallStart) -> bool {
        self.methods
            .rows()
            .get(call.method)
            .is_some_and(|method| method.is_passive)
    }

    fn target<B>(&self, request: &Request<B>) -> Target {
        let checked = head::check(request, self.refusals());
        let path = request.uri().path();
        let Some(number) = self.methods.find(path) else {
            let refusal = checked.map_or_else(|refusal| refusal, |_| Box::new(self.unknown(path).into_http()));
            return Target::Refused(self.methods.rows().len(), refusal);
        };
        let timeout = match checked {
            Ok(timeout) => timeout,
            Err(refusal) => return Target::Refused(number, refusal),
        };
        match self.methods.rows()[number].check(&self.caller) {
            Ok(()) => Target::Method { number, timeout },
            Err(denied) => {
                self.refuse_if_denied(&denied);
                Target::Refused(number, Box::new(denied.into_http()))
            }
        }
    }

    /// Counts a call that was denied, so that an operator sees which certificate lacks a right.
    fn refuse_if_denied(&self, status: &Status) {
        if status.code() == Code::PermissionDenied {
            let client = self.memory().client().key();
            self.refusals()
                .refuse_certified(Reason::Denied, client, &status.message());
        }
    }

    /// Logs a call that failed, and counts the call if it was denied.
    fn logged<T>(&self, path: &str, replied: Result<T, Status>) -> Result<T, Status> {
        replied.inspect_err(|status| {
            self.refuse_if_denied(status);
            debug!(code = ?status.code(), error = status.message(), "{path} failed");
        })
    }

    /// Calls the method of a request. Adds the work that the call has done to `work`. `waited`: the time now, if the
    /// request has waited for a turn.
    pub(crate) fn call(&self, request: Accepted, waited: Option<Instant>, work: &mut usize) -> Call {
        let Accepted {
            target,
            mut body,
            arrived,
        } = request;
        *work += CALL_WORK;
        let (number, timeout) = match target {
            Target::Method { number, timeout } => (number, timeout),
            Target::Refused(_, refusal) => {
                self.unread.discard(&mut body);
                debug!(http = %refusal.status(), grpc = ?refusal.headers().get(Status::GRPC_STATUS), "refused a request");
                return Call::Done(Reply::Response(refusal));
            }
        };
        let method = &self.methods.rows()[number];
        // A time that `Instant` cannot represent never comes.
        let deadline = timeout.and_then(|timeout| arrived.checked_add(timeout));
        if waited.is_some_and(|now| deadline.is_some_and(|deadline| deadline <= now)) {
            self.unread.discard(&mut body);
            return Call::Done(self.logged(method.path, Err(late())).into());
        }
        let frame = match &method.handler {
            Handler::Immediate(handler) => match unary::first_frame(&mut body) {
                FirstFrame::Message(message) => {
                    self.unread.take(PREFIX + message.len());
                    let replied = catch(method.path, || handler(&message, &self.caller)).flatten();
                    let replied = replied.and_then(|reply| Ok(self.budget.charge(reply)?));
                    let reply_len = replied.as_ref().map_or(0, Bytes::len);
                    *work += (message.len() + reply_len) / BYTES_PER_WORK;
                    return Call::Done(self.logged(method.path, replied).into());
                }
                FirstFrame::Other(frame) => frame,
            },
            Handler::Unary(_) | Handler::Streaming(_) => None,
        };
        *work += WAITING_CALL_WORK;
        let charge = match self.memory().charge(CALL_MEMORY) {
            Ok(charge) => charge,
            Err(full) => {
                self.unread.discard(&mut body);
                return Call::Done(self.logged(method.path, Err(Status::from(full))).into());
            }
        };
        let (router, max_request, path) = (self.clone(), method.max_request, method.path);
        let unread = Arc::clone(&self.unread);
        let with_charge = |charge| RequestBody::new(frame, body, charge, max_request, unread);
        let reply: PendingReply = match &method.handler {
            Handler::Immediate(handler) => {
                let body = with_charge(charge);
                let handler = Arc::clone(handler);
                Box::pin(async move {
                    let replied = async {
                        let message = router.receive(body, max_request).await?;
                        // The turn of the connection has counted the call without its bytes.
                        let handled = async {
                            router.turns.take(message.len() / BYTES_PER_WORK).await;
                            let reply = handler(&message, &router.caller)?;
                            router.turns.pay(reply.len() / BYTES_PER_WORK).await;
                            Ok(router.budget.charge(reply)?)
                        };
                        router.in_time(NOT_DONE, handled).await?
                    };
                    router.logged(path, replied.await).into()
                })
            }
            Handler::Unary(handler) => {
                let body = with_charge(charge);
                let handler = Arc::clone(handler);
                Box::pin(async move {
                    let replied = router.unary(&*handler, body, max_request).await;
                    router.logged(path, replied).into()
                })
            }
            Handler::Streaming(handler) => {
                let permit = match method.is_passive.then(|| Arc::clone(&self.passive).try_acquire_owned()) {
                    Some(Err(_)) => {
                        let message =
                            format!("this connection has {MAX_PASSIVE_CALLS} calls like this, which is the limit");
                        let refused = self.refusals().refuse(Reason::ConnectionWatches).status(message);
                        return Call::Done(self.logged(path, Err(refused)).into());
                    }
                    permit => permit.and_then(Result::ok),
                };
                // A stream may be open for long after its request.
                let body = with_charge(charge.memory().no_charge());
                let held = (charge, permit);
                let handler = Arc::clone(handler);
                Box::pin(async move {
                    let request = Request::post(path).body(body).expect("a path of the table");
                    let response = router.in_time(NOT_ARRIVED, handler(request, max_request, &router));
                    let response = router.logged(path, response.await).unwrap_or_else(Status::into_http);
                    end_on_drain(correct_response(response, router.refusals()), &router.draining, held).into()
                })
            }
        };
        Call::Pending { reply, deadline }
    }

    /// Returns how long a request may take to arrive, a handler to complete, and a client to open its window for a
    /// unary reply.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Ends the caller's rights. Calls in flight continue.
    pub(crate) fn revoke(&mut self) {
        self.caller = Arc::new(self.caller.revoked());
    }

    pub(crate) fn budget(&self) -> &SendBudget {
        &self.budget
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(crate) fn counters(&self) -> &Arc<CallCounters> {
        &self.counters.calls
    }

    pub(crate) fn connection_counters(&self) -> &Arc<ConnectionCounters> {
        &self.counters.connections
    }

    pub(crate) fn watches(&self) -> &Arc<Semaphore> {
        &self.watches
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        self.memory().refusals()
    }

    pub(crate) fn memory(&self) -> &ConnectionMemory {
        self.budget.memory()
    }

    /// Receives the one message of a request.
    async fn receive(&self, mut body: RequestBody, max_request: usize) -> Result<Bytes, Status> {
        if let Some(message) = body.whole_message() {
            return Ok(message);
        }
        self.in_time(NOT_ARRIVED, receive(Raw, body, max_request)).await?
    }

    /// Calls a unary handler once its request has arrived, the worker has time, and the send budget covers the reply.
    async fn unary(&self, handler: &UnaryHandler, body: RequestBody, max_request: usize) -> Result<Bytes, Status> {
        let message = self.receive(body, max_request).await?;
        // The body has given its charge back, and the call may wait for long.
        let _charge = self.memory().charge(CALL_MEMORY + message.len())?;
        let handled = async {
            self.turns.take(CALL_WORK + message.len() / BYTES_PER_WORK).await;
            let context = CallContext {
                caller: Arc::clone(&self.caller),
                turns: self.turns.clone(),
                reply: self.budget.reserve().await,
            };
            handler(message, context).await
        };
        self.in_time(NOT_DONE, handled).await?
    }

    /// Waits for a part of a call, up to the server's own deadline. `late` says what did not happen.
    async fn in_time<T>(&self, late: &str, part: impl Future<Output = T>) -> Result<T, Status> {
        let deadline = self.deadline;
        let late = |_| Status::deadline_exceeded(format!("{late} within {deadline:?}"));
        timeout(deadline, part).await.map_err(late)
    }

    /// Returns the status for a path that is not in the table.
    fn unknown(&self, path: &str) -> Status {
        let (service, method) = split(path);
        Status::unimplemented(match self.methods.has_service(service) {
            false => format!("there is no service {:?}", shortened(service)),
            true => format!("service {service} has no method {:?}", shortened(method)),
        })
    }
}

/// Returns the status of a call whose deadline has passed.
pub(crate) fn late() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

const NOT_ARRIVED: &str = "the request did not arrive";
const NOT_DONE: &str = "the call was not done";

/// A call in progress.
pub(crate) enum Call {
    Done(Reply),
    Pending {
        reply: PendingReply,
        /// The client's deadline.
        deadline: Option<Instant>,
    },
}

/// A reply that has to wait, for its request or for its handler.
pub(crate) type PendingReply = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// The reply to a call.
pub(crate) enum Reply {
    /// One encoded message of a successful call.
    Message(Bytes),
    /// Any other response. Boxed: it is rare, and large to move.
    Response(Box<Response<Body>>),
}

impl From<Result<Bytes, Status>> for Reply {
    fn from(replied: Result<Bytes, Status>) -> Self {
        match replied {
            Ok(message) => Self::Message(message),
            Err(status) => status.into_http().into(),
        }
    }
}

impl From<Response<Body>> for Reply {
    fn from(response: Response<Body>) -> Self {
        Self::Response(Box::new(response))
    }
}

/// Returns the part of a name that an error message repeats.
fn shortened(name: &str) -> &str {
    const MOST: usize = 100;
    name.char_indices().nth(MOST).map_or(name, |(end, _)| &name[..end])
}
