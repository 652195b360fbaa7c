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

//! The system calls of OpenBSD 8.0 on a FUSE mount, played over the device of
//! kernel.rs.  It keeps no data, attributes or names, checks before it asks as
//! that kernel does, and has its habits:
//!
//! - names are looked up one by one, ".." is remembered; an error other than
//!   ENXIO means that there is no such name;
//! - a file is made by MKNOD, truncated by SETATTR, then opened;
//! - all who open a file in the same way share one handle;
//! - O_APPEND is GETATTR, then WRITE at that offset;
//! - FORGET comes late, also for what is still being used, and does not count
//!   what LINK has answered.

#![forbid(unsafe_code)]

use crate::client::{Client, Space, Stat};
use crate::kernel::{u32_at, u32s, u64_at, u64s, Device, Op};
use crate::tree::Tree;
use common::fs::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::Result;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const ROOT: u64 = 1;
const S_IFIFO: u32 = 0o010000;
const SYMLINKS_MAX: u32 = 32;
/// What readdir(3) has room for.
const DIR_BUF: usize = 4096;
/// Every so many lookups one vnode is reclaimed.
const RECLAIM: u64 = 16;

const SET_MODE: u32 = 1;
const SET_UID: u32 = 2;
const SET_GID: u32 = 4;
const SET_SIZE: u32 = 8;
const SET_ATIME: u32 = 16;
const SET_MTIME: u32 = 32;

/// One way to have a file open: for reading, for writing, or both.
#[derive(Clone, Copy, Default)]
struct Handle {
    fh: u64,
    opens: u32,
}

#[derive(Default)]
struct Vnode {
    parent: u64,
    nlookup: u64,
    handles: [Option<Handle>; 3],
}

impl Vnode {
    fn opens(&self) -> u32 {
        self.handles.iter().flatten().map(|h| h.opens).sum()
    }
}

type Locked = Arc<Mutex<Vnode>>;

struct Vnodes {
    device: Arc<Device>,
    table: Mutex<HashMap<u64, Locked>>,
    lookups: AtomicU64,
    keeps: AtomicBool,
}

/// A mount of the played kernel, with what serves it.
pub struct Played {
    pub tree: Arc<Tree>,
    pub device: Arc<Device>,
    vnodes: Arc<Vnodes>,
    /// Effective ids of the caller.
    pub uid: u32,
}

pub struct OpenFile {
    vnodes: Arc<Vnodes>,
    node: u64,
    class: usize,
    append: bool,
    offset: AtomicU64,
    open: bool,
}

struct Attr(Vec<u8>);

impl Attr {
    /// In the answer to a GETATTR, or at `at` in another one.
    fn stat(&self, at: usize) -> Stat {
        let (a, long) = (&self.0[at..], |n| u64_at(&self.0, at + n));
        Stat {
            ino: long(0),
            size: long(8),
            mode: u32_at(a, 60),
            nlink: u32_at(a, 64).into(),
            uid: u32_at(a, 68),
            gid: u32_at(a, 72),
            atime: (long(24) as i64, u32_at(a, 48).into()),
            mtime: (long(32) as i64, u32_at(a, 52).into()),
        }
    }
}

