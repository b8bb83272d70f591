use super::*;

fn parsed(line: &str) -> Result<Invocation, ArgsError> {
    parse(line.split_whitespace().map(OsString::from))
}

fn options(line: &str) -> Options {
    match parsed(line) {
        Ok(Invocation::Run(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

fn shown(rules: &[PortRule]) -> Vec<String> {
    let protocol = |rule: &PortRule| match rule.protocol {
        Protocol::Tcp => "t",
        Protocol::Udp => "u",
    };
    let texts = rules
        .iter()
        .map(|rule| format!("{} {rule}", protocol(rule)));
    texts.collect()
}

/// podman 5 and 6 (`pkg/pasta` of container-libs).
#[test]
fn podmans_command_line() {
    let options = options(
        "--config-net -t 127.0.0.1/8080-8081:80-81 -u 5353-5353:53-53 --dns-forward 169.254.1.1 \
         -T none -U none --no-map-gw --quiet --netns /run/user/1000/netns/netns-1 \
         --map-guest-addr 169.254.1.2 --pid /tmp/pid -c /tmp/pesto.sock",
    );
    assert_eq!(
        shown(&options.ports.inwards),
        ["t 127.0.0.1/8080-8081:80-81", "u 5353:53"]
    );
    assert!(options.ports.outwards.is_empty());
    assert!(options.config_net && !options.map_gateway && options.logging.quiet);
    assert_eq!(options.dns_forward.ipv4, Some([169, 254, 1, 1].into()));
    assert_eq!(options.host_own.ipv4, Some([169, 254, 1, 2].into()));
    let path = Target::Path("/run/user/1000/netns/netns-1".into());
    assert_eq!(options.target, path);
    assert_eq!(options.control, Some("/tmp/pesto.sock".into()));
    assert_eq!(options.mtu, DEFAULT_MTU);
}

/// rootlesskit 3 (`pkg/network/pasta`).
#[test]
fn rootlesskits_command_line() {
    let options = options(
        "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 \
         --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto \
         --udp-ports=none --host-lo-to-ns-lo 4711",
    );
    assert_eq!(options.target, Target::Process(4711));
    assert_eq!(options.ns_interface.as_deref(), Some("tap0"));
    assert_eq!(
        (options.address.ipv4, options.prefix_v4),
        (Some([10, 0, 2, 100].into()), Some(24))
    );
    assert!(options.ipv4 && !options.ipv6 && options.to_loopback);
    assert_eq!(shown(&options.ports.inwards), ["t 1-65535"]);
    // Not given: what listens on the host's loopback.
    assert_eq!(shown(&options.ports.outwards), ["t 1-65535", "u 1-65535"]);
    let paths = parsed("--userns=/proc/4711/ns/user --netns=/run/n --tcp-ports=auto");
    assert!(matches!(paths, Ok(Invocation::Run(_))));
    let probe = parsed("--host-lo-to-ns-lo --version");
    assert_eq!(probe, Ok(Invocation::Version));
}

#[test]
fn a_command_begins_with_the_first_operand() {
    let command = |line: &str| match options(line).target {
        Target::Command(words) => words.join(std::ffi::OsStr::new(" ")),
        other => panic!("{other:?}"),
    };
    assert_eq!(command("-f ls -l --all"), "ls -l --all");
    assert_eq!(command("--config-net -- -x"), "-x");
    assert_eq!(command("-4"), "");
    assert_eq!(
        options("--netns blue").target,
        Target::Path("/run/netns/blue".into())
    );
    assert_eq!(
        options("--netns ./blue").target,
        Target::Path("./blue".into())
    );
}

#[test]
fn version_and_help_win_over_values_but_not_over_unknown_options() {
    assert_eq!(parsed("-m nonsense --version"), Ok(Invocation::Version));
    assert_eq!(parsed("--version --no-such"), Ok(Invocation::Version));
    assert!(parsed("--no-such --version").is_err());
    assert_eq!(parsed("-4 -h"), Ok(Invocation::Help));
}

/// The message of each wrong input.
// Longer than 60 lines: one wrong input after the other, each with its message.
#[test]
fn what_is_wrong_is_told() {
    for (line, message) in [
        ("--no-such-option", "unrecognized option '--no-such-option'"),
        (
            "--map-guest",
            "option '--map-guest-addr' requires an argument",
        ),
        ("--quiet=yes", "option '--quiet' doesn't allow an argument"),
        ("-s socket", "invalid option -- 's'"),
        ("-m", "option requires an argument -- 'm'"),
        (
            "--map",
            "option '--map' is ambiguous; possibilities: '--map-gw' '--map-host-loopback' \
             '--map-guest-addr'",
        ),
        ("-m many", "Invalid MTU: many"),
        ("-m 67", "Invalid MTU: 67"),
        ("-m 65522", "Invalid MTU: 65522"),
        ("-a nonsense", "Invalid address: nonsense"),
        ("-a 0.0.0.0", "Invalid address: 0.0.0.0"),
        ("-a 10.0.0.1/33", "Invalid address: 10.0.0.1/33"),
        (
            "-a 10.0.0.1 -a 10.0.0.2",
            "address was given twice for one family: 10.0.0.2",
        ),
        ("-n 255.0.255.0", "Invalid netmask: 255.0.255.0"),
        ("-n 33", "Invalid netmask: 33"),
        ("-g nowhere", "Invalid gateway address: nowhere"),
        (
            "-M 01:00:00:00:00:01",
            "Invalid MAC address: 01:00:00:00:00:01",
        ),
        ("--ns-mac-addr x", "Invalid MAC address: x"),
        ("-i a/b", "Invalid interface name: a/b"),
        (
            "-I name-that-is-too-long",
            "Invalid interface name: name-that-is-too-long",
        ),
        ("-o ::", "Invalid outbound address: ::"),
        ("-D x", "Invalid DNS address: x"),
        ("--dns-forward x", "Invalid DNS forward address: x"),
        ("--map-guest-addr x", "Invalid address to remap to host: x"),
        ("--log-size 0", "Invalid log size: 0"),
        (
            "--runas no-such-user-here",
            "Invalid user for --runas: no-such-user-here",
        ),
        ("-4 -6", "--ipv4-only and --ipv6-only exclude each other"),
        (
            "-6 -n 24",
            "--netmask needs IPv4, which --ipv6-only leaves out",
        ),
        (
            "--netns /run/n 4711",
            "--netns and a PID or a command exclude each other",
        ),
        (
            "--userns /proc/1/ns/user",
            "--userns and a command exclude each other",
        ),
        (
            "--netns /run/n --netns-only --userns /u",
            "--netns-only and --userns exclude each other",
        ),
        (
            "-l /tmp/log -e",
            "--log-file and --stderr exclude each other",
        ),
        (
            "--splice-only --no-splice",
            "--splice-only and --no-splice exclude each other",
        ),
        ("4711 4712", "more than one PID: 4712"),
        ("-t 0", "-t 0: `0` is no port from 1 to 65535"),
        ("-t none -t 80", "-t 80: `none` stands alone"),
        ("-u 80 -u none", "-u none: `none` stands alone"),
        ("-T 90-80", "-T 90-80: `90-80` ends before it begins"),
    ] {
        let error = parsed(line).unwrap_err();
        assert_eq!(error.to_string(), message, "{line}");
    }
}
