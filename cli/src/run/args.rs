//! The command line of `cnet run`.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::network_mode::NetworkChoice;
use crate::filter::FilterOptions;
use crate::label::parse_label;
use crate::publish_option::PublishOption;
use crate::sandbox::SandboxOptions;
use cnet::definition::{DnsServer, MTU_RANGE, check_host_name, check_name, is_domain};
use cnet_dataplane::{DEFAULT_BUSY_POLL, MAX_BUSY_POLL_MICROS, MAX_WORKERS};
use cnet_wire::MacAddr;
use cnet_wire::prefixes::Subnet;

/// The options of `cnet run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status: the command's own; 128 and the signal's number if a signal ended it; 126 if it cannot \
be executed; 127 if it is not found; 125 if cnet itself fails.")]
pub struct RunOptions {
    /// Open a port of the host and lead it to the command.
    ///
    /// Either may be a range, as in 8000-8010:80-90. An IPv6 address stands in brackets, a link-local one
    /// with its interface, as in [fe80::1%eth0]:80:80. Without HOSTIP the port is opened on all
    /// addresses, without HOSTPORT, or with 0, any free one is taken, and told on standard error. On an
    /// internal network it is refused.
    ///
    /// `auto` publishes what the command listens on, at the same ports, as it begins and ends; ports
    /// behind `~` are left out, as in auto,~22.
    #[arg(
        short,
        long,
        value_name = "[[HOSTIP:]HOSTPORT:]PORT[/tcp|udp]|auto[,~PORT]",
        verbatim_doc_comment
    )]
    pub(crate) publish: Vec<PublishOption>,

    /// Write the published ports to this file, as JSON, before the command starts.
    ///
    /// It is a list of what `cnet inspect` shows as `ports`. The file is replaced in one step.
    #[arg(long, value_name = "FILE")]
    pub publish_file: Option<PathBuf>,

    /// Where to put the command: `none` (loopback alone), `host` (the host's own network),
    /// `container:NAME` or `container:PID` (with that container), or on the network of that name.
    ///
    /// Without it the command has a network of its own, which ends with it. Several networks may be
    /// given. Behind a name stands what concerns that network alone: NET:alias=db,ip=10.88.0.7, of
    /// alias, ip, ip6, mac and interface_name. `bridge` is the network `cnet`, unless there is one of
    /// that name.
    #[arg(
        id = "network",
        long = "network",
        visible_alias = "net",
        value_name = "none|host|NET|container:NAME"
    )]
    pub(crate) networks: Vec<NetworkChoice>,

    /// Go on in the background, and print the container's id. Its output is kept for `cnet logs`.
    #[arg(short, long)]
    pub detach: bool,

    /// The id of a container in the background, in its own process.
    #[arg(long, hide = true, value_name = "ID")]
    pub detached_id: Option<String>,

    /// With --detach, keep neither log nor exit code of a command that has ended. Of one in the
    /// foreground nothing is kept in any case.
    #[arg(long)]
    pub rm: bool,

    /// Let the command read standard input, as it does in any case; for those who type it.
    #[arg(short, long)]
    pub interactive: bool,

    /// Give the command a terminal of its own, if standard input is one; without it the command has
    /// the user's.
    #[arg(short, long)]
    pub tty: bool,

    /// A variable for the command's environment, with its value, or without for the value that it has
    /// here; may be given several times. The command has all other variables as well.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", value_parser = parse_env)]
    pub env: Vec<(String, Option<String>)>,

    /// The directory that the command starts in.
    #[arg(short, long, value_name = "DIRECTORY")]
    pub workdir: Option<PathBuf>,

    /// What the container is called; by default the start of a random id.
    #[arg(long)]
    pub name: Option<String>,

    /// A further name on the network; may be given several times.
    #[arg(
        long = "alias",
        visible_alias = "network-alias",
        value_name = "NAME",
        requires = "network"
    )]
    pub aliases: Vec<String>,

    /// A note for programs and for policy; may be given several times. It needs --network NET.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label, requires = "network")]
    pub labels: Vec<(String, String)>,

    /// A further name for a container of the network, in `/etc/hosts`; may be given several times.
    #[arg(long = "link", value_name = "CONTAINER[:NAME]", value_parser = parse_link, requires = "network")]
    pub(crate) links: Vec<Link>,

    /// The IPv4 address on the network.
    #[arg(long, value_name = "ADDRESS", requires = "network")]
    pub ip: Option<Ipv4Addr>,

    /// The IPv6 address on the network.
    #[arg(long, value_name = "ADDRESS", requires = "network")]
    pub ip6: Option<Ipv6Addr>,

    /// The hardware address of the command's interface.
    #[arg(long, visible_alias = "mac", value_name = "MAC")]
    pub mac_address: Option<MacAddr>,

    /// Bytes of the largest packet on the command's interface [default: as on the host's default route].
    #[arg(
        long,
        conflicts_with = "network",
        value_parser = clap::value_parser!(u16).range(MTU_RANGE)
    )]
    pub mtu: Option<u16>,

    /// IPv4 only.
    #[arg(long, conflicts_with = "network")]
    pub no_ipv6: bool,

    /// The IPv4 subnet, such as 10.0.2.0/24; by default one that the host does not use.
    #[arg(long, conflicts_with = "network", value_name = "CIDR")]
    pub subnet: Option<Subnet>,

    /// Let the command reach the host's loopback at the gateway's address (10.0.2.2).
    #[arg(long, conflicts_with = "network")]
    pub allow_host_loopback: bool,

    /// Let the command reach the cloud's instance metadata (169.254.169.254 and the like).
    ///
    /// It gives out the instance's credentials on most clouds. Without this, all of 169.254.0.0/16 is
    /// out of reach, and what clouds have elsewhere, such as fd00:ec2::254.
    #[arg(long, conflicts_with = "network")]
    pub allow_metadata: bool,

    /// Let it send from other addresses than its own: for further addresses in the subnet, and for
    /// containers, virtual machines or networks behind it.
    ///
    /// Its neighbours then have to trust it: it can take the addresses that no lease pins.
    #[arg(long, requires = "network")]
    pub trust: bool,

    /// Connect over TCP from the host's port of the command's number, where that is free.
    ///
    /// Each connection then takes the host a little longer. UDP ports are kept always where no service
    /// of the host's could want them.
    #[arg(long, conflicts_with = "network")]
    pub keep_ports: bool,

    #[command(flatten)]
    pub(crate) filter: FilterOptions,

    /// Give out answers of DNS servers for so many seconds beyond their time where no server answers
    /// (RFC 8767).
    #[arg(
        long,
        conflicts_with = "network",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    pub dns_stale: u32,

    /// Names of the command's own.
    #[command(flatten)]
    pub names: NameOptions,

    /// Poll this long after the last packet before going to sleep; 0 for never.
    ///
    /// It makes short round trips quicker, at the cost of processor time while there is traffic. An
    /// idle network sleeps whatever is given here.
    #[arg(
        long,
        conflicts_with = "network",
        value_name = "MICROSECONDS",
        default_value_t = DEFAULT_BUSY_POLL.as_micros() as u32,
        value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_BUSY_POLL_MICROS))
    )]
    pub busy_poll: u32,

    /// Carry TCP on this many threads.
    ///
    /// Worth it where several streams at once ask for more than one processor carries. All else
    /// than TCP, and published ports, are on the first of them whatever is given here.
    #[arg(
        long,
        conflicts_with = "network",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_WORKERS))
    )]
    pub workers: u16,

    /// What the network's process gives up.
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,

    /// Have more users than root in the command, from this user's ranges in /etc/subuid and /etc/subgid:
    /// the default where they and newuidmap(1) are there; with this, an error where they are not.
    ///
    /// Root and root's files are this user's own in any case.
    #[arg(long, conflicts_with = "keep_uid")]
    pub map_users: bool,

    /// Run the command as the user who one is, without rights over its network, and not as root of it.
    #[arg(long)]
    pub keep_uid: bool,

    /// Say more on standard error; twice for still more.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// The options about names that the command sees in files of its own.
