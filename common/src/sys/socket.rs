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

//! Unix sockets between our processes: pairs, one descriptor per message, the
//! peer's credentials.  Used by all processes; it never blocks, and no
//! descriptor that arrives here is inherited by a child.

use nix::sys::socket::{self, sockopt, AddressFamily, SockFlag, SockType};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Two connected stream sockets, close-on-exec and nonblocking from birth.
pub fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?)
}

/// Makes room for `bytes` in the socket's buffers, or as much as the system
/// allows: root may exceed its maximum on Linux, others get that maximum;
/// OpenBSD refuses what is above its own, so ask for less and less.
pub fn set_bufs(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let forced = socket::setsockopt(&fd, sockopt::SndBufForce, &bytes)
            .and_then(|()| socket::setsockopt(&fd, sockopt::RcvBufForce, &bytes));
        if forced.is_ok() {
            return Ok(());
        }
    }
    let mut bytes = bytes;
    loop {
        let set = socket::setsockopt(&fd, sockopt::SndBuf, &bytes)
            .and_then(|()| socket::setsockopt(&fd, sockopt::RcvBuf, &bytes));
        match set {
            Err(nix::Error::ENOBUFS) if bytes > 1 => bytes /= 2,
            result => return Ok(result?),
        }
    }
}

/// listen(2) on a socket that the parent has bound.
pub fn listen(fd: &impl AsFd) -> io::Result<()> {
    Ok(nix::sys::socket::listen(
        fd,
        nix::sys::socket::Backlog::MAXCONN,
    )?)
}

/// The user and group of the process that connected or made the pair.
pub fn getpeereid(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    #[cfg(target_os = "linux")]
    {
        let cred = socket::getsockopt(&fd, sockopt::PeerCredentials)?;
        Ok((cred.uid(), cred.gid()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let (uid, gid) = nix::unistd::getpeereid(fd)?;
        Ok((uid.as_raw(), gid.as_raw()))
    }
}

/// Room for one descriptor.  The union gives it the alignment of a header.
#[repr(C)]
union Control {
    bytes: [u8; 64],
    align: libc::cmsghdr,
}

const FD_LEN: u32 = std::mem::size_of::<RawFd>() as u32;

fn cmsg_space() -> usize {
    // SAFETY: pure arithmetic.
    unsafe { libc::CMSG_SPACE(FD_LEN) as usize }
}

/// sendmsg(2), once.  The descriptor travels with the first byte.
pub fn send(
    socket: BorrowedFd<'_>,
    iov: &[IoSlice<'_>],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: all zeros is a valid msghdr; the platforms' private fields make
    // a literal impossible.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iov.as_ptr() as *mut libc::iovec;
    msg.msg_iovlen = iov.len() as _;
    if let Some(fd) = fd {
        msg.msg_control = std::ptr::addr_of_mut!(control).cast();
        msg.msg_controllen = cmsg_space() as _;
        // SAFETY: msg_control points to 64 aligned bytes, of which
        // CMSG_SPACE(4) <= 64 are declared, so CMSG_FIRSTHDR is not null and
        // header and data lie inside.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&msg);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(FD_LEN) as _;
            libc::CMSG_DATA(cmsg)
                .cast::<RawFd>()
                .write_unaligned(fd.as_raw_fd());
        }
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: IoSlice has the layout of iovec; iov, control and the slices
    // behind iov outlive the call.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &msg, flags) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n as usize)
}

/// recvmsg(2), once; 0 is the end.  With `want_fd` the first descriptor that
/// came with these bytes is returned and any other is closed; without, the
/// kernel drops them.
pub fn recv(
    socket: BorrowedFd<'_>,
    iov: &mut [IoSliceMut<'_>],
    want_fd: bool,
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: as in send().
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iov.as_mut_ptr().cast();
    msg.msg_iovlen = iov.len() as _;
    if want_fd {
        msg.msg_control = std::ptr::addr_of_mut!(control).cast();
        msg.msg_controllen = cmsg_space() as _;
    }
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: IoSliceMut has the layout of iovec; all buffers outlive the call.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, flags) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = if want_fd { take_fd(&msg) } else { None };
    Ok((n as usize, fd))
}

/// Takes every descriptor out of a received control buffer; keeps the first.
/// There can be more than one even in this small buffer, because of padding.
fn take_fd(msg: &libc::msghdr) -> Option<OwnedFd> {
    let mut kept = None;
    // SAFETY: the kernel has filled msg_control and set msg_controllen to what
    // it wrote; the CMSG macros stay within that.  Each descriptor in an
    // SCM_RIGHTS message is new in this process and owned by nobody else.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(msg);
        while !cmsg.is_null() {
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                let len = ((*cmsg).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                for i in 0..len / FD_LEN as usize {
                    let fd = OwnedFd::from_raw_fd(data.add(i).read_unaligned());
                    kept.get_or_insert(fd);
                }
            }
            cmsg = libc::CMSG_NXTHDR(msg, cmsg);
        }
    }
    kept
}
