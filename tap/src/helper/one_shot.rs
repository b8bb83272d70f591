//! One piece of work inside namespaces, waited for.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use super::{Output, answer, outcome, receive, tap_of, tap_output, work_in};
use crate::device::Tap;
use crate::error::TapError;
use crate::fork::spawn;
use crate::namespace::Namespaces;
use crate::netif::{self, InterfaceConfig};

/// Runs `work` inside the namespaces, in a child process, and gives what it gave: descriptors and up
/// to [`MAX_ANSWER`](super::MAX_ANSWER) bytes. Errors cross with their full text. This process never
/// leaves its own namespaces, and the child is always reaped.
///
/// # Errors
///
/// [`TapError::MultiThreaded`] if this process has more threads than one, since the child of a
/// fork(2) then may not even allocate; [`TapError::Helper`] with the child's error;
/// [`TapError::HelperDied`].
pub fn run_in(
    ns: &Namespaces,
    work: impl FnOnce() -> Result<Output, TapError>,
) -> Result<Output, TapError> {
    let (child, socket) = spawn("cannot fork a helper process", |parent, socket| {
        let sent = answer(socket.as_fd(), &[], work_in(ns, parent, work));
        u8::from(sent.is_err())
    })?;
    let received = receive(socket.as_fd());
    // A child that still runs fails at its next write and ends.
    drop(socket);
    let status = reap(child);
    match received.map_err(TapError::io("cannot hear from the helper process"))? {
        Some((descriptors, bytes)) => outcome(descriptors, &bytes),
        None => Err(TapError::HelperDied { status }),
    }
}

/// Waits for the child's end and describes it.
fn reap(pid: Pid) -> String {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            Err(e) => return format!("waitpid: {e}"),
            Ok(None) => return "unknown".to_owned(),
            Ok(Some((_, status))) => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit status {code}"),
                    (_, Some(signal)) => format!("signal {signal}"),
                    _ => "unknown".to_owned(),
                };
            }
        }
    }
}

/// Opens the TAP `name` inside the namespaces and, with `config`, configures it and brings the
/// loopback interface up. Without `config` the TAP is opened and nothing else is touched.
///
/// Where a user namespace is to be entered this forks, and the process must have one thread.
/// Otherwise a thread that lives as long as the call enters the network namespace, since that
/// belongs to a thread, and it works from any process.
///
/// # Errors
///
/// As [`run_in`] and [`Tap::create`].
pub fn open_tap_in(
    ns: &Namespaces,
    name: &str,
    queues: u16,
    config: Option<&InterfaceConfig>,
) -> Result<Tap, TapError> {
    if ns.user.is_none() {
        return on_a_thread(ns, || make_tap(name, queues, config));
    }
    let output = run_in(ns, || make_tap(name, queues, config).map(tap_output))?;
    tap_of(output, queues)
        .ok_or_else(|| TapError::Helper("the helper process sent no TAP".to_owned()))
}

/// Makes the TAP `name` in the network namespace this thread is in and, with `config`, brings the
/// loopback interface up and configures the TAP.
fn make_tap(name: &str, queues: u16, config: Option<&InterfaceConfig>) -> Result<Tap, TapError> {
    let mut tap = Tap::create(name, queues)?;
    if let Some(config) = config {
        netif::loopback_up()?;
        tap.lacks_ipv6 = !netif::configure(tap.ifindex, &tap.name, config)?;
        tap.mac = config.mac.unwrap_or(tap.mac);
    }
    Ok(tap)
}

/// Runs `work` in the network namespace on a thread of its own, which ends with it.
fn on_a_thread<T: Send>(
    ns: &Namespaces,
    work: impl FnOnce() -> Result<T, TapError> + Send,
) -> Result<T, TapError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                ns.enter_net()?;
                work()
            })
            .map_err(TapError::io("cannot start a thread"))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(TapError::Helper("the helper thread panicked".to_owned())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        let own = Namespaces::of_process(std::process::id() as i32).unwrap();
        let error = run_in(&own, || Ok((vec![], vec![]))).unwrap_err();
        assert!(matches!(error, TapError::MultiThreaded), "{error}");
        drop(stop);
        let _ = thread.join();
    }
}
