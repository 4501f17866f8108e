//! The overlay interface of this container, as the kernel tells of it.
//!
//! It subscribes to the kernel's changes before its first look, so none is
//! missed, and then looks again whenever something changed: no polling, and no
//! timeout, since a command without its network is of no use.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

const INTERFACE: &CStr = c"ethwe";
/// A link that is up and has a carrier, that is, whose other end is up too.
const READY: libc::c_int = libc::IFF_UP | libc::IFF_RUNNING;

/// Returns when the interface is ready.
pub fn wait() -> io::Result<()> {
    let changes = subscribe()?;
    while !is_ready()? {
        next_change(&changes)?;
    }
    Ok(())
}

/// A socket that becomes readable when a link or an IPv4 address changes.
fn subscribe() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid `sockaddr_nl`: port and groups are unset.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR) as u32;
    // SAFETY: pointer and length describe `address`, which outlives the call.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(socket)
    }
}

/// Blocks until something changed. What changed is not read: another look
/// tells, also when the kernel had to drop messages (`ENOBUFS`).
fn next_change(socket: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0_u8; 4096];
    // SAFETY: pointer and length describe `buffer`, which outlives the call.
    let read = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    if read >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINTR | libc::ENOBUFS) => Ok(()),
        _ => Err(error),
    }
}

/// Whether the interface is up and has an IPv4 address.
fn is_ready() -> io::Result<bool> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: `first` is a valid place for the list's head.
    if unsafe { libc::getifaddrs(&raw mut first) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut ready = false;
    let mut entry = first;
    // SAFETY: `getifaddrs` made a list that ends with a null pointer; its names
    // are strings, its addresses null or valid. It is freed after the last use.
    unsafe {
        while let Some(this) = entry.as_ref() {
            ready |= CStr::from_ptr(this.ifa_name) == INTERFACE
                && this.ifa_flags as libc::c_int & READY == READY
                && this
                    .ifa_addr
                    .as_ref()
                    .is_some_and(|a| i32::from(a.sa_family) == libc::AF_INET);
            entry = this.ifa_next;
        }
        libc::freeifaddrs(first);
    }
    Ok(ready)
}
