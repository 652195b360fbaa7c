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
