//! Targets for what people and programs write: the control API's JSON and the networks' files.

use std::net::IpAddr;

use cnet::control::Action;
use cnet::definition::Definition;
use cnet::publish::PublishSpec;

use crate::feedback;

/// The body of a request. What is read is written and read again as the same.
pub fn action(input: &[u8]) {
    let Ok(action) = serde_json::from_slice::<Action>(input) else {
        return feedback::note(0);
    };
    let written = serde_json::to_vec(&action).expect("an action can be written");
    let again: Action = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(action, again);
    match action {
        Action::Attach(attach) => {
            feedback::note(1);
            attach.publish.iter().for_each(publish);
            feedback::note(if attach.vm.is_some() { 4 } else { 5 });
        }
        Action::Publish(ports) | Action::Unpublish(ports) => {
            feedback::note(6);
            ports.ports.iter().for_each(publish);
        }
        _ => feedback::note(7),
    }
}

/// A published port: as many ports of the host as of the container, and what is shown is read again.
fn publish(spec: &PublishSpec) {
    feedback::note(9);
    assert_eq!(spec.to_string().parse().as_ref(), Ok(spec));
    let pairs: Vec<_> = spec.pairs().collect();
    assert_eq!(pairs.len(), spec.ports().len());
    for (host_port, container) in pairs {
        assert!(spec.ports().contains(&container));
        let host = spec.host_ports();
        assert_eq!(host_port.is_some(), host.is_some());
        assert!(host_port.is_none_or(|port| host.is_some_and(|all| all.contains(&port))));
    }
}

/// The file of a network. One that passes the check holds together, and is read again as it was.
pub fn network(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return feedback::note(0);
    };
    let Ok(definition) = toml::from_str::<Definition>(text) else {
        return feedback::note(1);
    };
    let written = toml::to_string(&definition).expect("a definition can be written");
    let again: Definition = toml::from_str(&written).expect("what was written can be read");
    assert_eq!(definition, again);
    if definition.check().is_err() {
        return feedback::note(2);
    }
    feedback::note(3);
    assert!(!definition.gateway_mac().is_multicast());
    let subnets: Vec<_> = definition.subnets().collect();
    let (v4, v6) = definition.gateways();
    for gateway in [v4.map(IpAddr::V4), v6.map(IpAddr::V6)]
        .into_iter()
        .flatten()
    {
        feedback::note(4 + u32::from(gateway.is_ipv6()));
        assert!(subnets.iter().any(|subnet| subnet.contains(&gateway)));
    }
    let (plan_v4, plan_v6) = definition.plan();
    assert_eq!(plan_v4.is_some(), definition.ipv4.is_some());
    assert_eq!(plan_v6.is_some(), definition.ipv6.is_some());
}
