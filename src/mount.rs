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

//! Mount points: what is there, attaching, detaching.  Runs in dfsd, the
//! parent; nothing else calls mount(2) and unmount(2).  A point where something
//! is mounted is never touched, not even by stat(2), which would wait for the
//! process that serves it: the table of mounts says what is there.

#![forbid(unsafe_code)]

use common::conf::Mount;
use common::fs::IO_MAX;
use common::log::reason;
use common::sys::mount::{self, MountFlags, FSTYPE};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use common::sys::mount::DETACH_IS_LOCAL;

/// More are never stacked on one point, unless somebody wants to see us loop.
const STACKED_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// A mount of dfsd, by this one or an earlier one.
    Dfsd,
    Other,
}

/// What the table of mounts has on top at that point.
pub fn look(point: &Path) -> io::Result<Found> {
    let point = real(point)?;
    let table = mount::mounts()?;
    let top = table.iter().rfind(|entry| entry.point == point);
    Ok(match top {
        None => Found::Nothing,
        Some(entry) if entry.fstype == FSTYPE => Found::Dfsd,
        Some(_) => Found::Other,
    })
}

/// The table has no symbolic links.  The last component is not touched.
fn real(point: &Path) -> io::Result<PathBuf> {
    match (point.parent(), point.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Whether something can be attached there, in place of a mount of dfsd if
/// there is one.
pub fn check(point: &Path) -> Result<Found, String> {
    let found = look(point).map_err(|e| reason(&e))?;
    match found {
        Found::Dfsd => (),
        Found::Other => return Err("already mounted".into()),
        Found::Nothing => {
            let meta = fs::symlink_metadata(point).map_err(|e| reason(&e))?;
            if !meta.is_dir() {
                return Err("not a directory".into());
            }
        }
    }
    Ok(found)
}

pub fn open_device() -> io::Result<OwnedFd> {
    mount::fuse_open()
}

pub fn attach(device: BorrowedFd<'_>, cluster: &str, m: &Mount) -> io::Result<()> {
    let flags = MountFlags {
        read_only: m.read_only,
        nosuid: m.nosuid,
        nodev: m.nodev,
        noexec: m.noexec,
        noatime: m.noatime,
    };
    let source = format!("{cluster}:{}", m.subtree.display());
    mount::fuse_mount(device, &source, &m.point, flags, IO_MAX as u32)
}

/// The same in the place of a dead mount of dfsd.
///
/// XXX In between, the bare directory can be seen and written into.  To free a
/// mount takes the kernel tens of milliseconds, so that it is held until the
/// new one is there; some remain, for which dfsd(8) has advice.
pub fn replace(device: BorrowedFd<'_>, cluster: &str, m: &Mount) -> Result<(), String> {
    let say = |what: &'static str| move |e: io::Error| format!("{what}: {}", reason(&e));
    // Without it all takes longer, and that is all.
    let held = mount::hold(&m.point);
    detach(&m.point).map_err(say("unmount"))?;
    attach(device, cluster, m).map_err(say("mount"))?;
    drop(held);
    Ok(())
}

/// Detaches what dfsd has mounted there, in use or not; nothing is no error.
/// What its fused has not answered fails.
pub fn detach(point: &Path) -> io::Result<()> {
    for _ in 0..STACKED_MAX {
        if look(point)? != Found::Dfsd {
            break;
        }
        mount::unmount(point)?;
    }
    Ok(())
}

/// The same unless it is in use, which is no error either.
pub fn detach_unused(point: &Path) -> io::Result<()> {
    if look(point)? != Found::Dfsd {
        return Ok(());
    }
    match mount::unmount_unused(point) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        other => other,
    }
}

/// Leaves a dead mount: nothing below it is answered any more.
pub fn abort(point: &Path) -> io::Result<()> {
    match look(point)? {
        Found::Dfsd => mount::abort(point),
        Found::Nothing | Found::Other => Ok(()),
    }
}
