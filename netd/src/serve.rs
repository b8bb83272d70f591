//! The serving side of the control API: answers actions, and streams events.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use cnet_tap::unix;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use cnet::control::stream::{DescriptorStream, Received};
use cnet::control::{
    Action, Answer, EVENTS_PATH, ErrorBody, Kind, MAX_BODY, METRICS_PATH, Nothing, PATH,
    REQUEST_TIMEOUT, Refusal,
};

use crate::events::Subscriber;
use crate::metrics::{self, Format};

/// Connections served at a time; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long one connection may last in all: an action takes its time, and a client that does not
/// read its answer is not waited for.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's line and headers together. Ours have some hundred.
const MAX_HEADERS: usize = 16 * 1024;

/// How long to wait before accepting again when the process lacks descriptors.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(250);

/// What stands behind the API.
pub trait Actions: Send + Sync + 'static {
    /// Whether the client at the other end of this socket is let in.
    ///
    /// # Errors
    ///
    /// The refusal, which it is given for an answer whatever it asks for.
    fn admit(&self, client: BorrowedFd<'_>) -> Result<(), Refusal>;

    /// Does one action.
    fn act(
        &self,
        action: Action,
        descriptors: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<Answer, Refusal>> + Send;

    /// Begins a stream of events.
    ///
    /// # Errors
    ///
    /// A refusal when there are too many of them, or the network is ending.
    fn subscribe(&self) -> Result<Subscriber, Refusal>;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The path does not fit a socket's address.
    #[error(
        "the path of the control socket, {}, is longer than the {} bytes a Unix socket allows; choose a shorter network name, or set XDG_RUNTIME_DIR to a shorter path",
        .0.display(),
        unix::MAX_PATH
    )]
    TooLong(PathBuf),
    /// A socket that a process before this one has left cannot be removed.
    #[error("cannot remove the old {}: {source}", .path.display())]
    Old {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// What the kernel says.
    #[error("cannot make the control socket {}: {source}", .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Binds the socket at `path`, mode 0600. A socket that a killed process left there is removed; the
/// caller holds the lock that says that no other process lives.
///
/// # Errors
///
/// See [`BindError`].
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let owned = || path.to_owned();
    if path.as_os_str().len() > unix::MAX_PATH {
        return Err(BindError::TooLong(owned()));
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            let path = owned();
            return Err(BindError::Old { path, source });
        }
        _ => {}
    }
    listen(path).map_err(|source| BindError::Listen {
        path: owned(),
        source,
    })
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    UnixListener::from_std(unix::listen_private(path, BACKLOG)?.into())
}

/// Counts the connections being served: those that wait for an answer, and streams of events.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    streams: AtomicUsize,
}

impl Busy {
    /// How many wait for an answer.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Acquire)
    }

    /// How many streams of events there are.
    pub fn streams(&self) -> usize {
        self.0.streams.load(Ordering::Acquire)
    }

    fn enter(&self) -> Presence {
        self.0.connections.fetch_add(1, Ordering::AcqRel);
        Presence {
            counts: Arc::clone(&self.0),
            streams: AtomicBool::new(false),
        }
    }
}

/// One connection, counted for as long as it is served.
struct Presence {
    counts: Arc<Counts>,
    /// Whether it has become a stream of events, which may last.
    streams: AtomicBool,
}

impl Presence {
    fn is_stream(&self) -> bool {
        self.streams.load(Ordering::Acquire)
    }

    fn become_stream(&self) {
        if !self.streams.swap(true, Ordering::AcqRel) {
            self.counts.streams.fetch_add(1, Ordering::AcqRel);
            self.counts.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let counted = match self.is_stream() {
            true => &self.counts.streams,
            false => &self.counts.connections,
        };
        counted.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves requests, for ever.
pub async fn serve<A: Actions>(listener: UnixListener, actions: Arc<A>, busy: Busy) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(ACCEPT_INTERVAL).await;
                continue;
            }
        };
        let (actions, presence) = (Arc::clone(&actions), Arc::new(busy.enter()));
        tokio::spawn(async move {
            let conversation = converse(stream, actions, Arc::clone(&presence));
            tokio::pin!(conversation);
            let served = tokio::select! {
                served = &mut conversation => served,
                () = tokio::time::sleep(CONNECTION_TIMEOUT) => {
                    // A stream has a bound of its own on how many there are.
                    drop(permit);
                    match presence.is_stream() {
                        true => conversation.await,
                        false => Ok(()),
                    }
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a control connection failed");
            }
        });
    }
}

