//! The API as its clients use it, with forwards that only remember.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex as StdMutex;
use std::time::Instant;

use cnet_netd::outside::{Host, HostFiles};
use cnet_tap::unix;

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
        .map(|p| format!("{} {} {}", p.protocol, p.host, end(p)))
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
    let again =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080,"guest_port":80}}"#;
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

/// The one end that a rule of the API leads to.
fn end(rule: &Rule) -> SocketAddr {
    assert!(!rule.container.has_both());
    rule.container.in_order(rule.host.ip()).next().unwrap()
}

#[tokio::test]
async fn ipv6_where_the_network_has_it() {
    let (api, fake) = api(true);
    let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"::","host_port":8080,"guest_port":80}}"#;
    assert_eq!(ask(&api, add).await, r#"{"return":{"id":1}}"#);
    let guest = end(&fake.opened.lock().unwrap()[0]);
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

/// Binds without a helper that would remove the socket.
fn bind(path: &Path) -> anyhow::Result<ApiSocket> {
    let files = HostFiles {
        socket: Some(path.to_owned()),
        ..HostFiles::default()
    };
    ApiSocket::bind(path, Host::here(files))
}

#[tokio::test]
async fn over_the_socket() {
    let scratch = Scratch::new("socket");
    let path = scratch.0.join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = bind(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (api, _) = api(false);
    let server = tokio::spawn(async move { socket.serve(api).await });

    // A client that stops in the middle delays no other, and is told after its second.
    let started = Instant::now();
    let mut silent = UnixStream::connect(&path).await.unwrap();
    silent.write_all(b"{").await.unwrap();
    let list = br#"{"execute":"list_hostfwd"}"#;
    assert!(call(&path, list).await.starts_with(br#"{"entries""#));
    assert!(started.elapsed() < Duration::from_millis(500));
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, bad("cannot parse JSON").into_bytes());
    assert!(started.elapsed() < Duration::from_secs(2));

    // A request in pieces is answered as soon as it is whole, by the client's word or the JSON's.
    let started = Instant::now();
    let mut open = UnixStream::connect(&path).await.unwrap();
    let (first, second) = list.split_at(9);
    open.write_all(first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    open.write_all(second).await.unwrap();
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(br#"{"entries""#));
    assert!(started.elapsed() < Duration::from_millis(500));

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
    let error = |path: &Path| match bind(path) {
        Err(error) => format!("{error:#}"),
        Ok(_) => panic!("{}", path.display()),
    };
    let long = error(&scratch.0.join("a".repeat(fill)));
    assert_eq!(long, "the specified API socket path is too long (>= 108)");
    drop(bind(&scratch.0.join("a".repeat(fill - 1))).unwrap());
    let file = scratch.0.join("file");
    fs::write(&file, "precious").unwrap();
    assert!(error(&file).contains("a file of that name exists"));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert!(error(&scratch.0.join("no/such/dir")).contains("cannot make the API socket"));
}

#[tokio::test]
async fn a_socket_of_another_program_is_left_alone() {
    let scratch = Scratch::new("elses");
    let path = scratch.0.join("s");
    let first = bind(&path).unwrap();
    let second = bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}
