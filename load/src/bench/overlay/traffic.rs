//! What is sent from one container to the other, and what arrives. iperf3 makes the
//! streams and ping the echoes; only what they report counts.

use std::fmt;
use std::fs;
use std::time::Duration;

use kontena_lab::Netns;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Settings;
use super::hosts::Pair;
use super::process::{Daemon, inside, output};
use super::scratch;
use crate::bench::BenchError;
use crate::cpu::Ticks;

/// What a machine has by default differs, and some differ more from path to path.
pub(crate) const CONGESTION: &str = "cubic";
/// The payload of a small packet.
pub(crate) const UDP_BYTES: u32 = 64;
pub(crate) const ECHO_INTERVAL_S: f64 = 0.002;
/// Most echoes, in percent, that may be lost where nothing else is sent.
const ECHOES_LOST_PERCENT: f64 = 1.0;
/// Where iperf3 serves.
const PORT: u16 = 5201;
/// What a run takes beside the seconds in which it sends.
const AROUND: Duration = Duration::from_secs(30);

/// What one run found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ran {
    /// What arrived of one stream, and of four together.
    pub(crate) tcp1_gbit_per_s: f64,
    pub(crate) tcp4_gbit_per_s: f64,
    /// The share of all processors that was used while one stream was sent.
    pub(crate) tcp1_cpu_percent: f64,
    /// Small packets that arrived, and the share that did not.
    pub(crate) udp64_per_s: f64,
    pub(crate) udp64_loss_percent: f64,
    /// How long an echo took that half and 99 % of all kept to.
    pub(crate) ping_p50_us: f64,
    pub(crate) ping_p99_us: f64,
}

impl Ran {
    pub(crate) const HEADER: &str = "                             \
        TCP x1   TCP x4 Gbit/s  CPU %   64 B/s  loss %  ping p50  p99 us";
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>6.2}   {:>6.2}         {:>5.0}  {:>7.0}  {:>6.1}  {:>8.0}  {:>6.0}",
            self.tcp1_gbit_per_s,
            self.tcp4_gbit_per_s,
            self.tcp1_cpu_percent,
            self.udp64_per_s,
            self.udp64_loss_percent,
            self.ping_p50_us,
            self.ping_p99_us,
        )
    }
}

/// A pair of containers, the second of which serves.
pub(crate) struct Load {
    server: Daemon,
    pair: Pair,
}

/// A part of a run.
pub(crate) type Part = fn(&mut Load, &Settings, &mut Ran) -> Result<(), BenchError>;

impl Load {
    pub(crate) const PARTS: [Part; 4] = [
        Self::echoes,
        Self::one_stream,
        Self::four_streams,
        Self::small_packets,
    ];

    pub(crate) fn start(pair: Pair) -> Result<Self, BenchError> {
        let task = pair.to.task();
        let directory = scratch::directory(&format!("iperf3-{task}"))?;
        let command = pair.to.command("iperf3 --server --version4");
        let mut server = Daemon::start(command, &directory.join("log"), Signal::SIGTERM)?;
        server.until("iperf3 listens", || {
            let sockets = fs::read_to_string(format!("/proc/{task}/net/tcp"))?;
            let missing = || BenchError::Failed(format!("no port {PORT}: {sockets}"));
            listens(&sockets).then_some(()).ok_or_else(missing)
        })?;
        Ok(Self { server, pair })
    }

    fn echoes(&mut self, settings: &Settings, ran: &mut Ran) -> Result<(), BenchError> {
        let us = self.ping(settings.echoes)?;
        ran.ping_p50_us = quantile(&us, 0.50);
        ran.ping_p99_us = quantile(&us, 0.99);
        Ok(())
    }

    fn one_stream(&mut self, settings: &Settings, ran: &mut Ran) -> Result<(), BenchError> {
        let begun = Ticks::now()?;
        ran.tcp1_gbit_per_s = self.tcp(1, settings.seconds)?;
        ran.tcp1_cpu_percent = Ticks::now()?.percent_since(&begun);
        Ok(())
    }

    fn four_streams(&mut self, settings: &Settings, ran: &mut Ran) -> Result<(), BenchError> {
        ran.tcp4_gbit_per_s = self.tcp(4, settings.seconds)?;
        Ok(())
    }

    fn small_packets(&mut self, settings: &Settings, ran: &mut Ran) -> Result<(), BenchError> {
        let (per_s, loss_percent) = self.udp(settings.seconds)?;
        ran.udp64_per_s = per_s;
        ran.udp64_loss_percent = loss_percent;
        Ok(())
    }

    /// What arrives, in Gbit/s.
    fn tcp(&mut self, streams: u16, seconds: u16) -> Result<f64, BenchError> {
        let how = format!("--parallel {streams} --congestion {CONGESTION}");
        let said = self.iperf3(&how, seconds)?;
        let end = &said["end"];
        if end["sender_tcp_congestion"] != CONGESTION {
            return Err(unread(&said));
        }
        let bits_per_s = end["sum_received"]["bits_per_second"].as_f64();
        Ok(bits_per_s.ok_or_else(|| unread(&said))? / 1e9)
    }