/// The new name of a request, with its end.
fn c(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Vnodes {
    fn get(&self, node: u64) -> Locked {
        self.table.lock().unwrap().entry(node).or_default().clone()
    }

    /// A vnode that an answer has named.
    fn named(&self, node: u64, parent: u64) {
        assert!(node > ROOT, "such an entry is EIO");
        let vnode = self.get(node);
        let mut vnode = vnode.lock().unwrap();
        vnode.nlookup += 1;
        vnode.parent = parent;
    }

    /// Takes the vnode of somebody who may still be using the number.
    fn reclaim_some(&self) {
        let lookups = self.lookups.fetch_add(1, Ordering::Relaxed) + 1;
        if !lookups.is_multiple_of(RECLAIM) || self.keeps.load(Ordering::Relaxed) {
            return;
        }
        let mut table = self.table.lock().unwrap();
        let idle = |vnode: &Locked| {
            vnode
                .try_lock()
                .is_ok_and(|v| v.opens() == 0 && v.nlookup > 0)
        };
        let found = table.iter().find(|(_, vnode)| idle(vnode));
        if let Some((&node, _)) = found {
            self.forget(node, table.remove(&node));
        }
    }

    fn forget(&self, node: u64, vnode: Option<Locked>) {
        let nlookup = vnode.map_or(0, |vnode| vnode.lock().unwrap().nlookup);
        if nlookup > 0 {
            self.device.forget(node, nlookup);
        }
    }

    /// The last close: the handles go, whoever's they were.
    fn inactive(&self, node: u64, vnode: &mut Vnode) {
        for class in 0..3 {
            if let Some(handle) = vnode.handles[class].take() {
                let body = [u64s(&[handle.fh]), u32s(&[class as u32, 0]), u64s(&[0])];
                let _ = self.device.call(Op::Release, node, 0, &body.concat());
            }
        }
    }
}

impl OpenFile {
    fn fh(&self) -> u64 {
        let vnode = self.vnodes.get(self.node);
        let vnode = vnode.lock().unwrap();
        vnode.handles[self.class].map_or(u64::MAX, |handle| handle.fh)
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            let vnode = self.vnodes.get(self.node);
            let mut vnode = vnode.lock().unwrap();
            if let Some(handle) = &mut vnode.handles[self.class] {
                handle.opens -= 1;
            }
            if vnode.opens() == 0 {
                self.vnodes.inactive(self.node, &mut vnode);
            }
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.end();
    }
}

impl Played {
    pub fn new(tree: Arc<Tree>, device: Arc<Device>) -> Played {
        let vnodes = Vnodes {
            device: device.clone(),
            table: Mutex::default(),
            lookups: AtomicU64::new(0),
            keeps: AtomicBool::new(false),
        };
        Played {
            tree,
            device,
            vnodes: Arc::new(vnodes),
            uid: 0,
        }
    }

    fn call(&self, op: Op, node: u64, body: &[u8]) -> Result<Vec<u8>> {
        self.device.call(op, node, self.uid, body)
    }

    pub fn getattr(&self, node: u64) -> Result<Stat> {
        let answer = self.call(Op::Getattr, node, &[0; 16])?;
        Ok(Attr(answer).stat(16))
    }

    /// One step of a path.
    pub fn lookup(&self, dir: u64, name: &str) -> Result<(u64, u32)> {
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        // May it be searched?
        let stat = self.getattr(dir)?;
        if stat.mode & S_IFMT != S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        match name {
            "." => return Ok((dir, S_IFDIR)),
            ".." => {
                return Ok((
                    self.vnodes.get(dir).lock().unwrap().parent.max(ROOT),
                    S_IFDIR,
                ))
            }
            _ => (),
        }
        self.vnodes.reclaim_some();
        match self.call(Op::Lookup, dir, &c(name)) {
            Ok(entry) => {
                let node = u64_at(&entry, 0);
                self.vnodes.named(node, dir);
                Ok((node, u32_at(&entry, 40 + 60) & S_IFMT))
            }
            Err(Errno::ENXIO) => Err(Errno::ENXIO),
            Err(_) => Err(Errno::ENOENT),
        }
    }

    /// The inode of a path, and its type.
    fn walk(&self, path: &str, follow: bool, depth: u32) -> Result<(u64, u32)> {
        if depth > SYMLINKS_MAX {
            return Err(Errno::ELOOP);
        }
        let mut at = (ROOT, S_IFDIR);
        let mut before = String::new();
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            at = self.lookup(at.0, name)?;
            let last = names.peek().is_none();
            if at.1 == S_IFLNK && (follow || !last) {
                let target = self.target(at.0)?;
                let rest: Vec<&str> = names.collect();
                let path = format!("{before}{target}/{}", rest.join("/"));
                return self.walk(&path, follow, depth + 1);
            }
            before = format!("{before}{name}/");
        }
        Ok(at)
    }

    pub fn node(&self, path: &str) -> Result<u64> {
        Ok(self.walk(path, true, 0)?.0)
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(u64, &'a str)> {
        let (dir, name) = split(path);
        Ok((self.node(dir)?, name))
    }

    fn target(&self, node: u64) -> Result<String> {
        let size = self.device.io_max;
        let target = self
            .device
            .call_sized(Op::Readlink, node, self.uid, &[], size)?;
        Ok(String::from_utf8(target).unwrap())
    }

    /// Where a name is to be made.
    fn free(&self, path: &str) -> Result<(u64, String)> {
        let (dir, name) = self.parent(path)?;
        match self.lookup(dir, name) {
            Err(Errno::ENOENT) => Ok((dir, name.to_string())),
            Ok(_) => Err(Errno::EEXIST),
            Err(e) => Err(e),
        }
    }

    fn make(&self, op: Op, path: &str, fixed: &[u8], rest: &[u8]) -> Result<u64> {
        let (dir, name) = self.free(path)?;
        let entry = self.call(op, dir, &[fixed, &c(&name), rest].concat())?;
        let node = u64_at(&entry, 0);
        self.vnodes.named(node, dir);
        Ok(node)
    }

    fn mknod(&self, path: &str, mode: u32) -> Result<u64> {
        self.make(Op::Mknod, path, &u32s(&[mode, 0, 0o022, 0]), &[])
    }

    fn setattr(&self, node: u64, valid: u32, set: Stat) -> Result<()> {
        let mut body = u32s(&[valid, 0]);
        body.extend(u64s(&[0, set.size, 0]));
        body.extend(u64s(&[set.atime.0 as u64, set.mtime.0 as u64, 0]));
        let (atime, mtime) = (set.atime.1 as u32, set.mtime.1 as u32);
        body.extend(u32s(&[atime, mtime, 0, set.mode, 0]));
        body.extend(u32s(&[set.uid, set.gid, 0]));
        self.call(Op::Setattr, node, &body).map(drop)
    }

    fn set_size(&self, node: u64, size: u64) -> Result<()> {
        let set = Stat { size, ..NOTHING };
        self.setattr(node, SET_SIZE, set)
    }

    /// OPEN, unless somebody has it open in the same way.
    fn open_node(&self, node: u64, flags: OFlag) -> Result<OpenFile> {
        let class = (flags & OFlag::O_ACCMODE).bits() as usize;
        let vnode = self.vnodes.get(node);
        let mut vnode = vnode.lock().unwrap();
        if vnode.handles[class].is_none() {
            let gone = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_TRUNC;
            let body = u32s(&[(flags - gone).bits() as u32, 0]);
            match self.call(Op::Open, node, &body) {
                Ok(opened) => {
                    let fh = u64_at(&opened, 0);
                    vnode.handles[class] = Some(Handle { fh, opens: 0 });
                }
                Err(e) => return Err(e),
            }
        }
        if let Some(handle) = &mut vnode.handles[class] {
            handle.opens += 1;
        }
        Ok(OpenFile {
            vnodes: self.vnodes.clone(),
            node,
            class,
            append: flags.contains(OFlag::O_APPEND),
            offset: AtomicU64::new(0),
            open: true,
        })
    }

    pub fn read_node(&self, node: u64, fh: u64, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut n = 0;
        while n < buf.len() {
            let size = (buf.len() - n).min(self.device.io_max);
            let mut body = u64s(&[fh, offset + n as u64]);
            body.extend(u32s(&[size as u32, 0, 0, 0, 0, 0]));
            let bytes = self
                .device
                .call_sized(Op::Read, node, self.uid, &body, size)?;
            buf[n..n + bytes.len()].copy_from_slice(&bytes);
            n += bytes.len();
            if bytes.len() < size {
                break;
            }
        }
        Ok(n)
    }

    pub fn write_node(&self, node: u64, fh: u64, bytes: &[u8], offset: u64) -> Result<usize> {
        let mut n = 0;
        while n < bytes.len() {
            let part = &bytes[n..bytes.len().min(n + self.device.io_max)];
            let mut body = u64s(&[fh, offset + n as u64]);
            body.extend(u32s(&[part.len() as u32, 0, 0, 0, 0, 0]));
            body.extend(part);
            let written = self.call(Op::Write, node, &body)?;
            n += u32_at(&written, 0) as usize;
        }
        Ok(n)
    }

    /// From now on nothing is reclaimed by itself.
    pub fn keep_vnodes(&self) {
        self.vnodes.keeps.store(true, Ordering::Relaxed);
    }

    /// All that is not open is reclaimed.
    pub fn reclaim(&self) {
        let mut table = self.vnodes.table.lock().unwrap();
        let idle: Vec<u64> = table
            .iter()
            .filter(|(_, vnode)| vnode.lock().unwrap().opens() == 0)
            .map(|(node, _)| *node)
            .collect();
        for node in idle {
            let vnode = table.remove(&node);
            self.vnodes.forget(node, vnode);
        }
    }

    /// unmount(2) of a mount that is not busy.
    pub fn unmount(&self) -> Result<()> {
        self.reclaim();
        self.device.unmount()
    }
}

const NOTHING: Stat = Stat {
    ino: 0,
    size: 0,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    atime: (0, 0),
    mtime: (0, 0),
};

impl Client for Played {
    type File = OpenFile;

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn open(&self, path: &str, flags: OFlag, mode: u32) -> Result<OpenFile> {
        let create = flags.contains(OFlag::O_CREAT);
        let node = match self.node(path) {
            Ok(_) if create && flags.contains(OFlag::O_EXCL) => return Err(Errno::EEXIST),
            Ok(node) => node,
            Err(Errno::ENOENT) if create => self.mknod(path, S_IFREG | (mode & !0o022))?,
            Err(e) => return Err(e),
        };
        // May it be opened?
        let stat = self.getattr(node)?;
        if stat.mode & S_IFMT == S_IFDIR && flags & OFlag::O_ACCMODE != OFlag::O_RDONLY {
            return Err(Errno::EISDIR);
        }
        if flags.contains(OFlag::O_TRUNC) {
            self.set_size(node, 0)?;
        }
        self.open_node(node, flags)
    }

    fn close(&self, mut file: OpenFile) -> Result<()> {
        let flushed = match file.class {
            0 => Ok(()),
            _ => self
                .call(Op::Flush, file.node, &u64s(&[file.fh(), 0, 0]))
                .map(drop),
        };
        file.end();
        flushed
    }

    fn read(&self, file: &OpenFile, buf: &mut [u8]) -> Result<usize> {
        let offset = file.offset.load(Ordering::Relaxed);
        let n = self.pread(file, buf, offset)?;
        file.offset.store(offset + n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn write(&self, file: &OpenFile, bytes: &[u8]) -> Result<usize> {
        let offset = match file.append {
            true => self.getattr(file.node)?.size,
            false => file.offset.load(Ordering::Relaxed),
        };
        let n = self.pwrite(file, bytes, offset)?;
        file.offset.store(offset + n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn pread(&self, file: &OpenFile, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.read_node(file.node, file.fh(), buf, offset)
    }

    fn pwrite(&self, file: &OpenFile, bytes: &[u8], offset: u64) -> Result<usize> {
        self.write_node(file.node, file.fh(), bytes, offset)
    }

    fn fstat(&self, file: &OpenFile) -> Result<Stat> {
        self.getattr(file.node)
    }

    fn fsync(&self, file: &OpenFile) -> Result<()> {
        let vnode = self.vnodes.get(file.node);
        let handles = vnode.lock().unwrap().handles;
        for handle in handles[1..].iter().flatten() {
            let body = [u64s(&[handle.fh]), u32s(&[0, 0])].concat();
            self.call(Op::Fsync, file.node, &body)?;
        }
        Ok(())
    }

    fn ftruncate(&self, file: &OpenFile, size: u64) -> Result<()> {
        self.set_size(file.node, size)
    }

    fn stat(&self, path: &str) -> Result<Stat> {
        self.getattr(self.node(path)?)
    }

    fn readdir(&self, path: &str) -> Result<Vec<(String, u64)>> {
        let node = self.node(path)?;
        let opened = self.call(Op::Opendir, node, &u32s(&[0, 0]))?;
        let fh = u64_at(&opened, 0);
        let (mut names, mut next) = (Vec::new(), 0);
        loop {
            let mut body = u64s(&[fh, next]);
            body.extend(u32s(&[DIR_BUF as u32, 0, 0, 0, 0, 0]));
            let bytes = self
                .device
                .call_sized(Op::Readdir, node, self.uid, &body, DIR_BUF)?;
            if bytes.is_empty() {
                break;
            }
            let mut at = 0;
            while at < bytes.len() {
                let len = u32_at(&bytes, at + 16) as usize;
                let name = std::str::from_utf8(&bytes[at + 24..at + 24 + len]).unwrap();
                let ino = u64_at(&bytes, at);
                assert!((1..=255).contains(&len) && !name.contains('/') && ino != 0);
                next = u64_at(&bytes, at + 8);
                names.push((name.to_string(), ino));
                at += (24 + len).next_multiple_of(8);
            }
        }
        let body = [u64s(&[fh]), u32s(&[0, 0]), u64s(&[0])].concat();
        self.call(Op::Releasedir, node, &body)?;
        Ok(names)
    }

    fn readlink(&self, path: &str) -> Result<String> {
        match self.walk(path, false, 0)? {
            (node, S_IFLNK) => self.target(node),
            _ => Err(Errno::EINVAL),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (old_dir, old) = self.parent(from)?;
        self.lookup(old_dir, old)?;
        let (dir, name) = self.parent(to)?;
        match self.lookup(dir, name) {
            Ok(_) | Err(Errno::ENOENT) => (),
            Err(e) => return Err(e),
        }
        let body = [u64s(&[dir]), c(old), c(name)].concat();
        self.call(Op::Rename, old_dir, &body).map(drop)
    }

    fn link(&self, from: &str, to: &str) -> Result<()> {
        let node = self.node(from)?;
        let (dir, name) = self.free(to)?;
        let body = [u64s(&[node]), c(&name)].concat();
        self.call(Op::Link, dir, &body).map(drop)
    }

    fn symlink(&self, target: &str, path: &str) -> Result<()> {
        self.make(Op::Symlink, path, &[], &c(target)).map(drop)
    }

    fn unlink(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        match self.lookup(dir, name)? {
            (_, S_IFDIR) => Err(Errno::EPERM),
            _ => self.call(Op::Unlink, dir, &c(name)).map(drop),
        }
    }

    fn mkdir(&self, path: &str, mode: u32) -> Result<()> {
        let mode = S_IFDIR | (mode & !0o022);
        self.make(Op::Mkdir, path, &u32s(&[mode, 0o022]), &[])
            .map(drop)
    }

    fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        match self.lookup(dir, name)? {
            (_, S_IFDIR) => self.call(Op::Rmdir, dir, &c(name)).map(drop),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn mkfifo(&self, path: &str, mode: u32) -> Result<()> {
        self.mknod(path, S_IFIFO | (mode & !0o022)).map(drop)
    }

    fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        self.setattr(self.node(path)?, SET_MODE, Stat { mode, ..NOTHING })
    }

    fn chown(&self, path: &str, uid: u32, gid: u32) -> Result<()> {
        let set = Stat {
            uid,
            gid,
            ..NOTHING
        };
        self.setattr(self.node(path)?, SET_UID | SET_GID, set)
    }

    fn utimes(&self, path: &str, atime: (i64, i64), mtime: (i64, i64)) -> Result<()> {
        let set = Stat {
            atime,
            mtime,
            ..NOTHING
        };
        self.setattr(self.node(path)?, SET_ATIME | SET_MTIME, set)
    }

    fn truncate(&self, path: &str, size: u64) -> Result<()> {
        self.set_size(self.node(path)?, size)
    }

    fn statfs(&self) -> Result<Space> {
        let st = self.call(Op::Statfs, ROOT, &[])?;
        Ok(Space {
            bytes: u64_at(&st, 0) * u64::from(u32_at(&st, 48)),
            files: u64_at(&st, 24),
            name_max: u32_at(&st, 44).into(),
        })
    }
}
