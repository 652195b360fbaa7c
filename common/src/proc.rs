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

//! Processes: how the parent starts a child and learns of its end, and how a
//! child becomes what it is.  The order is that of the whole family:
//!
//! | parent                         | child                                   |
//! | ------------------------------ | --------------------------------------- |
//! | socketpair, `spawn`            | `child_init`: log, descriptor 3, room   |
//! | (before it has any thread)     | for the title, signals                  |
//! | sends config and descriptors   | `drop_privileges`: user lookup, chroot, |
//! |                                | chdir, groups, gid, uid                 |
//! | STARTUP, its loop, `reap`      | title, pledge, `ready`, its loop;       |
//! |                                | descriptor 3 closed means exit          |

#![forbid(unsafe_code)]

use crate::sys::privilege::{self, User};
use crate::sys::signal::{self, Signal};
use crate::sys::{process, title};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use nix::unistd::Pid;

/// The user that raftd and fused run as.
pub const DFSD_USER: &str = "_dfsd";

/// Where the children's programs are installed, from when this was built.
pub const LIBEXECDIR: &str = match option_env!("DFSD_LIBEXECDIR") {
    Some(dir) => dir,
    None => "/usr/local/libexec/dfsd",
};

/// The path of a child's program, never searched for.  The environment may
/// name another directory, but only in the foreground, for the tests.
pub fn libexec(program: &str, debug: bool) -> PathBuf {
    let dir = match std::env::var_os("DFSD_LIBEXEC") {
        Some(dir) if debug => PathBuf::from(dir),
        _ => PathBuf::from(LIBEXECDIR),
    };
    dir.join(program)
}

/// Starts a program with `chan` as its descriptor 3 and everything else
/// closed; without `debug` its standard descriptors are /dev/null.  The caller
/// must have one thread only.  A program that cannot be executed is an error
/// here, not a lost child.
pub fn spawn(path: &Path, args: &[&str], chan: OwnedFd, debug: bool) -> io::Result<Pid> {
    let mut argv = vec![CString::new(path.as_os_str().as_bytes())?];
    for arg in args {
        argv.push(CString::new(*arg)?);
    }
    let pid = process::fork_exec(&argv, chan, debug)?;
    Ok(Pid::from_raw(pid))
}

/// How a process ended; prints as in `lost child: raftd: terminated; signal 9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Exited(i32),
    Signaled(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Exited(0) => write!(f, "exited okay"),
            Exit::Exited(code) => write!(f, "exited abnormally; status {code}"),
            Exit::Signaled(signal) => write!(f, "terminated; signal {signal}"),
        }
    }
}

fn wait_once(pid: Option<Pid>, flags: WaitPidFlag) -> io::Result<Option<(Pid, Exit)>> {
    loop {
        match waitpid(pid, Some(flags)) {
            Ok(WaitStatus::Exited(pid, code)) => return Ok(Some((pid, Exit::Exited(code)))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Ok(Some((pid, Exit::Signaled(signal as i32))))
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            // Stopped or continued, or a signal to us: not what we wait for.
            Ok(_) | Err(nix::Error::EINTR) => (),
            Err(err) => return Err(err.into()),
        }
    }
}

/// A child that has ended, if there is one.  Ask until None: several ends can
/// share one SIGCHLD.
pub fn reap() -> Option<(Pid, Exit)> {
    // The only error left is that there are no children.
    wait_once(None, WaitPidFlag::WNOHANG).unwrap_or_default()
}

/// Waits for the end of one child.
pub fn wait(pid: Pid) -> io::Result<Exit> {
    match wait_once(Some(pid), WaitPidFlag::empty())? {
        Some((_, exit)) => Ok(exit),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

pub fn kill(pid: Pid, signal: Signal) -> io::Result<()> {
    Ok(nix::sys::signal::kill(pid, signal)?)
}

/// The beginning of a child: log, descriptor 3, room for the title.  HUP, INT
/// and TERM are the parent's business (a terminal or a shutdown sends them to
/// all at once); a child ends when descriptor 3 closes.  Fatal when it was not
/// started by the parent.
pub fn child_init(name: &'static str, debug: bool, verbose: bool) -> OwnedFd {
    crate::log::log_init(name, debug, verbose);
    let chan = match process::take_channel() {
        Ok(chan) => chan,
        Err(err) => crate::fatal!(err, "descriptor 3: only dfsd starts this program"),
    };
    if let Err(err) = title::init() {
        crate::log_warn!(err, "setproctitle");
    }
    for sig in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        if let Err(err) = signal::ignore(sig) {
            crate::fatal!(err, "signal");
        }
    }
    chan
}

/// What ps(1) shows behind the program's name, and `fatal` behind `in`.
pub fn setproctitle(text: &str) {
    title::set(text);
    crate::log::log_procname(text.to_string());
}

/// Why privileges cannot be dropped, in the family's words.
#[derive(Debug)]
#[non_exhaustive]
pub enum PrivilegeError {
    NeedRoot,
    UnknownUser(&'static str),
    Call { call: String, err: io::Error },
}

impl fmt::Display for PrivilegeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrivilegeError::NeedRoot => write!(f, "need root privileges"),
            PrivilegeError::UnknownUser(name) => write!(f, "unknown user {name}"),
            PrivilegeError::Call { call, err } => {
                write!(f, "{call}: {}", crate::log::reason(err))
            }
        }
    }
}

impl std::error::Error for PrivilegeError {}

fn call<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, PrivilegeError> {
    result.map_err(|err| PrivilegeError::Call {
        call: what.into(),
        err,
    })
}

/// The parent's checks: are we root, and does the children's user exist?
pub fn check_privileges() -> Result<User, PrivilegeError> {
    if !privilege::is_root() {
        return Err(PrivilegeError::NeedRoot);
    }
    match call("getpwnam", privilege::user(DFSD_USER))? {
        Some(user) => Ok(user),
        None => Err(PrivilegeError::UnknownUser(DFSD_USER)),
    }
}

/// Makes a child `_dfsd` in a file system that begins at `dir`, for good.
/// Afterwards the current directory is `dir`.
///
/// With `allow_unprivileged` (tests) a process which is not root only changes
/// to `dir`, and says so; otherwise that is an error.
pub fn drop_privileges(dir: &Path, allow_unprivileged: bool) -> Result<(), PrivilegeError> {
    if allow_unprivileged && !privilege::is_root() {
        crate::log_warnx!("need root privileges: no chroot, no other user");
        let chdir = format!("chdir: {}", dir.display());
        return call(chdir, std::env::set_current_dir(dir));
    }
    let user = check_privileges()?;
    let chroot = format!("chroot: {}", dir.display());
    call(chroot, privilege::chroot(dir))?;
    call("setresuid", privilege::become_user(user))?;
    call("no_new_privs", privilege::no_new_privs())
}
