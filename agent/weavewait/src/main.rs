//! Waits until the overlay interface of this container is usable, then becomes
//! the container's command.
//!
//! The agent puts this program before an image's entrypoint, because a command
//! that starts before `ethwe` is there would fail to connect. It becomes the
//! command and is not its parent: as the first process of the container the
//! command gets every signal itself, and its end is the container's.
//!
//! It runs inside any image, so it is static, has no settings and reads no
//! file. Exit codes are a shell's: 127 for a program that is not there, 126 for
//! one that cannot be run, 128 and the number of a signal that ended the wait.
//!
//! Absent on purpose: Rust's own start, which would ignore SIGPIPE and forget
//! whether it was ignored before. Until the command is executed, nothing of
//! what it inherits may get lost.

#![no_main]

mod interface;
mod signals;

use std::ffi::CStr;
use std::io::{self, Write};

const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What `docker run` answers when it itself fails.
const OWN_FAILURE: u8 = 125;

/// What the C library calls at the start.
///
/// # Safety
/// `argv` holds `argc` strings and after them a null pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    if argc < 2 {
        return complain(OWN_FAILURE, "usage: weavewait PROGRAM [ARGUMENT]...");
    }
    let inherited = signals::end_by_any();
    if let Err(error) = interface::wait() {
        return complain(
            OWN_FAILURE,
            &format!("weavewait: cannot wait for ethwe: {error}"),
        );
    }
    inherited.restore();
    // SAFETY: after the program's own name there is at least one string more, and
    // a null pointer after the last.
    let (program, error) = unsafe {
        let command = argv.add(1);
        libc::execvp(*command, command);
        (CStr::from_ptr(*command), io::Error::last_os_error())
    };
    let code = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    complain(
        code,
        &format!("weavewait: {}: {error}", program.to_string_lossy()),
    )
}

fn complain(code: u8, text: &str) -> libc::c_int {
    // The code tells it too, where nobody reads this.
    let _ = writeln!(io::stderr(), "{text}");
    code.into()
}
