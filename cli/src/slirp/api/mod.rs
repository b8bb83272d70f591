//! slirp4netns's API: port forwards over a Unix socket.
//!
//! # Theory of operation
//!
//! One connection carries one request: the client writes a JSON object, the server answers and closes
//! as soon as that is whole; the client may keep its side open, as `nc -U` does. Connections are served beside each other, a bounded
//! number at a time. A client that says nothing for [`CLIENT_TIMEOUT`] is dropped without an answer.
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
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use cnet_dataplane::{Control, ForwardError, ForwardId, Rule};
use cnet_wire::Protocol;

mod socket;

pub(super) use socket::ApiSocket;

/// A request is shorter than this.
pub(super) const MAX_REQUEST: usize = 4096;

/// How long a client may take to ask, and to take its answer.
pub(super) const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of a request that is too large is still read, so that the client, which writes before
/// it reads, gets the answer instead of a reset connection.
const MAX_SKIPPED: u64 = 1024 * 1024;

/// The part of the network that the API steers.
pub(super) trait Forwards: Send + Sync + 'static {
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

/// The requests and what they act on.
pub(super) struct Api<F> {
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
    pub(super) fn new(forwards: F, guest_v4: Ipv4Addr, guest_v6: Option<Ipv6Addr>) -> Arc<Api<F>> {
        Arc::new(Api {
            forwards,
            guest_v4,
            guest_v6,
            table: Mutex::default(),
        })
    }

    pub(super) async fn serve_one(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut request = Vec::new();
        let reading = async {
            while request.len() < MAX_REQUEST && !is_whole(&request) {
                let room = (MAX_REQUEST - request.len()) as u64;
                if (&mut stream).take(room).read_buf(&mut request).await? == 0 {
                    break;
                }
            }
            if request.len() == MAX_REQUEST {
                let mut rest = (&mut stream).take(MAX_SKIPPED);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
            }
            Ok::<(), io::Error>(())
        };
        match timeout(CLIENT_TIMEOUT, reading).await {
            Ok(read) => read?,
            // A client that keeps its side open after what is no JSON is told so.
            Err(_) if request.is_empty() => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
        let answer = self.answer(&request).await;
        timeout(CLIENT_TIMEOUT, async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        })
        .await?
    }

    /// The answer to a request.
    pub(super) async fn answer(&self, request: &[u8]) -> Vec<u8> {
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

/// Whether a request needs no further bytes: it holds a JSON value, or what cannot become one.
fn is_whole(request: &[u8]) -> bool {
    let mut values = serde_json::Deserializer::from_slice(request).into_iter::<Value>();
    match values.next() {
        None => false,
        // A number may go on.
        Some(Ok(value)) => !value.is_number(),
        Some(Err(error)) => !error.is_eof(),
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
mod tests;
