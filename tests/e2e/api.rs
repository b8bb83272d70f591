//! slirp4netns's API socket: every answer as its callers know it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::{Options, Slirp};

/// Sends one request and returns the answer, which has to be JSON.
pub fn request(slirp: &Slirp, request: &Value) -> Value {
    let answer = exchange(slirp, request.to_string().as_bytes());
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error} in {answer:?}"))
}

fn open(slirp: &Slirp) -> UnixStream {
    let path = slirp.api.as_ref().expect("the API was asked for");
    let address = SocketAddrUnix::new(path).expect("a short path");
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    // Before the connect, which waits for as long where the backlog is full.
    for side in [Timeout::Send, Timeout::Recv] {
        let limit = Some(Duration::from_secs(10));
        set_socket_timeout(&socket, side, limit).expect("a limit");
    }
    connect(&socket, &address).expect("the API socket");
    socket.into()
}

fn exchange(slirp: &Slirp, request: &[u8]) -> String {
    let mut stream = open(slirp);
    // An answer may come, and the other end close, before a request too long is sent.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn start(lab: &Lab) -> Slirp {
    let options = Options {
        api: true,
        ..Options::with("-c")
    };
    Slirp::bare(lab, &options)
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn forwards_are_numbered_listed_and_removed() {
    let lab = Lab::direct();
    let slirp = start(&lab);
    let listed = |entries: Value| {
        let answer = request(&slirp, &json!({"execute": "list_hostfwd"}));
        let found = answer.get("entries").or(answer["return"].get("entries"));
        assert_eq!(found, Some(&entries), "{answer}");
    };
    listed(json!([]));
    let full = json!({"execute": "add_hostfwd", "arguments": {
        "proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080,
        "guest_addr": "10.0.2.100", "guest_port": 80,
    }});
    assert_eq!(request(&slirp, &full), json!({"return": {"id": 1}}));
    let short = json!({"execute": "add_hostfwd", "arguments": {
        "proto": "udp", "host_port": 8080, "guest_port": 53,
    }});
    assert_eq!(request(&slirp, &short), json!({"return": {"id": 2}}));
    let first = json!({
        "id": 1, "proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080,
        "guest_addr": "10.0.2.100", "guest_port": 80,
    });
    let second = json!({
        "id": 2, "proto": "udp", "host_addr": "0.0.0.0", "host_port": 8080,
        "guest_addr": "10.0.2.100", "guest_port": 53,
    });
    listed(json!([first, second]));
    let removal = json!({"execute": "remove_hostfwd", "arguments": {"id": 1}});
    assert_eq!(request(&slirp, &removal), json!({"return": {}}));
    listed(json!([second]));
    let third = json!({"execute": "add_hostfwd", "arguments": {
        "proto": "tcp", "host_port": 8081, "guest_port": 81,
    }});
    assert_eq!(request(&slirp, &third), json!({"return": {"id": 3}}));
}

/// As compat programs read it: both keys of the list.
#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn the_list_is_given_under_both_keys() {
    let lab = Lab::direct();
    let slirp = start(&lab);
    let answer = request(&slirp, &json!({"execute": "list_hostfwd"}));
    let both = json!({"entries": [], "return": {"entries": []}});
    assert_eq!(answer, both);
}

fn refuses(slirp: &Slirp, request: &str, reason: &str) {
    let answer = exchange(slirp, request.as_bytes());
    let answer: Value = serde_json::from_str(&answer)
        .unwrap_or_else(|error| panic!("{error} in {answer:?} to {request}"));
    let expected = json!({"error": {"desc": format!("bad request: {reason}")}});
    assert_eq!(answer, expected, "to {request}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn requests_that_are_none_are_refused_with_the_known_words() {
    let lab = Lab::direct();
    let slirp = start(&lab);
    refuses(&slirp, "nonsense", "cannot parse JSON");
    refuses(&slirp, "[]", "json_object() failed");
    refuses(&slirp, "{}", "no execute found");
    refuses(&slirp, r#"{"execute": 5}"#, "no execute found");
    refuses(&slirp, r#"{"execute": "dance"}"#, "unknown execute");
    let padding = " ".repeat(4096);
    refuses(&slirp, &padding, "too large message");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn bad_arguments_are_refused_with_the_known_words() {
    let lab = Lab::direct();
    let slirp = start(&lab);
    let add = |arguments: Value, reason: &str| {
        let request = json!({"execute": "add_hostfwd", "arguments": arguments});
        let reason = format!("add_hostfwd: {reason}");
        refuses(&slirp, &request.to_string(), &reason);
    };
    add(json!({"proto": "icmp"}), "bad arguments.proto");
    let port = |value: Value| json!({"proto": "tcp", "host_port": value, "guest_port": 80});
    add(port(json!(0)), "bad arguments.host_port");
    add(
        json!({"proto": "tcp", "host_port": 8080}),
        "bad arguments.guest_port",
    );
    let addresses = |host: &str, guest: &str| {
        json!({"proto": "tcp", "host_addr": host, "host_port": 8080,
               "guest_addr": guest, "guest_port": 80})
    };
    add(addresses("here", "10.0.2.100"), "bad arguments.host_addr");
    add(addresses("0.0.0.0", "there"), "bad arguments.guest_addr");
    // Not an address of the host's.
    let foreign = addresses("198.51.100.77", "10.0.2.100");
    add(foreign, "slirp_add_hostfwd failed");
    let remove = |arguments: Value, reason: &str| {
        let request = json!({"execute": "remove_hostfwd", "arguments": arguments});
        let reason = format!("remove_hostfwd: {reason}");
        refuses(&slirp, &request.to_string(), &reason);
    };
    remove(json!({}), "bad arguments.id");
    remove(json!({"id": 99}), "bad arguments.id");
    add(json!({}), "bad arguments.proto");
    add(port(json!(65536)), "bad arguments.host_port");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_port_that_is_taken_is_refused_and_the_others_stay() {
    let lab = Lab::direct();
    let slirp = start(&lab);
    let add = json!({"execute": "add_hostfwd", "arguments": {
        "proto": "tcp", "host_port": 8080, "guest_port": 80,
    }});
    assert_eq!(request(&slirp, &add), json!({"return": {"id": 1}}));
    let reason = "add_hostfwd: slirp_add_hostfwd failed";
    refuses(&slirp, &add.to_string(), reason);
    let answer = request(&slirp, &json!({"execute": "list_hostfwd"}));
    let entries = answer.get("entries").and_then(Value::as_array);
    assert_eq!(entries.map(Vec::len), Some(1), "{answer}");
}

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_client_that_says_nothing_holds_nobody_up() {
    let lab = Lab::direct();
    let slirp = start(&lab);
    let _silent: Vec<UnixStream> = (0..20).map(|_| open(&slirp)).collect();
    let answer = request(&slirp, &json!({"execute": "list_hostfwd"}));
    assert!(answer.get("entries").is_some(), "{answer}");
}
