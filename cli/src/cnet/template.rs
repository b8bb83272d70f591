//! The part of Go's text/template that `--format` of Docker and podman is written in.
//!
//! | | |
//! |---|---|
//! | `{{.Name}}`, `{{.IPAM.Config}}`, `{{.}}` | a field, a field of a field, all of it |
//! | `{{json .}}`, `{{len .X}}`, `{{upper .X}}`, `{{lower .X}}`, `{{join .X ","}}`, `{{index .X "key"}}`, `{{index .X 0}}` | functions, of one value or a pipeline (`{{.X \| json}}`) |
//! | `{{range .X}}…{{else}}…{{end}}`, `{{range $k, $v := .X}}…{{end}}` | for each of a list or a table |
//! | `{{if .X}}…{{else}}…{{end}}`, `{{with .X}}…{{end}}` | if it is there and is not empty |
//! | `{{- …` and `… -}}` | without the white space before, or behind |
//! | `\t` and `\n` outside of actions | as in Go's strings |
//!
//! Fields are found whatever the case of their letters is. A field that is not there is an error that
//! names those that are.
//!
//! Source: <https://pkg.go.dev/text/template>.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::Value;

/// How deep blocks may be nested.
const MAX_DEPTH: usize = 32;

/// A template that can be read.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Template(Vec<Node>);

/// Why it cannot be read, or not be filled in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TemplateError(String);

#[derive(Clone, PartialEq, Debug)]
enum Node {
    Text(String),
    Value(Pipeline),
    Block(Block),
}

#[derive(Clone, PartialEq, Debug)]
struct Block {
    kind: BlockKind,
    /// The variables of `range $k, $v :=`.
    variables: Vec<String>,
    of: Pipeline,
    body: Vec<Node>,
    otherwise: Vec<Node>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BlockKind {
    Range,
    If,
    With,
}

/// Commands, each of which is given what the one before has made as its last operand.
type Pipeline = Vec<Vec<Operand>>;

#[derive(Clone, PartialEq, Debug)]
enum Operand {
    /// A variable, or the current value, and fields of it.
    Path(Option<String>, Vec<String>),
    Literal(Value),
    Function(String),
}

/// What the current value and the variables are.
#[derive(Clone)]
struct Scope<'a> {
    dot: &'a Value,
    variables: BTreeMap<String, Value>,
}

fn error<T>(text: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(text.into()))
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Template, TemplateError> {
        let mut pieces = split(text)?.into_iter().peekable();
        let (nodes, end) = nodes(&mut pieces, MAX_DEPTH)?;
        match end {
            None => Ok(Template(nodes)),
            Some(word) => error(format!("`{{{{{word}}}}}` ends nothing")),
        }
    }
}

impl Template {
    /// The template with the fields of `value`.
    ///
    /// # Errors
    ///
    /// Where there is no such field, or it is of a kind that a function does not take.
    pub(super) fn fill(&self, value: &Value) -> Result<String, TemplateError> {
        let scope = Scope {
            dot: value,
            variables: BTreeMap::from([(String::new(), value.clone())]),
        };
        let mut text = String::new();
        fill(&self.0, &scope, &mut text)?;
        Ok(text)
    }

    /// The heading of a table of it: the names of the fields in capitals.
    pub(super) fn heading(&self) -> String {
        let mut text = String::new();
        for node in &self.0 {
            match node {
                Node::Text(part) => text.push_str(part),
                Node::Value(pipeline) => {
                    let paths = pipeline
                        .iter()
                        .flatten()
                        .filter_map(|operand| match operand {
                            Operand::Path(_, fields) => fields.last(),
                            _ => None,
                        });
                    let name = paths.reduce(|_, last| last).map_or("VALUE", String::as_str);
                    text.push_str(&name.to_uppercase());
                }
                Node::Block(_) => {}
            }
        }
        text
    }
}

/// A piece of a template: text, or what stands in an action.
enum Piece {
    Text(String),
    Action(String),
}

