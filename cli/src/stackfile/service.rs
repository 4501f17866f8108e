//! One service of a stack file.

use kontena_schema::http::services::{ServiceCreate, Strategy};
use kontena_schema::limits::INSTANCES_MAX;
use kontena_schema::name;
use serde_yaml_ng::{Mapping, Value};

use super::fields::{each, list, number, one_or_list, scalar, text, truth};
use super::variables::Variables;
use super::{Context, Faults, values};

/// Keys of the original that are not carried to the containers yet. They are
/// refused rather than lost: a service without its volume is another service.
const UNSUPPORTED: [&str; 27] = [
    "build",
    "certificates",
    "cpu_shares",
    "cpus",
    "depends_on",
    "extends",
    "external_links",
    "health_check",
    "hooks",
    "log_driver",
    "log_opt",
    "logging",
    "mem_limit",
    "mem_swaplimit",
    "memswap_limit",
    "net",
    "network_mode",
    "only_if",
    "pid",
    "read_only",
    "secrets",
    "shm_size",
    "skip_if",
    "stateful",
    "stop_signal",
    "volumes",
    "volumes_from",
];

/// The same below `deploy`.
const UNSUPPORTED_DEPLOY: [&str; 3] = ["wait_for_port", "min_health", "interval"];

/// Reads one service; its faults are named `services.NAME.KEY`.
pub(super) fn read(
    name: &str,
    described: &Value,
    stack: &str,
    variables: &Variables<'_>,
    context: &Context<'_>,
    faults: &mut Faults,
) -> ServiceCreate {
    let field = format!("services.{name}");
    let mut reader = Reader {
        field,
        context,
        faults,
        service: ServiceCreate::default(),
    };
    name.clone_into(&mut reader.service.name);
    if let Err(reason) = name::check(name) {
        reader.faults.add(reader.field.clone(), reason);
    }
    match described {
        Value::Mapping(keys) => reader.keys(keys, variables),
        _ => reader
            .faults
            .add(reader.field.clone(), "must be a mapping of keys to values"),
    }
    reader.check(stack);
    reader.service
}

struct Reader<'a, 'b> {
    field: String,
    context: &'a Context<'b>,
    faults: &'a mut Faults,
    service: ServiceCreate,
}

impl Reader<'_, '_> {
    fn keys(&mut self, keys: &Mapping, variables: &Variables<'_>) {
        let mut values = Mapping::new();
        for (key, value) in keys {
            let Some(name) = key.as_str() else {
                self.faults.add(self.field.clone(), "a key must be text");
                continue;
            };
            let field = format!("{}.{name}", self.field);
            let before = self.faults.0.len();
            let value = variables.apply(value, &field, self.faults);
            if self.faults.0.len() > before {
                continue;
            }
            if let Err(reason) = self.key(name, &value) {
                self.faults.add(field, reason);
            }
            values.insert(key.clone(), value);
        }
        self.environment(&values);
    }

    /// Takes over one key; the reason why it cannot be.
    fn key(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let spec = &mut self.service.spec;
        match key {
            // Null is what a key without a value means: as if it were not there.
            _ if value.is_null() && is_known(key) => {}
            "image" => spec.image = text(value)?,
            "instances" => self.service.instances = Some(number(value)?),
            "command" => spec.cmd = Some(words(value)?),
            "entrypoint" => spec.entrypoint = Some(words(value)?),
            "ports" => spec.ports = each(value, values::port)?,
            "links" => spec.links = each(value, values::link)?,
            // The two make one list, see `environment`.
            "environment" | "env_file" => {}
            "affinity" => spec.affinity = each(value, affinity)?,
            "deploy" => self.deploy(value)?,
            "cap_add" => spec.cap_add = list(value)?,
            "cap_drop" => spec.cap_drop = list(value)?,
            "privileged" => spec.privileged = truth(value)?,
            "user" => spec.user = Some(text(value)?),
            "stop_grace_period" => {
                spec.stop_grace_period_s = Some(values::duration_s(&text(value)?)?);
            }
            _ if is_default(key, value) || key.starts_with("x-") => {}
            _ if UNSUPPORTED.contains(&key) => {
                return Err("not supported yet".to_owned());
            }
            _ => return Err("no service has such a key".to_owned()),
        }
        Ok(())
    }

