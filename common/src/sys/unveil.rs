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

//! unveil(2), where there is one: the parent shows itself only the files it
//! needs.  Off OpenBSD it succeeds and does nothing.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use unveil::Error;

/// Leaves `path` visible, for the operations in `permissions` (of `rwxc`).
pub fn unveil(path: &Path, permissions: &str) -> io::Result<()> {
    // The empty path would lock; see below.
    if path.as_os_str().is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    call(path.as_os_str().as_bytes(), permissions)
}

/// No more calls of `unveil` from here on.
pub fn unveil_lock() -> io::Result<()> {
    call(b"", "")
}

fn call(path: &[u8], permissions: &str) -> io::Result<()> {
    match unveil::unveil(path, permissions) {
        Ok(()) | Err(Error::NotSupported) => Ok(()),
        Err(Error::Os(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Err(err) => Err(io::Error::new(io::ErrorKind::InvalidInput, err.to_string())),
    }
}
