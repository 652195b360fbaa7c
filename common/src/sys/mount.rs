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

//! The FUSE device, mount(2), unmount(2) and the table of mounts.  Only the
//! parent runs it.  It never touches a mounted point: a stat would wait for
//! the process that serves it.

#[cfg(target_os = "openbsd")]
use std::ffi::CString;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The type which our mounts have in the table.  OpenBSD does not let a
/// mount have its own.
pub const FSTYPE: &str = if cfg!(target_os = "openbsd") {
    "fuse"
} else {
    "fuse.dfs"
};

pub const FUSE_DEVICE: &str = if cfg!(target_os = "openbsd") {
    "/dev/fuse0"
} else {
    "/dev/fuse"
};

/// Whether a mount can be detached without asking the process that serves it.
/// Where it cannot, that process has to be gone before.
pub const DETACH_IS_LOCAL: bool = cfg!(not(target_os = "openbsd"));

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub noatime: bool,
}

/// A line of the table of mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    pub point: PathBuf,
    pub fstype: String,
    pub source: String,
}

/// A new instance of the device.  Whoever serves it must hold the only copy,
/// or its death goes unnoticed.
pub fn fuse_open() -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(FUSE_DEVICE)?;
    Ok(device.into())
}

#[cfg(target_os = "openbsd")]
fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Attaches an instance of the device at `point`, for all users.  The table of
/// mounts names it `source`, where the system lets it.  `max_read` bounds one
/// read request.  The caller has made sure that `point` is a
/// directory and not mounted already: the kernel would stack.
#[cfg(not(target_os = "openbsd"))]
pub fn fuse_mount(
    device: BorrowedFd<'_>,
    source: &str,
    point: &Path,
    flags: MountFlags,
    max_read: u32,
) -> io::Result<()> {
    use nix::mount::{mount, MsFlags};
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,\
         max_read={max_read}",
        device.as_raw_fd()
    );
    let mut ms = MsFlags::empty();
    ms.set(MsFlags::MS_RDONLY, flags.read_only);
    ms.set(MsFlags::MS_NOSUID, flags.nosuid);
    ms.set(MsFlags::MS_NODEV, flags.nodev);
    ms.set(MsFlags::MS_NOEXEC, flags.noexec);
    ms.set(MsFlags::MS_NOATIME, flags.noatime);
    mount(Some(source), point, Some(FSTYPE), ms, Some(data.as_str()))?;
    Ok(())
}

#[cfg(not(target_os = "openbsd"))]
fn umount(point: &Path, flags: nix::mount::MntFlags) -> nix::Result<()> {
    use nix::mount::{umount2, MntFlags};
    umount2(point, flags | MntFlags::UMOUNT_NOFOLLOW)
}

/// Detaches `point` unless somebody uses it, which is EBUSY.
#[cfg(not(target_os = "openbsd"))]
pub fn unmount_unused(point: &Path) -> io::Result<()> {
    Ok(umount(point, nix::mount::MntFlags::empty())?)
}

/// Detaches `point`, also when it is busy.  Whoever waits for the process that
/// serves it, or will ask it anything, gets an error.
#[cfg(not(target_os = "openbsd"))]
pub fn unmount(point: &Path) -> io::Result<()> {
    use nix::mount::MntFlags;
    Ok(umount(point, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH)?)
}

/// The root of what is mounted there, which stays busy as long as this lives.
/// The file system is not asked.
#[cfg(not(target_os = "openbsd"))]
pub fn hold(point: &Path) -> io::Result<OwnedFd> {
    use nix::fcntl::{open, OFlag};
    use nix::sys::stat::Mode;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(open(point, flags, Mode::empty())?)
}

/// Like `unmount`, but `point` stays attached.  To kill the process is not enough
/// where it waits, in a notification, for a lock of somebody who waits for it.
#[cfg(not(target_os = "openbsd"))]
pub fn abort(point: &Path) -> io::Result<()> {
    use nix::mount::MntFlags;
    let _busy = hold(point)?;
    match umount(point, MntFlags::MNT_FORCE) {
        Err(nix::Error::EBUSY) => Ok(()),
        other => Ok(other?),
    }
}

/// What is mounted in this process's view.  Asks no file system.
#[cfg(not(target_os = "openbsd"))]
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|b| *b == b'\n')
        .filter_map(parse_mountinfo)
        .collect())
}

/// `36 35 98:0 /root /point options [tag ...] - type source super-options`.
#[cfg(not(target_os = "openbsd"))]
fn parse_mountinfo(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let point = unescape(fields.nth(4)?);
    fields.find(|field| *field == b"-")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    Some(MountEntry {
        point: OsStr::from_bytes(&point).into(),
        fstype: text(fields.next()?),
        source: text(fields.next()?),
    })
}

/// Blank, tab, newline and backslash stand there as `\ooo`.
#[cfg(not(target_os = "openbsd"))]
fn unescape(field: &[u8]) -> Vec<u8> {
    let octal = |digits: &[u8; 3]| {
        let digits = std::str::from_utf8(digits).ok()?;
        u8::from_str_radix(digits, 8).ok()
    };
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = match (first, tail.split_first_chunk::<3>()) {
            (b'\\', Some((digits, after))) => octal(digits).inspect(|_| rest = after),
            _ => None,
        };
        out.push(byte.unwrap_or(*first));
    }
    out
}