#[derive(Args, Clone, Debug, Default)]
pub struct NameOptions {
    /// Ask this DNS server instead of the host's or the network's, or, with a domain, for the names
    /// in that domain alone; may be given several times.
    #[arg(long, value_name = "[DOMAIN=]ADDRESS")]
    pub dns: Vec<DnsServer>,

    /// Search this domain instead of those of the host; may be given several times, and `.` for
    /// none.
    #[arg(long, value_name = "DOMAIN", value_parser = parse_search)]
    pub dns_search: Vec<String>,

    /// An option for the command's resolver, such as `ndots:1`; may be given several times.
    ///
    /// It takes the place of the host's option of that name. See resolv.conf(5).
    #[arg(long, value_name = "OPTION", value_parser = parse_dns_option)]
    pub dns_option: Vec<String>,

    /// A name for `/etc/hosts`, with its address, or `host-gateway` for the gateway's; may be given
    /// several times.
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = parse_add_host)]
    pub add_host: Vec<AddHost>,

    /// The command's host name.
    #[arg(long, value_name = "NAME", value_parser = parse_hostname)]
    pub hostname: Option<String>,
}

impl NameOptions {
    /// Whether any is given.
    pub fn any(&self) -> bool {
        let servers = !self.dns.is_empty();
        let lists = servers || !self.dns_search.is_empty() || !self.dns_option.is_empty();
        lists || !self.add_host.is_empty() || self.hostname.is_some()
    }
}

