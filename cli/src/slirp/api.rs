//! slirp4netns's API: port forwards over a Unix socket.
//!
//! # Theory of operation
//!
//! One connection carries one request: the client writes JSON and shuts down its side, the server
//! answers and closes. Connections are served beside each other, at most [`MAX_CONNECTIONS`] at a
//! time. Whoever says nothing for [`PATIENCE`] is dropped without an answer.
//!
//! The error texts are slirp4netns's. The cause of a forward that could not be opened goes to the
//! log, because the protocol has no place for it.
//!
//! # What is stricter than the original
//!
//! The socket is open to its owner alone (mode 0600). A port over 65535 or with a fraction is
//! refused, where the original cuts it to 16 bits. Missing arguments are an error, where the
//! original ends with a segmentation fault. And wider: addresses of IPv6 are taken too, where the
//! network has it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cnet_tap::unix;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use cnet_dataplane::{Control, ForwardError, ForwardId, Rule};
use cnet_wire::Protocol;

/// A request is shorter than this.
pub const MAX_REQUEST: usize = 4096;

/// How long a client may take to ask, and to take its answer.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Connections served at a time; further ones wait in the listen queue.
pub const MAX_CONNECTIONS: usize = 32;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How much of a request that is too large is still read, so that the client, which writes before
/// it reads, gets the answer instead of a reset connection.
const MAX_SKIPPED: u64 = 1024 * 1024;

/// The part of the network that the API steers.
pub trait Forwards: Send + Sync + 'static {
    /// Opens a forward.
    fn open(&self, rule: Rule) -> impl Future<Output = Result<ForwardId, ForwardError>> + Send;

    /// Closes one.
    fn close(&self, id: ForwardId) -> impl Future<Output = Result<(), ForwardError>> + Send;
}

impl Forwards for Control {
    async fn open(&self, rule: Rule) -> Result<ForwardId, ForwardError> {
        Ok(self.add_forward(rule).await?.id)
    }

    async fn close(&self, id: ForwardId) -> Result<(), ForwardError> {
        self.remove_forwards(vec![id]).await
    }
}

/// The listening socket, and its file, which goes with it.
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that nobody else's file is removed at the end.
    identity: (u64, u64),
}

