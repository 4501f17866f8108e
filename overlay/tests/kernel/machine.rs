//! A virtual machine that runs one program.
//!
//! Its kernel and its root are made by infra/bootstrap/lib/vm.sh. The program is appended to the initramfs as a second
//! archive; its output goes to the second serial port and so into a file, everything else to the first. Nothing is
//! emulated faster than the host can, so nothing here ends by the clock but a machine that writes nothing any more.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Names the directory with the machine's `vmlinuz` and `root.cpio`.
const DIRECTORY: &str = "KONTENA_TEST_VM";
/// The longest test waits for several states in turn, each for up to three minutes, and few of them take half a minute.
const SILENT: Duration = Duration::from_secs(900);
/// A kernel that has not been able to run anything else on a processor for twice as long gives up. In a machine whose
/// processors have to wait for this one's, a few seconds of it are common.
const WATCHDOG_S: u32 = 60;
/// The engine of the tests, their containers and the root itself, which is in memory.
const MEMORY_MIB: u32 = 3072;

/// What a machine wrote until it ended.
#[derive(Debug)]
pub struct Output {
    /// What the program wrote.
    pub program: String,
    /// What the kernel and everybody else wrote.
    pub console: String,
    /// Why it was ended; none if it switched itself off.
    pub ended: Option<String>,
}

/// Boots a machine that runs the program with these arguments, and waits for its end.
pub fn run(program: &Path, arguments: &[&str]) -> Output {
    let made = std::env::var_os(DIRECTORY).map(PathBuf::from);
    let made = made.expect("KONTENA_TEST_VM is set, as `make test` does");
    let own = std::env::temp_dir().join(format!("kontena-vm-{}", std::process::id()));
    fs::create_dir_all(&own).unwrap();
    initramfs(&made.join("root.cpio"), program, &own.join("initramfs")).unwrap();
    let mut machine = start(&made, &own, arguments);
    let ended = watch(&mut machine, &own);
    let read = |port| fs::read(own.join(port)).unwrap_or_default();
    let text = |port| String::from_utf8_lossy(&read(port)).replace('\r', "");
    let output = Output {
        program: text("program"),
        console: text("console"),
        ended,
    };
    fs::remove_dir_all(&own).unwrap();
    output
}

fn start(made: &Path, own: &Path, arguments: &[&str]) -> Child {
    let file = |name: &str| format!("file:{}", own.join(name).display());
    let line = format!(
        "console=ttyS0 loglevel=6 watchdog_thresh={WATCHDOG_S} softlockup_panic=1 softlockup_all_cpu_backtrace=1 \
         panic=1 -- {}",
        arguments.join(" ")
    );
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-serial", &file("console"), "-serial", &file("program")])
        .args(["-append", &line])
        .arg("-kernel")
        .arg(made.join("vmlinuz"))
        .arg("-initrd")
        .arg(own.join("initramfs"))
        .stdin(Stdio::null());
    // SAFETY: it is a system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().expect("qemu-system-x86_64 is installed")
}

/// Waits for the machine's end, or ends it; says why.
fn watch(machine: &mut Child, own: &Path) -> Option<String> {
    let length = |port| fs::metadata(own.join(port)).map_or(0, |file| file.len());
    let mut written = 0;
    let mut last = Instant::now();
    loop {
        if let Some(status) = machine.try_wait().unwrap() {
            return failure(status);
        }
        let now = length("program") + length("console");
        if now > written {
            (written, last) = (now, Instant::now());
        } else if last.elapsed() > SILENT {
            machine.kill().unwrap();
            machine.wait().unwrap();
            return Some(format!("no output for {SILENT:?}"));
        }
        // Between two looks at whether it lives, which have a bound.
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn failure(status: ExitStatus) -> Option<String> {
    (!status.success()).then(|| format!("qemu ended with {status}"))
}

/// The root, and an archive with the program as `/program`. The kernel unpacks one after the other.
fn initramfs(root: &Path, program: &Path, to: &Path) -> io::Result<()> {
    let mut file = File::create(to)?;
    io::copy(&mut File::open(root)?, &mut file)?;
    file.write_all(&entry("program", 0o100_755, &fs::read(program)?))?;
    file.write_all(&entry("TRAILER!!!", 0, &[]))
}

/// A file of an archive in the format `newc` (cpio(5)): a header of numbers in hexadecimal, name and contents, each
/// filled up to four octets.
fn entry(name: &str, mode: u32, contents: &[u8]) -> Vec<u8> {
    let size = u32::try_from(contents.len()).expect("a program is smaller than 4 GiB");
    let name_size = u32::try_from(name.len() + 1).expect("a name is short");
    // inode, mode, owner, group, links, time, size, four numbers of devices, the name's size, no checksum.
    let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let fields = fields.map(|field: u32| format!("{field:08x}")).concat();
    let mut octets = format!("070701{fields}{name}\0").into_bytes();
    let fill = |octets: &mut Vec<u8>| octets.resize(octets.len().next_multiple_of(4), 0);
    fill(&mut octets);
    octets.extend(contents);
    fill(&mut octets);
    octets
}
