//! Asks the kernel for a connection's round-trip time: the one thing here that no safe library offers.
#![allow(unsafe_code)]

use std::mem;
use std::os::fd::AsRawFd;
use std::time::Duration;

use tokio::net::TcpStream;

/// The smoothed round-trip time (`tcpi_rtt`, microseconds); `None` if the kernel does not tell or has not measured.
pub(super) fn round_trip(socket: &TcpStream) -> Option<Duration> {
    let mut info = mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `length` bytes to `info`,
    // which is that long.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
    };
    if result != 0 {
        return None;
    }
    // SAFETY: `tcp_info` is integers only, so the zeroes that an older kernel leaves in place are valid too.
    let info = unsafe { info.assume_init() };
    (info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into()))
}
