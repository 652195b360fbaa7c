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

//! Signals that another process has not taken, because the kernel lets none
//! end what it waits for.  Only Linux has such waits, see fused.

/// Where the processes of this system can be seen.
#[cfg(not(target_os = "openbsd"))]
pub struct Processes(std::os::fd::OwnedFd);

#[cfg(target_os = "openbsd")]
pub enum Processes {}

#[cfg(not(target_os = "openbsd"))]
impl Processes {
    /// To be called as root, before chroot(2); None where there is no /proc, or
    /// before Linux 5.2.
    ///
    /// It is a mount of its own and nowhere, since a directory of the usual
    /// tree would lead out of the new root.
    pub fn open() -> Option<Processes> {
        use std::os::fd::{FromRawFd, OwnedFd};
        const OPEN_TREE_CLONE: libc::c_uint = 1;
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
        let proc = c"/proc".as_ptr();
        // SAFETY: the path is a C string, and nothing else is pointed to.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, proc, flags) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just made it, for nobody else.
        Some(Processes(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether this thread would take a signal now; false if that cannot be
    /// seen, as where /proc hides it.
    pub fn has_signal(&self, thread: u32) -> bool {
        use nix::fcntl::{openat, OFlag};
        use nix::sys::stat::Mode;
        use std::io::Read;
        let path = format!("{thread}/status");
        let mut text = String::new();
        openat(&self.0, path.as_str(), OFlag::O_CLOEXEC, Mode::empty())
            .map(std::fs::File::from)
            .is_ok_and(|mut file| file.read_to_string(&mut text).is_ok())
            && has_signal(&text)
    }
}

#[cfg(target_os = "openbsd")]
impl Processes {
    pub fn open() -> Option<Processes> {
        None
    }

    pub fn has_signal(&self, _: u32) -> bool {
        match *self {}
    }
}

/// proc_pid_status(5).  What is sent to a process of several threads may be for
/// another one, unless it ends them all: then each has a SIGKILL.
#[cfg(not(target_os = "openbsd"))]
fn has_signal(status: &str) -> bool {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let signals = |name| field(name).and_then(|v| u64::from_str_radix(v, 16).ok());
    let (Some(own), Some(shared), Some(blocked)) =
        (signals("SigPnd"), signals("ShdPnd"), signals("SigBlk"))
    else {
        return false;
    };
    let pending = match field("Threads") {
        Some("1") => own | shared,
        _ => own,
    };
    pending & !blocked != 0
}

#[cfg(all(test, not(target_os = "openbsd")))]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_signal() {
        let status = |threads, own, shared, blocked| {
            format!(
                "Name:\tx\nThreads:\t{threads}\nSigQ:\t1/2\nSigPnd:\t{own:016x}\n\
                 ShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{:016x}\n",
                u64::MAX
            )
        };
        for (threads, own, shared, blocked, want) in [
            (1, 0, 0, 0, false),
            (1, 2, 0, 0, true),
            (1, 0, 2, 0, true),
            (1, 0, 2, 2, false),
            (1, 2, 4, 2, true),
            (2, 0, 2, 0, false),
            (2, 0x100, 2, 0, true),
        ] {
            let text = status(threads, own, shared, blocked);
            assert_eq!(has_signal(&text), want, "{text}");
        }
        assert!(!has_signal("SigPnd:\t1\nSigBlk:\t0\n"));
        assert!(!has_signal("SigPnd:\tx\nShdPnd:\t1\nSigBlk:\t0\n"));
    }

    #[test]
    fn processes_and_nothing_else() {
        use nix::fcntl::{openat, OFlag};
        use nix::sys::stat::Mode;
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let processes = Processes::open().unwrap();
        assert!(!processes.has_signal(std::process::id()));
        assert!(!processes.has_signal(0), "no such process");
        let read = |path| openat(&processes.0, path, OFlag::O_RDONLY, Mode::empty());
        assert!(read("self/status").is_ok());
        assert!(read("../etc/passwd").is_err(), "the way out");
        assert!(read("../../etc/passwd").is_err());
    }
}
