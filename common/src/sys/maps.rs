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

//! What files are mapped where, to take pages out of the process's memory
//! that are in the system's cache anyway.  OpenBSD's maps stay as they are.

#[cfg(target_os = "linux")]
mod os {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};
    use std::os::raw::c_void;
    use std::sync::{Mutex, PoisonError};

    /// Of this process; read again after the chroot, where it has no name.
    static MAPS: Mutex<Option<File>> = Mutex::new(None);

    pub fn open() {
        let maps = File::open("/proc/self/maps").ok();
        *MAPS.lock().unwrap_or_else(PoisonError::into_inner) = maps;
    }

    pub fn release(path: &str) {
        let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        let Some(file) = maps.as_mut() else { return };
        if file.seek(SeekFrom::Start(0)).is_err() || file.read_to_string(&mut text).is_err() {
            return;
        }
        for (start, end) in text.lines().filter_map(|line| shared(line, path)) {
            // SAFETY: the range is a shared map of a file, as the kernel has
            // just said, and stays one as long as the process lives, for LMDB
            // unmaps only when it is closed.  Dropping its pages changes
            // nothing of what is read there: the next access maps them again.
            unsafe {
                libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED);
            }
        }
    }

    /// The range that the line describes, if it is a shared map of that file:
    /// "START-END rw-s OFFSET DEVICE INODE PATH".
    fn shared(line: &str, path: &str) -> Option<(usize, usize)> {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_shared = fields.next()?.ends_with('s');
        let named = fields.last()?.ends_with(path);
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        (is_shared && named && start < end).then_some((start, end))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn lines() {
            let map = "7f00-7f10 r--s 00000000 fe:00 42   /db/meta/data.mdb";
            assert_eq!(shared(map, "/meta/data.mdb"), Some((0x7f00, 0x7f10)));
            assert_eq!(shared(map, "/meta/lock.mdb"), None);
            assert_eq!(shared(&map.replace("r--s", "r--p"), "/data.mdb"), None);
            assert_eq!(shared("7f00-7f10 rw-p 00000000 00:00 0", "0"), None);
            assert_eq!(shared("", "/data.mdb"), None);
        }
    }
}

/// To be called before the chroot.
#[cfg(target_os = "linux")]
pub use os::open;

/// Drops the pages of all shared maps of files whose path ends so.
#[cfg(target_os = "linux")]
pub use os::release;

#[cfg(not(target_os = "linux"))]
pub fn open() {}

#[cfg(not(target_os = "linux"))]
pub fn release(_path: &str) {}
