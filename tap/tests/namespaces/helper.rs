//! Work done inside a container by a helper process.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cnet_tap::helper::MAX_ANSWER;
use cnet_tap::netif::{index_of, mac_of};
use cnet_tap::watch::{has_ended, pidfd};
use cnet_tap::{Namespaces, TapError, open_tap_in, run_in};
use rustix::process::{Signal, WaitOptions};

use crate::stage::{Container, alone, eventually, fork};
use crate::tap::config;

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn a_tap_is_opened_in_a_container_and_handed_out() {
    alone(|| {
        let container = Container::start();
        let process = pidfd(container.raw_pid()).unwrap();
        let ns = Namespaces::of_process(container.raw_pid()).unwrap();
        assert!(ns.user.is_some());
        let tap = open_tap_in(&ns, "tap0", 2, Some(&config())).unwrap();
        assert_eq!((tap.queues.len(), tap.mac), (2, [2, 0, 0, 0, 0, 9]));
        assert!(tap.offloads.tso4);
        assert!(
            index_of("tap0").is_err(),
            "the TAP is in the wrong namespace"
        );
        // Seen from inside, by a helper that is handed the name.
        let (_, bytes) = run_in(&ns, || Ok((vec![], mac_of(index_of("tap0")?)?.to_vec()))).unwrap();
        assert_eq!(bytes, tap.mac);
        // Brought up, the kernel speaks first: a router solicitation or a multicast report.
        let mut frame = [0; 2000];
        eventually("a frame from the container", || {
            tap.queues
                .iter()
                .any(|queue| queue.read(&mut frame).is_ok_and(|length| length > 24))
        });
        assert!(!has_ended(&process).unwrap());
        drop(container);
        assert!(has_ended(&process).unwrap());
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn without_a_configuration_nothing_is_brought_up() {
    alone(|| {
        let container = Container::start();
        let pid = container.raw_pid();
        let path = |name: &str| PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        let ns = Namespaces::from_paths(&path("net"), Some(&path("user"))).unwrap();
        let tap = open_tap_in(&ns, "tap0", 1, None).unwrap();
        let (_, addresses) = run_in(&ns, || {
            let text = std::fs::read("/proc/self/net/if_inet6").unwrap_or_default();
            Ok((vec![], text))
        })
        .unwrap();
        assert!(
            addresses.is_empty(),
            "{}",
            String::from_utf8_lossy(&addresses)
        );
        assert_eq!(
            tap.queues[0].write(&[0; 64]).unwrap_err().raw_os_error(),
            Some(libc::EIO)
        );
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn a_handover_comes_whole_and_errors_with_their_text() {
    alone(|| {
        let container = Container::start();
        let ns = Namespaces::of_process(container.raw_pid()).unwrap();
        let most = vec![7; MAX_ANSWER];
        let (reader, writer) = std::io::pipe().unwrap();
        let (fds, bytes) = run_in(&ns, || Ok((vec![reader.into()], most.clone()))).unwrap();
        assert_eq!(bytes, most);
        let mut writer = writer;
        writer.write_all(b"hello").unwrap();
        drop(writer);
        let mut text = String::new();
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        std::fs::File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");

        let root = run_in(&ns, || {
            Ok((vec![], vec![u8::from(rustix::process::geteuid().is_root())]))
        });
        assert_eq!(root.unwrap().1, [1]);

        let error = run_in(&ns, || {
            Err(TapError::NameTaken {
                name: "tap7".into(),
            })
        })
        .unwrap_err();
        let same = TapError::NameTaken {
            name: "tap7".into(),
        };
        assert!(matches!(error, TapError::Helper(_)));
        assert_eq!(error.to_string(), same.to_string());

        let error = run_in(&ns, || Ok((vec![], vec![0; MAX_ANSWER + 1]))).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        let error = run_in(&ns, || panic!("on purpose")).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        let error = run_in(&ns, || {
            // SAFETY: _exit(2) takes a number and ends the process.
            unsafe { libc::_exit(7) }
        })
        .unwrap_err();
        assert!(error.to_string().contains("exit status 7"), "{error}");
        // Every helper was reaped: the container is the only child left.
        drop(container);
        let none = rustix::process::waitpid(None, WaitOptions::NOHANG);
        assert_eq!(none.unwrap_err(), rustix::io::Errno::CHILD);
    });
}

#[test]
#[ignore = "needs /dev/net/tun and a network namespace; cargo xtask test runs it"]
fn no_helper_outlives_its_parent() {
    alone(|| {
        let container = Container::start();
        let ns = Namespaces::of_process(container.raw_pid()).unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let parent = fork(|| {
            let _ = run_in(&ns, || {
                let own = rustix::process::getpid().as_raw_pid();
                writer.write_all(&own.to_ne_bytes()).unwrap();
                std::thread::sleep(std::time::Duration::from_secs(25));
                Ok((vec![], vec![]))
            });
            0
        });
        let mut helper = [0; 4];
        reader.read_exact(&mut helper).unwrap();
        let helper = pidfd(i32::from_ne_bytes(helper)).unwrap();
        assert!(!has_ended(&helper).unwrap());
        rustix::process::kill_process(parent, Signal::KILL).unwrap();
        rustix::process::waitpid(Some(parent), WaitOptions::empty()).unwrap();
        eventually("the helper's end", || has_ended(&helper).unwrap());
    });
}
