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

//! pledge(2), where there is one.  Runs in all processes; off OpenBSD it
//! succeeds and does nothing, and whoever starts says so once in the log.

use pledge::Error;
use std::io;

/// Whether the kernel keeps promises here.
pub const fn have_pledge() -> bool {
    cfg!(target_os = "openbsd")
}

pub fn pledge(promises: &str, execpromises: Option<&str>) -> io::Result<()> {
    match pledge::pledge(promises, execpromises) {
        Ok(()) | Err(Error::UnsupportedPlatform) => Ok(()),
        Err(Error::Other(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Err(err) => Err(io::Error::new(io::ErrorKind::InvalidInput, err.to_string())),
    }
}
