//! A port of the host that is taken: one error, nothing half done, and what was open stays so.

use crate::lab::place::Place;
use crate::lab::servers::TcpServer;
use crate::lab::traffic::{CONNECT, connect_and_echo};
use crate::lab::{Lab, any};

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn a_taken_port_is_one_error_and_what_was_open_stays() {
    let lab = Lab::direct();
    let place = Place::root(&lab);
    let web = place.join("cnet", "web", "-p 127.0.0.1:18080:80");
    let _inside = TcpServer::echo(&web.namespace, any(web.v4, 80));
    let _taken = TcpServer::echo(&lab.host, ([127, 0, 0, 1], 18093).into());
    let (process, namespace) = place.container();
    let attach = format!(
        "attach --name db -p 127.0.0.1:18090-18095:80-85 -p 127.0.0.1:18070:90 {}",
        process.pid()
    );
    let refused = place.refused(&attach);
    assert_eq!(refused.lines().count(), 1, "{refused}");
    assert!(
        refused.contains("18093"),
        "the port is not named: {refused}"
    );
    assert!(!namespace.ip("-o link").contains("eth0"), "it is attached");
    for port in [18090, 18092, 18095, 18070] {
        let closed = lab.host.connect(([127, 0, 0, 1], port).into(), CONNECT);
        assert!(closed.is_err(), "port {port} is open");
    }
    connect_and_echo(&lab.host, ([127, 0, 0, 1], 18080).into(), b"kept").expect("an old port");
    assert!(!place.lists("db"));
}