async fn converse<A: Actions>(
    stream: UnixStream,
    actions: Arc<A>,
    presence: Arc<Presence>,
) -> hyper::Result<()> {
    let admitted = actions.admit(stream.as_fd());
    if let Err(refusal) = &admitted {
        tracing::warn!(%refusal, "a client of the control socket was turned away");
    }
    let stream = DescriptorStream::new(stream, Vec::new());
    let received = stream.received();
    let service = service_fn(move |request: Request<Incoming>| {
        let (actions, received) = (Arc::clone(&actions), received.clone());
        let (presence, admitted) = (Arc::clone(&presence), admitted.clone());
        async move {
            let answered = match (admitted, request.uri().path()) {
                (Err(refusal), _) => refuse(&refusal),
                (Ok(()), EVENTS_PATH) => {
                    // They would stay open for as long as the stream lasts.
                    drop(received.take());
                    stream_events(&request, &*actions, &presence)
                }
                (Ok(()), METRICS_PATH) => {
                    drop(received.take());
                    metrics(&request, &*actions).await
                }
                (Ok(()), _) => answer(request, &received, &*actions).await,
            };
            Ok::<_, Infallible>(answered)
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_HEADERS)
        // One request a connection, so that it is clear whose the descriptors are.
        .keep_alive(false)
        .serve_connection(stream, service)
        .await
}

/// What an answer consists of: one piece, or lines that come with time.
enum AnswerBody {
    Whole(Option<Bytes>),
    Lines(mpsc::Receiver<Bytes>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            AnswerBody::Whole(bytes) => Poll::Ready(bytes.take()),
            AnswerBody::Lines(lines) => lines.poll_recv(context),
        };
        piece.map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            AnswerBody::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                hyper::body::SizeHint::with_exact(length as u64)
            }
            AnswerBody::Lines(_) => hyper::body::SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, AnswerBody::Whole(None))
    }
}

/// Answers with a line for each event from now on.
fn stream_events<A: Actions>(
    request: &Request<Incoming>,
    actions: &A,
    presence: &Presence,
) -> Response<AnswerBody> {
    if request.method() != Method::GET {
        return wrong_method("events are asked for by GET", "GET");
    }
    let mut events = match actions.subscribe() {
        Ok(events) => events,
        Err(refusal) => return refuse(&refusal),
    };
    presence.become_stream();
    // One line waits here beside those in the client's own queue.
    let (lines, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = lines.closed() => return,
            };
            let Some(event) = event else {
                return;
            };
            // An event has no way to fail.
            let mut line = serde_json::to_vec(&event).unwrap_or_default();
            line.push(b'\n');
            if lines.send(Bytes::from(line)).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(AnswerBody::Lines(receiver));
    let lines_of_json = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, lines_of_json);
    response
}

/// Answers with the metrics of the network.
async fn metrics<A: Actions>(request: &Request<Incoming>, actions: &A) -> Response<AnswerBody> {
    if request.method() != Method::GET {
        return wrong_method("metrics are asked for by GET", "GET");
    }
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    let counted = actions.act(Action::Statistics(Nothing {}), Vec::new());
    match counted.await {
        Ok(Answer::Statistics(report)) => {
            let page = metrics::page(vec![report], Vec::new(), format);
            whole(StatusCode::OK, format.content_type(), page.into_bytes())
        }
        Ok(_) => refuse(&Refusal::new(Kind::Internal, "there are no statistics")),
        Err(refusal) => refuse(&refusal),
    }
}

/// Refuses a method; `allowed` is the one that is served there.
fn wrong_method(message: &str, allowed: &'static str) -> Response<AnswerBody> {
    let mut response = error_response(405, message);
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(ALLOW, allowed);
    response
}

async fn answer<A: Actions>(
    request: Request<Incoming>,
    received: &Received,
    actions: &A,
) -> Response<AnswerBody> {
    if request.uri().path() != PATH {
        let message = format!("there is nothing here; actions go to {PATH}");
        return refuse(&Refusal::new(Kind::NotFound, message));
    }
    if request.method() != Method::POST {
        return wrong_method("actions are sent by POST", "POST");
    }
    let done = async {
        let action = read(request).await?;
        actions.act(action, received.take()).await
    };
    match done.await.map(|answer| serde_json::to_vec(&answer)) {
        Ok(Ok(body)) => response(StatusCode::OK, body),
        Ok(Err(error)) => refuse(&Refusal::new(Kind::Internal, error.to_string())),
        Err(refusal) => refuse(&refusal),
    }
}

