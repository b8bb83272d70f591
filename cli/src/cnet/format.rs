//! `--format` and `--filter`: how lists are printed, and what of them, in Docker's words.

use std::str::FromStr;

use anyhow::Context;
use serde::Serialize;

use super::table::table;
use super::template::Template;

/// How results are printed.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// As a template says; with a heading, or without.
    Template(Template, bool),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "table" => return Ok(Format::Table),
            "json" => return Ok(Format::Json),
            _ => {}
        }
        let (template, heading) = match text.strip_prefix("table ") {
            Some(template) => (template, true),
            None => (text, false),
        };
        if !template.contains("{{") {
            return Err("it is `table`, `json` or a template such as '{{.Name}}'".to_owned());
        }
        let template = template.parse().map_err(|error| format!("{error}"))?;
        Ok(Format::Template(template, heading))
    }
}

/// The text of `rows` in a template.
///
/// # Errors
///
/// A field that there is not.
pub(super) fn filled<T: Serialize>(
    template: &Template,
    heading: bool,
    rows: &[T],
) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    if heading {
        lines.push(template.heading());
    }
    for row in rows {
        let row = serde_json::to_value(row)?;
        lines.push(template.fill(&row).context("--format")?);
    }
    if heading {
        let cells = |line: &String| line.split('\t').map(str::to_owned).collect();
        let cells: Vec<Vec<String>> = lines.iter().map(cells).collect();
        return Ok(table(&cells));
    }
    Ok(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// One `--filter KEY=VALUE`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or("it is a field, `=` and a value, as in name=web")?;
        Ok(Filter {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Whether `is` holds for all filters but that several of one field are alternatives, as Docker has
/// it; `is` gives `None` for a field that there is not.
///
/// # Errors
///
/// A field that there is not, of `known`.
pub(super) fn passes(
    filters: &[Filter],
    known: &str,
    is: impl Fn(&Filter) -> Option<bool>,
) -> anyhow::Result<bool> {
    let one = |filter: &Filter| {
        is(filter).with_context(|| {
            format!(
                "--filter {}: there is no such field; there are {known}",
                filter.key
            )
        })
    };
    for filter in filters {
        let mut any = false;
        for alternative in filters.iter().filter(|other| other.key == filter.key) {
            any |= one(alternative)?;
        }
        if !any {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The beginning of an id, as people are shown it.
pub(crate) fn short(id: &str) -> &str {
    id.get(..cnet::definition::SHORT_ID).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_words_or_templates() {
        assert_eq!("table".parse(), Ok(Format::Table));
        assert_eq!("json".parse(), Ok(Format::Json));
        let rows = [serde_json::json!({"Name": "web", "ID": "ab"})];
        for (text, expected) in [
            ("{{.Name}}", "web\n"),
            ("table {{.ID}}\\t{{.Name}}", "ID   NAME\nab   web\n"),
        ] {
            let Ok(Format::Template(template, heading)) = text.parse() else {
                panic!("{text} is a template");
            };
            assert_eq!(filled(&template, heading, &rows).unwrap(), expected);
        }
        assert!("yaml".parse::<Format>().unwrap_err().contains("{{.Name}}"));
    }

    #[test]
    fn filters_of_one_field_are_alternatives() {
        let filters: Vec<Filter> = ["name=a", "name=b", "driver=x"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let passes = |name: &str, driver: &str| {
            passes(&filters, "name and driver", |filter| match &*filter.key {
                "name" => Some(filter.value == name),
                "driver" => Some(filter.value == driver),
                _ => None,
            })
        };
        assert!(passes("a", "x").unwrap() && passes("b", "x").unwrap());
        assert!(!passes("c", "x").unwrap() && !passes("a", "y").unwrap());
        let unknown = ["size=1".parse().unwrap()];
        let error = super::passes(&unknown, "name", |_| None).unwrap_err();
        assert!(error.to_string().contains("size"), "{error}");
        assert!("name".parse::<Filter>().is_err());
    }
}
