//! The metrics of networks, in the text formats that Prometheus reads.
//!
//! # Theory of operation
//!
//! A page is made of [`StatisticsReport`]s when it is asked for: of one, by the network's process, or of
//! those of all of a user's networks, by `cnet metrics`. So the two agree, and nothing is counted twice.
//! The workers are asked for their counters once a page, as by `cnet top`; the text is made by the
//! thread that asks.
//!
//! # Names
//!
//! They follow <https://prometheus.io/docs/practices/naming/>: base units, counters end in `_total`.
//! *Receive* and *transmit* are the container's, as of its interface. `docs/operations.md` lists them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use cnet::control::{
    AnswerTimes, ContainerStatistics, Counters, ProcessStatistics, RouterStatistics,
    StatisticsReport,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};

mod http;

pub use http::serve;

/// A text format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Format {
    /// Prometheus' own, version 0.0.4, which everything understands.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that a client's header `Accept` asks for.
    pub fn accepted(accept: &str) -> Format {
        match accept.contains("application/openmetrics-text") {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    /// The value of the header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The metrics of the networks that `reports` tell of; the `failed` ones run, and do not answer.
pub fn page(reports: Vec<StatisticsReport>, failed: Vec<String>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Networks { reports, failed }));
    let mut page = String::new();
    let encoded = match format {
        Format::Prometheus => prometheus_text::encode(&mut page, &registry),
        Format::OpenMetrics => text::encode(&mut page, &registry),
    };
    // To write to a string does not fail, and the collector has no error of its own.
    debug_assert!(encoded.is_ok(), "{encoded:?}");
    page
}

/// What this process has used, which started at `started`.
pub(crate) fn process(started: SystemTime) -> ProcessStatistics {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let millis = cpu.tv_sec * 1000 + cpu.tv_nsec / 1_000_000;
    let since_epoch = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    ProcessStatistics {
        cpu_millis: u64::try_from(millis).unwrap_or_default(),
        started: since_epoch.as_secs(),
    }
}

/// A label's name and value.
type Label<'a> = (&'static str, &'a str);

/// The metrics of networks.
#[derive(Debug)]
struct Networks {
    reports: Vec<StatisticsReport>,
    failed: Vec<String>,
}

impl Collector for Networks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.up(&mut encoder)?;
        self.interfaces(&mut encoder)?;
        self.routers(&mut encoder)?;
        self.flows(&mut encoder)?;
        self.names(&mut encoder)?;
        self.published(&mut encoder)?;
        self.processes(&mut encoder)
    }
}

impl Networks {
    fn containers(&self) -> impl Iterator<Item = (&str, &ContainerStatistics)> {
        self.reports.iter().flat_map(|report| {
            let containers = report.containers.iter();
            containers.map(|container| (report.network.as_str(), container))
        })
    }

    fn up(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 if the running network answers, 0 if it does not";
        let name = "cnet_network_up";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for report in &self.reports {
            gauged(&mut family, &[("network", &report.network)], 1)?;
        }
        for network in &self.failed {
            gauged(&mut family, &[("network", network)], 0)?;
        }
        Ok(())
    }

    /// One counter a container's interface.
    fn of_interfaces(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        count: impl Fn(&ContainerStatistics) -> u64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (network, container) in self.containers() {
            let labels = [
                ("network", network),
                ("container", &container.name),
                ("interface", &container.interface),
            ];
            counted(&mut family, &labels, count(container))?;
        }
        Ok(())
    }

    fn interfaces(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.of_interfaces(
            encoder,
            "cnet_port_receive_bytes",
            "Bytes of Ethernet frames given to the container",
            |container| container.bytes_received,
        )?;
        self.of_interfaces(
            encoder,
            "cnet_port_receive_packets",
            "Frames given to the container, a super-frame counted as one",
            |container| container.frames_received,
        )?;
        self.of_interfaces(
            encoder,
            "cnet_port_transmit_bytes",
            "Bytes of Ethernet frames that the container sent",
            |container| container.bytes_sent,
        )?;
        self.of_interfaces(
            encoder,
            "cnet_port_transmit_packets",
            "Frames that the container sent, a super-frame counted as one",
            |container| container.frames_sent,
        )?;
        let mut family = encoder.encode_descriptor(
            "cnet_port_dropped",
            "Frames of the container or to it that were dropped, by reason",
            None,
            MetricType::Counter,
        )?;
        for (network, container) in self.containers() {
            for (reason, count) in &container.drops {
                let labels = [
                    ("network", network),
                    ("container", &container.name),
                    ("interface", &container.interface),
                    ("reason", reason),
                ];
                counted(&mut family, &labels, *count)?;
            }
        }
        self.by_network(
            encoder,
            "cnet_dropped",
            "Frames and packets that the network dropped, those of containers that are gone and those \
             from the host included, by reason",
            "reason",
            |report| &report.drops,
        )
    }