impl ApiSocket {
    /// Binds at `path`. A socket that is already there is removed first.
    ///
    /// # Errors
    ///
    /// A path of 108 bytes or more, a file there that is no socket, or what bind(2) says.
    pub fn bind(path: &Path) -> anyhow::Result<ApiSocket> {
        if path.as_os_str().len() > unix::MAX_PATH {
            bail!(
                "the specified API socket path is too long (>= {})",
                unix::MAX_PATH + 1
            );
        }
        let shown = path.display();
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => {
                fs::remove_file(path)
                    .with_context(|| format!("cannot remove the old API socket {shown}"))?;
            }
            Ok(_) => bail!("cannot make the API socket {shown}: a file of that name exists"),
            Err(_) => {}
        }
        let bound = unix::listen_private(path, BACKLOG)
            .map_err(io::Error::from)
            .and_then(|socket| UnixListener::from_std(socket.into()));
        let listener = bound.with_context(|| format!("cannot make the API socket {shown}"))?;
        let file = fs::symlink_metadata(path)
            .with_context(|| format!("cannot look at the API socket {shown}"))?;
        Ok(ApiSocket {
            listener,
            path: path.to_owned(),
            identity: (file.dev(), file.ino()),
        })
    }

    /// Serves requests, for ever.
    pub async fn serve<F: Forwards>(&self, api: Arc<Api<F>>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let api = api.clone();
                    tokio::spawn(async move {
                        if let Err(error) = api.serve_one(stream).await {
                            tracing::debug!(%error, "an API client went away");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: somebody has to close one first.
                    tracing::warn!(%error, "cannot accept an API client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The requests and what they act on.
pub struct Api<F> {
    forwards: F,
    guest_v4: Ipv4Addr,
    guest_v6: Option<Ipv6Addr>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    last_id: u32,
    entries: BTreeMap<u32, (ForwardId, Entry)>,
}

/// A forward, as `list_hostfwd` shows it.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    id: u32,
    proto: &'static str,
    host_addr: IpAddr,
    host_port: u16,
    guest_addr: IpAddr,
    guest_port: u16,
}

/// An answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Done {
        #[serde(rename = "return")]
        done: Value,
    },
    /// The manual page and the program disagree on where the entries stand: they stand in both.
    List {
        entries: Vec<Entry>,
        #[serde(rename = "return")]
        done: Entries,
    },
    Failed {
        error: Failure,
    },
}

#[derive(Debug, Serialize)]
struct Entries {
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Failure {
    desc: String,
}

/// What a request asked for wrongly; the text after `bad request: `.
type Bad = &'static str;

impl<F: Forwards> Api<F> {
    /// Forwards lead to these addresses unless a request names another.
    pub fn new(forwards: F, guest_v4: Ipv4Addr, guest_v6: Option<Ipv6Addr>) -> Arc<Api<F>> {
        Arc::new(Api {
            forwards,
            guest_v4,
            guest_v6,
            table: Mutex::default(),
        })
    }

    async fn serve_one(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut request = Vec::new();
        let reading = async {
            let limit = MAX_REQUEST as u64;
            (&mut stream).take(limit).read_to_end(&mut request).await?;
            if request.len() == MAX_REQUEST {
                let mut rest = (&mut stream).take(MAX_SKIPPED);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
            }
            Ok::<(), io::Error>(())
        };
        timeout(PATIENCE, reading).await??;
        let answer = self.answer(&request).await;
        timeout(PATIENCE, async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        })
        .await?
    }

    /// The answer to a request.
    pub async fn answer(&self, request: &[u8]) -> Vec<u8> {
        let answer = self.execute(request).await.unwrap_or_else(|bad| {
            tracing::debug!(bad, "an API request was refused");
            Answer::Failed {
                error: Failure {
                    desc: format!("bad request: {bad}"),
                },
            }
        });
        // Strings, numbers and addresses always serialize.
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    async fn execute(&self, request: &[u8]) -> Result<Answer, Bad> {
        if request.len() >= MAX_REQUEST {
            return Err("too large message");
        }
        // What follows the value is ignored, as the original does.
        let mut deserializer = serde_json::Deserializer::from_slice(request);
        let request = Value::deserialize(&mut deserializer).map_err(|_| "cannot parse JSON")?;
        let request = request.as_object().ok_or("json_object() failed")?;
        let execute = request.get("execute").and_then(Value::as_str);
        let arguments = request.get("arguments").unwrap_or(&Value::Null);
        match execute.ok_or("no execute found")? {
            "add_hostfwd" => self.add(arguments).await,
            "list_hostfwd" => Ok(self.list().await),
            "remove_hostfwd" => self.remove(arguments).await,
            _ => Err("unknown execute"),
        }
    }

    async fn add(&self, arguments: &Value) -> Result<Answer, Bad> {
        let (protocol, proto) = match arguments.get("proto").and_then(Value::as_str) {
            Some("tcp") => (Protocol::Tcp, "tcp"),
            Some("udp") => (Protocol::Udp, "udp"),
            _ => return Err("add_hostfwd: bad arguments.proto"),
        };
        let host_addr = address(arguments, "host_addr", Ipv4Addr::UNSPECIFIED.into())
            .filter(|host| host.is_ipv4() || self.guest_v6.is_some())
            .ok_or("add_hostfwd: bad arguments.host_addr")?;
        let host_port =
            port(arguments, "host_port").ok_or("add_hostfwd: bad arguments.host_port")?;
        let default_guest = match (host_addr, self.guest_v6) {
            (IpAddr::V6(_), Some(guest)) => guest.into(),
            _ => self.guest_v4.into(),
        };
        let guest_addr = address(arguments, "guest_addr", default_guest)
            .filter(|guest| guest.is_ipv4() == host_addr.is_ipv4())
            .ok_or("add_hostfwd: bad arguments.guest_addr")?;
        let guest_port =
            port(arguments, "guest_port").ok_or("add_hostfwd: bad arguments.guest_port")?;
        // "Any" of the container's addresses is the one it has.
        let guest = match guest_addr.is_unspecified() {
            true => default_guest,
            false => guest_addr,
        };
        let host = SocketAddr::new(host_addr, host_port);
        let rule = Rule::new(protocol, host, SocketAddr::new(guest, guest_port));
        let mut table = self.table.lock().await;
        let forward = self.forwards.open(rule).await.map_err(|error| {
            tracing::warn!(%error, "add_hostfwd failed");
            "add_hostfwd: slirp_add_hostfwd failed"
        })?;
        table.last_id += 1;
        let id = table.last_id;
        let entry = Entry {
            id,
            proto,
            host_addr,
            host_port,
            guest_addr,
            guest_port,
        };
        table.entries.insert(id, (forward, entry));
        Ok(Answer::Done {
            done: serde_json::json!({ "id": id }),
        })
    }

    async fn list(&self) -> Answer {
        let table = self.table.lock().await;
        let entries: Vec<Entry> = table.entries.values().map(|(_, e)| e.clone()).collect();
        Answer::List {
            done: Entries {
                entries: entries.clone(),
            },
            entries,
        }
    }

    async fn remove(&self, arguments: &Value) -> Result<Answer, Bad> {
        let bad = "remove_hostfwd: bad arguments.id";
        let id = integer(arguments, "id").ok_or(bad)?;
        let id = u32::try_from(id).map_err(|_| bad)?;
        let mut table = self.table.lock().await;
        let (forward, _) = table.entries.get(&id).ok_or(bad)?;
        self.forwards.close(*forward).await.map_err(|error| {
            tracing::warn!(%error, "remove_hostfwd failed");
            "remove_hostfwd: slirp_remove_hostfwd failed"
        })?;
        table.entries.remove(&id);
        Ok(Answer::Done {
            done: serde_json::json!({}),
        })
    }
}

/// An address, or `default` where it is absent, empty or no string; `None` if it cannot be read.
fn address(arguments: &Value, key: &str, default: IpAddr) -> Option<IpAddr> {
    match arguments.get(key).and_then(Value::as_str) {
        None | Some("") => Some(default),
        Some(text) => text.parse().ok(),
    }
}

fn port(arguments: &Value, key: &str) -> Option<u16> {
    let port = u16::try_from(integer(arguments, key)?).ok()?;
    (port > 0).then_some(port)
}

/// A whole number. JSON does not tell 80 from 80.0, and some clients write the latter.
fn integer(arguments: &Value, key: &str) -> Option<i64> {
    let value = arguments.get(key)?;
    let whole = |f: f64| (f.fract() == 0.0 && f.abs() < 1e15).then_some(f as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(whole))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex as StdMutex;
    use std::time::Instant;

    use super::*;

    /// Port 1 is taken; forward 900 cannot be closed.
    #[derive(Default)]
    struct Fake {
        opened: StdMutex<Vec<Rule>>,
    }

    impl Forwards for Arc<Fake> {
        async fn open(&self, rule: Rule) -> Result<ForwardId, ForwardError> {
            if rule.host.port() == 1 {
                return Err(ForwardError::Privileged { port: 1 });
            }
            let mut opened = self.opened.lock().unwrap();
            opened.push(rule);
            Ok(ForwardId(match rule.host.port() {
                900 => 900,
                _ => 100 + opened.len() as u32,
            }))
        }

        async fn close(&self, id: ForwardId) -> Result<(), ForwardError> {
            match id.0 {
                900 => Err(ForwardError::Ended),
                _ => Ok(()),
            }
        }
    }

    fn api(v6: bool) -> (Arc<Api<Arc<Fake>>>, Arc<Fake>) {
        let fake = Arc::new(Fake::default());
        let guest_v6 = v6.then(|| "fd00::100".parse().unwrap());
        (
            Api::new(fake.clone(), [10, 0, 2, 100].into(), guest_v6),
            fake,
        )
    }

    async fn ask(api: &Api<Arc<Fake>>, request: &str) -> String {
        String::from_utf8(api.answer(request.as_bytes()).await).unwrap()
    }

    fn bad(text: &str) -> String {
        format!(r#"{{"error":{{"desc":"bad request: {text}"}}}}"#)
    }

    #[tokio::test]
    async fn add_list_remove() {
        let (api, fake) = api(false);
        let list = r#"{"execute":"list_hostfwd"}"#;
        assert_eq!(
            ask(&api, list).await,
            r#"{"entries":[],"return":{"entries":[]}}"#
        );
        let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0",
            "host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}"#;
        assert_eq!(ask(&api, add).await, r#"{"return":{"id":1}}"#);
        let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"udp","host_addr":"",
            "host_port":53.0,"guest_addr":"0.0.0.0","guest_port":5353,"more":[]}}"#;
        assert_eq!(ask(&api, add).await, r#"{"return":{"id":2}}"#);
        let opened: Vec<String> = fake
            .opened
            .lock()
            .unwrap()
            .iter()
            .map(|p| format!("{} {} {}", p.protocol, p.host, p.container))
            .collect();
        assert_eq!(
            opened,
            [
                "tcp 0.0.0.0:8080 10.0.2.100:80",
                "udp 0.0.0.0:53 10.0.2.100:5353"
            ]
        );
        let one = r#"{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}"#;
        let two = r#"{"id":2,"proto":"udp","host_addr":"0.0.0.0","host_port":53,"guest_addr":"0.0.0.0","guest_port":5353}"#;
        let both = format!("[{one},{two}]");
        assert_eq!(
            ask(&api, list).await,
            format!(r#"{{"entries":{both},"return":{{"entries":{both}}}}}"#)
        );
        let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#;
        assert_eq!(ask(&api, remove).await, r#"{"return":{}}"#);
        assert_eq!(
            ask(&api, remove).await,
            bad("remove_hostfwd: bad arguments.id")
        );
        assert!(ask(&api, list).await.contains(&format!("[{two}]")));
        let again = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080,"guest_port":80}}"#;
        assert_eq!(
            ask(&api, again).await,
            r#"{"return":{"id":3}}"#,
            "ids are not reused"
        );
    }

    #[tokio::test]
    async fn errors_read_as_slirp4netns_writes_them() {
        let (api, _) = api(false);
        for (request, text) in [
            ("", "cannot parse JSON"),
            ("foo", "cannot parse JSON"),
            (r#"{"execute":"list_hostfwd""#, "cannot parse JSON"),
            ("5", "json_object() failed"),
            ("[]", "json_object() failed"),
            (r#""x""#, "json_object() failed"),
            ("{}", "no execute found"),
            (r#"{"execute":5}"#, "no execute found"),
            (r#"{"execute":"foo"}"#, "unknown execute"),
            (
                r#"{"execute":"remove_hostfwd"}"#,
                "remove_hostfwd: bad arguments.id",
            ),
            (
                r#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#,
                "remove_hostfwd: bad arguments.id",
            ),
            (
                r#"{"execute":"remove_hostfwd","arguments":{"id":-1}}"#,
                "remove_hostfwd: bad arguments.id",
            ),
        ] {
            assert_eq!(ask(&api, request).await, bad(text), "{request}");
        }
        let deep = "[".repeat(4000);
        assert_eq!(ask(&api, &deep).await, bad("cannot parse JSON"));
        let trailing = r#"{"execute":"list_hostfwd"} trailing"#;
        assert!(ask(&api, trailing).await.starts_with(r#"{"entries""#));
    }

    #[tokio::test]
    async fn bad_arguments_are_named() {
        let (api, _) = api(false);
        for (arguments, name) in [
            ("{}", "proto"),
            ("5", "proto"),
            (r#"{"proto":"sctp"}"#, "proto"),
            (r#"{"proto":"tcp"}"#, "host_port"),
            (r#"{"proto":"tcp","host_addr":"foo"}"#, "host_addr"),
            (r#"{"proto":"tcp","host_addr":"::1"}"#, "host_addr"),
            (r#"{"proto":"tcp","host_port":"80"}"#, "host_port"),
            (r#"{"proto":"tcp","host_port":0}"#, "host_port"),
            (r#"{"proto":"tcp","host_port":65536}"#, "host_port"),
            (r#"{"proto":"tcp","host_port":80.5}"#, "host_port"),
            (r#"{"proto":"tcp","host_port":1e300}"#, "host_port"),
            (r#"{"proto":"tcp","host_port":80}"#, "guest_port"),
            (
                r#"{"proto":"tcp","host_port":80,"guest_addr":"x"}"#,
                "guest_addr",
            ),
            (
                r#"{"proto":"tcp","host_port":80,"guest_addr":"::1"}"#,
                "guest_addr",
            ),
            (
                r#"{"proto":"tcp","host_port":80,"guest_port":-1}"#,
                "guest_port",
            ),
        ] {
            let request = format!(r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#);
            let expected = bad(&format!("add_hostfwd: bad arguments.{name}"));
            assert_eq!(ask(&api, &request).await, expected, "{arguments}");
        }
        let none = r#"{"execute":"add_hostfwd"}"#;
        assert_eq!(
            ask(&api, none).await,
            bad("add_hostfwd: bad arguments.proto")
        );
    }

    #[tokio::test]
    async fn a_forward_that_fails_leaves_no_trace() {
        let (api, _) = api(false);
        let add = |port: u16| {
            format!(
                r#"{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_port":{port},"guest_port":80}}}}"#
            )
        };
        assert_eq!(
            ask(&api, &add(1)).await,
            bad("add_hostfwd: slirp_add_hostfwd failed")
        );
        assert_eq!(ask(&api, &add(900)).await, r#"{"return":{"id":1}}"#);
        let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#;
        assert_eq!(
            ask(&api, remove).await,
            bad("remove_hostfwd: slirp_remove_hostfwd failed")
        );
        assert_eq!(api.table.lock().await.entries.len(), 1);
    }

    #[tokio::test]
    async fn ipv6_where_the_network_has_it() {
        let (api, fake) = api(true);
        let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"::","host_port":8080,"guest_port":80}}"#;
        assert_eq!(ask(&api, add).await, r#"{"return":{"id":1}}"#);
        let guest = fake.opened.lock().unwrap()[0].container;
        assert_eq!(guest.to_string(), "[fd00::100]:80");
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("cnet-api-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn call(path: &Path, request: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn over_the_socket() {
        let scratch = Scratch::new("socket");
        let path = scratch.0.join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = ApiSocket::bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let (api, _) = api(false);
        let server = tokio::spawn(async move { socket.serve(api).await });

        // A silent client holds nobody up, and is dropped after its second.
        let started = Instant::now();
        let mut silent = UnixStream::connect(&path).await.unwrap();
        silent.write_all(b"{").await.unwrap();
        let list = br#"{"execute":"list_hostfwd"}"#;
        assert!(call(&path, list).await.starts_with(br#"{"entries""#));
        assert!(started.elapsed() < Duration::from_millis(500));
        let mut nothing = Vec::new();
        silent.read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty());
        assert!(started.elapsed() < Duration::from_secs(2));

        let padded = |length: usize| {
            let mut request = vec![b' '; length - list.len()];
            request.extend_from_slice(list);
            request
        };
        assert!(
            call(&path, &padded(4095))
                .await
                .starts_with(br#"{"entries""#)
        );
        let too_large = bad("too large message").into_bytes();
        assert_eq!(call(&path, &padded(4096)).await, too_large);
        assert_eq!(call(&path, &padded(100_000)).await, too_large);

        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn paths_that_will_not_do() {
        let scratch = Scratch::new("paths");
        let fill = unix::MAX_PATH - scratch.0.as_os_str().len();
        let error = |path: &Path| match ApiSocket::bind(path) {
            Err(error) => format!("{error:#}"),
            Ok(_) => panic!("{}", path.display()),
        };
        let long = error(&scratch.0.join("a".repeat(fill)));
        assert_eq!(long, "the specified API socket path is too long (>= 108)");
        drop(ApiSocket::bind(&scratch.0.join("a".repeat(fill - 1))).unwrap());
        let file = scratch.0.join("file");
        fs::write(&file, "precious").unwrap();
        assert!(error(&file).contains("a file of that name exists"));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(error(&scratch.0.join("no/such/dir")).contains("cannot make the API socket"));
    }

    #[tokio::test]
    async fn somebody_elses_socket_is_left_alone() {
        let scratch = Scratch::new("elses");
        let path = scratch.0.join("s");
        let first = ApiSocket::bind(&path).unwrap();
        let second = ApiSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
