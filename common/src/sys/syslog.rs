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

//! syslog(3) for `log.rs`: the connection is opened before chroot(2) and
//! kept.  Any process runs it.  It never interprets what it is given as a
//! format.

use std::ffi::CString;
use std::sync::OnceLock;

/// Severity, as syslog(3) numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    Crit,
    Err,
    Info,
    Debug,
}

/// openlog(3) keeps the pointer it is given, so the name lives for ever.
static IDENT: OnceLock<CString> = OnceLock::new();

extern "C" {
    fn tzset();
}

/// Connects now, so that it works after chroot, and reads the time zone while
/// its file can still be reached.
pub fn open(ident: &str) {
    let ident = IDENT.get_or_init(|| CString::new(ident).unwrap_or_default());
    // SAFETY: ident is NUL terminated and is never freed (a static); tzset
    // has no arguments and is called before there are threads.
    unsafe {
        tzset();
        libc::openlog(
            ident.as_ptr(),
            libc::LOG_PID | libc::LOG_NDELAY,
            libc::LOG_DAEMON,
        );
    }
}

pub fn write(priority: Priority, line: &str) {
    let priority = match priority {
        Priority::Crit => libc::LOG_CRIT,
        Priority::Err => libc::LOG_ERR,
        Priority::Info => libc::LOG_INFO,
        Priority::Debug => libc::LOG_DEBUG,
    };
    // log.rs has made control characters visible: there is no NUL in it.
    let Ok(line) = CString::new(line) else {
        return;
    };
    // SAFETY: the format is a constant with one %s, matched by one string.
    unsafe { libc::syslog(priority, c"%s".as_ptr(), line.as_ptr()) }
}