    /// What passed the router's port of each network.
    fn routers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Count = fn(&RouterStatistics) -> u64;
        let families: [(&str, &str, Count); 4] = [
            (
                "cnet_router_receive_bytes",
                "Bytes of Ethernet frames given to the router's port",
                |router| router.bytes_received,
            ),
            (
                "cnet_router_receive_packets",
                "Frames given to the router's port, a super-frame counted as one",
                |router| router.frames_received,
            ),
            (
                "cnet_router_transmit_bytes",
                "Bytes of Ethernet frames that the router sent to containers",
                |router| router.bytes_sent,
            ),
            (
                "cnet_router_transmit_packets",
                "Frames that the router sent to containers, a super-frame counted as one",
                |router| router.frames_sent,
            ),
        ];
        for (name, help, count) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for report in &self.reports {
                let labels = [("network", report.network.as_str())];
                counted(&mut family, &labels, count(&report.router))?;
            }
        }
        Ok(())
    }

    fn flows(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "cnet_flows",
            "Connections and mappings that the container has open now",
            None,
            MetricType::Gauge,
        )?;
        for (network, container) in self.containers() {
            for protocol in ["tcp", "udp", "ping"] {
                let open = container.flows.get(protocol).copied().unwrap_or(0);
                let labels = [
                    ("network", network),
                    ("container", &container.name),
                    ("protocol", protocol),
                ];
                gauged(&mut family, &labels, whole(open))?;
            }
        }
        for (name, help, counter) in [
            (
                "cnet_flow_opened",
                "TCP connections that containers have opened to the world",
                "opened",
            ),
            (
                "cnet_flow_refused",
                "TCP connections that found no room",
                "refused",
            ),
            (
                "cnet_flow_evicted",
                "TCP connections that gave way to others",
                "evicted",
            ),
            (
                "cnet_flow_connect_failures",
                "TCP connections that the host could not make",
                "connect_failures",
            ),
            (
                "cnet_flow_retransmissions",
                "TCP segments sent to containers again",
                "retransmissions",
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for report in &self.reports {
                let labels = [("network", report.network.as_str())];
                counted(&mut family, &labels, at(&report.tcp, counter))?;
            }
        }
        Ok(())
    }

    fn names(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "cnet_dns_queries",
            "DNS queries of the container, by what came of them",
            None,
            MetricType::Counter,
        )?;
        for (network, container) in self.containers() {
            for (outcome, count) in &container.dns {
                let labels = [
                    ("network", network),
                    ("container", &container.name),
                    ("outcome", outcome),
                ];
                counted(&mut family, &labels, *count)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "cnet_dns_seconds",
            "How long answers to DNS queries took",
            None,
            MetricType::Histogram,
        )?;
        for report in self
            .reports
            .iter()
            .filter(|report| !report.dns_times.is_empty())
        {
            let labels: &[Label<'_>] = &[("network", &report.network)];
            let mut metric = family.encode_family(&labels)?;
            let (sum, count, buckets) = histogram(&report.dns_times);
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn published(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "cnet_published_connections",
            "Clients of published TCP ports, by the way that they took to the container",
            None,
            MetricType::Counter,
        )?;
        for report in &self.reports {
            for way in ["spliced", "by_frames", "refused"] {
                let labels = [("network", report.network.as_str()), ("way", way)];
                counted(&mut family, &labels, at(&report.forwards, way))?;
            }
        }
        Ok(())
    }

    fn processes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let running = || {
            let process =
                |report: &'_ StatisticsReport| Some((report.network.clone(), report.process?));
            self.reports.iter().filter_map(process)
        };
        let mut family = encoder.encode_descriptor(
            "cnet_process_cpu_seconds",
            "Time that the network's process has spent on processors",
            None,
            MetricType::Counter,
        )?;
        for (network, process) in running() {
            let labels: &[Label<'_>] = &[("network", &network)];
            let mut metric = family.encode_family(&labels)?;
            let seconds = process.cpu_millis as f64 / 1000.0;
            metric.encode_counter::<NoLabelSet, _, f64>(&seconds, None)?;
        }
        let mut family = encoder.encode_descriptor(
            "cnet_process_start_time_seconds",
            "When the network's process started, after the Unix epoch",
            None,
            MetricType::Gauge,
        )?;
        for (network, process) in running() {
            gauged(
                &mut family,
                &[("network", &network)],
                whole(process.started),
            )?;
        }
        let mut family = encoder.encode_descriptor(
            "cnet_build_info",
            "The version of the program, as a label",
            None,
            MetricType::Gauge,
        )?;
        gauged(&mut family, &[("version", env!("CARGO_PKG_VERSION"))], 1)
    }

    /// One counter a network and entry of `counters`, whose name is the label `by`.
    fn by_network(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        by: &'static str,
        counters: impl Fn(&StatisticsReport) -> &Counters,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for report in &self.reports {
            for (entry, count) in counters(report) {
                let labels = [("network", report.network.as_str()), (by, entry)];
                counted(&mut family, &labels, *count)?;
            }
        }
        Ok(())
    }
}

fn counted(family: &mut MetricEncoder<'_>, labels: &[Label<'_>], count: u64) -> fmt::Result {
    let mut metric = family.encode_family(&labels)?;
    metric.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn gauged(family: &mut MetricEncoder<'_>, labels: &[Label<'_>], value: i64) -> fmt::Result {
    family.encode_family(&labels)?.encode_gauge(&value)
}

