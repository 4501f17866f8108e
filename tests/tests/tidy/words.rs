//! What runs on a host is named by the field's terms.
//!
//! Each word of this list was once a term of this project's own, and each has a name that
//! a network engineer knows without a glossary. Names in code are split into their words.

use crate::tree::rust;

/// Where the list holds.
const PARTS: [&str; 5] = ["agent", "overlay", "sleeve", "lab", "task"];

/// What is not said, and what is said instead.
const WORDS: [(&str, &str); 34] = [
    ("bell", "notification"),
    ("bells", "notifications"),
    ("board", "drain"),
    ("circumstances", "context"),
    ("crowd", "burst"),
    ("dispossess", "evict"),
    ("dispossessed", "evicted"),
    ("doubt", "dirty set, recheck"),
    ("doubts", "dirty set, recheck"),
    ("door", "reachability listener"),
    ("doors", "reachability listeners"),
    ("envelope", "encapsulation"),
    ("envelopes", "encapsulations"),
    ("fate", "decision"),
    ("fence", "egress policy"),
    ("glue", "coalesce"),
    ("glued", "coalesced"),
    ("greeting", "handshake initiation"),
    ("greetings", "handshake initiations"),
    ("guard", "anti-spoofing filter"),
    ("hands", "executor"),
    ("knock", "reachability check"),
    ("knocks", "reachability checks"),
    ("patience", "initiation delay"),
    ("rightful", "eligible"),
    ("rob", "evict"),
    ("seal", "encrypt"),
    ("sealed", "encrypted"),
    ("situation", "plan input"),
    ("surroundings", "create context"),
    ("translator", "NAT"),
    ("trial", "path probe"),
    ("trials", "path probes"),
    ("wish", "request"),
];

/// Names of others, and of `schema/`, that have such a word in them.
const ALLOWED: [&str; 6] = [
    "WireGuard",
    "MutexGuard",
    "RwLockReadGuard",
    "Path::Sealed",
    "sealed_because",
    "DOOR_PORT",
];

/// The words of a line: `SetTunnelEntry` and `set_tunnel_entry` have three each.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in line.chars() {
        let begins = c.is_uppercase() && before.is_lowercase();
        if !c.is_alphanumeric() || begins {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn parts_of_a_host_are_named_by_the_terms_of_the_field() {
    let mut found = Vec::new();
    for file in PARTS.iter().flat_map(|part| rust(part)) {
        for (line, number) in file.text.lines().zip(1..) {
            let mut own = line.to_owned();
            for name in ALLOWED {
                own = own.replace(name, "");
            }
            for word in words(&own) {
                if let Some((_, instead)) = WORDS.iter().find(|(not, _)| *not == word) {
                    let path = &file.path;
                    found.push(format!("{path}:{number}: {word} (say: {instead})"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn names_are_split_into_words() {
    assert_eq!(words("SetTunnelEntry(x)"), ["set", "tunnel", "entry", "x"]);
    assert_eq!(words("set_tunnel_entry"), ["set", "tunnel", "entry"]);
    assert_eq!(words("a MAC's NAT"), ["a", "mac", "s", "nat"]);
}
