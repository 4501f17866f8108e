//! Listening to packets while something is tried.

use std::time::Duration;

use crate::{Host, until};

/// How long tcpdump may take to listen, or to end.
const WITHIN: Duration = Duration::from_secs(10);

/// A running tcpdump in a host's own network.
#[derive(Debug)]
pub struct Capture {
    host: Host,
    file: String,
}

impl Capture {
    /// Begins to listen on an interface of a host; `name` tells captures apart.
    ///
    /// # Panics
    /// Where tcpdump does not start.
    pub async fn begin(host: &Host, name: &str, interface: &str, filter: &str) -> Self {
        let file = format!("/tmp/capture-{name}-{interface}");
        let script = format!(
            "rm -f {file}.*; nohup tcpdump -n -i {interface} -U -w {file}.pcap '{filter}' \
             >{file}.log 2>&1 </dev/null & echo $! >{file}.pid"
        );
        host.run(&script).await.must();
        until(
            WITHIN,
            &format!("tcpdump listens on {}", host.name),
            async || {
                host.run(&format!(
                    "grep 'listening on' {file}.log || {{ cat {file}.log; false; }}"
                ))
                .await
                .ok()
            },
        )
        .await;
        Self {
            host: host.clone(),
            file,
        }
    }

    /// Ends it and answers the packets, a line each.
    ///
    /// # Panics
    /// Where tcpdump does not end in order.
    pub async fn end(self) -> Vec<String> {
        let Self { host, file } = self;
        host.run(&format!("kill -INT $(cat {file}.pid)"))
            .await
            .must();
        until(WITHIN, "tcpdump has written everything", async || {
            host.run(&format!(
                "grep 'received by filter' {file}.log || {{ cat {file}.log; false; }}"
            ))
            .await
            .ok()
        })
        .await;
        let packets = host
            .run(&format!(
                "tcpdump -n -e -r {file}.pcap 2>/dev/null; rm -f {file}.*"
            ))
            .await;
        packets.must().lines().map(str::to_owned).collect()
    }
}