/// A count as a gauge has it.
fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn at(counters: &Counters, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

/// Sum in seconds, count, and how many are in each bucket, whose bound is in seconds.
fn histogram(times: &AnswerTimes) -> (f64, u64, Vec<(f64, u64)>) {
    let seconds = |micros: u64| micros as f64 / 1e6;
    let buckets = times.buckets.iter();
    let mut buckets: Vec<_> = buckets.map(|b| (seconds(b.up_to), b.count)).collect();
    buckets.push((f64::INFINITY, times.more));
    let count = buckets.iter().map(|(_, count)| count).sum();
    (seconds(times.micros), count, buckets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnet::control::TimeBucket;

    fn report(network: &str) -> StatisticsReport {
        let mut report = StatisticsReport::new(network);
        let mut web = ContainerStatistics::new("web");
        web.interface = "eth0".to_owned();
        (web.bytes_sent, web.bytes_received) = (7, 9);
        web.drops = [("spoofed".to_owned(), 3)].into();
        web.flows = [("tcp".to_owned(), 2)].into();
        web.dns = [("cached".to_owned(), 5)].into();
        report.containers = vec![web];
        (report.router.bytes_sent, report.router.frames_received) = (21, 4);
        report.tcp = [("opened".to_owned(), 11)].into();
        report.dns_times.buckets = vec![TimeBucket {
            up_to: 500,
            count: 2,
        }];
        report.dns_times.more = 1;
        report.dns_times.micros = 1_500_000;
        report.process = Some(process(UNIX_EPOCH));
        report
    }

    #[test]
    fn a_page_has_each_family_once_for_all_networks() {
        let page = page(
            vec![report("lan"), report("a\"b")],
            vec!["down".to_owned()],
            Format::Prometheus,
        );
        for line in [
            r#"cnet_port_receive_bytes_total{network="lan",container="web",interface="eth0"} 9"#,
            r#"cnet_port_transmit_bytes_total{network="a\"b",container="web",interface="eth0"} 7"#,
            r#"cnet_port_dropped_total{network="lan",container="web",interface="eth0",reason="spoofed"} 3"#,
            r#"cnet_router_transmit_bytes_total{network="lan"} 21"#,
            r#"cnet_router_receive_packets_total{network="lan"} 4"#,
            r#"cnet_flows{network="lan",container="web",protocol="tcp"} 2"#,
            r#"cnet_flow_opened_total{network="lan"} 11"#,
            r#"cnet_dns_queries_total{network="lan",container="web",outcome="cached"} 5"#,
            r#"cnet_dns_seconds_bucket{network="lan",le="0.0005"} 2"#,
            r#"cnet_dns_seconds_bucket{network="lan",le="+Inf"} 3"#,
            r#"cnet_dns_seconds_sum{network="lan"} 1.5"#,
            r#"cnet_network_up{network="lan"} 1"#,
            r#"cnet_network_up{network="down"} 0"#,
            r#"cnet_process_start_time_seconds{network="lan"} 0"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        let types = page.lines().filter(|line| line.starts_with("# TYPE"));
        let mut names: Vec<&str> = types.filter_map(|line| line.split(' ').nth(2)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_format_is_what_the_client_understands() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::Prometheus);
        let page = page(Vec::new(), Vec::new(), Format::OpenMetrics);
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
}
