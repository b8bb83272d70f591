//! The opener's own life, and what its children do inside the namespaces.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Instant;

use cnet_tap::namespace::{Handover, receive, send_tagged_error, start_in};
use cnet_tap::{Namespaces, Tap, TapError, netif};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getppid};

use super::{PATIENCE, Request};

/// How often children are looked after while there are any.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// A request under way.
struct Running {
    number: u64,
    child: Pid,
    started: Instant,
}

/// Serves requests until the network process has ended.
pub(super) fn live(socket: &OwnedFd, parent: Pid) {
    let tied = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if tied.is_err() || getppid() != Some(parent) {
        return;
    }
    let mut running: Vec<Running> = Vec::new();
    loop {
        running.retain(|child| !is_over(socket, child));
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        let patience = (!running.is_empty()).then_some(&TICK);
        match rustix::event::poll(&mut fds, patience) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        // Nothing more, or an error: the network process is gone.
        let Ok(Some(message)) = receive(socket) else {
            return;
        };
        running.extend(begin(socket, message));
    }
}

/// Starts on a request. One that cannot be begun is answered at once.
fn begin(socket: &OwnedFd, (fds, bytes): Handover) -> Option<Running> {
    let (number, request) = bytes.split_first_chunk::<8>()?;
    let number = u64::from_ne_bytes(*number);
    let begun = || -> Result<Pid, String> {
        let request: Request = serde_json::from_slice(request).map_err(|e| e.to_string())?;
        let net = fds
            .into_iter()
            .next()
            .ok_or("the request has no descriptor")?;
        let namespaces = Namespaces::of_net(net).map_err(|e| e.to_string())?;
        start_in(&namespaces, socket, number, || make(&request)).map_err(|e| e.to_string())
    };
    match begun() {
        Ok(child) => Some(Running {
            number,
            child,
            started: Instant::now(),
        }),
        Err(text) => {
            // If that fails, the network process is gone.
            let _ = send_tagged_error(socket, number, &text);
            None
        }
    }
}

/// Reaps a child that has ended, and kills one that takes too long.
fn is_over(socket: &OwnedFd, running: &Running) -> bool {
    match rustix::process::waitpid(Some(running.child), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => {
            if status.exit_status() != Some(0) {
                let text = match running.started.elapsed() > PATIENCE {
                    true => "setting up the interface took too long: the namespace does not answer",
                    false => "the process that set up the interface was ended",
                };
                let _ = send_tagged_error(socket, running.number, text);
            }
            true
        }
        Ok(None) => {
            if running.started.elapsed() > PATIENCE {
                let _ = rustix::process::kill_process(running.child, Signal::KILL);
            }
            false
        }
        Err(Errno::INTR) => false,
        Err(_) => true,
    }
}

/// Inside the namespaces: makes the TAP, or takes over one that is there.
fn make(request: &Request) -> Result<Handover, TapError> {
    let name = &request.interface;
    match netif::index_of(name) {
        Ok(_) if !request.take_over => {
            return Err(TapError::NameTaken { name: name.clone() });
        }
        // Who has lost it has left, or never had it.
        Err(missing) if request.take_over => return Err(missing),
        _ => {}
    }
    let mut tap = Tap::create(name, request.queues)?;
    if !request.take_over {
        netif::loopback_up()?;
        keep_to_configured_addresses(&tap.name);
        netif::configure(tap.ifindex, &tap.name, &request.config())?;
        tap.mac = request.mac;
    }
    let (fds, info) = tap.into_fds();
    Ok((fds, info.to_bytes()))
}

/// Has the kernel ignore the gateway's router advertisements: the interface has its addresses and
/// routes already, and a second address that appears a second later would be used at random.
fn keep_to_configured_addresses(interface: &str) {
    // Without IPv6 there is no such file.
    let _ = fs::write(
        format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"),
        "0",
    );
}
