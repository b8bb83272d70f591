//! The asking side of the control API.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::stream::DescriptorStream;
use super::{Action, ErrorBody, Kind, MAX_ANSWER, PATH, Refusal};

/// How long an answer may take. An interface that cannot be made takes the longest
/// ([`cnet_tap::helper::ns_helper::REQUEST_TIMEOUT`]).
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The same of an action that only looks.
const MAX_WAIT_LOOKING: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens: the network does not run.
    #[error("the network does not run: {0}")]
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
    let stream = UnixStream::connect(path)
        .await
        .map_err(|e| match e.kind() {
            // Nobody can listen at a path that is too long; starting the network tells so.
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::InvalidInput => AskError::Absent(e),
            _ => AskError::Unreachable(e),
        })?;
    if !super::is_ours(&stream) {
        return Err(AskError::Stranger(path.to_owned()));
    }
    let patience = match action {
        Action::Inspect(_) | Action::Statistics(_) => MAX_WAIT_LOOKING,
        _ => MAX_WAIT,
    };
    // It listens itself, so it is the peer. One in another PID namespace has no number here.
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let peer = peer.filter(|&pid| pid > 0);
    let asked = timeout(patience, converse(stream, action, descriptors));
    let (status, body) = asked.await.map_err(|_| AskError::Silent(peer))??;
    let unreadable = |e: serde_json::Error| AskError::Unreadable(e.to_string());
    if status == 200 {
        return serde_json::from_slice(&body).map_err(unreadable);
    }
    let ErrorBody { message } = serde_json::from_slice(&body).map_err(unreadable)?;
    let kind = Kind::of_status(status);
    Err(AskError::Refused(Refusal { kind, message }))
}

async fn converse(
    stream: UnixStream,
    action: &Action,
    descriptors: Vec<OwnedFd>,
) -> Result<(u16, Bytes), AskError> {
    let stream = TokioIo::new(DescriptorStream::new(stream, descriptors));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(AskError::Lost)?;
    let conversation = async {
        let body = serde_json::to_vec(action).map_err(|e| AskError::Unreadable(e.to_string()))?;
        let request = Request::post(PATH)
            .header(HOST, "cnet")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| AskError::Unreadable(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(AskError::Lost)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| AskError::Unreadable(e.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    // The connection moves the bytes of the conversation, and ends after it or with an error that
    // the conversation tells as well.
    tokio::pin!(connection);
    tokio::pin!(conversation);
    let mut open = true;
    loop {
        tokio::select! {
            done = &mut conversation => return done,
            _ = &mut connection, if open => open = false,
        }
    }
}