/// A container of the network, and what it is to be called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    /// What the network calls it, or its id.
    pub(crate) container: String,
    /// What the command calls it.
    pub(crate) name: String,
}

fn parse_link(text: &str) -> Result<Link, String> {
    let (container, name) = text.split_once(':').unwrap_or((text, text));
    check_host_name(name).map_err(|error| error.to_string())?;
    Ok(Link {
        container: container.to_owned(),
        name: name.to_owned(),
    })
}

/// `NAME=VALUE`, or `NAME`.
pub(super) fn parse_env(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name.is_empty() || text.contains('\0') {
        true => Err("it is a name, or a name, `=` and a value".to_owned()),
        false => Ok((name.to_owned(), value)),
    }
}

/// A name for `/etc/hosts`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddHost {
    /// The name.
    pub name: String,
    /// Its address; `None` for the gateway's.
    pub address: Option<IpAddr>,
}

fn parse_search(text: &str) -> Result<String, String> {
    match text == "." || is_domain(text) {
        true => Ok(text.to_owned()),
        false => Err("it is not a domain".to_owned()),
    }
}

fn parse_dns_option(text: &str) -> Result<String, String> {
    let (key, value) = text.split_once(':').unwrap_or((text, "0"));
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match !key.is_empty() && key.bytes().all(word) && number {
        true => Ok(text.to_owned()),
        false => {
            Err("an option is a word, or a word, a colon and a number, as in `ndots:1`".into())
        }
    }
}

/// `NAME:ADDRESS`, or `NAME=ADDRESS`, as Docker has both; an IPv6 address may stand in brackets.
fn parse_add_host(text: &str) -> Result<AddHost, String> {
    let parts = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) =
        parts.ok_or("it is a name, a colon and an address, as in `db:10.1.1.1`")?;
    check_host_name(name).map_err(|error| error.to_string())?;
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    let address = match bare.unwrap_or(address) {
        "host-gateway" => None,
        address => Some(
            address
                .parse()
                .map_err(|_| format!("`{address}` is no address"))?,
        ),
    };
    Ok(AddHost {
        name: name.to_owned(),
        address,
    })
}

