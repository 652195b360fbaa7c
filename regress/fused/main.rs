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

//! The real program, fused, between a kernel and, at its raftd end, the tree
//! of tree.rs.  The kernel is that of this machine, through a FUSE mount; or
//! OpenBSD's, played by kernel.rs and vnode.rs.  The first needs root and
//! /dev/fuse, and both the user _dfsd if root; where something is missing
//! they say SKIPPED.

#![forbid(unsafe_code)]

mod client;
mod coherence;
mod faults;
mod kernel;
mod malformed;
mod openbsd;
mod posix;
mod tree;
mod vnode;
mod xattr;

use common::conf::{Mount as Conf, MountId};
use common::fs::IO_MAX;
use common::imsg::Imsgbuf;
use common::msg::{FusedToParent, Lane, ParentToFused, BULK_BUF, CONTROL_BUF, PARENT_FRAME_MAX};
use common::sys::mount::{fuse_mount, fuse_open, unmount, MountFlags};
use common::sys::socket::{set_bufs, socketpair};
use kernel::Device;
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tree::Tree;
use vnode::Played;

/// A mount of this machine's kernel, and everything around it.
pub struct Mount {
    pub tree: Arc<Tree>,
    fused: Fused,
    point: PathBuf,
}

/// The same with OpenBSD's.
pub struct OpenBsd {
    fused: Fused,
    played: Played,
}

/// The process, with what it has for a parent.
pub struct Fused {
    dir: PathBuf,
    child: Child,
    /// None once the test has closed it.
    parent: Option<Imsgbuf<ParentToFused, FusedToParent>>,
}

pub struct Options {
    pub timeout: Duration,
    pub read_only: bool,
    pub noatime: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            timeout: Duration::from_secs(30),
            read_only: false,
            noatime: false,
        }
    }
}

/// Why these tests cannot run here, with `device` those of this kernel.
fn missing(device: bool) -> Option<&'static str> {
    let root = nix::unistd::geteuid().is_root();
    if root {
        fs::create_dir_all("/var/empty").unwrap();
    }
    if device && !root {
        return Some("not root");
    }
    if device && !Path::new("/dev/fuse").exists() {
        return Some("no /dev/fuse");
    }
    if !Path::new("/var/empty").exists() {
        return Some("no /var/empty");
    }
    match nix::unistd::User::from_name("_dfsd") {
        Ok(None) if root => Some("no user _dfsd"),
        _ => None,
    }
}

/// A directory for all that a test needs.
fn directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("fused.{}.{count}", std::process::id()));
    fs::create_dir_all(dir.join("backing")).unwrap();
    dir
}

/// A mount to test, or None where there cannot be one.
pub fn mount(options: Options) -> Option<Mount> {
    if let Some(missing) = missing(true) {
        println!("SKIPPED: {missing}");
        return None;
    }
    let dir = directory();
    let point = dir.join("mnt");
    fs::create_dir_all(&point).unwrap();
    let device = fuse_open().unwrap();
    fuse_mount(
        device.as_fd(),
        "test:/",
        &point,
        MountFlags::default(),
        IO_MAX as u32,
    )
    .unwrap();
    let (fused, tree) = Fused::start(dir, device, options);
    let mut mount = Mount { tree, fused, point };
    mount.fused.wait_ready();
    Some(mount)
}

/// A fused that waits for its kernel to say something.
pub fn unmounted() -> Option<(Fused, Arc<Device>)> {
    if let Some(missing) = missing(false) {
        println!("SKIPPED: {missing}");
        return None;
    }
    let (device, theirs) = Device::new();
    let (fused, _) = Fused::start(directory(), theirs, Options::default());
    Some((fused, device))
}

/// The same, of the played kernel.
pub fn openbsd(options: Options) -> Option<OpenBsd> {
    if let Some(missing) = missing(false) {
        println!("SKIPPED: {missing}");
        return None;
    }
    let (device, theirs) = Device::new();
    let init = device.init();
    let (mut fused, tree) = Fused::start(directory(), theirs, options);
    fused.wait_ready();
    Device::check_init(init);
    let played = Played::new(tree, device);
    Some(OpenBsd { fused, played })
}

