// Copyright (c) 2026 The dfsd authors
//
// Permission to use, copy, modify, and distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
// OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

//! Sockets with a name that do not listen yet: the parent binds them, as root,
//! and whoever gets them calls listen(2).  Close-on-exec and nonblocking from
//! birth.

use nix::sys::socket::{
    bind, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr,
};
use nix::sys::stat::{umask, Mode};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

fn stream(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

/// An address that connections of an earlier run still use is free; one where
/// somebody listens is not.
pub fn tcp(addr: SocketAddr) -> io::Result<OwnedFd> {
    let fd = stream(match addr {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    })?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    Ok(fd)
}

/// The name has `mode` from the beginning.
pub fn unix(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let addr = UnixAddr::new(path)?;
    let fd = stream(AddressFamily::Unix)?;
    let before = umask(Mode::from_bits_truncate(!mode as libc::mode_t & 0o777));
    let bound = bind(fd.as_raw_fd(), &addr);
    umask(before);
    bound?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_port_has_one_owner() {
        let first = tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        nix::sys::socket::listen(&first, nix::sys::socket::Backlog::MAXCONN).unwrap();
        let addr = std::net::TcpListener::from(first.try_clone().unwrap())
            .local_addr()
            .unwrap();
        let err = tcp(addr).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EADDRINUSE));
    }

    #[test]
    fn nobody_can_connect_before_listen() {
        let path = std::env::temp_dir().join(format!("dfsd-bind.{}", std::process::id()));
        let fd = unix(&path, 0o600).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let err = UnixStream::connect(&path).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ECONNREFUSED));
        assert_eq!(
            unix(&path, 0o600).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        drop(fd);
        std::fs::remove_file(&path).unwrap();
    }
}