fn split(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let (mut pieces, mut rest, mut trim) = (Vec::new(), text, false);
    while let Some((before, behind)) = rest.split_once("{{") {
        let Some((action, after)) = behind.split_once("}}") else {
            return error("`{{` without `}}`");
        };
        let before = if trim { before.trim_start() } else { before };
        let (before, action) = match action.strip_prefix("- ") {
            Some(action) => (before.trim_end(), action),
            None => (before, action),
        };
        let (action, next) = match action.strip_suffix(" -") {
            Some(action) => (action, true),
            None => (action, false),
        };
        pieces.push(Piece::Text(unescaped(before)));
        pieces.push(Piece::Action(action.trim().to_owned()));
        (rest, trim) = (after, next);
    }
    let rest = if trim { rest.trim_start() } else { rest };
    pieces.push(Piece::Text(unescaped(rest)));
    Ok(pieces)
}

/// With what a shell leaves of `\t` and `\n`, as Docker has it.
fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// Nodes up to the word that ends them, if one does.
fn nodes(
    pieces: &mut std::iter::Peekable<std::vec::IntoIter<Piece>>,
    depth: usize,
) -> Result<(Vec<Node>, Option<String>), TemplateError> {
    let Some(depth) = depth.checked_sub(1) else {
        return error("it is nested too deeply");
    };
    let mut all = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                if !text.is_empty() {
                    all.push(Node::Text(text));
                }
                continue;
            }
            Piece::Action(action) => action,
        };
        let end = action.find(|c: char| !c.is_alphanumeric());
        let (word, of) = action.split_at(end.unwrap_or(action.len()));
        let kind = match word {
            "end" | "else" => return Ok((all, Some(action))),
            "range" => BlockKind::Range,
            "if" => BlockKind::If,
            "with" => BlockKind::With,
            _ => {
                all.push(Node::Value(pipeline(&action)?));
                continue;
            }
        };
        let (variables, of) = match of.split_once(":=") {
            Some((names, of)) => (
                names.split(',').map(variable).collect::<Result<_, _>>()?,
                of,
            ),
            None => (Vec::new(), of),
        };
        let of = pipeline(of)?;
        let (body, end) = nodes(pieces, depth)?;
        let (otherwise, end) = match end.as_deref() {
            Some("else") => nodes(pieces, depth)?,
            _ => (Vec::new(), end),
        };
        if end.as_deref() != Some("end") {
            return error(format!("`{{{{{word}}}}}` without `{{{{end}}}}`"));
        }
        all.push(Node::Block(Block {
            kind,
            variables,
            of,
            body,
            otherwise,
        }));
    }
    Ok((all, None))
}

fn variable(name: &str) -> Result<String, TemplateError> {
    match name.trim().strip_prefix('$') {
        Some(name) => Ok(name.to_owned()),
        None => error(format!("`{}` is no variable, such as $v", name.trim())),
    }
}

fn pipeline(text: &str) -> Result<Pipeline, TemplateError> {
    let (mut commands, mut command, mut rest) = (Vec::new(), Vec::new(), text.trim());
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('|') {
            commands.push(std::mem::take(&mut command));
            rest = after.trim_start();
            continue;
        }
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((inner, after)) => (Operand::Literal(unescaped(inner).into()), after),
                None => return error("a quotation mark is missing"),
            },
            None => {
                let end = rest.find([' ', '\t', '|']).unwrap_or(rest.len());
                (operand(&rest[..end])?, &rest[end..])
            }
        };
        command.push(word);
        rest = after.trim_start();
    }
    commands.push(command);
    match commands.iter().any(Vec::is_empty) {
        true => error("an action is empty"),
        false => Ok(commands),
    }
}

fn operand(word: &str) -> Result<Operand, TemplateError> {
    let fields = |path: &str| {
        let fields = path.split('.').filter(|field| !field.is_empty());
        fields.map(str::to_owned).collect::<Vec<_>>()
    };
    if let Some(path) = word.strip_prefix('.') {
        return Ok(Operand::Path(None, fields(path)));
    }
    if let Some(path) = word.strip_prefix('$') {
        let (name, path) = path.split_once('.').unwrap_or((path, ""));
        return Ok(Operand::Path(Some(name.to_owned()), fields(path)));
    }
    if let Ok(number) = word.parse::<i64>() {
        return Ok(Operand::Literal(number.into()));
    }
    match FUNCTIONS.contains(&word) {
        true => Ok(Operand::Function(word.to_owned())),
        false => error(format!(
            "`{word}` is neither a field, such as .{word}, nor one of the functions {}",
            FUNCTIONS.join(", ")
        )),
    }
}