async fn read(request: Request<Incoming>) -> Result<Action, Refusal> {
    let invalid = |text: String| Refusal::new(Kind::Invalid, text);
    let body = timeout(
        REQUEST_TIMEOUT,
        Limited::new(request.into_body(), MAX_BODY).collect(),
    );
    let body = match body.await {
        Err(_) => return Err(invalid("the request did not come in time".to_owned())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the request is larger than {MAX_BODY} bytes");
            return Err(Refusal::new(Kind::TooLarge, message));
        }
        Ok(Err(error)) => return Err(invalid(format!("the request is broken: {error}"))),
        Ok(Ok(body)) => body.to_bytes(),
    };
    serde_json::from_slice(&body).map_err(|error| invalid(format!("not an action: {error}")))
}

fn refuse(refusal: &Refusal) -> Response<AnswerBody> {
    error_response(refusal.kind.status(), &refusal.message)
}

fn error_response(status: u16, message: &str) -> Response<AnswerBody> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = ErrorBody {
        message: message.to_owned(),
    };
    // A struct of one string has no way to fail.
    response(status, serde_json::to_vec(&body).unwrap_or_default())
}

fn response(status: StatusCode, mut body: Vec<u8>) -> Response<AnswerBody> {
    body.push(b'\n');
    whole(status, "application/json", body)
}

