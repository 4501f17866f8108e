//! Signals while there is no command yet.
//!
//! The kernel drops every signal to the first process of a container that has no
//! handler for it, and the command, which may have one, is not there yet. So any
//! signal that a process sends ends the wait: which of them stops a container is
//! the image's choice (`STOPSIGNAL`), be it SIGWINCH or a real-time signal, and
//! one that were dropped would let `docker stop` wait for the whole grace period.
//! A container that was not meant to stop is started again, by the engine or by the
//! agent, and waits again.
//!
//! Signals that the kernel raises by itself keep their meaning: the end of an
//! orphan or a new size of the terminal is no reason to end.
//!
//! The command gets what this program was given: `exec` resets the handlers, and
//! what was ignored or blocked is so again. 32 and 33 belong to the C library.

use std::{mem, ptr};

/// What the container was started with.
pub struct Inherited {
    mask: libc::sigset_t,
    ignored: Vec<libc::c_int>,
}

/// Makes every signal end this program that asks for an end, also one that was
/// ignored or blocked.
pub fn end_by_any() -> Inherited {
    let mut ignored = Vec::new();
    // SAFETY: all zeroes is a valid `sigaction` and a valid, empty `sigset_t`; the
    // pointers are those of local values. The handler is safe at any time.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        let handler: extern "C" fn(_, _, _) = end;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        for signal in 1..=libc::SIGRTMAX() {
            let mut before: libc::sigaction = mem::zeroed();
            // It refuses those that nobody can catch.
            let set = libc::sigaction(signal, &raw const action, &raw mut before) == 0;
            if set && before.sa_sigaction == libc::SIG_IGN {
                ignored.push(signal);
            }
        }
        let none: libc::sigset_t = mem::zeroed();
        let mut mask: libc::sigset_t = mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, &raw mut mask);
        Inherited { mask, ignored }
    }
}

impl Inherited {
    /// Ignores and blocks again what was so before. Other signals end this program
    /// until `exec` has succeeded.
    pub fn restore(&self) {
        for signal in &self.ignored {
            // SAFETY: no handler is involved.
            unsafe { libc::signal(*signal, libc::SIG_IGN) };
        }
        // SAFETY: the mask is what `sigprocmask` wrote.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut()) };
    }
}

extern "C" fn end(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel passes a valid `info`, and `_exit` may be called here.
    unsafe {
        if asks_for_end(signal, (*info).si_code) {
            libc::_exit(128 + signal);
        }
    }
}

/// Whether a signal asks for an end. Codes above zero are the kernel's own.
fn asks_for_end(signal: libc::c_int, code: libc::c_int) -> bool {
    match signal {
        libc::SIGCONT => false,
        libc::SIGCHLD
        | libc::SIGURG
        | libc::SIGWINCH
        | libc::SIGTSTP
        | libc::SIGTTIN
        | libc::SIGTTOU => code <= 0,
        _ => true,
    }
}
