//! Prometheus' own checker reads the metrics.

use std::time::Duration;

use crate::caller::has;
use crate::lab::Lab;
use crate::lab::place::Place;

#[test]
#[ignore = "needs root and namespaces; run by cargo xtask test"]
fn promtool_finds_nothing_to_say_of_the_metrics() {
    if !has(&["promtool"]) {
        return;
    }
    let lab = Lab::direct();
    let place = Place::root(&lab);
    place.done("network create lan");
    let web = place.join("lan", "web", "");
    web.assert_pings(&lab, &web.gateway.to_string());
    let asked = web.program(&lab, "getent").args(["ahosts", "web"]);
    assert!(asked.run(Duration::from_secs(5)).success());
    let page = place.done("metrics").stdout;
    assert!(page.contains("cnet_dns_seconds_count"), "{page}");
    let check = lab.command("promtool").args(["check", "metrics"]);
    let checked = check.input(&page).run(Duration::from_secs(20));
    assert!(checked.success(), "{checked}\n{page}");
    assert_eq!(
        format!("{}{}", checked.stdout, checked.stderr),
        "",
        "{page}"
    );
}
