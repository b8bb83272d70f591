//! The asking side of the control API.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::stream::DescriptorStream;
use super::{Action, ErrorBody, Kind, MAX_ANSWER, PATH, Refusal};

/// How long an answer may take. An interface that cannot be made takes the longest: the network's
/// process gives up on it after 5 seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The same of an action that only looks.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// No process listens: the network does not run.
    #[error("the network's process does not run; nothing listens at its control socket")]
    Absent(io::Error),
    /// The socket cannot be reached.
    #[error("cannot reach the network's control socket: {0}")]
    Unreachable(io::Error),
    /// Another user listens there, who is not to be given a container's namespace.
    #[error(
        "another user listens at {}; remove that, or set XDG_RUNTIME_DIR to a directory of your own",
        .0.display()
    )]
    Stranger(PathBuf),
    /// The connection ended before a byte of an answer: the network process has ended meanwhile.
    #[error("the network process ended before it answered: {0}")]
    Lost(hyper::Error),
    /// No answer in time from the process of this number, if it is known.
    #[error(
        "the network process does not answer; if it stays like that, end it with {}: the next command starts it again, with its containers",
        kill(*.0)
    )]
    Silent(Option<i32>),
    /// An answer that makes no sense.
    #[error("the network process gave an answer that cannot be read: {0}")]
    Unreadable(String),
    /// The action was refused.
    #[error("{0}")]
    Refused(Refusal),
}

/// The command that ends a process whatever it does.
fn kill(process: Option<i32>) -> String {
    match process {
        Some(pid) => format!("`kill -KILL {pid}`"),
        None => "SIGKILL".to_owned(),
    }
}

/// Asks the network process at the socket `path`; `descriptors` go along.
///
/// # Errors
///
/// See [`AskError`].
pub async fn ask<T: DeserializeOwned>(
    path: &Path,
    action: &Action,
    descriptors: Vec<OwnedFd>,
) -> Result<T, AskError> {
    let (stream, peer) = connect(path).await?;
    let body = serde_json::to_vec(action).map_err(unreadable)?;
    let request = request("POST", PATH, body)?;
    let asked = async {
        let (response, _connection) = exchange(stream, descriptors, request).await?;
        let (status, mut body) = (response.status().as_u16(), response.into_body());
        Ok((status, collect(&mut body).await?))
    };
    let limit = match action {
        Action::Inspect(_) | Action::Statistics(_) | Action::Policies(_) => LOOK_TIMEOUT,
        _ => ANSWER_TIMEOUT,
    };
    let (status, answer) = timeout(limit, asked)
        .await
        .map_err(|_| AskError::Silent(peer))??;
    match status {
        200 => serde_json::from_slice(&answer).map_err(unreadable),
        status => Err(refused(status, &answer)),
    }
}

fn unreadable(error: serde_json::Error) -> AskError {
    AskError::Unreadable(error.to_string())
}

/// The error that an answer with this status and body tells.
pub(super) fn refused(status: u16, body: &[u8]) -> AskError {
    let kind = Kind::of_status(status);
    match serde_json::from_slice(body) {
        Ok(ErrorBody { message }) => AskError::Refused(Refusal { kind, message }),
        Err(error) => unreadable(error),
    }
}

/// Connects to the process at the socket `path`, and tells its number if it is known.
pub(super) async fn connect(path: &Path) -> Result<(UnixStream, Option<i32>), AskError> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|e| match e.kind() {
            // No process can listen at a path that is too long; starting the network tells so.
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::InvalidInput => AskError::Absent(e),
            _ => AskError::Unreachable(e),
        })?;
    if !is_ours(&stream) {
        return Err(AskError::Stranger(path.to_owned()));
    }
    // It listens itself, so it is the peer. One in another PID namespace has no number here.
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    Ok((stream, peer.filter(|&pid| pid > 0)))
}

/// Whether the peer is this user, or root (unix(7), SO_PEERCRED).
fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

pub(super) fn request(
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> Result<Request<WholeBody>, AskError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "cnet")
        .header(CONTENT_TYPE, "application/json")
        .body(WholeBody(Some(Bytes::from(body)).filter(|b| !b.is_empty())))
        .map_err(|e| AskError::Unreadable(e.to_string()))
}

/// Sends a request and waits for the head of its response. The body comes for as long as the
/// connection is kept.
pub(super) async fn exchange(
    stream: UnixStream,
    descriptors: Vec<OwnedFd>,
    request: Request<WholeBody>,
) -> Result<(Response<Incoming>, Connection), AskError> {
    let stream = DescriptorStream::new(stream, descriptors);
    let handshake = hyper::client::conn::http1::handshake(stream);
    let (mut sender, connection) = handshake.await.map_err(AskError::Lost)?;
    // It ends after the conversation, or with an error that the conversation tells as well.
    let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
    let response = sender.send_request(request).await.map_err(AskError::Lost)?;
    Ok((response, connection))
}

/// Moves the bytes of a connection until it is dropped.
#[derive(Debug)]
pub(super) struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The next bytes of a body; `None` at its end.
pub(super) async fn next_piece(body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
    loop {
        let frame =
            std::future::poll_fn(|context| -> Poll<_> { Pin::new(&mut *body).poll_frame(context) });
        match frame.await? {
            // Anything else is trailers.
            Ok(frame) => {
                if let Ok(piece) = frame.into_data() {
                    return Some(Ok(piece));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

/// All of a body, up to [`MAX_ANSWER`] bytes.
pub(super) async fn collect(body: &mut Incoming) -> Result<Vec<u8>, AskError> {
    let mut collected = Vec::new();
    while let Some(piece) = next_piece(body).await {
        let piece = piece.map_err(|e| AskError::Unreadable(e.to_string()))?;
        if collected.len() + piece.len() > MAX_ANSWER {
            let text = format!("it is larger than {MAX_ANSWER} bytes");
            return Err(AskError::Unreadable(text));
        }
        collected.extend_from_slice(&piece);
    }
    Ok(collected)
}

/// The body of a request: nothing, or one piece.
#[derive(Debug)]
pub(super) struct WholeBody(Option<Bytes>);

impl Body for WholeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
