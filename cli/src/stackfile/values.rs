//! The small languages inside a stack file's values: ports, links, durations,
//! command lines and environment entries. The command line's options speak the
//! same ones.

use kontena_schema::http::services::{Link, Port, Protocol};

/// `[ip:]host:container[/proto]`.
///
/// # Errors
/// What is wrong with it.
pub fn port(text: &str) -> Result<Port, String> {
    let fail = |reason: &str| Err(format!("{text:?} {reason}"));
    let (numbers, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((numbers, "tcp")) => (numbers, Protocol::Tcp),
        Some((numbers, "udp")) => (numbers, Protocol::Udp),
        Some((_, other)) => return fail(&format!("has the protocol {other:?}: tcp or udp")),
    };
    if numbers.contains('-') {
        return fail("is a range of ports, which is not supported");
    }
    let parts: Vec<&str> = numbers.split(':').collect();
    let (ip, node, container) = match parts[..] {
        [node, container] => ("0.0.0.0", node, container),
        [ip, node, container] => (ip, node, container),
        _ => return fail("is no port: [ip:]host:container[/tcp|udp]"),
    };
    let Ok(ip) = ip.parse() else {
        return fail(&format!("has the address {ip:?}, which is no IPv4 address"));
    };
    match (port_number(node), port_number(container)) {
        (Some(node_port), Some(container_port)) => Ok(Port {
            ip,
            protocol,
            node_port,
            container_port,
        }),
        _ => fail("has a port that is not between 1 and 65535"),
    }
}

fn port_number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&number| digits && number > 0)
}

/// `service[:alias]` or `stack/service[:alias]`.
///
/// # Errors
/// What is wrong with it.
pub fn link(text: &str) -> Result<Link, String> {
    let (name, alias) = match text.split_once(':') {
        Some((name, alias)) => (name, Some(alias)),
        None => (text, None),
    };
    let parts: Vec<&str> = name.split('/').chain(alias).collect();
    if name.split('/').count() > 2 || !parts.iter().all(|part| is_link_part(part)) {
        return Err(format!("{text:?} is no link: [stack/]service[:alias]"));
    }
    Ok(Link {
        name: name.to_owned(),
        alias: alias.map(str::to_owned),
    })
}

fn is_link_part(text: &str) -> bool {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(ok)
}

/// `1h2m3.5s`, or a number of seconds alone; parts of a second are rounded up.
///
/// # Errors
/// What is wrong with it.
pub fn duration_s(text: &str) -> Result<u32, String> {
    let fail = || format!("{text:?} is no duration such as 1m30s");
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let mut total = 0.0;
    let mut rest = text;
    for (unit, seconds) in [('h', 3600.0), ('m', 60.0), ('s', 1.0)] {
        let Some((number, tail)) = rest.split_once(unit) else {
            continue;
        };
        let plain = number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        let number: f64 = number.parse().ok().filter(|_| plain).ok_or_else(fail)?;
        total += number * seconds;
        rest = tail;
    }
    if text.is_empty() || !rest.is_empty() || total > f64::from(u32::MAX) {
        return Err(fail());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above"
    )]
    Ok(total.ceil() as u32)
}

/// A command line split as a shell splits it; nothing is expanded.
///
/// # Errors
/// For a quote that does not end.
pub fn command(text: &str) -> Result<Vec<String>, String> {
    shlex::split(text).ok_or_else(|| format!("{text:?} has a quote that does not end"))
}

/// Checks `NAME=value`.
///
/// # Errors
/// What is wrong with it.
pub fn environment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.trim().is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no NAME=value")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports() {
        let tcp = |ip: [u8; 4], node_port, container_port| Port {
            ip: ip.into(),
            protocol: Protocol::Tcp,
            node_port,
            container_port,
        };
        assert_eq!(port("80:8080"), Ok(tcp([0; 4], 80, 8080)));
        assert_eq!(port("127.0.0.1:80:80/tcp"), Ok(tcp([127, 0, 0, 1], 80, 80)));
        assert_eq!(port("53:53/udp").unwrap().protocol, Protocol::Udp);
        for (bad, reason) in [
            ("80", "is no port"),
            ("", "is no port"),
            ("0:80", "between 1 and 65535"),
            ("80:65536", "between 1 and 65535"),
            ("+80:80", "between 1 and 65535"),
            ("80-90:80-90", "range"),
            ("80:80/sctp", "protocol"),
            ("localhost:80:80", "IPv4"),
            ("1:2:3:4", "is no port"),
        ] {
            let got = port(bad).unwrap_err();
            assert!(got.contains(reason), "{bad}: {got}");
        }
    }

    #[test]
    fn links() {
        let (name, alias) = ("db".to_owned(), Some("database".to_owned()));
        assert_eq!(
            link("db"),
            Ok(Link {
                name: name.clone(),
                alias: None
            })
        );
        assert_eq!(link("db:database"), Ok(Link { name, alias }));
        assert_eq!(link("other/db").unwrap().name, "other/db");
        for bad in ["", ":x", "db:", "a/b/c", "/db", "a/", "db:a:b", "d b"] {
            assert!(link(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("10", 10),
            ("0", 0),
            ("30s", 30),
            ("1m30s", 90),
            ("1h2m3.5s", 3724),
            ("2h", 7200),
        ] {
            assert_eq!(duration_s(text), Ok(want), "{text}");
        }
        for bad in [
            "",
            "s",
            "1x",
            "30s1m",
            "-1s",
            "1m 30s",
            "1e3s",
            "99999999h",
            "infs",
            "1.5",
        ] {
            assert!(duration_s(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn commands_are_split_like_a_shell_does() {
        assert_eq!(
            command(r#"sh -c "echo 'a b'; sleep 1" x\ y"#).unwrap(),
            ["sh", "-c", "echo 'a b'; sleep 1", "x y"]
        );
        assert_eq!(command("").unwrap(), [""; 0]);
        assert!(command("echo 'a").is_err());
    }

    #[test]
    fn environment_needs_a_name_and_a_sign() {
        assert!(environment("A=").is_ok());
        assert!(environment("A=b=c").is_ok());
        assert!(environment("A").is_err());
        assert!(environment("=b").is_err());
    }

    proptest! {
        #[test]
        fn every_port_is_read_as_it_is_written(
            ip: u32, node in 1..=u16::MAX, container in 1..=u16::MAX, udp: bool,
        ) {
            let ip = Ipv4Addr::from_bits(ip);
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let text = format!("{ip}:{node}:{container}/{}", if udp { "udp" } else { "tcp" });
            let want = Port { ip, protocol, node_port: node, container_port: container };
            prop_assert_eq!(port(&text), Ok(want));
        }

        #[test]
        fn every_duration_is_read_as_it_is_written(h in 0..1000_u32, m in 0..60_u32, s in 0..60_u32) {
            prop_assert_eq!(duration_s(&format!("{h}h{m}m{s}s")), Ok(h * 3600 + m * 60 + s));
        }

        #[test]
        fn every_command_line_is_read_as_it_is_quoted(words in prop::collection::vec("[^\\x00]*", 0..6)) {
            let line = shlex::try_join(words.iter().map(String::as_str)).unwrap();
            prop_assert_eq!(command(&line), Ok(words));
        }

        #[test]
        fn no_text_upsets_them(text in "\\PC{0,40}") {
            let _ = (port(&text), link(&text), duration_s(&text), command(&text));
        }
    }
}