fn whole(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Some(Bytes::from(body))));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use cnet::control::client::{self, AskError};
    use cnet::control::{Detach, Event, Published};

    use crate::events::EventSource;

    /// Answers `unpublish` with the number of descriptors, refuses `detach`, does the rest.
    struct Echo(EventSource, Result<(), Refusal>);

    impl Default for Echo {
        fn default() -> Echo {
            Echo(EventSource::default(), Ok(()))
        }
    }

    impl Actions for Echo {
        fn admit(&self, _: BorrowedFd<'_>) -> Result<(), Refusal> {
            self.1.clone()
        }

        async fn act(&self, action: Action, fds: Vec<OwnedFd>) -> Result<Answer, Refusal> {
            match action {
                Action::Detach(detach) => Err(Refusal::new(
                    Kind::NotFound,
                    format!("there is no container {}", detach.container),
                )),
                Action::Inspect(_) if fds.is_empty() => Ok(Answer::Done(Nothing {})),
                _ => Ok(Answer::Published(Published { ports: vec![] })),
            }
        }

        fn subscribe(&self) -> Result<Subscriber, Refusal> {
            self.0.subscribe()
        }
    }

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let name = format!("cnet-control-{}-{name}", std::process::id());
            Place(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn start(place: &Place) -> Busy {
        start_with(place, Echo::default())
    }

    fn start_with(place: &Place, echo: Echo) -> Busy {
        let busy = Busy::default();
        let listener = bind(&place.0).unwrap();
        tokio::spawn(serve(listener, Arc::new(echo), busy.clone()));
        busy
    }

    async fn say(place: &Place, text: &[u8]) -> String {
        let mut stream = UnixStream::connect(&place.0).await.unwrap();
        let _ = stream.write_all(text).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    fn post(body: &str) -> Vec<u8> {
        format!(
            "POST {PATH} HTTP/1.1\r\nHost: cnet\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    #[tokio::test]
    async fn one_that_is_not_let_in_is_told_why() {
        let place = Place::new("stranger");
        let why = Refusal::new(Kind::Forbidden, "not from there");
        start_with(&place, Echo(EventSource::default(), Err(why.clone())));
        let asked = client::ask::<Nothing>(&place.0, &Action::Inspect(Nothing {}), vec![]);
        assert!(matches!(asked.await, Err(AskError::Refused(refusal)) if refusal == why));
        let get = format!("GET {EVENTS_PATH} HTTP/1.1\r\nHost: cnet\r\n\r\n");
        assert!(
            say(&place, get.as_bytes())
                .await
                .starts_with("HTTP/1.1 403")
        );
    }

    #[tokio::test]
    async fn actions_and_descriptors_arrive_and_refusals_come_back() {
        use std::os::unix::fs::PermissionsExt;

        let place = Place::new("ask");
        start(&place);
        let mode = fs::metadata(&place.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let inspect = Action::Inspect(Nothing {});
        let _: Nothing = client::ask(&place.0, &inspect, vec![]).await.unwrap();
        let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let published: Published = client::ask(&place.0, &inspect, vec![null]).await.unwrap();
        assert!(published.ports.is_empty());
        let detach = Action::Detach(Detach {
            container: "web".to_owned(),
        });
        match client::ask::<Nothing>(&place.0, &detach, vec![]).await {
            Err(AskError::Refused(refusal)) => {
                assert_eq!(refusal.kind, Kind::NotFound);
                assert_eq!(refusal.message, "there is no container web");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn nonsense_is_refused_with_its_status() {
        let place = Place::new("nonsense");
        start(&place);
        let starts = |answer: String, status: &str| {
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains("{\"message\":\""), "{answer}");
        };
        starts(say(&place, &post("{\"reboot\":{}}")).await, "400");
        starts(say(&place, &post("nonsense")).await, "400");
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        starts(say(&place, &post(&deep)).await, "400");
        let large = format!(
            "{{\"detach\":{{\"container\":\"{}\"}}}}",
            "x".repeat(MAX_BODY)
        );
        starts(say(&place, &post(&large)).await, "413");
        let header = "x".repeat(2 * MAX_HEADERS);
        let request = format!("POST {PATH} HTTP/1.1\r\nHost: cnet\r\nX: {header}\r\n\r\n");
        let answer = say(&place, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        let other = b"POST /v2 HTTP/1.1\r\nHost: cnet\r\nContent-Length: 0\r\n\r\n";
        starts(say(&place, other).await, "404");
        let get = format!("GET {PATH} HTTP/1.1\r\nHost: cnet\r\n\r\n");
        let answer = say(&place, get.as_bytes()).await;
        assert!(answer.to_lowercase().contains("allow: post"), "{answer}");
        starts(answer, "405");
        // The next one is served all the same.
        let answer = say(&place, &post("{\"inspect\":{}}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("{}\n"), "{answer}");
    }

    #[tokio::test]
    async fn events_are_lines_until_the_end() {
        let place = Place::new("events");
        let (busy, echo) = (Busy::default(), Arc::new(Echo::default()));
        let listener = bind(&place.0).unwrap();
        tokio::spawn(serve(listener, Arc::clone(&echo), busy.clone()));
        let reading = async {
            let request = format!("GET {EVENTS_PATH} HTTP/1.1\r\nHost: cnet\r\n\r\n");
            say(&place, request.as_bytes()).await
        };
        let telling = async {
            while busy.streams() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(busy.connections(), 0, "a stream keeps no process alive");
            echo.0.tell(&Event::Lost { count: 7 });
            echo.0.close();
        };
        let (answer, ()) = tokio::join!(reading, telling);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            answer.contains("{\"event\":\"lost\",\"count\":7}\n"),
            "{answer}"
        );
        tokio::task::yield_now().await;
        assert_eq!(busy.streams(), 0);
        let post = format!("POST {EVENTS_PATH} HTTP/1.1\r\nHost: cnet\r\n\r\n");
        let answer = say(&place, post.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }

    #[tokio::test]
    async fn a_listener_keeps_neither_its_descriptors_open_nor_its_place_once_it_is_gone() {
        let place = Place::new("events-descriptors");
        let busy = start(&place);
        let (reader, writer) = io::pipe().unwrap();
        let client = std::os::unix::net::UnixStream::connect(&place.0).unwrap();
        let request = format!("GET {EVENTS_PATH} HTTP/1.1\r\nHost: cnet\r\n\r\n");
        let (pieces, flags) = ([request.as_bytes()], rustix::net::SendFlags::empty());
        unix::send(&client, &pieces, &[writer.as_fd()], flags).unwrap();
        drop(writer);
        let read = tokio::task::spawn_blocking(move || io::read_to_string(reader));
        let read = timeout(REQUEST_TIMEOUT, read).await;
        assert_eq!(read.expect("it is kept").unwrap().unwrap(), "");
        assert_eq!(busy.streams(), 1);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let gone = async {
            while busy.streams() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(REQUEST_TIMEOUT, gone).await.expect("its place");
    }

    #[tokio::test]
    async fn silent_clients_are_dropped() {
        let place = Place::new("silent");
        let busy = start(&place);
        let begun = std::time::Instant::now();
        // One says nothing, one half a header, one half a body.
        let half = post("{\"inspect\":{}}");
        let answers = tokio::join!(
            say(&place, b""),
            say(&place, b"POST /v1"),
            say(&place, &half[..half.len() - 3])
        );
        assert!(begun.elapsed() < REQUEST_TIMEOUT * 3, "{answers:?}");
        tokio::task::yield_now().await;
        assert_eq!(busy.connections(), 0);
    }

    #[tokio::test]
    async fn a_long_path_is_named() {
        let path = std::env::temp_dir().join("x".repeat(unix::MAX_PATH + 1));
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }
}
