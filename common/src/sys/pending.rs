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
    /// To be called as root, before chroot(2); None where there is no /proc of
    /// the own processes, or before Linux 5.14.
    ///
    /// It is a mount of its own and nowhere, since a directory of the usual
    /// tree would lead out of the new root; so would its links, and back to
    /// files that were passed to be read only.
    pub fn open() -> Option<Processes> {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        const OPEN_TREE_CLONE: libc::c_uint = 1;
        // Read only, nosuid, nodev, noexec, nosymfollow.
        const ATTRIBUTES: u64 = 1 | 2 | 4 | 8 | 0x20_0000;
        let own = std::fs::read_link("/proc/self").ok()?;
        if own.to_str() != Some(std::process::id().to_string().as_str()) {
            return None;
        }
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
        let proc = c"/proc".as_ptr();
        // SAFETY: the path is a C string, and nothing else is pointed to.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, proc, flags) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just made it, for nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // struct mount_attr: set, clear, propagation, user namespace.
        let attributes = [ATTRIBUTES, 0, 0, 0_u64];
        // SAFETY: an empty C string, and a structure of the size that is said.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                fd.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                attributes.as_ptr(),
                std::mem::size_of_val(&attributes),
            )
        };
        (done == 0).then_some(Processes(fd))
    }

    /// Whether this thread would take a signal now; false if that cannot be
    /// seen, as where /proc hides it.
    pub fn has_signal(&self, thread: u32) -> bool {
        use nix::fcntl::{openat, OFlag};
        use nix::sys::stat::Mode;
        use std::io::Read;
        let path = format!("{thread}/status");
        let mut text = Vec::new();
        let read = openat(&self.0, path.as_str(), OFlag::O_CLOEXEC, Mode::empty())
            .map(std::fs::File::from)
            .is_ok_and(|mut file| file.read_to_end(&mut text).is_ok());
        // The thread's name may be any bytes.
        read && has_signal(&String::from_utf8_lossy(&text))
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
        use std::os::fd::AsRawFd;
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let Some(processes) = Processes::open() else {
            return;
        };
        assert!(!processes.has_signal(std::process::id()));
        assert!(!processes.has_signal(0), "no such process");
        let read = |path: &str| openat(&processes.0, path, OFlag::O_RDONLY, Mode::empty());
        let own = |what: &str| read(&format!("{}/{what}", std::process::id()));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(own("status").is_ok());
        assert!(own(&format!("fd/{}", file.as_raw_fd())).is_err());
        assert!(own("root").is_err() && own("cwd").is_err());
        let change = openat(
            &processes.0,
            "self/oom_score_adj",
            OFlag::O_WRONLY,
            Mode::empty(),
        );
        assert!(change.is_err());
        assert!(read("../etc/passwd").is_err(), "the way out");
        assert!(read("../../etc/passwd").is_err());
    }
}
