//! WireGuard in user space, for hosts whose kernel has none.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;

use kontena_lab::{Netns, eventually};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where it puts its socket, whatever namespace it is in.
const SOCKETS: &str = "/run/wireguard";

/// `wireguard-go` with the device `kontena-wg` on a host.
pub struct WireGuard {
    netns: Netns,
    sockets: PathBuf,
    process: Mutex<Child>,
}

impl WireGuard {
    pub fn start(netns: &Netns) -> Self {
        let name = format!("kontena-wg-{}", netns.task());
        let sockets = std::env::temp_dir().join(name);
        fs::create_dir_all(&sockets).unwrap();
        fs::create_dir_all(SOCKETS).unwrap();
        let program = Self {
            netns: netns.clone(),
            process: Mutex::new(spawn(netns, &sockets)),
            sockets,
        };
        program.wait();
        program
    }

    /// Where it takes its configuration.
    pub fn socket(&self) -> PathBuf {
        self.sockets.join("kontena-wg.sock")
    }

    /// Changes its configuration behind the agent's back.
    pub fn set(&self, lines: &str) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        write!(stream, "set=1\n{lines}\n\n").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert_eq!(answer, "errno=0\n", "{lines}");
    }

    /// Ends it, without a word to it.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        process.wait().unwrap();
    }

    /// Starts it anew, once the one before has ended.
    pub fn restart(&self) {
        let mut process = self.process.lock().unwrap();
        eventually("it ends", || match process.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let _ = fs::remove_file(self.socket());
        *process = spawn(&self.netns, &self.sockets);
        drop(process);
        self.wait();
    }

    fn wait(&self) {
        eventually("wireguard-go takes its configuration", || {
            let mut process = self.process.lock().unwrap();
            // It gives up where the machine lacks something for a moment.
            if let Ok(Some(_)) = process.try_wait() {
                *process = spawn(&self.netns, &self.sockets);
            }
            let answer = UnixStream::connect(self.socket());
            answer.map(drop).map_err(|error| error.to_string())
        });
    }
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

/// Its sockets are in this directory, which it sees in place of the usual one.
fn spawn(netns: &Netns, sockets: &Path) -> Child {
    let mut program = netns.command("wireguard-go -f kontena-wg");
    let sockets = sockets.to_owned();
    // SAFETY: all are system calls, which are allowed between fork and exec.
    unsafe {
        program.pre_exec(move || {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(&sockets), SOCKETS, none, MsFlags::MS_BIND, none)?;
            Ok(())
        });
    }
    let program = program.env("LOG_LEVEL", "error");
    program.spawn().expect("wireguard-go is installed")
}
