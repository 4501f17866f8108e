//! What libFuzzer calls.

use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;
use std::{env, fs};

use kontena_fuzz::Target;

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: choose(),
    |input: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            (target.check)(input);
        }
    }
);

fn targets() -> impl Iterator<Item = &'static Target> {
    kontena_sleeve::fuzzing::TARGETS
        .iter()
        .chain(kontena_agent::fuzzing::TARGETS)
        .chain(kontena_overlay::fuzzing::TARGETS)
}

fn choose() {
    let Ok(name) = env::var("FUZZ_TARGET") else {
        for target in targets() {
            println!("{}", target.name);
        }
        exit(0);
    };
    let Some(target) = targets().find(|target| target.name == name) else {
        eprintln!("there is no target {name}");
        exit(1);
    };
    if let Some(directory) = env::var_os("FUZZ_SEEDS")
        && let Err(error) = write_seeds(target, Path::new(&directory))
    {
        eprintln!("the seeds cannot be written: {error}");
        exit(1);
    }
    CHOSEN.get_or_init(|| target);
}

fn write_seeds(target: &Target, directory: &Path) -> std::io::Result<()> {
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(directory.join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}
