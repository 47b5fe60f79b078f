//! Grammars in llguidance's Lark.

use std::fmt::Write;

use domain::generation::ToolChoice;
use serde_json::{Value, json};

use super::{Function, Wanted};
use crate::tools::{Arguments, Part, Spelling, ToolSyntax};

/// Space between the parts of a JSON text: a few blanks, or a new line with its indentation. Without a bound, a model that has
/// nothing more to say goes on with blanks to the end of its context.
const SPACE: &str = r"[ \t]{1,4}|\r?\n[ \t]{0,64}";

/// A grammar in the making: any of `starts`, with the rules they need.
pub(super) struct Lark {
    starts: Vec<String>,
    rules: String,
    n_rules: usize,
    strips_first_space: bool,
}

impl Lark {
    pub fn new(strips_first_space: bool) -> Self {
        Self {
            starts: Vec::new(),
            rules: String::new(),
            n_rules: 0,
            strips_first_space,
        }
    }

    pub fn json_object(&mut self) {
        self.json_schema(&json!({"type": "object"}), false);
    }

    pub fn json_schema(&mut self, schema: &Value, is_strict: bool) {
        let rule = self.json(schema, is_strict);
        self.starts.push(rule);
    }

    /// A turn that calls functions, one at least.
    pub fn calls(&mut self, syntax: &ToolSyntax, functions: Vec<Function>, wanted: &Wanted) {
        let functions: Vec<String> = functions
            .iter()
            .map(|function| {
                let arguments = match &syntax.arguments {
                    Arguments::Json => self.json(&parameters(function), function.is_strict),
                    Arguments::Listed { .. } => self.listed(&syntax.arguments, function),
                };
                format!(
                    "{} {} {arguments}",
                    literal(function.name),
                    spelled(&syntax.middle)
                )
            })
            .collect();
        let call = self.rule(&functions.join(" | "));
        let is_one = matches!(wanted.choice, ToolChoice::Named(_)) || !wanted.parallel;
        let more = match &syntax.between {
            Some(between) if !is_one => format!("({} {call})*", spelled(between)),
            _ => String::new(),
        };
        let start = format!(
            "{} {call} {more} {}",
            spelled(&syntax.open),
            spelled(&syntax.close)
        );
        self.starts.push(start);
    }

    /// The text of the grammar.
    pub fn finish(self) -> String {
        let space = if self.strips_first_space {
            "\" \"? "
        } else {
            ""
        };
        let start = self.starts.join(" | ");
        format!(
            "start: {space}answer\nanswer: {start}\nID: /[a-zA-Z0-9_-]{{1,64}}/\n{}",
            self.rules
        )
    }

    fn rule(&mut self, body: &str) -> String {
        let name = format!("r{}", self.n_rules);
        self.n_rules += 1;
        self.write(&format!("{name}: {body}"));
        name
    }

    fn json(&mut self, schema: &Value, is_strict: bool) -> String {
        let mut schema = match schema {
            Value::Object(_) => schema.clone(),
            // `true` allows all, `false` nothing.
            other => json!({"allOf": [other]}),
        };
        schema["x-guidance"] = json!({"whitespace_pattern": SPACE, "lenient": !is_strict});
        self.rule(&format!("%json {schema}"))
    }

    /// Arguments one by one, in the order of the schema; those that are not required may be left out.
    fn listed(&mut self, arguments: &Arguments, function: &Function) -> String {
        let Arguments::Listed {
            before,
            middle,
            after,
            has_python_words,
        } = arguments
        else {
            unreachable!("only such arguments lead here — a bug in Lark")
        };
        let schema = parameters(function);
        let Some(properties) = schema["properties"]
            .as_object()
            .filter(|_| function.parameters.is_some())
        else {
            if function.takes_none {
                return self.rule("\"\"");
            }
            let text = self.text(after);
            let any = format!("({} ID {} {text})*", spelled(before), spelled(middle));
            return self.rule(&any);
        };
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let mut all = Vec::new();
        for (key, property) in properties {
            let value = if property["type"] == "string" && property.get("enum").is_none() {
                self.text(after)
            } else if property["type"] == "string" {
                let words = property["enum"].as_array().cloned().unwrap_or_default();
                let words = words.iter().filter_map(Value::as_str).map(literal);
                let words = self.rule(&words.collect::<Vec<_>>().join(" | "));
                format!("{words} {}", spelled(after))
            } else if property["type"] == "boolean" && *has_python_words {
                format!("(\"True\" | \"False\") {}", spelled(after))
            } else {
                let mut property = property.clone();
                // Definitions stand at the root of the schema.
                for definitions in ["$defs", "definitions"] {
                    if let (Some(found), Some(property)) =
                        (schema.get(definitions), property.as_object_mut())
                    {
                        property.insert(definitions.to_owned(), found.clone());
                    }
                }
                let value = self.json(&property, function.is_strict);
                format!("{value} {}", spelled(after))
            };
            let (before, middle) = (spelled(before), spelled(middle));
            let one = format!("{before} {} {middle} {value}", literal(key));
            let is_required = required.iter().any(|name| name == key);
            all.push(if is_required {
                one
            } else {
                format!("({one})?")
            });
        }
        self.rule(&if all.is_empty() {
            "\"\"".to_owned()
        } else {
            all.join(" ")
        })
    }

    /// Any text up to `after`, with it.
    fn text(&mut self, after: &Spelling) -> String {
        match after.0.split_first() {
            Some((Part::Text(end), rest)) => {
                let text = format!("t{}", self.n_rules);
                self.n_rules += 1;
                let end = literal(end);
                self.write(&format!("{text}[suffix={end}]: /(?s:.*)/"));
                format!("{text} {}", spelled(&Spelling(rest.to_vec())))
            }
            // No text holds a control token.
            _ => format!("/(?s:.*)/ {}", spelled(after)),
        }
    }

    fn write(&mut self, rule: &str) {
        writeln!(self.rules, "{rule}").expect("a String takes all — a bug in Lark");
    }
}

/// The schema of a function's arguments. Without one it takes none; with one that cannot be held to, any.
fn parameters(function: &Function) -> Value {
    match function.parameters {
        // A schema that leaves it open would let a number stand for all arguments.
        Some(schema) => {
            let mut schema = schema.clone();
            schema["type"] = "object".into();
            schema
        }
        None if function.takes_none => {
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        }
        None => json!({"type": "object"}),
    }
}

/// Text as a literal.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn spelled(spelling: &Spelling) -> String {
    let parts = spelling.0.iter().map(|part| match part {
        Part::Text(text) => literal(text),
        Part::Control(id, _) => format!("<[{id}]>"),
        Part::Id => "ID".to_owned(),
    });
    parts.collect::<Vec<_>>().join(" ")
}
