//! Errors of the data plane.

use std::io;

use netlink_packet_core::ErrorMessage;

/// Something that could not be read or changed, and why.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Part of the host's state could not be read.
    #[error("cannot read {what}: {cause}")]
    Observe {
        /// What was to be read.
        what: String,
        /// Why it failed.
        cause: Cause,
    },
    /// A change failed.
    #[error("cannot {step}: {cause}")]
    Step {
        /// The change.
        step: String,
        /// Why it failed.
        cause: Cause,
    },
    /// Changes that were skipped because a change that they depend on, or that protects them,
    /// failed; an error before this one names it.
    #[error("skipped {steps} more steps, because a step that they depend on failed")]
    Unprotected {
        /// How many.
        steps: usize,
    },
}

impl OverlayError {
    /// This could not be read.
    pub(crate) fn unread(what: &str) -> impl FnOnce(Cause) -> Self {
        let what = what.to_owned();
        |cause| Self::Observe { what, cause }
    }

    /// Whether it is a property of the container, rather than a failure to look at it.
    pub(crate) fn is_lasting(&self) -> bool {
        let (Self::Observe { cause, .. } | Self::Step { cause, .. }) = self else {
            return false;
        };
        matches!(cause, Cause::SharedNamespace(_))
    }
}

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused a netlink request.
    #[error("{0}")]
    Kernel(io::Error),
    /// The connection to the kernel failed.
    #[error("netlink: {0}")]
    Netlink(String),
    /// A file or a thread's namespace.
    #[error("{what}: {error}")]
    Io {
        /// What was done.
        what: String,
        /// What the kernel answered.
        error: io::Error,
    },
    /// A program that we run failed.
    #[error("{program}: {message}")]
    Program {
        /// The program.
        program: &'static str,
        /// Its last line of output.
        message: String,
    },
    /// The encrypted path cannot be started.
    #[error(transparent)]
    Sleeve(#[from] kontena_sleeve::SleeveError),
    /// An interface that was to be changed does not exist.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The process ended, and another one has its number.
    #[error("process {0} ended, and its PID was reused")]
    AnotherProcess(i32),
    /// The process has no network namespace of its own.
    #[error("it shares the network namespace of {0}")]
    SharedNamespace(String),
}

impl Cause {
    /// Wraps an IO error.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |error| Cause::Io { what, error }
    }

    /// Whether the kernel says that the object does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        let Cause::Kernel(error) = self else {
            return false;
        };
        matches!(
            error.raw_os_error(),
            Some(libc::ENOENT | libc::ENODEV | libc::EADDRNOTAVAIL)
        )
    }
}

impl From<rtnetlink::Error> for Cause {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => message.into(),
            other => Cause::Netlink(other.to_string()),
        }
    }
}

impl From<ErrorMessage> for Cause {
    fn from(message: ErrorMessage) -> Self {
        Cause::Kernel(message.to_io())
    }
}
