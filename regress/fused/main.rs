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

//! fused against the real kernel: a FUSE mount, the real program, and at its
//! raftd end the tree of tree.rs.  Needs root, /dev/fuse and the user _dfsd,
//! and says SKIPPED where they are missing.

#![forbid(unsafe_code)]

mod coherence;
mod faults;
mod posix;
mod tree;

use common::conf::{Mount as Conf, MountId};
use common::fs::IO_MAX;
use common::imsg::Imsgbuf;
use common::msg::{FusedToParent, Lane, ParentToFused, BULK_BUF, CONTROL_BUF, PARENT_FRAME_MAX};
use common::sys::mount::{fuse_mount, fuse_open, unmount, MountFlags};
use common::sys::socket::{set_bufs, socketpair};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tree::Tree;

/// A mount, and everything around it.
pub struct Mount {
    pub tree: Arc<Tree>,
    dir: PathBuf,
    point: PathBuf,
    child: Child,
    /// None once the test has closed it.
    parent: Option<Imsgbuf<ParentToFused, FusedToParent>>,
}

pub struct Options {
    pub timeout: Duration,
    pub read_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            timeout: Duration::from_secs(30),
            read_only: false,
        }
    }
}

/// Why these tests cannot run here.
fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("no /dev/fuse");
    }
    match nix::unistd::User::from_name("_dfsd") {
        Ok(Some(_)) => None,
        _ => Some("no user _dfsd"),
    }
}

/// A mount to test, or None where there cannot be one.
pub fn mount(options: Options) -> Option<Mount> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if let Some(missing) = missing() {
        println!("SKIPPED: {missing}");
        return None;
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("fused.{}.{count}", std::process::id()));
    let point = dir.join("mnt");
    let backing = dir.join("backing");
    fs::create_dir_all(&point).unwrap();
    fs::create_dir_all(&backing).unwrap();
    fs::create_dir_all("/var/empty").unwrap();

    let (control, control_peer) = lane(CONTROL_BUF);
    let (bulk, bulk_peer) = lane(BULK_BUF);
    let tree = Tree::new(control, bulk, backing);
    let (ours, theirs) = socketpair().unwrap();
    // The shell puts the socket where dfsd would.
    let child = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" -d 3<&0 0</dev/null"])
        .arg(env!("CARGO_BIN_EXE_fused"))
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    let mut parent = Imsgbuf::new(ours, PARENT_FRAME_MAX);
    parent.allow_fdpass();

    let device = fuse_open().unwrap();
    fuse_mount(device.as_fd(), &point, MountFlags::default(), IO_MAX as u32).unwrap();
    let conf = Conf {
        id: MountId(1),
        point: point.clone(),
        subtree: "/".into(),
        read_only: options.read_only,
        timeout: options.timeout,
        nosuid: true,
        nodev: true,
        noexec: false,
        auto: true,
    };
    let mut send = |msg, fd| parent.compose(&msg, 0, fd, &[]).unwrap();
    send(ParentToFused::ReconfMount(conf), None);
    let lane = Lane::Control;
    send(ParentToFused::SocketIpc { lane }, Some(control_peer));
    let lane = Lane::Bulk;
    send(ParentToFused::SocketIpc { lane }, Some(bulk_peer));
    send(ParentToFused::FuseFd, Some(device));
    send(ParentToFused::Startup, None);
    parent.flush_blocking().unwrap();
    let mut mount = Mount {
        tree,
        dir,
        point,
        child,
        parent: Some(parent),
    };
    let ready = mount.parent.as_mut().unwrap().recv_blocking().unwrap();
    assert!(matches!(ready.unwrap().msg, FusedToParent::Ready));
    Some(mount)
}

fn lane(bytes: usize) -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = socketpair().unwrap();
    set_bufs(ours.as_fd(), bytes).unwrap();
    set_bufs(theirs.as_fd(), bytes).unwrap();
    (ours, theirs)
}

impl Mount {
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn close_parent(&mut self) {
        self.parent = None;
    }

    pub fn unmount(&self) -> io::Result<()> {
        unmount(&self.point)
    }

    /// How fused ends by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_until("fused ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // As the parent does: first nobody serves it, then nobody sees it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.unmount();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Waits for a condition; a failure when it does not come.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what}: not within 20 s"
        );
        std::thread::yield_now();
    }
}

/// The error number of a call that must fail.
pub fn errno<T>(result: io::Result<T>) -> nix::errno::Errno {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(e) => nix::errno::Errno::from_raw(e.raw_os_error().unwrap()),
    }
}
