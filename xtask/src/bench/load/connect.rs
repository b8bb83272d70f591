//! Connect, one byte there and back, close; then the next: what short connections cost.
//!
//! A closed connection keeps its ports for a minute (TIME_WAIT), and the search for a free one among
//! tens of thousands of such is a cost of its own, which belongs to the kernel and grows with what
//! was run before. So connections go in turns to [`PORTS_PER_SAMPLE`] ports that no recent sample
//! has used.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{Timespec, epoll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socket_with};

use super::{STALL, Window, join, listen};
use crate::bench::contenders::Route;
use crate::bench::hosts::PORTS_PER_SAMPLE;
use crate::bench::interrupt;

/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Measures connections a second, one after the other, to the ports from `first_port` on.
///
/// # Errors
/// A connection fails or stalls; the run is interrupted.
pub fn measure(route: &Route<'_>, first_port: u16, window: Window) -> anyhow::Result<f64> {
    let ports = first_port..first_port + PORTS_PER_SAMPLE;
    let listeners: Vec<TcpListener> = ports
        .clone()
        .map(|port| listen(route, port))
        .collect::<Result<_, _>>()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listeners, &stop));
        let targets: Vec<SocketAddr> = ports
            .map(|port| SocketAddr::new(route.dial, port))
            .collect();
        let rate = route.client.enter(|| connections(&targets, window));
        stop.store(true, Ordering::Relaxed);
        let served = join(server);
        let rate = rate?;
        served.map(|()| rate)
    })
}

fn connections(targets: &[SocketAddr], window: Window) -> anyhow::Result<f64> {
    let mut next = targets.iter().cycle();
    let mut one = || one(next.next().context("no port to connect to")?);
    let warm = Instant::now() + window.warm_up;
    while Instant::now() < warm {
        one()?;
    }
    let start = Instant::now();
    let mut count = 0u64;
    loop {
        one()?;
        count += 1;
        let elapsed = start.elapsed();
        if interrupt::pending() {
            bail!("interrupted");
        }
        if elapsed >= window.length {
            return Ok(count as f64 / elapsed.as_secs_f64());
        }
    }
}

fn one(target: &SocketAddr) -> anyhow::Result<()> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Of connect(2) too (socket(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(STALL))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(STALL))?;
    rustix::net::connect(&socket, target).with_context(|| format!("connect to {target}"))?;
    let mut byte = [1];
    send(&socket, &byte, SendFlags::empty()).context("sending a byte")?;
    let (count, _) = recv(&socket, &mut byte, RecvFlags::empty()).context("a byte's return")?;
    anyhow::ensure!(count == 1, "closed before the byte's return");
    Ok(())
}

/// Echoes one byte a connection until `stop`.
fn serve(listeners: &[TcpListener], stop: &AtomicBool) -> anyhow::Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, listener) in listeners.iter().enumerate() {
        listener.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&poll, listener.as_fd(), data, epoll::EventFlags::IN)?;
    }
    let limit = Timespec::try_from(LOOK)?;
    let mut events = Vec::with_capacity(listeners.len());
    while !stop.load(Ordering::Relaxed) {
        events.clear();
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&poll, spare, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let index = usize::try_from(event.data.u64())?;
            if let Some(listener) = listeners.get(index) {
                echo(listener)?;
            }
        }
    }
    Ok(())
}

fn echo(listener: &TcpListener) -> anyhow::Result<()> {
    let Ok((stream, _)) = listener.accept() else {
        // It was reset before it was accepted: the client knows.
        return Ok(());
    };
    set_socket_timeout(&stream, Timeout::Recv, Some(STALL))?;
    let mut byte = [0];
    let (count, _) = recv(&stream, &mut byte, RecvFlags::empty()).context("the server's read")?;
    if count == 1 {
        send(&stream, &byte, SendFlags::empty()).context("the server's answer")?;
    }
    // The client closes first, so that TIME_WAIT is on its side, as it is in life.
    let _ = recv(&stream, &mut byte, RecvFlags::empty());
    Ok(())
}
