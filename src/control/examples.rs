//! The examples of `docs/protocol.md`: each is read, and written again as it stands there.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;

const PAGE: &str = include_str!("../../docs/protocol.md");

/// The code blocks of the page: what each is, and its text.
fn examples() -> Vec<(&'static str, &'static str)> {
    let blocks = PAGE.split("\n```json ").skip(1);
    let example = |block: &'static str| {
        let (kind, rest) = block.split_once('\n').unwrap();
        (kind, rest.split("\n```").next().unwrap())
    };
    blocks.map(example).collect()
}

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Whether all of `shown` is in `written`, and what is left out there is absent or empty.
fn is_shown(shown: &Value, written: &Value) -> bool {
    match (shown, written) {
        (Value::Object(shown), Value::Object(written)) => {
            let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
            shown.keys().all(|key| written.contains_key(key))
                && written.iter().all(|(key, value)| match shown.get(key) {
                    Some(shown) => is_shown(shown, value),
                    None => empty(value),
                })
        }
        (shown, written) => shown == written,
    }
}

fn check<T: DeserializeOwned + Serialize>(text: &str, whole: bool) {
    let written = serde_json::to_value(read::<T>(text)).unwrap();
    let shown: Value = read(text);
    match whole {
        true => assert_eq!(shown, written, "{text}"),
        false => assert!(is_shown(&shown, &written), "{text} is written {written}"),
    }
}

#[test]
fn every_example_reads_and_is_written_like_that() {
    let examples = examples();
    for (kind, text) in &examples {
        match *kind {
            "action" => check::<Action>(text, false),
            "network" => check::<NetworkReport>(text, true),
            "attached" => check::<Attached>(text, true),
            "published" => check::<Published>(text, true),
            "dns_log" => check::<DnsLogReport>(text, true),
            "statistics" => check::<StatisticsReport>(text, true),
            "policies" => check::<PolicyReport>(text, true),
            "done" => check::<Nothing>(text, true),
            "event" => check::<Event>(text, true),
            "error" => check::<ErrorBody>(text, true),
            other => panic!("an example of what? {other}"),
        }
    }
    let actions = examples.iter().filter(|(kind, _)| *kind == "action");
    let names = actions.map(|(_, text)| {
        let Value::Object(action) = read(text) else {
            panic!("{text}");
        };
        action.keys().next().unwrap().clone()
    });
    let names: std::collections::BTreeSet<String> = names.collect();
    let all = [
        "apply_policies",
        "attach",
        "detach",
        "dns_log",
        "inspect",
        "policies",
        "publish",
        "remove_policies",
        "statistics",
        "stop",
        "unpublish",
    ];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn the_bounds_of_the_page_are_those_of_the_program() {
    for (said, number) in [
        ("at most 65536 bytes", MAX_BODY),
        ("At most 4 are taken", MAX_DESCRIPTORS),
        ("may be 256 events behind", MAX_EVENTS_BEHIND),
        ("Notes for programs; at most 64", MAX_LABELS),
        ("values of at most 512 bytes", MAX_LABEL),
    ] {
        assert!(said.contains(&number.to_string()), "{said}: {number}");
        assert!(PAGE.contains(said), "{said}");
    }
    assert!(PAGE.contains(PATH) && PAGE.contains(EVENTS_PATH));
    assert!(PAGE.contains(crate::start::SUBCOMMAND));
}