    fn deploy(&mut self, value: &Value) -> Result<(), String> {
        let Value::Mapping(keys) = value else {
            return Err("must be a mapping such as `strategy: ha`".to_owned());
        };
        for (key, value) in keys {
            match key.as_str().unwrap_or("(no text)") {
                "strategy" => self.service.spec.strategy = strategy(&text(value)?)?,
                key if UNSUPPORTED_DEPLOY.contains(&key) => {
                    return Err(format!("{key} is not supported yet"));
                }
                key => return Err(format!("has no key {key:?}")),
            }
        }
        Ok(())
    }

    /// What `env_file` says, and over it what `environment` says; of one name the
    /// last value counts, at the place of the first.
    fn environment(&mut self, keys: &Mapping) {
        let mut all: Vec<String> = Vec::new();
        let found = [
            ("env_file", self.env_files(keys)),
            ("environment", inline(keys)),
        ];
        for (key, entries) in found {
            match entries {
                Ok(entries) => entries.into_iter().for_each(|entry| set(&mut all, entry)),
                Err(reason) => self.faults.add(format!("{}.{key}", self.field), reason),
            }
        }
        self.service.spec.env = all;
    }

    fn env_files(&self, keys: &Mapping) -> Result<Vec<String>, String> {
        let Some(files) = keys.get("env_file").filter(|files| !files.is_null()) else {
            return Ok(Vec::new());
        };
        let mut entries = Vec::new();
        for file in one_or_list(files)? {
            let text = (self.context.read)(&file).map_err(|err| format!("{file}: {err}"))?;
            for line in text.lines().map(str::trim) {
                if !line.is_empty() && !line.starts_with('#') {
                    entries
                        .push(values::environment(line).map_err(|err| format!("{file}: {err}"))?);
                }
            }
        }
        Ok(entries)
    }

    fn check(&mut self, stack: &str) {
        let (service, field) = (&self.service, &self.field);
        if service.spec.image.trim().is_empty() {
            self.faults.add(format!("{field}.image"), "is required");
        }
        let instances = service.instances.unwrap_or(1);
        if instances > INSTANCES_MAX {
            let reason = format!("must be at most {INSTANCES_MAX}");
            self.faults.add(format!("{field}.instances"), reason);
        }
        if let Err(reason) = name::check_labels(Some(stack), &service.name, instances.max(1)) {
            self.faults.add(field.clone(), reason);
        }
    }
}

fn is_known(key: &str) -> bool {
    const READ: [&str; 14] = [
        "image",
        "instances",
        "command",
        "entrypoint",
        "ports",
        "links",
        "environment",
        "env_file",
        "affinity",
        "deploy",
        "cap_add",
        "cap_drop",
        "privileged",
        "user",
    ];
    READ.contains(&key) || key == "stop_grace_period" || UNSUPPORTED.contains(&key)
}

/// A key that is not supported yet, with the value that means nothing.
fn is_default(key: &str, value: &Value) -> bool {
    match key {
        "stateful" | "read_only" => truth(value) == Ok(false),
        "net" | "network_mode" => value.as_str() == Some("bridge"),
        _ => false,
    }
}

/// A command line, or its words.
fn words(value: &Value) -> Result<Vec<String>, String> {
    match scalar(value) {
        Some(line) => values::command(&line),
        None => list(value),
    }
}

fn strategy(text: &str) -> Result<Strategy, String> {
    match text {
        "ha" => Ok(Strategy::Ha),
        "daemon" => Ok(Strategy::Daemon),
        "random" => Ok(Strategy::Random),
        other => Err(format!(
            "strategy is {other:?}, must be ha, daemon or random"
        )),
    }
}

fn affinity(text: &str) -> Result<String, String> {
    let parts = text.split_once("==").or_else(|| text.split_once("!="));
    match parts {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is neither key==value nor key!=value")),
    }
}

/// `environment` as a list of `NAME=value` or as a mapping.
fn inline(keys: &Mapping) -> Result<Vec<String>, String> {
    match keys.get("environment") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Mapping(entries)) => entries
            .iter()
            .map(|(name, value)| {
                let name = text(name).map_err(|_| "a name must be text".to_owned())?;
                let value = if value.is_null() {
                    Some(String::new())
                } else {
                    scalar(value)
                };
                let value = value.ok_or_else(|| format!("the value of {name} must be text"))?;
                values::environment(&format!("{name}={value}"))
            })
            .collect(),
        Some(list) => each(list, values::environment),
    }
}

fn set(all: &mut Vec<String>, entry: String) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    match all.iter_mut().find(|known| name(known) == name(&entry)) {
        Some(known) => *known = entry,
        None => all.push(entry),
    }
}
