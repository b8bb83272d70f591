//! The control socket of a network: clients that send too much, nothing, or nonsense. Honest ones are
//! served beside them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::lab::place::Place;

/// How long an honest client may take beside the others.
const SERVED: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn clients_that_send_nonsense_or_nothing_keep_no_other_out() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let web = place.join("cnet", "web", "");
    let socket = place.runtime.join("cnet/cnet/api.sock");
    let mode = std::fs::metadata(&socket).expect("a socket").permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    let post = |body: &[u8]| {
        let head = format!(
            "POST /v1/actions HTTP/1.1\r\nhost: cnet\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let large = [&b"{\"attach\":\""[..], &b"a".repeat(2 << 20), b"\"}"].concat();
    let headers = [
        &b"GET /v1/actions HTTP/1.1\r\nx: "[..],
        &b"a".repeat(100_000),
        b"\r\n\r\n",
    ];
    let lies = b"POST /v1/actions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999\r\n\r\n{";
    let messages = [
        post(&deep),
        post(&large),
        post(b"{\"ps\":{},\"ps\":{}}"),
        post(b"\xff\xfe\x00"),
        headers.concat(),
        lies.to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"\0".repeat(100_000),
    ];
    for message in &messages {
        let mut client = UnixStream::connect(&socket).expect("the socket is there");
        client.set_read_timeout(Some(SERVED)).expect("a limit");
        client.set_write_timeout(Some(SERVED)).expect("a limit");
        // It may be cut off while it writes.
        let _ = client.write_all(message);
        let mut answer = Vec::new();
        let _ = (&client).take(4096).read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let silent: Vec<UnixStream> = (0..60)
        .map(|_| UnixStream::connect(&socket).expect("the socket is there"))
        .collect();
    let started = Instant::now();
    assert!(place.done("ps").stdout.contains("web"));
    println!(
        "listed beside {} silent clients after {:?}",
        silent.len(),
        started.elapsed()
    );
    assert!(started.elapsed() < SERVED, "{:?}", started.elapsed());
    drop(silent);
    place.done(&format!("detach {}", web.name));
}
