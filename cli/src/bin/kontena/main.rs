//! The `kontena` command.

fn main() {}
