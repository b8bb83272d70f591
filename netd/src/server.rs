//! The serving side of the control API.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use cnet_tap::unix;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use cnet::control::stream::{DescriptorStream, Received};
use cnet::control::{Action, Answer, ErrorBody, Kind, MAX_BODY, PATH, PATIENCE, Refusal, is_ours};

/// Connections served at a time; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long one connection may last in all: an action takes its time, and a client that does not
/// read its answer is not waited for.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(30);

/// How long to wait before accepting again when the process lacks descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// What stands behind the API.
pub trait Actions: Send + Sync + 'static {
    /// Does one action.
    fn act(
        &self,
        action: Action,
        descriptors: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<Answer, Refusal>> + Send;
}

/// Binds the socket at `path`, mode 0600. A socket that a killed process left there is removed; the
/// caller holds the lock that says that no other process lives.
///
/// # Errors
///
/// A path of 108 bytes or more, and what bind(2) says.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if path.as_os_str().len() > unix::MAX_PATH {
        bail!(
            "the path of the control socket, {}, is longer than the {} bytes a Unix socket allows; choose a shorter network name, or set XDG_RUNTIME_DIR to a shorter path",
            path.display(),
            unix::MAX_PATH
        );
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot remove the old {}", path.display()));
        }
        _ => {}
    }
    listen(path).with_context(|| format!("cannot make the control socket {}", path.display()))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    UnixListener::from_std(unix::listen_private(path, BACKLOG)?.into())
}

/// Counts the connections being served.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// How many there are.
    pub fn connections(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn enter(&self) -> Presence {
        self.0.fetch_add(1, Ordering::AcqRel);
        Presence(self.0.clone())
    }
}

struct Presence(Arc<AtomicUsize>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
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
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !is_ours(&stream) {
            tracing::warn!("a stranger at the control socket was turned away");
            continue;
        }
        let (actions, presence) = (Arc::clone(&actions), busy.enter());
        tokio::spawn(async move {
            let served = timeout(MAX_CONNECTION_TIME, converse(stream, actions)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%error, "a control connection failed");
            }
            drop((permit, presence));
        });
    }
}

async fn converse<A: Actions>(stream: UnixStream, actions: Arc<A>) -> hyper::Result<()> {
    let stream = DescriptorStream::new(stream, Vec::new());
    let received = stream.received();
    let service = service_fn(move |request| {
        let (actions, received) = (Arc::clone(&actions), received.clone());
        async move { Ok::<_, Infallible>(answer(request, &received, &*actions).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_BODY)
        // One request a connection, so that it is clear whose the descriptors are.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer<A: Actions>(
    request: Request<Incoming>,
    received: &Received,
    actions: &A,
) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        let message = format!("there is nothing here; actions go to {PATH}");
        return refuse(&Refusal::new(Kind::NotFound, message));
    }
    if request.method() != Method::POST {
        let mut response = error_response(405, "actions are sent by POST");
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
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
        PATIENCE,
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

fn refuse(refusal: &Refusal) -> Response<Full<Bytes>> {
    error_response(refusal.kind.status(), &refusal.message)
}

fn error_response(status: u16, message: &str) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = ErrorBody {
        message: message.to_owned(),
    };
    // A struct of one string has no way to fail.
    response(status, serde_json::to_vec(&body).unwrap_or_default())
}

fn response(status: StatusCode, mut body: Vec<u8>) -> Response<Full<Bytes>> {
    body.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use cnet::control::client::{self, AskError};
    use cnet::control::{Detach, Nothing, Published};

    /// Answers `unpublish` with the number of descriptors, refuses `detach`, does the rest.
    struct Echo;

    impl Actions for Echo {
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
        let busy = Busy::default();
        let listener = bind(&place.0).unwrap();
        tokio::spawn(serve(listener, Arc::new(Echo), busy.clone()));
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
        assert!(begun.elapsed() < PATIENCE * 3, "{answers:?}");
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
