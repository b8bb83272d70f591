use super::*;
use crate::pasta::ports::{PortRule, parse};
use crate::pasta::wire::Side;

fn options(line: &str) -> Options {
    match args::parse(line.split_whitespace().map(OsString::from)) {
        Ok(Invocation::Run(options)) => options,
        other => panic!("{line}: {other:?}"),
    }
}

fn rules(spec: &str) -> Vec<PortRule> {
    parse(Protocol::Tcp, spec).unwrap()
}

fn after(line: &str) -> Result<String, String> {
    let before = [(Side::Host, rules("80,443")), (Side::Splice, rules("auto"))];
    let changed = changed(&options(line), &before).map_err(|error| error.to_string())?;
    let text = table_text(&changed);
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn changes_are_made_to_the_tables_that_are_named() {
    for (line, text) in [
        // As podman writes it.
        (
            "--add -t 0.0.0.0/8080:10.88.0.2/80 /s",
            "HOST TCP 80 TCP 443 TCP 0.0.0.0/8080:10.88.0.2/80",
        ),
        ("--add -t 80 /s", "HOST TCP 80 TCP 443"),
        ("--delete -t 80 -t 443 /s", "HOST"),
        ("-t 22 -t 23 /s", "HOST TCP 22 TCP 23"),
        ("-u 53 /s", "HOST TCP 80 TCP 443 UDP 53"),
        ("-C -T none /s", "SPLICE"),
        ("-C /s", "HOST SPLICE"),
        ("-A -U 53 /s", "SPLICE TCP 1-65535 (auto) UDP 53"),
    ] {
        assert_eq!(after(line).as_deref(), Ok(text), "{line}");
    }
    let error = after("--delete -t 81 /s").unwrap_err();
    assert_eq!(error, "port 81 is not forwarded");
}

#[test]
fn what_is_wrong_is_told() {
    for (line, message) in [
        (
            "",
            "the socket of a running pasta (its --conf-path) is needed",
        ),
        ("/a /b", "more than one socket: /b"),
        (
            "--add --delete -t 80 /s",
            "--add, --delete and --clear exclude each other",
        ),
        (
            "--add /s",
            "--add and --delete need ports (-t, -u, -T or -U)",
        ),
        ("--append /s", "unrecognized option '--append'"),
        ("-t x /s", "-t x: `x` is no port from 1 to 65535"),
    ] {
        let parsed = args::parse(line.split_whitespace().map(OsString::from));
        assert_eq!(parsed.unwrap_err().to_string(), message, "{line}");
    }
}

#[test]
fn a_rule_that_is_not_in_force_is_told_with_its_reason() {
    let sent = [(Side::Host, rules("80,443"))];
    let results = [(Side::Host, vec![String::new(), "in use".to_owned()])];
    let told = failures(&mut &*wire::answer(&results), &sent).unwrap();
    assert_eq!(told, ["cannot forward TCP port 443: in use"]);
    assert!(failures(&mut &[][..], &sent).unwrap().is_empty());
}