    /// How many arrive a second, and how many percent do not.
    fn udp(&mut self, seconds: u16) -> Result<(f64, f64), BenchError> {
        let how = format!("--udp --length {UDP_BYTES} --bitrate 0");
        let said = self.iperf3(&how, seconds)?;
        arrived(&said["end"]).ok_or_else(|| unread(&said))
    }

    fn iperf3(&mut self, how: &str, seconds: u16) -> Result<Value, BenchError> {
        let Self { server, pair } = self;
        let to = pair.to_address;
        server.until("iperf3 serves", || Ok(()))?;
        let line =
            format!("iperf3 --client {to} --version4 --json --interval 0 --time {seconds} {how}");
        let within = Duration::from_secs(seconds.into()) + AROUND;
        let said = output(pair.from.command(&line), within)?;
        let said = serde_json::from_str(&said).map_err(std::io::Error::from)?;
        Ok(said)
    }

    /// How long each echo took in microseconds, sorted.
    fn ping(&self, echoes: u16) -> Result<Vec<f64>, BenchError> {
        let Pair {
            from, to_address, ..
        } = &self.pair;
        ping(
            from,
            &format!("ping -n -c {echoes} -i {ECHO_INTERVAL_S} -W 1 {to_address}"),
            echoes,
        )
    }
}

fn ping(from: &Netns, line: &str, echoes: u16) -> Result<Vec<f64>, BenchError> {
    let said = inside(from, line)?;
    let mut us = echoes_us(&said);
    let lost_percent = (1.0 - us.len() as f64 / f64::from(echoes)) * 100.0;
    if lost_percent > ECHOES_LOST_PERCENT {
        let why = format!("{line}: {lost_percent:.1} % lost");
        return Err(BenchError::Failed(why));
    }
    us.sort_by(f64::total_cmp);
    Ok(us)
}

fn unread(said: &Value) -> BenchError {
    BenchError::Failed(format!("iperf3 says {said}"))
}

/// In what iperf3 sums up: packets that arrived a second, and how many percent did
/// not. What the receiver misses it counts by what came later, so all that was sent is
/// the sender's to tell.
fn arrived(end: &Value) -> Option<(f64, f64)> {
    let of = |whose: &str, what: &str| end[whose][what].as_f64();
    let sent = of("sum_sent", "packets")?;
    let missed = of("sum_received", "lost_packets")?;
    let arrived = of("sum_received", "packets")? - missed;
    let seconds = of("sum_received", "seconds")?;
    (sent > 0.0 && seconds > 0.0).then(|| (arrived / seconds, (1.0 - arrived / sent) * 100.0))
}

/// In what ping says of each echo: `time=0.056 ms`.
fn echoes_us(said: &str) -> Vec<f64> {
    let times = said.lines().filter_map(|line| {
        let (_, time) = line.split_once(" time=")?;
        let ms: f64 = time.strip_suffix(" ms")?.parse().ok()?;
        Some(ms * 1000.0)
    });
    times.collect()
}

/// Whether one of the kernel's list of sockets listens on the port.
fn listens(sockets: &str) -> bool {
    const LISTENS: &str = "0A";
    let port = format!(":{PORT:04X}");
    sockets.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let local = columns.next().is_some_and(|local| local.ends_with(&port));
        local && columns.nth(1) == Some(LISTENS)
    })
}

/// Of sorted values.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let value = sorted.get(rank.saturating_sub(1));
    value.copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn echoes() {
        let said = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\
            64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.056 ms\n\
            64 bytes from 10.0.0.1: icmp_seq=2 ttl=64 time=1.20 ms\n\
            2 packets transmitted, 2 received, 0% packet loss, time 2ms\n";
        assert_eq!(echoes_us(said), [56.0, 1200.0]);
    }

    #[test]
    fn small_packets() {
        // The last 50 are not missed by who got none after them.
        let received = json!({"packets": 350, "lost_packets": 50, "seconds": 2.0});
        let end = json!({"sum_sent": {"packets": 400}, "sum_received": received});
        assert_eq!(arrived(&end), Some((150.0, 25.0)));
        let nothing = json!({"sum_sent": {"packets": 0}, "sum_received": received});
        assert_eq!(arrived(&nothing), None);
    }

    #[test]
    fn a_port_that_listens() {
        let socket = |local, state| format!("  sl\n   0: {local} 00000000:0000 {state} 00000000\n");
        assert!(listens(&socket("00000000:1451", "0A")));
        assert!(!listens(&socket("00000000:1451", "01")));
        assert!(!listens(&socket("00000000:1452", "0A")));
    }

    #[test]
    fn quantiles_are_values_that_so_many_keep_to() {
        let us: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([quantile(&us, 0.5), quantile(&us, 0.99)], [50.0, 99.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