fn parse_hostname(text: &str) -> Result<String, String> {
    match check_name(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: RunOptions,
    }

    fn parse(line: &str) -> Result<RunOptions, clap::Error> {
        let words = format!("run {line}");
        let line = CommandLine::try_parse_from(words.split_whitespace())?;
        Ok(line.options)
    }

    #[test]
    fn options_and_command_are_told_apart() {
        let options = parse(
            "-p 8080:80 -p [::1]:53:53/udp --no-ipv6 --mtu 1500 --dns 192.0.2.1 -vv -- \
             sh -c true -p x",
        )
        .unwrap();
        assert_eq!(options.command, ["sh", "-c", "true", "-p", "x"]);
        assert_eq!(options.publish.len(), 2);
        assert_eq!(
            (options.mtu, options.no_ipv6, options.verbose),
            (Some(1500), true, 2)
        );
        assert_eq!(options.names.dns, [IpAddr::from([192, 0, 2, 1]).into()]);
        let options = parse("--no-ipv6 curl -sI https://example.org --no-ipv6").unwrap();
        assert_eq!(options.command.len(), 4);
        let options = parse("--network lan --name web --alias www --ip 10.89.0.7 true").unwrap();
        assert_eq!(options.networks, ["lan".parse().unwrap()]);
        assert_eq!(options.ip, Some([10, 89, 0, 7].into()));
        let options = parse("true").unwrap();
        assert_eq!(options.mtu, None);
        assert_eq!(options.busy_poll, 50);
        assert_eq!(parse("--busy-poll 0 true").unwrap().busy_poll, 0);
        assert!(parse("--busy-poll 1000001 true").is_err());
        assert_eq!(options.workers, 1);
        assert_eq!(parse("--workers 64 true").unwrap().workers, 64);
        assert!(parse("--workers 0 true").is_err() && parse("--workers 65 true").is_err());
        assert!(parse("--workers 2 --network lan true").is_err());
        assert!(!options.allow_host_loopback && !options.allow_metadata && !options.no_ipv6);
    }

    #[test]
    fn the_words_of_docker_and_podman_are_read() {
        let options = parse(
            "-dit --rm -e A=b=c -e EMPTY= --env HOME -w /tmp --net lan --network name=wan,alias=www \
             --network-alias db --link web:front --link db --mac-address 02:00:00:00:00:07 sh -c x",
        )
        .unwrap();
        assert!(options.detach && options.interactive && options.tty && options.rm);
        let some = |value: &str| Some(value.to_owned());
        let env = [("A", some("b=c")), ("EMPTY", some("")), ("HOME", None)];
        assert_eq!(
            options.env,
            env.map(|(name, value)| (name.to_owned(), value))
        );
        assert_eq!(options.networks.len(), 2);
        assert_eq!(options.networks[1].own.aliases, ["www"]);
        assert_eq!(options.aliases, ["db"]);
        assert_eq!(
            (&*options.links[0].container, &*options.links[0].name),
            ("web", "front")
        );
        assert_eq!(options.links[1].name, "db");
        assert_eq!(
            options.mac_address.unwrap().to_string(),
            "02:00:00:00:00:07"
        );
        assert_eq!(options.command, ["sh", "-c", "x"]);
        assert!(parse("-e =x true").is_err() && parse("--link a..b true").is_err());
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let error = |line: &str| parse(line).unwrap_err().to_string();
        assert!(error("").contains("CMD"));
        assert!(error("--nonsense -- true").contains("--nonsense"));
        assert!(error("-p 80:0 -- true").contains("`0` is not a port"));
        assert!(error("--mtu 67 -- true").contains("68..=65521"));
        assert!(error("--mtu 65522 -- true").contains("68..=65521"));
        assert!(error("--subnet 10.0.2.1/24 -- true").contains("needs to be a network address"));
        assert!(error("--dns nonsense -- true").contains("nonsense"));
        assert!(error("--network lan --subnet 10.0.2.0/24 true").contains("--subnet"));
        assert!(error("--alias www true").contains("--network"));
        for name in [
            "localhost",
            "a..b",
            "a.",
            "10.0.0.1",
            "host.docker.internal",
        ] {
            let hostname = error(&format!("--hostname {name} true"));
            assert!(hostname.contains(&format!("`{name}`")), "{hostname}");
        }
        assert!(error("--add-host a..b:10.1.1.1 true").contains("`a..b`"));
        assert!(error("--add-host db:10.1.1 true").contains("`10.1.1` is no address"));
        assert!(error("--dns-search a..b true").contains("not a domain"));
        assert!(error("--dns-option ndots: true").contains("`ndots:1`"));
    }

    #[test]
    fn names_of_the_commands_own() {
        let options = parse(
            "--hostname box --dns-search a.example --dns-search b.example --dns-option ndots:2 \
             --dns-option use-vc --add-host db:10.1.1.1 --add-host=six=[fd00::1] \
             --add-host six:fd00::2 --add-host host:host-gateway true",
        )
        .unwrap();
        let names = options.names;
        assert_eq!(names.hostname.as_deref(), Some("box"));
        assert_eq!(names.dns_search, ["a.example", "b.example"]);
        assert_eq!(names.dns_option, ["ndots:2", "use-vc"]);
        let added = names.add_host.iter();
        let added: Vec<_> = added
            .map(|h| (h.name.as_str(), h.address.map(|a| a.to_string())))
            .collect();
        let some = |address: &str| Some(address.to_owned());
        assert_eq!(
            added,
            [
                ("db", some("10.1.1.1")),
                ("six", some("fd00::1")),
                ("six", some("fd00::2")),
                ("host", None),
            ]
        );
    }
}
