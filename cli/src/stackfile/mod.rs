//! The reader of `kontena.yml`, the stack file.
//!
//! Text goes in, the body of a stack's creation comes out, with its services in
//! an order in which none comes before one that it links to; or all faults of
//! the file at once. The reader opens no file and looks at no environment by
//! itself: both are handed to it.
//!
//! Variables are put into values after the YAML is parsed, so that no value of a
//! variable can change the structure of the file. A key that the original knew
//! and this does not yet is told apart from one that nobody knows.

mod faults;
mod fields;
mod order;
mod service;
mod values;
mod variables;

use std::collections::BTreeMap;
use std::io;

pub use faults::{Fault, Faults};
use kontena_schema::http::stacks::StackCreate;
use kontena_schema::name;
use serde_yaml_ng::{Mapping, Value};
pub use values::{command, duration_s, environment, link, port};
use variables::Variables;

/// Everything that the meaning of a stack file depends on besides its text.
pub struct Context<'a> {
    /// The stack's name in place of the file's.
    pub name: Option<&'a str>,
    /// The grid, for the variable `GRID`.
    pub grid: &'a str,
    /// Variables given by the user; they win over all others.
    pub variables: &'a BTreeMap<String, String>,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a file named in the stack file (`env_file`).
    pub read: &'a dyn Fn(&str) -> io::Result<String>,
}

/// A stack file that holds no fault.
#[derive(Clone, Debug, PartialEq)]
pub struct StackFile {
    /// The body of the request that makes the stack.
    pub stack: StackCreate,
    /// What it says of itself.
    pub description: Option<String>,
    /// What is strange, and no fault.
    pub warnings: Vec<String>,
}

/// Keys of the original's stack file that mean something and are not read yet.
const UNSUPPORTED: [&str; 3] = ["volumes", "depends", "expose"];

/// Reads a stack file.
///
/// # Errors
/// All that is wrong with it.
pub fn read(text: &str, context: &Context<'_>) -> Result<StackFile, Faults> {
    let mut faults = Faults::default();
    let root = parse(text).map_err(|reason| Faults::one("", reason))?;
    let variables = Variables::new(root.get("variables"), context, &mut faults);
    let title = text_of(&root, "stack", &mut faults);
    let stack = context
        .name
        .map(str::to_owned)
        .or_else(|| title.as_deref().map(last_part));
    let stack = check_name(stack, &mut faults);
    let variables = variables.with("STACK", &stack);
    let warnings = top_level(&root, &mut faults);
    let version = text_of(&root, "version", &mut faults);
    let description = text_of(&root, "description", &mut faults);
    let services = services(&root, &stack, &variables, context, &mut faults);
    let stack = StackCreate {
        name: stack,
        stack: title,
        version,
        services,
    };
    faults.into_result(StackFile {
        stack,
        description,
        warnings,
    })
}

fn parse(text: &str) -> Result<Mapping, String> {
    // The original ran the file through Liquid before it was YAML.
    if text.contains("{%") {
        return Err("Liquid templates ({% %}) are not supported yet".to_owned());
    }
    let mut value: Value = serde_yaml_ng::from_str(text).map_err(|err| err.to_string())?;
    value.apply_merge().map_err(|err| err.to_string())?;
    match value {
        Value::Mapping(root) => Ok(root),
        Value::Null => Err("it is empty".to_owned()),
        _ => Err("it is no mapping of keys to values".to_owned()),
    }
}

/// Looks at the keys that are not read elsewhere; answers the warnings.
fn top_level(root: &Mapping, faults: &mut Faults) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, value) in root {
        let key = key.as_str().unwrap_or("(no text)");
        match key {
            "stack" | "version" | "description" | "variables" | "services" => {}
            "networks" => warnings.push("networks: is not supported and ignored".to_owned()),
            key if UNSUPPORTED.contains(&key) && !value.is_null() => {
                faults.add(key, "not supported yet");
            }
            key if UNSUPPORTED.contains(&key) || key.starts_with("x-") => {}
            key => warnings.push(format!("unknown key {key:?} is ignored")),
        }
    }
    warnings
}

fn text_of(root: &Mapping, key: &str, faults: &mut Faults) -> Option<String> {
    let value = root.get(key).filter(|value| !value.is_null())?;
    let text = fields::scalar(value);
    if text.is_none() {
        faults.add(key, "must be text");
    }
    text
}

/// `name` of `user/name`.
fn last_part(title: &str) -> String {
    title.rsplit('/').next().unwrap_or(title).to_owned()
}

fn check_name(name: Option<String>, faults: &mut Faults) -> String {
    let Some(name) = name else {
        faults.add(
            "stack",
            "is missing; the file or the command must name the stack",
        );
        return String::new();
    };
    if let Err(reason) = name::check(&name) {
        faults.add("stack", reason);
    }
    name
}

fn services(
    root: &Mapping,
    stack: &str,
    variables: &Variables<'_>,
    context: &Context<'_>,
    faults: &mut Faults,
) -> Vec<kontena_schema::http::services::ServiceCreate> {
    let described = match root.get("services") {
        Some(Value::Mapping(services)) if !services.is_empty() => services,
        Some(Value::Mapping(_) | Value::Null) | None => {
            faults.add("services", "there must be at least one");
            return Vec::new();
        }
        Some(_) => {
            faults.add("services", "must be a mapping of names to services");
            return Vec::new();
        }
    };
    let mut services = Vec::new();
    for (key, value) in described {
        let Some(name) = fields::scalar(key) else {
            faults.add("services", "a name must be text");
            continue;
        };
        services.push(service::read(
            &name, value, stack, variables, context, faults,
        ));
    }
    order::by_links(services, stack, faults)
}

#[cfg(test)]
mod tests;
