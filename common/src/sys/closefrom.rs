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

//! closefrom(2).  Runs in a new child between fork and exec, so it allocates
//! nothing and takes no lock.

use std::ffi::c_int;

/// Closes every descriptor from `low` on, whoever owns it.
///
/// # Safety
///
/// No descriptor from `low` on may be used afterwards by what owns it.
pub unsafe fn closefrom(low: c_int) {
    #[cfg(target_os = "openbsd")]
    // SAFETY: the caller's promise.
    unsafe {
        libc::closefrom(low);
    }
    #[cfg(not(target_os = "openbsd"))]
    // SAFETY: the caller's promise; the system call because old C libraries
    // have no function for it.
    unsafe {
        let last = libc::c_uint::MAX;
        if libc::syscall(libc::SYS_close_range, low as libc::c_uint, last, 0) == 0 {
            return;
        }
        // A kernel before 5.9, or a filter without the call.
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        for fd in low..limit.rlim_cur.min(65536) as c_int {
            libc::close(fd);
        }
    }
}
