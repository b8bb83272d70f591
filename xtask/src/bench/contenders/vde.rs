//! VDE's switch between two containers, each joined to it by a `vde_plug2tap`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Arena, Inside, PATIENCE, Setup};
use crate::bench::interrupt;
use crate::bench::namespace::Namespace;
use crate::bench::program::{Launch, Program};

/// Two containers and the switch between them. All of it runs as root, which VDE does not need but
/// containers made by root ask for; it makes no difference to speed.
pub fn start(setup: &Setup<'_>) -> anyhow::Result<Arena> {
    let hosts = setup.request.hosts;
    let sockets = hosts.directory().join("vde");
    // What an earlier one has left.
    let _ = std::fs::remove_dir_all(&sockets);
    let sockets = sockets
        .to_str()
        .context("the directory's name is not UTF-8")?;
    // Its console reads the standard input and ends the program with it.
    let mut switch = Launch::new(&hosts.host, setup.program, hosts.directory())
        .args(["-sock", sockets])
        .spawn()?;
    await_path(&Path::new(sockets).join("ctl"), &mut switch)?;
    let mut programs = vec![switch];
    let mut containers = Vec::new();
    for index in 0..2u16 {
        let last = index + 1;
        let inside = Inside {
            namespace: Namespace::create(&format!("c{index}"))?,
            v4: Ipv4Addr::new(10, 89, 0, last.to_be_bytes()[1]),
            v6: Ipv6Addr::new(0xfd89, 0, 0, 0, 0, 0, 0, last),
        };
        let plug = Path::new("vde_plug2tap");
        let mut plug = Launch::new(&inside.namespace, plug, hosts.directory())
            .args(["-s", sockets, "tap0"])
            .spawn()?;
        await_interface(&inside, setup.request.mtu, &mut plug)?;
        programs.push(plug);
        containers.push(inside);
    }
    Ok(Arena {
        programs,
        containers,
        startup: None,
        network: None,
        _holders: Vec::new(),
        _bridge: None,
    })
}

fn await_path(path: &Path, program: &mut Program) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        program.check()?;
        if Instant::now() > deadline {
            bail!("no {} after {PATIENCE:?}", path.display());
        }
        interrupt::sleep(Duration::from_millis(2))?;
    }
    Ok(())
}

fn await_interface(inside: &Inside, mtu: u32, plug: &mut Program) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let commands = format!(
        "link set tap0 mtu {mtu} up\naddr add {}/16 dev tap0\naddr add {}/64 dev tap0 nodad",
        inside.v4, inside.v6
    );
    loop {
        // `link` fails until the interface is there, and nothing after it is done.
        let error = match inside.namespace.ip(&commands) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        plug.check()?;
        if Instant::now() > deadline {
            return Err(error);
        }
        interrupt::sleep(Duration::from_millis(2))?;
    }
}