impl Fused {
    /// Starts it as dfsd would, without waiting for it.
    fn start(dir: PathBuf, device: OwnedFd, options: Options) -> (Fused, Arc<Tree>) {
        let (control, control_peer) = lane(CONTROL_BUF);
        let (bulk, bulk_peer) = lane(BULK_BUF);
        let tree = Tree::new(control, bulk, dir.join("backing"));
        let (ours, theirs) = socketpair().unwrap();
        let log = File::create(dir.join("log")).unwrap();
        // The shell puts the socket where dfsd would.
        let child = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" -d 3<&0 0</dev/null"])
            .arg(env!("CARGO_BIN_EXE_fused"))
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let mut parent = Imsgbuf::new(ours, PARENT_FRAME_MAX);
        parent.allow_fdpass();
        let conf = Conf {
            id: MountId(1),
            point: dir.join("mnt"),
            subtree: "/".into(),
            read_only: options.read_only,
            timeout: options.timeout,
            nosuid: true,
            nodev: true,
            noexec: false,
            noatime: options.noatime,
            strict: false,
            dirty: false,
            maxage: None,
            local_lock: false,
            async_close: false,
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
        let parent = Some(parent);
        (Fused { dir, child, parent }, tree)
    }

    fn wait_ready(&mut self) {
        let ready = self.parent.as_mut().unwrap().recv_blocking().unwrap();
        assert!(matches!(ready.unwrap().msg, FusedToParent::Ready));
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ends by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_until("fused ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprint!("{}", self.log());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
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
        self.fused.kill();
    }

    pub fn close_parent(&mut self) {
        self.fused.parent = None;
    }

    pub fn unmount(&self) -> io::Result<()> {
        unmount(&self.point)
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        self.fused.wait_exit()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // As the parent does: first nobody serves it, then nobody sees it.
        let _ = self.fused.child.kill();
        let _ = self.fused.child.wait();
        let _ = self.unmount();
    }
}

impl OpenBsd {
    /// Unmounts, if the test has not; then all must be well.
    fn end(&mut self) {
        let status = match self.fused.child.try_wait().unwrap() {
            Some(status) => status,
            None => {
                self.played.unmount().unwrap();
                self.fused.wait_exit()
            }
        };
        assert_eq!(status.code(), Some(0), "{}", self.fused.log());
    }

    /// What is always true.
    fn check(&self) {
        let nothing: [String; 0] = [];
        assert_eq!(self.played.device.rejected(), nothing);
        assert_eq!(self.played.device.notified(), 0);
    }
}

impl Deref for OpenBsd {
    type Target = Played;

    fn deref(&self) -> &Played {
        &self.played
    }
}

impl Drop for OpenBsd {
    fn drop(&mut self) {
        self.played.device.hang_up();
        let _ = self.fused.child.kill();
        let _ = self.fused.child.wait();
        if !std::thread::panicking() {
            self.check();
        }
    }
}

/// Runs a scenario on this machine's kernel.
pub fn on_linux(scenario: fn(&Mount)) {
    if let Some(m) = mount(Options::default()) {
        scenario(&m);
    }
}

/// Runs a scenario on the played kernel, and sees it unmounted.
pub fn on_openbsd(scenario: fn(&Played)) {
    if let Some(mut m) = openbsd(Options::default()) {
        scenario(&m);
        m.end();
    }
}

/// Two tests of each scenario.
#[macro_export]
macro_rules! scenarios {
    ($($scenario:ident),+ $(,)?) => {
        mod linux {
            $(#[test]
            fn $scenario() {
                $crate::on_linux(super::$scenario);
            })+
        }
        mod played {
            $(#[test]
            fn $scenario() {
                $crate::on_openbsd(super::$scenario);
            })+
        }
    };
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
