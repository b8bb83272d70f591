//! The options of `cnet network`'s subcommands, and how their values are read.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;

use crate::cnet::format::{Filter, Format};
use crate::filter::FilterOptions;
use crate::label::parse_label;
use cnet::definition::{BRIDGE, DnsServer, MTU_RANGE, OVERLAY, Peer, Request};

/// The options of `cnet network create`.
#[derive(Args, Debug)]
pub(crate) struct CreateOptions {
    /// What to call it.
    pub(super) name: String,

    /// Its subnet, such as 172.27.0.0/16; one of IPv4, one of IPv6, or one of each.
    ///
    /// The network has the families of the subnets given. Without any, it has both: a free IPv4
    /// subnet and a unique local IPv6 prefix.
    #[arg(long, value_name = "CIDR", value_parser = parse_subnet)]
    pub(super) subnet: Vec<IpNet>,

    /// The gateway's address, which answers DNS as well; by default the first one of the subnet.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) gateway: Vec<IpAddr>,

    /// The part of the subnet that containers get their addresses from.
    #[arg(long, value_name = "CIDR", value_parser = parse_subnet)]
    pub(super) ip_range: Vec<IpNet>,

    /// No way out: containers reach each other and the gateway alone. Their names are answered,
    /// all others do not exist. Nor is there a way in: ports cannot be published on it.
    #[arg(long)]
    pub(super) internal: bool,

    /// Containers reach the gateway and the world, but not each other.
    #[arg(long)]
    pub(super) isolate: bool,

    /// Have the network's process refuse to run where the host lacks a stage of its sandbox.
    ///
    /// Without this, what is lacking is logged. `cnet doctor` tells what to do about it.
    #[arg(long)]
    pub(super) require_sandbox: bool,

    /// Bytes of the largest packet [default: as on the host's default route].
    #[arg(
        long,
        value_parser = clap::value_parser!(u16).range(MTU_RANGE)
    )]
    pub(super) mtu: Option<u16>,

    /// Ask this DNS server instead of the host's, or, with a domain, for the names in that domain
    /// alone; may be given several times.
    #[arg(long, value_name = "[DOMAIN=]ADDRESS")]
    pub(super) dns: Vec<DnsServer>,

    /// Give out answers of DNS servers for so many seconds beyond their time where no server answers
    /// (RFC 8767).
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(super) dns_stale: u32,

    /// A domain that containers search; may be given several times.
    #[arg(long, value_name = "DOMAIN")]
    pub(super) dns_search: Vec<String>,

    /// Let containers send from other addresses than their own; for one container `cnet attach --trust`.
    #[arg(long)]
    pub(super) trust: bool,

    /// Connect over TCP from the host's port of the container's number, where that is free.
    ///
    /// Each connection then takes the host a little longer. UDP ports are kept always where no service
    /// of the host's could want them.
    #[arg(long)]
    pub(super) keep_ports: bool,

    #[command(flatten)]
    pub(super) filter: FilterOptions,

    /// Policies of who may speak to whom, as manifests of Kubernetes; see `cnet policy apply`.
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<PathBuf>,

    /// A note for programs; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(super) label: Vec<(String, String)>,

    /// The kind of network: `bridge` on this host, `overlay` across several, by VXLAN, or `macvlan` on the
    /// host's LAN.
    #[arg(short, long, default_value = BRIDGE)]
    pub(super) driver: String,

    /// An option of the driver: with `macvlan`, `parent=INTERFACE`; may be given several times.
    #[arg(short, long = "opt", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(super) option: Vec<(String, String)>,

    /// With `overlay`, another host of the network; may be given several times.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) peer: Vec<Peer>,

    /// With `overlay`, the number of the network, the same on all hosts [default: made of its name].
    #[arg(long, value_name = "NUMBER")]
    pub(super) vni: Option<u32>,

    /// With `overlay`, the UDP port that this host's end of the tunnels has [default: 4789].
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<u16>,
}

/// The options of `cnet network ls`.
#[derive(Args, Debug)]
pub(crate) struct ListOptions {
    /// The ids alone.
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Whole ids.
    #[arg(long)]
    pub(super) no_trunc: bool,

    /// Those alone for which this holds, of name, id, driver, label, scope, internal and type
    /// (`builtin` or `custom`); may be given several times.
    #[arg(short, long, value_name = "FIELD=VALUE")]
    pub(super) filter: Vec<Filter>,

    /// How to write them: `table`, `json` (a line for each), or a template such as '{{.Name}}', of the
    /// fields that `json` shows.
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(super) format: Format,

    /// As --format json.
    #[arg(long, conflicts_with = "format")]
    pub(super) json: bool,
}

/// The options of `cnet network inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectOptions {
    /// How to write them: `json`, or a template such as '{{.Name}}'.
    #[arg(short, long, default_value = "json", value_name = "FORMAT")]
    pub(super) format: Format,

    /// As --format json, the default.
    #[arg(long)]
    pub(super) json: bool,

    /// Names, or beginnings of ids.
    #[arg(required = true, value_name = "NETWORK")]
    pub(super) names: Vec<String>,
}

/// Networks by name.
#[derive(Args, Debug)]
pub(crate) struct NameOptions {
    /// Names, or beginnings of ids.
    #[arg(required = true, value_name = "NETWORK")]
    pub(super) names: Vec<String>,
}

/// The options of `cnet network prune`.
#[derive(Args, Debug)]
pub(crate) struct PruneOptions {
    /// Do not ask.
    #[arg(short, long)]
    pub(super) force: bool,
}

fn parse_subnet(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| {
        "it is a network's address and prefix length, such as 172.27.0.0/16 or fd12::/64".to_owned()
    })
}

impl From<CreateOptions> for Request {
    fn from(options: CreateOptions) -> Request {
        let mut request = Request::new(options.name);
        request.driver = options.driver;
        request.subnets = options.subnet;
        request.gateways = options.gateway;
        request.ip_ranges = options.ip_range;
        request.internal = options.internal;
        request.isolate = options.isolate;
        request.options = options.option.into_iter().collect();
        request.overlay.peers = options.peer;
        (request.overlay.vni, request.overlay.port) = (options.vni, options.port);
        request.mtu = match (options.mtu, request.driver.as_str()) {
            (Some(mtu), _) => mtu,
            (None, OVERLAY) => request.overlay.default_mtu(),
            (None, _) => request.mtu,
        };
        request.require_sandbox = options.require_sandbox;
        request.dns = options.dns;
        request.dns_stale = options.dns_stale;
        request.dns_search = options.dns_search;
        request.trust = options.trust;
        request.keep_ports = options.keep_ports;
        request.filter = options.filter.filter();
        request.labels = options.label.into_iter().collect();
        request
    }
}
