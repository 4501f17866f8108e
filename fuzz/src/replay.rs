//! Targets without a fuzzer: their seeds, and a bounded number of changes of them.
//!
//! It is no search. It notices a target that does not hold any more, or whose seeds
//! do not get where they did, in the seconds that a test has.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fastrand::Rng;

use crate::Target;

/// How many changes are made to a seed at once, at most.
const CHANGES: usize = 4;
/// The longest input of nothing but random octets.
const RANDOM_BYTES: usize = 300;
/// What lengths and counters are wrong with.
const EDGES: [u16; 8] = [0, 1, 2, 0x7f, 0xff, 0x7fff, 0x8000, 0xffff];

/// Checks the seeds of a target, each of them cut short everywhere, and so many
/// inputs that are made of them: the same ones each time.
///
/// # Panics
///
/// If the property does not hold; the message has the input.
pub fn replay(target: &Target, count: usize) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    for seed in &seeds {
        // Long seeds are long because of what they carry.
        let step = seed.len().div_ceil(256).max(1);
        for length in (0..seed.len()).step_by(step) {
            check(target, &seed[..length]);
        }
        check(target, seed);
    }
    let mut random = Rng::with_seed(seed_of(target.name));
    for _ in 0..count {
        check(target, &changed(&seeds, &mut random));
    }
}

/// Tests that replay so many changes of each target, one test a target, so that they
/// run side by side; and one that none is left out.
#[macro_export]
macro_rules! replays {
    ($all:expr, $($name:ident: $target:expr => $count:expr,)*) => {
        $(#[test]
        fn $name() {
            $crate::replay(&$target, $count);
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$($target.name,)*];
            assert!($all.iter().map(|target| target.name).eq(replayed));
        }
    };
}

/// Each target gets inputs of its own.
fn seed_of(name: &str) -> u64 {
    let mix = |seed: u64, octet: u8| seed.wrapping_mul(31).wrapping_add(octet.into());
    name.bytes().fold(1, mix)
}

fn check(target: &Target, input: &[u8]) {
    let checked = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    assert!(checked.is_ok(), "{} fails for {input:?}", target.name);
}

fn changed(seeds: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    if random.u8(..) < 16 {
        let length = random.usize(..RANDOM_BYTES);
        return (0..length).map(|_| random.u8(..)).collect();
    }
    let mut input = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..=CHANGES) {
        change(&mut input, seeds, random);
    }
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Rng) {
    // Headers are at the beginning, and the rest is mostly payload.
    let reach = if random.bool() { 80 } else { usize::MAX };
    let end = input.len().min(reach);
    let at = random.usize(..=end);
    match random.u8(..8) {
        0 => input.truncate(at),
        1 => input.insert(at, random.u8(..)),
        2 => drop(input.drain(at..input.len().min(at + random.usize(1..9)))),
        3 => {
            let other = &seeds[random.usize(..seeds.len())];
            input.truncate(at);
            input.extend_from_slice(&other[at.min(other.len())..]);
        }
        4 => {
            let edge = EDGES[random.usize(..EDGES.len())];
            let [high, low] = edge.to_be_bytes();
            set(input, at, |_| high);
            set(input, at + 1, |_| low);
        }
        5 => set(input, at, |octet| octet ^ 1 << random.u8(..8)),
        6 => set(input, at, |octet| octet.wrapping_add(1)),
        _ => set(input, at, |_| random.u8(..)),
    }
}

fn set(input: &mut [u8], at: usize, to: impl FnOnce(u8) -> u8) {
    if let Some(octet) = input.get_mut(at) {
        *octet = to(*octet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds() -> Vec<Vec<u8>> {
        vec![vec![4, 1, 2, 3, 4], vec![0]]
    }

    fn target(check: fn(&[u8])) -> Target {
        Target {
            name: "sample",
            check,
            seeds,
        }
    }

    /// Its length comes first.
    fn sound(input: &[u8]) {
        let read = |input: &[u8]| input.get(1..=usize::from(*input.first()?)).map(<[u8]>::len);
        if let Some(length) = read(input) {
            assert_eq!(length, input[0].into());
        }
    }

    /// The same without a look at how much there is.
    fn unsound(input: &[u8]) {
        if let Some(&length) = input.first() {
            let _ = &input[1..=usize::from(length)];
        }
    }

    #[test]
    fn a_missing_check_of_a_length_is_found_and_a_sound_target_passes() {
        replay(&target(sound), 1000);
        assert!(catch_unwind(|| replay(&target(unsound), 0)).is_err());
    }

    #[test]
    fn the_inputs_are_the_same_each_time_and_differ_from_each_other() {
        let inputs = || {
            let mut random = Rng::with_seed(seed_of("sample"));
            let inputs = (0..100).map(|_| changed(&seeds(), &mut random));
            inputs.collect::<Vec<_>>()
        };
        let mut first = inputs();
        assert_eq!(first, inputs());
        first.sort();
        first.dedup();
        assert!(first.len() > 60, "{} inputs", first.len());
    }
}