/// The functions there are.
const FUNCTIONS: [&str; 9] = [
    "json", "len", "upper", "lower", "join", "index", "eq", "ne", "println",
];

fn fill(nodes: &[Node], scope: &Scope<'_>, text: &mut String) -> Result<(), TemplateError> {
    for node in nodes {
        match node {
            Node::Text(part) => text.push_str(part),
            Node::Value(pipeline) => text.push_str(&printed(&scope.value(pipeline)?)),
            Node::Block(block) => scope.block(block, text)?,
        }
    }
    Ok(())
}

impl Scope<'_> {
    fn block(&self, block: &Block, text: &mut String) -> Result<(), TemplateError> {
        let of = self.value(&block.of)?;
        if !is_true(&of) {
            return fill(&block.otherwise, self, text);
        }
        let within = |key: Value, dot: &Value, text: &mut String| {
            let mut scope = Scope {
                dot,
                variables: self.variables.clone(),
            };
            let values = match block.variables.len() {
                1 => vec![dot.clone()],
                _ => vec![key, dot.clone()],
            };
            scope
                .variables
                .extend(block.variables.iter().cloned().zip(values));
            fill(&block.body, &scope, text)
        };
        match (block.kind, &of) {
            (BlockKind::If, _) => fill(&block.body, self, text),
            (BlockKind::With, _) => within(Value::Null, &of, text),
            (BlockKind::Range, Value::Array(all)) => {
                let mut all = all.iter().enumerate();
                all.try_for_each(|(at, each)| within(at.into(), each, text))
            }
            (BlockKind::Range, Value::Object(all)) => {
                let mut all = all.iter();
                all.try_for_each(|(key, each)| within(key.as_str().into(), each, text))
            }
            (BlockKind::Range, _) => error("range is for lists and tables"),
        }
    }

    fn value(&self, pipeline: &Pipeline) -> Result<Value, TemplateError> {
        let mut last = None;
        for command in pipeline {
            let mut operands = Vec::new();
            let mut function = None;
            for (at, operand) in command.iter().enumerate() {
                match operand {
                    Operand::Function(name) if at == 0 => function = Some(name.as_str()),
                    Operand::Function(name) => return error(format!("`{name}` stands in front")),
                    Operand::Literal(value) => operands.push(value.clone()),
                    Operand::Path(variable, fields) => {
                        operands.push(self.path(variable.as_deref(), fields)?);
                    }
                }
            }
            operands.extend(last.take());
            last = Some(match function {
                Some(function) => call(function, &operands)?,
                None if operands.len() == 1 => operands.remove(0),
                None => return error("a function is missing in front of several values"),
            });
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn path(&self, variable: Option<&str>, fields: &[String]) -> Result<Value, TemplateError> {
        let mut value = match variable {
            None => self.dot,
            Some(name) => match self.variables.get(name) {
                Some(value) => value,
                None => return error(format!("there is no variable `${name}`")),
            },
        };
        for field in fields {
            let Value::Object(all) = value else {
                return error(format!("`.{field}` is asked of what has no fields"));
            };
            let same = |(name, _): &(&String, &Value)| name.eq_ignore_ascii_case(field);
            value = match all.get(field).or_else(|| Some(all.iter().find(same)?.1)) {
                Some(value) => value,
                None => {
                    let names: Vec<String> = all.keys().map(|name| format!(".{name}")).collect();
                    let names = names.join(", ");
                    return error(format!("there is no field `.{field}`; there are {names}"));
                }
            };
        }
        Ok(value.clone())
    }
}

fn call(function: &str, operands: &[Value]) -> Result<Value, TemplateError> {
    let of_text = |change: fn(&str) -> String| match operands {
        [value] => Ok(change(&printed(value)).into()),
        _ => error(format!("`{function}` takes one value")),
    };
    match (function, operands) {
        ("json", [value]) => Ok(value.to_string().into()),
        ("upper", _) => of_text(str::to_uppercase),
        ("lower", _) => of_text(str::to_lowercase),
        ("println", _) => of_text(|text| format!("{text}\n")),
        ("len", [Value::Array(all)]) => Ok(all.len().into()),
        ("len", [Value::Object(all)]) => Ok(all.len().into()),
        ("len", [Value::String(text)]) => Ok(text.len().into()),
        ("eq", [one, other]) => Ok((one == other).into()),
        ("ne", [one, other]) => Ok((one != other).into()),
        ("join", [Value::Array(all), Value::String(between)]) => {
            let all: Vec<String> = all.iter().map(printed).collect();
            Ok(all.join(between).into())
        }
        ("index", [Value::Object(all), Value::String(key)]) => {
            Ok(all.get(key).cloned().unwrap_or_default())
        }
        ("index", [Value::Array(all), Value::Number(at)]) => {
            let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
            match at.and_then(|at| all.get(at)) {
                Some(value) => Ok(value.clone()),
                None => error(format!("there are {} in the list", all.len())),
            }
        }
        _ => error(format!("`{function}` is not for these values")),
    }
}

/// As Go's templates have it: neither nothing, nor zero, nor empty.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
    }
}

