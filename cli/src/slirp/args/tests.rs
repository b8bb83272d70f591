//! The command lines that callers of slirp4netns use, and those that are refused.

use super::*;

fn try_parse(line: &str) -> Result<Invocation, ArgsError> {
    parse(line.split_whitespace().map(OsString::from))
}

fn options(line: &str) -> Options {
    match try_parse(line) {
        Ok(Invocation::Run(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> String {
    match try_parse(line) {
        Err(error) => error.to_string(),
        Ok(other) => panic!("{line}: {other:?}"),
    }
}

#[test]
fn defaults() {
    let options = options("4242 tap0");
    assert_eq!(
        options,
        Options {
            target: Target::Process(4242),
            userns: None,
            tap_name: "tap0".to_owned(),
            configure: false,
            exit_fd: None,
            ready_fd: None,
            mtu: 1500,
            ipv6: false,
            api_socket: None,
            subnet: Subnet::DEFAULT,
            disable_host_loopback: false,
            disable_dns: false,
            outbound_v4: None,
            outbound_v6: None,
            mac: None,
            busy_poll: DEFAULT_BUSY_POLL,
            workers: 1,
            sandbox: Mode::Offered,
            warnings: vec![],
        }
    );
}

#[test]
fn the_way_podman_calls() {
    let options = options(
        "--disable-host-loopback --mtu=65520 --enable-ipv6 --api-socket /run/a.sock \
         -c -e 3 -r 4 --netns-type=path /run/user/1000/netns/netns-1 tap0",
    );
    assert!(options.disable_host_loopback && options.configure && options.ipv6);
    assert_eq!((options.exit_fd, options.ready_fd), (Some(3), Some(4)));
    assert_eq!(options.mtu, 65520);
    assert_eq!(options.api_socket, Some("/run/a.sock".into()));
    let path = "/run/user/1000/netns/netns-1".into();
    assert_eq!(options.target, Target::Path(path));
}

#[test]
fn the_way_rootlesskit_calls() {
    let options = options(
        "--mtu 65520 -r 3 --disable-host-loopback --cidr 10.33.0.0/16 \
         --userns-path=/proc/77/ns/user --netns-type=path /proc/77/ns/net tap0",
    );
    assert_eq!(options.ready_fd, Some(3));
    assert_eq!(options.subnet.to_string(), "10.33.0.0/16");
    assert_eq!(options.userns, Some("/proc/77/ns/user".into()));
    assert!(!options.configure);
}

#[test]
fn getopt_order_and_clusters() {
    let expected = options("-c -6 -e 3 -r 4 -m 1400 77 eth0");
    for line in [
        "77 -c eth0 -6 -e 3 -m 1400 -r 4",
        "-c6e3 -r4 -m1400 77 eth0",
        "77 eth0 -6ce 3 --ready 4 --mtu 1400",
        "--conf --enable-i --exit=3 --ready-fd=4 -m 9000 -m 1400 -- 77 eth0",
    ] {
        assert_eq!(options(line), expected, "{line}");
    }
    assert_eq!(options("-- 77 -c").tap_name, "-c");
    assert_eq!(
        options("77 abcdefghijklmnopqrst").tap_name,
        "abcdefghijklmno"
    );
    assert_eq!(error("77"), ArgsError::NoTapName.to_string());
    assert!(error("77 tap%d").starts_with("\"tap%d\" is no name"));
    let warned = options("77 tap0 more");
    assert_eq!(warned.warnings, ["too many arguments"]);
}

#[test]
fn help_and_version_win_where_they_stand() {
    assert_eq!(try_parse("--help"), Ok(Invocation::Help));
    assert_eq!(try_parse("-hv --nonsense"), Ok(Invocation::Help));
    assert_eq!(try_parse("-vh"), Ok(Invocation::Version));
    assert_eq!(try_parse("--vers"), Ok(Invocation::Version));
    assert_eq!(error("--nonsense -h"), "unrecognized option '--nonsense'");
    for option in [
        "--mtu",
        "--cidr",
        "--disable-host-loopback",
        "--enable-ipv6",
        "--outbound-addr",
        "--netns-type",
        "--enable-sandbox",
        "--enable-seccomp",
    ] {
        assert!(HELP.contains(option), "{option}");
    }
}

#[test]
fn syntax_errors_read_as_getopt_writes_them() {
    for (line, message) in [
        ("--foo 1", "unrecognized option '--foo'"),
        ("-1", "invalid option -- '1'"),
        ("-ce", "option requires an argument -- 'e'"),
        ("--cidr", "option '--cidr' requires an argument"),
        (
            "--configure=1 5",
            "option '--configure' doesn't allow an argument",
        ),
        (
            "--enable 1",
            "option '--enable' is ambiguous; possibilities: '--enable-ipv6' \
             '--enable-sandbox' '--enable-seccomp'",
        ),
    ] {
        assert_eq!(error(line), message);
    }
}

#[test]
fn values_out_of_range() {
    for line in ["abc", "0", "-- -5", "1a", "99999999999", "-c ./ns"] {
        assert_eq!(error(line), "PID must be a positive integer", "{line}");
    }
    for mtu in ["+5", " 5"] {
        let words = ["-m", mtu, " +7", "tap0"].map(OsString::from);
        let Ok(Invocation::Run(options)) = parse(words) else {
            panic!("{mtu}");
        };
        assert_eq!((options.mtu, options.target), (5, Target::Process(7)));
    }
    for mtu in ["0", "65522", "abc", "-1", "5x", "+", "- 5", "++5"] {
        assert_eq!(
            error(&format!("-m {mtu} 1")),
            "MTU must be a positive integer (< 65522)"
        );
    }
    for micros in ["x", "-1", "1000001"] {
        let error = error(&format!("--busy-poll={micros} 5"));
        assert_eq!(error, ArgsError::BusyPoll.to_string());
    }
    assert_eq!(options("--busy-poll 0 5 tap0").busy_poll, Duration::ZERO);
    for workers in ["0", "65", "x", "-1", "65537"] {
        let error = error(&format!("--workers={workers} 5"));
        assert_eq!(error, ArgsError::Workers.to_string());
    }
    assert_eq!(options("--workers 64 5 tap0").workers, 64);
    assert_eq!(error("-e -1 5"), "exit-fd must be a non-negative integer");
    assert_eq!(error("-r x 5"), "ready-fd must be a non-negative integer");
    assert_eq!(
        error("--cidr=10.0.2.0/26 5"),
        "prefix length needs to be 1-25"
    );
    assert_eq!(
        error("--netns-type=foo 5"),
        ArgsError::NetnsType.to_string()
    );
    assert_eq!(
        error("--target-type=foo 5"),
        ArgsError::TargetType.to_string()
    );
    for cidr in ["127.0.0.0/8", "127.1.0.0/16"] {
        let error = error(&format!("--cidr={cidr} 5 tap0"));
        assert!(error.ends_with(&format!("not {cidr}")), "{error}");
    }
    assert_eq!(error(""), ArgsError::NoTarget.to_string());
}

#[test]
fn mac_addresses() {
    let mac = options("-c --macaddress=02:0:aB:4:5:6 5 tap0").mac.unwrap();
    assert_eq!(mac.to_string(), "02:00:ab:04:05:06");
    for text in [
        "zz",
        "1:2:3:4:5:6",
        "2:3:4:5:6",
        "2:3:4:5:6:7:8",
        "0:0:0:0:0:0",
        "2::4:5:6:7",
    ] {
        let error = error(&format!("-c --macaddress={text} 5"));
        assert!(error.starts_with(&format!("\"{text}\" is an invalid MAC address.")));
    }
    assert!(error("--macaddress=02:0:0:4:5:6 5").contains("--configure"));
}

#[test]
fn the_sandbox_is_there_unless_it_is_switched_off() {
    let mode = |line: &str| options(&format!("{line} 5 tap0")).sandbox;
    for line in [
        "",
        "--enable-sandbox",
        "--create-sandbox --enable-seccomp",
        "--no-sandbox --enable-sandbox",
    ] {
        assert_eq!(mode(line), Mode::Offered, "{line}");
    }
    assert_eq!(mode("--require-sandbox --enable-sandbox"), Mode::Required);
    assert_eq!(mode("--no-sandbox"), Mode::Off);
}

#[test]
fn a_source_is_an_address_or_an_interface() {
    let both = options("-6 --outbound-addr=eth0 --outbound-addr6=eth1 5 tap0");
    assert_eq!(both.outbound_v4, Some(Source::Interface("eth0".to_owned())));
    assert_eq!(both.outbound_v6, Some(Source::Interface("eth1".to_owned())));
    let both = options("--outbound-addr=192.0.2.1 --outbound-addr6=2001:db8::1 5 tap0");
    assert_eq!(
        both.outbound_v4,
        Some(Source::Address([192, 0, 2, 1].into()))
    );
    let v6 = "2001:db8::1".parse().unwrap();
    assert_eq!(both.outbound_v6, Some(Source::Address(v6)));
}

#[test]
fn a_tap_of_the_callers_and_a_machine_have_no_tapname() {
    let tap = options("--netns-type=tapfd 5");
    assert_eq!((tap.target, tap.tap_name.as_str()), (Target::TapFd(5), ""));
    let warned = options("-c --netns-type=tapfd 5 tap0");
    assert_eq!(warned.warnings.len(), 2, "{:?}", warned.warnings);
    assert_eq!(error("--netns-type=tapfd x"), ArgsError::TapFd.to_string());
    let machine = options("--target-type=bess /tmp/x");
    assert_eq!(machine.target, Target::Bess("/tmp/x".into()));
    assert_eq!(
        error("--target-type=bess /tmp/x tap0"),
        ArgsError::TooMany.to_string()
    );
    for option in ["--configure", "--netns-type=path", "--userns-path=/proc"] {
        let error = error(&format!("--target-type=bess {option} /tmp/x"));
        let name = option.split('=').next().unwrap();
        assert_eq!(error, format!("{name} conflicts with --target-type=bess"));
    }
}