#[cfg(target_os = "openbsd")]
mod ffi {
    use std::ffi::{c_char, c_int, c_void};

    pub const MNT_RDONLY: c_int = 0x1;
    pub const MNT_NOEXEC: c_int = 0x4;
    pub const MNT_NOSUID: c_int = 0x8;
    pub const MNT_NODEV: c_int = 0x10;
    pub const MNT_NOATIME: c_int = 0x8000;
    pub const MNT_FORCE: c_int = 0x80000;

    extern "C" {
        pub fn mount(
            fstype: *const c_char,
            dir: *const c_char,
            flags: c_int,
            data: *mut c_void,
        ) -> c_int;
        pub fn unmount(dir: *const c_char, flags: c_int) -> c_int;
    }
}

#[cfg(target_os = "openbsd")]
pub fn fuse_mount(
    device: BorrowedFd<'_>,
    _source: &str,
    point: &Path,
    flags: MountFlags,
    max_read: u32,
) -> io::Result<()> {
    let point = c_path(point)?;
    let mut bits = 0;
    for (set, bit) in [
        (flags.read_only, ffi::MNT_RDONLY),
        (flags.nosuid, ffi::MNT_NOSUID),
        (flags.nodev, ffi::MNT_NODEV),
        (flags.noexec, ffi::MNT_NOEXEC),
        (flags.noatime, ffi::MNT_NOATIME),
    ] {
        if set {
            bits |= bit;
        }
    }
    let mut args = libc::fusefs_args {
        name: std::ptr::null_mut(),
        fd: device.as_raw_fd(),
        max_read: libc::c_int::try_from(max_read).unwrap_or(libc::c_int::MAX),
        allow_other: 1,
    };
    // SAFETY: two C strings and the arguments that this type takes; all are
    // read during the call only.  The name is not used by the kernel.
    let ret = unsafe {
        ffi::mount(
            c"fuse".as_ptr(),
            point.as_ptr(),
            bits,
            std::ptr::addr_of_mut!(args).cast(),
        )
    };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Detaches `point`, also when it is busy.
#[cfg(target_os = "openbsd")]
pub fn unmount(point: &Path) -> io::Result<()> {
    let point = c_path(point)?;
    // SAFETY: a C string that outlives the call.
    if unsafe { ffi::unmount(point.as_ptr(), ffi::MNT_FORCE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Also when it is busy: here whoever serves it has to be gone before.
#[cfg(target_os = "openbsd")]
pub fn unmount_unused(point: &Path) -> io::Result<()> {
    unmount(point)
}

/// Nothing can be opened here without asking the file system.
#[cfg(target_os = "openbsd")]
pub fn hold(_point: &Path) -> io::Result<()> {
    Ok(())
}

/// Nothing to do: there are no notifications, and a killed process ends.
#[cfg(target_os = "openbsd")]
pub fn abort(_point: &Path) -> io::Result<()> {
    Ok(())
}

/// What is mounted.  MNT_NOWAIT: asks no file system.
#[cfg(target_os = "openbsd")]
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    // SAFETY: without a buffer the call only counts.
    let count = unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    // A few more, in case somebody mounts meanwhile.
    let mut table: Vec<libc::statfs> = Vec::with_capacity(count as usize + 8);
    let size = table.capacity() * std::mem::size_of::<libc::statfs>();
    // SAFETY: the buffer has `size` bytes; the kernel fills whole entries and
    // says how many.
    unsafe {
        let count = libc::getfsstat(table.as_mut_ptr(), size, libc::MNT_NOWAIT);
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        table.set_len(table.capacity().min(count as usize));
    }
    Ok(table.iter().map(entry).collect())
}

#[cfg(target_os = "openbsd")]
fn entry(fs: &libc::statfs) -> MountEntry {
    fn bytes(field: &[libc::c_char]) -> Vec<u8> {
        let used = field.iter().take_while(|c| **c != 0);
        used.map(|c| *c as u8).collect()
    }
    MountEntry {
        point: OsStr::from_bytes(&bytes(&fs.f_mntonname)).into(),
        fstype: String::from_utf8_lossy(&bytes(&fs.f_fstypename)).into_owned(),
        source: String::from_utf8_lossy(&bytes(&fs.f_mntfromname)).into_owned(),
    }
}

#[cfg(all(test, not(target_os = "openbsd")))]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line = b"36 35 0:40 / /mnt/a\\040b\\134 rw,nosuid shared:1 - fuse.dfs prod:/ rw";
        let entry = parse_mountinfo(line).unwrap();
        assert_eq!(entry.point, Path::new("/mnt/a b\\"));
        assert_eq!(entry.fstype, FSTYPE);
        assert_eq!(entry.source, "prod:/");
        for bad in [
            &b""[..],
            b"1 2 3",
            b"1 2 3 4 /x rw shared:1",
            b"a b c d e - f",
        ] {
            assert_eq!(parse_mountinfo(bad), None);
        }
        assert_eq!(unescape(b"\\04\\999\\"), b"\\04\\999\\");
    }

    #[test]
    fn the_table_has_a_root() {
        assert!(mounts().unwrap().iter().any(|m| m.point == Path::new("/")));
    }
}