/// As Go prints it.
fn printed(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(printed).collect();
            format!("[{}]", all.join(" "))
        }
        Value::Object(all) => {
            let all = all
                .iter()
                .map(|(key, value)| format!("{key}:{}", printed(value)));
            format!("map[{}]", all.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> Result<String, TemplateError> {
        let value = json!({
            "Name": "lan",
            "Internal": false,
            "IPAM": {"Config": [{"Subnet": "10.1.0.0/16"}, {"Subnet": "fd00::/64"}]},
            "Containers": {"aa": {"Name": "web"}, "bb": {"Name": "db"}},
            "Labels": {"a.b": "c"},
        });
        template.parse::<Template>()?.fill(&value)
    }

    #[test]
    fn what_people_write_for_docker_is_filled_in() {
        for (template, expected) in [
            ("{{.Name}}", "lan"),
            ("{{ .name }}\\t{{.Internal}}", "lan\tfalse"),
            (
                "{{range .IPAM.Config}}{{.Subnet}} {{end}}",
                "10.1.0.0/16 fd00::/64 ",
            ),
            ("{{(index .IPAM.Config 0).Subnet}}", ""),
            ("{{json .Labels}}", "{\"a.b\":\"c\"}"),
            ("{{.Labels | json}}", "{\"a.b\":\"c\"}"),
            ("{{index .Labels \"a.b\"}}", "c"),
            (
                "{{range $k, $v := .Containers}}{{$k}}={{$v.Name}};{{end}}",
                "aa=web;bb=db;",
            ),
            ("{{range.Containers}}{{.Name}}{{else}}none{{end}}", "webdb"),
            ("{{if .Internal}}in{{else}}out{{end}}", "out"),
            ("{{with .Labels}}{{len .}}{{end}}", "1"),
            ("a {{- .Name -}} b", "alanb"),
            ("{{upper .Name}} {{eq .Name \"lan\"}}", "LAN true"),
            (
                "{{index .IPAM.Config 1 | json}}",
                "{\"Subnet\":\"fd00::/64\"}",
            ),
            (
                "{{.IPAM.Config}}",
                "[map[Subnet:10.1.0.0/16] map[Subnet:fd00::/64]]",
            ),
        ] {
            match expected {
                "" => assert!(filled(template).is_err(), "{template}"),
                _ => assert_eq!(filled(template).as_deref(), Ok(expected), "{template}"),
            }
        }
    }

    #[test]
    fn mistakes_name_what_there_is() {
        let wrong = |template: &str| filled(template).unwrap_err().to_string();
        assert!(wrong("{{.Nmae}}").contains(".Name"));
        assert!(wrong("{{Name}}").contains("such as .Name"));
        assert!(wrong("{{.Name").contains("without"));
        assert!(wrong("{{range .Containers}}").contains("{{end}}"));
        assert!(wrong("{{end}}").contains("ends nothing"));
        assert!(wrong("{{.Name.X}}").contains("no fields"));
        assert!(wrong("{{}}").contains("empty"));
        let deep = "{{if .Name}}".repeat(MAX_DEPTH + 1);
        assert!(wrong(&deep).contains("deeply"));
    }
}
