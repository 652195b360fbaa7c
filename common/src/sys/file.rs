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

//! Open files: calls that std has not, which block, and what the system
//! promises about a map.  raftd only.

use std::io;
use std::os::fd::AsFd;

/// Whether a map of a file shows what write(2) puts there, and read(2) what is
/// stored through the map.  OpenBSD has no unified buffer cache: there, each
/// file is either mapped or read and written, never both at a time.
pub const MAP_SHOWS_WRITES: bool = cfg!(not(target_os = "openbsd"));

/// open(2): no pages between the program and the file.  No bit where there is no
/// such thing.
#[cfg(target_os = "linux")]
pub const O_DIRECT: i32 = nix::fcntl::OFlag::O_DIRECT.bits();
#[cfg(not(target_os = "linux"))]
pub const O_DIRECT: i32 = 0;

/// Brings all of the file system of `fd` to the disk at once.  None where no
/// call does that and also tells errors.
#[cfg(target_os = "linux")]
pub fn syncfs(fd: impl AsFd) -> Option<io::Result<()>> {
    Some(nix::unistd::syncfs(fd.as_fd()).map_err(io::Error::from))
}

#[cfg(not(target_os = "linux"))]
pub fn syncfs(_fd: impl AsFd) -> Option<io::Result<()>> {
    None
}

/// Makes a hole; the size of the file stays.  None where the system, or the
/// file system, makes none.
#[cfg(target_os = "linux")]
pub fn punch(fd: impl AsFd, offset: u64, len: u64) -> Option<io::Result<()>> {
    use nix::fcntl::FallocateFlags;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(fd, flags, offset, len)
}

/// Takes room on the disk for that range; the size of the file stays.  None
/// where no room can be taken before it is written to.
#[cfg(target_os = "linux")]
pub fn preallocate(fd: impl AsFd, offset: u64, len: u64) -> Option<io::Result<()>> {
    fallocate(
        fd,
        nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
        offset,
        len,
    )
}

#[cfg(target_os = "linux")]
fn fallocate(
    fd: impl AsFd,
    flags: nix::fcntl::FallocateFlags,
    offset: u64,
    len: u64,
) -> Option<io::Result<()>> {
    use nix::errno::Errno;
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
        return Some(Err(io::ErrorKind::InvalidInput.into()));
    };
    loop {
        match nix::fcntl::fallocate(fd.as_fd(), flags, offset, len) {
            Err(Errno::EINTR) => (),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return None,
            other => return Some(other.map_err(io::Error::from)),
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn punch(_fd: impl AsFd, _offset: u64, _len: u64) -> Option<io::Result<()>> {
    None
}

#[cfg(not(target_os = "linux"))]
pub fn preallocate(_fd: impl AsFd, _offset: u64, _len: u64) -> Option<io::Result<()>> {
    None
}
