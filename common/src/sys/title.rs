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

//! setproctitle(3): what ps(1) shows, `program: title`.  Children call it; the
//! parent never does, because rc.subr finds it by its command line.  On Linux
//! the title takes the memory of arguments and environment, so read the
//! arguments first: after `set`, `std::env::args` gives nonsense.

use std::io;

/// Finds the room.  Before chroot and before there are threads.
pub fn init() -> io::Result<()> {
    os::init()
}

/// A title that does not fit is cut.  Without `init`, nothing happens on
/// Linux.
pub fn set(title: &str) {
    os::set(title)
}

#[cfg(target_os = "openbsd")]
mod os {
    use std::ffi::CString;
    use std::io;

    pub fn init() -> io::Result<()> {
        Ok(())
    }

    pub fn set(title: &str) {
        let Ok(title) = CString::new(title) else {
            return;
        };
        // SAFETY: a constant format with one %s, matched by one string, which
        // the call copies.
        unsafe { libc::setproctitle(c"%s".as_ptr(), title.as_ptr()) }
    }
}

#[cfg(not(target_os = "openbsd"))]
mod os {
    use std::ffi::{c_char, CStr};
    use std::io;
    use std::path::Path;
    use std::sync::Mutex;

    /// The memory which the kernel shows as the command line.
    struct Area {
        start: usize,
        len: usize,
        progname: String,
    }

    static AREA: Mutex<Option<Area>> = Mutex::new(None);

    extern "C" {
        static mut environ: *const *const c_char;
    }

    pub fn init() -> io::Result<()> {
        let Ok(mut area) = AREA.lock() else {
            return Ok(());
        };
        if area.is_some() {
            return Ok(());
        }
        let arg0 = std::env::args_os().next().unwrap_or_default();
        let name = Path::new(&arg0).file_name().unwrap_or(&arg0);
        let stat = std::fs::read("/proc/self/stat")?;
        let (start, end) = bounds(&stat).ok_or(io::ErrorKind::InvalidData)?;
        move_environ();
        *area = Some(Area {
            start,
            len: end - start,
            progname: name.to_string_lossy().into_owned(),
        });
        Ok(())
    }

    /// Fields 48 to 51 of proc_pid_stat(5): begin and end of the arguments,
    /// begin and end of the environment.  The name, field 2, may contain
    /// anything, so count from its closing parenthesis.
    fn bounds(stat: &[u8]) -> Option<(usize, usize)> {
        let name_end = stat.iter().rposition(|b| *b == b')')?;
        let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace().skip(48 - 3);
        let mut field = || fields.next()?.parse::<usize>().ok();
        let (start, arg_end) = (field()?, field()?);
        let (env_start, env_end) = (field()?, field()?);
        let end = if env_start == arg_end {
            env_end
        } else {
            arg_end
        };
        (start != 0 && start < end).then_some((start, end))
    }

    /// Copies the environment elsewhere, for good.
    fn move_environ() {
        let mut copy: Vec<*const c_char> = Vec::new();
        // SAFETY: environ is null or a null-terminated array of C strings;
        // there is one thread, so nobody changes it meanwhile.  Array and
        // strings of the copy are leaked, thus valid for ever.
        unsafe {
            let mut var = environ;
            while !var.is_null() && !(*var).is_null() {
                copy.push(CStr::from_ptr(*var).to_owned().into_raw());
                var = var.add(1);
            }
            copy.push(std::ptr::null());
            environ = copy.leak().as_ptr();
        }
    }

    pub fn set(title: &str) {
        let Ok(area) = AREA.lock() else {
            return;
        };
        let Some(area) = area.as_ref() else {
            return;
        };
        let mut line = format!("{}: {title}", area.progname).into_bytes();
        line.truncate(area.len - 1);
        line.resize(area.len, 0);
        // SAFETY: [start, start + len) is this process's argument and
        // environment strings: mapped, writable, and since init() used by
        // nobody but readers of argv, for whom it stays NUL terminated.
        unsafe {
            std::ptr::copy_nonoverlapping(line.as_ptr(), area.start as *mut u8, line.len());
        }
    }
}
