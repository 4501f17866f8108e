//! The TAP device.

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `TUN_F_*` of `linux/if_tun.h`; `libc` has only some of them.
const CHECKSUM: c_ulong = 0x01;
const TSO4: c_ulong = 0x02;
const TSO6: c_ulong = 0x04;
const USO4: c_ulong = 0x20;
const USO6: c_ulong = 0x40;

nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);

/// An open TAP device. It is deleted when it is closed.
pub(crate) struct Tap(File);

impl Tap {
    /// Creates the device, down, in the network namespace of the calling thread.
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        let mut request: libc::ifreq = {
            // SAFETY: an `ifreq` is plain data, for which zeroes are a value.
            unsafe { std::mem::zeroed() }
        };
        // The last octet stays the terminating zero.
        if name.is_empty() || name.len() >= request.ifr_name.len() {
            let why = format!("{name:?} is not a valid interface name");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        for (slot, octet) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *slot = octet as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        // SAFETY: the descriptor is open and the request lives through the call.
        unsafe { set_interface(file.as_raw_fd(), &raw const request) }?;
        let tap = Self(file);
        // Kernels before 6.2 segment UDP themselves.
        tap.offload(CHECKSUM | TSO4 | TSO6 | USO4 | USO6)
            .or_else(|_| tap.offload(CHECKSUM | TSO4 | TSO6))?;
        Ok(tap)
    }

    /// For the fuzzer and tests: a socket that preserves write boundaries as the device does.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(file: File) -> Self {
        Self(file)
    }

    fn offload(&self, what: c_ulong) -> io::Result<()> {
        // SAFETY: the request takes a number and no pointer.
        unsafe { set_offload(self.0.as_raw_fd(), what as libc::c_int) }?;
        Ok(())
    }

    /// Reads one frame with its header. Does not block.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Writes one frame with its header, in pieces.
    pub(crate) fn write(&self, pieces: &[&[u8]]) -> io::Result<()> {
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        (&self.0).write_vectored(&slices).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
