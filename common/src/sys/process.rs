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

//! fork(2) and exec(2) for `proc.rs`, and what a child does with the
//! descriptor it is born with.  The parent forks before it has threads.

use super::closefrom::closefrom;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::stat::{fstat, SFlag};
use std::ffi::{c_char, c_int, CString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A child's channel to its parent.
const CHANNEL_FD: RawFd = 3;
/// Where the new child reports a failed exec.
const ERROR_FD: RawFd = 4;

/// Runs `argv[0]` with `chan` as descriptor 3 and no other but the standard
/// ones, which are /dev/null unless `keep_stdio`.  An exec that fails is an
/// error here.  The caller has one thread.
pub fn fork_exec(argv: &[CString], chan: OwnedFd, keep_stdio: bool) -> io::Result<libc::pid_t> {
    let Some(path) = argv.first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut ptrs: Vec<*const c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
    ptrs.push(std::ptr::null());
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let (report, error) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // Out of the way of the numbers that the child uses.
    let (chan, null, error) = (move_up(chan)?, move_up(null.into())?, move_up(error)?);
    let fds = ChildFds {
        chan: chan.as_raw_fd(),
        error: error.as_raw_fd(),
        null: (!keep_stdio).then_some(null.as_raw_fd()),
    };
    // SAFETY: one thread, so the child may do what the parent could; it only
    // makes system calls on memory prepared above, and ends in exec or _exit.
    let pid = unsafe {
        match libc::fork() {
            0 => child(&fds, path.as_ptr(), ptrs.as_ptr()),
            pid => pid,
        }
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    drop((chan, null, error));
    exec_result(pid, report)?;
    Ok(pid)
}

fn move_up(fd: OwnedFd) -> io::Result<OwnedFd> {
    let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(ERROR_FD + 6))?;
    // SAFETY: fcntl has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

struct ChildFds {
    chan: RawFd,
    error: RawFd,
    null: Option<RawFd>,
}

/// # Safety
///
/// Only in a new child; `path` and `argv` are as execv(3) wants them.
unsafe fn child(fds: &ChildFds, path: *const c_char, argv: *const *const c_char) -> ! {
    // SAFETY: system calls that may be made after fork, on valid memory; the
    // descriptors closed are never used again, because this ends in exec or
    // _exit.
    unsafe {
        let mut bad = libc::dup2(fds.error, ERROR_FD) < 0;
        bad |= libc::fcntl(ERROR_FD, libc::F_SETFD, libc::FD_CLOEXEC) < 0;
        bad |= libc::dup2(fds.chan, CHANNEL_FD) < 0;
        if let Some(null) = fds.null {
            for fd in 0..=2 {
                bad |= libc::dup2(null, fd) < 0;
            }
        }
        if !bad {
            closefrom(ERROR_FD + 1);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::execv(path, argv);
        }
        let errno = nix::Error::last_raw().to_ne_bytes();
        libc::write(ERROR_FD, errno.as_ptr().cast(), errno.len());
        libc::_exit(1)
    }
}

/// The pipe closes at exec; before that, it brings the reason of a failure.
fn exec_result(pid: libc::pid_t, report: OwnedFd) -> io::Result<()> {
    let mut errno = Vec::new();
    File::from(report).read_to_end(&mut errno)?;
    if errno.is_empty() {
        return Ok(());
    }
    let mut status: c_int = 0;
    // SAFETY: status is valid for the call; the child ends by itself.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    let errno = <[u8; 4]>::try_from(errno.as_slice()).unwrap_or_default();
    Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno)))
}

/// Whether the process has ended, be it that a thread of it has not and keeps
/// the parent from learning of it.
#[cfg(target_os = "linux")]
pub fn is_zombie(pid: libc::pid_t) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // `PID (name) state ...`; the name may have anything in it.
    let name_end = stat.iter().rposition(|b| *b == b')');
    name_end.is_some_and(|at| stat.get(at..).is_some_and(|rest| rest.starts_with(b") Z")))
}

/// Here threads do not outlive their process.
#[cfg(not(target_os = "linux"))]
pub fn is_zombie(_pid: libc::pid_t) -> bool {
    false
}

/// In a child: the channel to the parent, close-on-exec from now on.  To be
/// called once, before anything else is opened.
pub fn take_channel() -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number is harmless whether or not it is open.
    if unsafe { libc::fcntl(CHANNEL_FD, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the contract of fork_exec the child's own.
    let fd = unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) };
    let mode = SFlag::from_bits_truncate(fstat(&fd)?.st_mode);
    if mode & SFlag::S_IFMT != SFlag::S_IFSOCK {
        // Somebody else's file: leave it open.
        std::mem::forget(fd);
        return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
    }
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn zombie() {
        let mut command = Command::new("cat");
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let pid = libc::pid_t::try_from(child.id()).unwrap();
        assert!(!is_zombie(pid));
        drop(child.stdin.take());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !is_zombie(pid) {
            assert!(std::time::Instant::now() < end);
            std::thread::yield_now();
        }
        assert!(child.wait().unwrap().success());
        assert!(!is_zombie(pid));
    }
}
