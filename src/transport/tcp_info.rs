//! Reads a connection's `TCP_INFO` from the kernel, which no safe library offers.
#![allow(unsafe_code)]

use std::mem;
use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

/// The kernel's state of a connection (`tcp(7)`, `TCP_INFO`); `None` if the call fails. Fields that an older kernel
/// lacks are zero.
pub(super) fn tcp_info(socket: &TcpStream) -> Option<libc::tcp_info> {
    let mut info = mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `length` bytes to `info`,
    // which is that long.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
    };
    // SAFETY: `tcp_info` is integers only, so the zeroes that an older kernel leaves in place are valid too.
    (result == 0).then(|| unsafe { info.assume_init() })
}
