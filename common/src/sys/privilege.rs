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

//! Who a process is, and becoming somebody else for good.  Runs at the start
//! of every process, before threads; the order of the calls is in `proc.rs`.

use nix::unistd::{Gid, Uid};
use std::io;
use std::path::Path;

/// A user that a process may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// getpwnam(3).
pub fn user(name: &str) -> io::Result<Option<User>> {
    let user = nix::unistd::User::from_name(name)?;
    Ok(user.map(|user| User {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }))
}

/// chroot(2) and chdir(2): one without the other is no wall.
pub fn chroot(dir: &Path) -> io::Result<()> {
    nix::unistd::chroot(dir)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// Groups first, user last: after that there is no way back.
pub fn become_user(user: User) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setgroups(&[gid])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(())
}

/// No exec from here on can gain anything.  OpenBSD has pledge(2) for this.
pub fn no_new_privs() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}
