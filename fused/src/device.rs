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

//! The kernel's side: unpacks requests, calls ops.rs, packs answers; and the
//! threads that tell the kernel what to drop.  fused only, and the only file
//! that names the FUSE library or a layout of the kernel.  A method here may
//! not block, since it holds up every request behind it.
//!
//! What is not here the library answers with ENOSYS: TMPFILE, COPY_FILE_RANGE,
//! POLL.  Linux then stops asking, falls back where it can and else says
//! EOPNOTSUPP.  A copy_file_range(2) it falls back to copies through its pages,
//! as a program would; an operation of the log could not do it, since by a
//! replay the source may have changed, so that the bytes would travel as those
//! of WRITEs in any case.
//! OpenBSD never asks, nor does it for extended attributes; what it does ask is
//! all here, since there ENOSYS would disable an operation for good.  ACCESS is
//! not asked where the kernel checks permissions.  INTERRUPT, too, is answered so
//! by the library: Linux then asks no more, and whoever waits for a lock cannot
//! be killed before he has it.
//!
//! The library says ENOSYS as well to what it cannot parse, ends when a header
//! is cut, and panics at one that is shorter than itself, at a WRITE, SETXATTR
//! or IOCTL of another size than it says, and at a time out of range.
//!
//! Notifications, written to the device as one message each, native endian:
//!
//! | offset | size | field                                                 |
//! | ------ | ---- | ----------------------------------------------------- |
//! |      0 |    4 | length of the message                                 |
//! |      4 |    4 | code: 2 inode, 3 entry, 8 epoch                       |
//! |      8 |    8 | 0                                                     |
//! |     16 |    8 | 2: inode; 3: parent                                   |
//! |     24 |    8 | 2: offset, -1 for attributes only; 3: length of name  |
//! |     32 |    8 | 2: length, 0 for all                                  |
//! |     32 |    . | 3: name, NUL                                          |
//!
//! A READDIRPLUS answer is a header (length, 0, number of the request) and,
//! for each entry, padded to 8 bytes:
//!
//! | offset | size | field                                                 |
//! | ------ | ---- | ----------------------------------------------------- |
//! |      0 |    8 | inode that is looked up by this; 0: none              |
//! |      8 |    8 | generation, 0                                         |
//! |     16 |   24 | seconds to keep name, attributes; nanoseconds of both |
//! |     40 |   88 | attributes: 6 of 8 bytes (inode, size, blocks, atime, |
//! |        |      | mtime, ctime), 10 of 4 (their nanoseconds, mode,      |
//! |        |      | nlink, uid, gid, rdev, size of a block, 0)            |
//! |    128 |   16 | inode, where to go on                                 |
//! |    144 |    8 | length of the name, type                              |
//! |    152 |    . | name                                                  |

#![forbid(unsafe_code)]

use crate::cache::{EntryWork, Keeper};
use crate::ops::contents::{At, Opening, Write};
use crate::ops::locks::Wanted;
use crate::ops::names::{Entry, Listed};
use crate::ops::{Caller, DataReply, Known, Ops, Reply};
use crate::spawn;
use common::fs::{
    Attr, Cookie, Cred, Fh, InodeNo, SetAttr, SetTime, Time, BLOCK, IO_MAX, NAME_MAX, S_IFDIR,
    S_IFLNK, S_IFMT, S_IFREG,
};
use common::lock::{LockInfo, LockKind, LockRange};
use common::{log_debug, log_warn};
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Threads that read the device of a Linux kernel.
const READERS: usize = 4;

const MAX_BACKGROUND: u16 = 512;

const S_IFCHR: u32 = 0o020000;

/// What is asked of raftd for a listing, because the library does not tell the
/// kernel's buffer: that of readdir(3).
const READDIR_SIZE: u32 = 32768;
/// No kernel has a smaller buffer.
const READDIR_MIN: usize = 4096;

/// Kinds of locks, as Linux numbers them; OpenBSD's kernel never asks.
const F_RDLCK: i32 = 0;
const F_WRLCK: i32 = 1;
const F_UNLCK: i32 = 2;

const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
const NOTIFY_INC_EPOCH: i32 = 8;
const OUT_HEADER: usize = 16;

/// The kernel wants room for the longest WRITE, and FUSE_MIN_READ_BUFFER.
const READ_MIN: usize = 8192;
/// The end of a mount is a matter of microseconds.
const END_TRIES: u32 = 100;
const END_POLL: Duration = Duration::from_millis(1);

struct Device {
    ops: Arc<Ops>,
    /// For what the library cannot say.
    raw: Arc<File>,
    /// The kernel says with each write whether it takes away privileges.
    killpriv_v2: bool,
}

/// How many threads read the device.  The library takes more than one only on
/// Linux, and only of a device that fails for all of them when the mount is
/// gone; a socket, with a kernel of another kind behind it, ends for one.
pub fn readers(device: &OwnedFd) -> usize {
    let stat = nix::sys::stat::fstat(device);
    let is_device = stat.is_ok_and(|st| st.st_mode & S_IFMT == S_IFCHR);
    match cfg!(target_os = "linux") && is_device {
        true => READERS,
        false => 1,
    }
}

/// Answers the kernel's INIT; from then on `run` serves.
pub fn open(device: OwnedFd, ops: &Arc<Ops>) -> io::Result<impl FnOnce() -> io::Result<()>> {
    let raw = Arc::new(File::from(device.try_clone()?));
    let fs = Device {
        ops: ops.clone(),
        raw: raw.clone(),
        killpriv_v2: false,
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(ops.readers);
    let session = Session::from_fd(fs, device, SessionACL::All, config)?;
    if ops.keeper() == Keeper::Kernel {
        start_notifying(ops, &raw);
    }
    Ok(move || match session.run() {
        Err(e) if e.kind() == io::ErrorKind::ConnectionAborted && is_unmounted(&raw) => Ok(()),
        ended => ended,
    })
}

/// Whether the mount has ended well, though a reader was told otherwise: that
/// is what Linux says of a request that it was handing over at that moment,
/// and for all that are left.
fn is_unmounted(mut device: &File) -> bool {
    let mut request = vec![0; IO_MAX + READ_MIN];
    (0..END_TRIES).any(|_| match device.read(&mut request) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => true,
        _ => {
            std::thread::sleep(END_POLL);
            false
        }
    })
}

fn cred(req: &Request) -> Cred {
    Cred {
        uid: req.uid(),
        gid: req.gid(),
    }
}

fn caller(req: &Request) -> Caller {
    Caller {
        cred: cred(req),
        pid: req.pid(),
    }
}

fn ino(ino: INodeNo) -> InodeNo {
    InodeNo(ino.0)
}

fn errno(e: nix::errno::Errno) -> Errno {
    Errno::from_i32(e as i32)
}

/// Seconds before 1970 count backwards while nanoseconds count on, as in the
/// kernel; the library's conversion of those mirrors the nanoseconds.
fn time(time: SystemTime) -> Time {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Time {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => Time {
            sec: 0i64.saturating_sub_unsigned(before.duration().as_secs()),
            nsec: before.duration().subsec_nanos(),
        },
    }
}

fn system_time(time: Time) -> SystemTime {
    let (epoch, nsec) = (
        SystemTime::UNIX_EPOCH,
        Duration::from_nanos(time.nsec.into()),
    );
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = match time.sec < 0 {
        true => epoch.checked_sub(seconds),
        false => epoch.checked_add(seconds),
    };
    whole.and_then(|t| t.checked_add(nsec)).unwrap_or(epoch)
}

fn set_time(time_or_now: TimeOrNow) -> SetTime {
    match time_or_now {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(time(at)),
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & S_IFMT {
        S_IFDIR => FileType::Directory,
        S_IFLNK => FileType::Symlink,
        0o010000 => FileType::NamedPipe,
        S_IFCHR => FileType::CharDevice,
        0o060000 => FileType::BlockDevice,
        0o140000 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK as u32,
        flags: 0,
    }
}

fn entry_reply(reply: ReplyEntry) -> Reply<Entry> {
    Box::new(move |result| match result {
        Ok(entry) => reply.entry_with_ttls(
            &entry.attr_ttl,
            &entry.entry_ttl,
            &file_attr(&entry.attr),
            Generation(0),
        ),
        Err(e) => reply.error(errno(e)),
    })
}

fn attr_reply(reply: ReplyAttr) -> Reply<Known> {
    Box::new(move |result| match result {
        Ok(known) => reply.attr(&known.ttl, &file_attr(&known.attr)),
        Err(e) => reply.error(errno(e)),
    })
}

fn empty_reply(reply: ReplyEmpty) -> Reply<()> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    })
}

fn data_reply(reply: ReplyData) -> DataReply {
    Box::new(move |result| match result {
        Ok(data) => reply.data(data),
        Err(e) => reply.error(errno(e)),
    })
}

fn lock_kind(typ: i32) -> Option<LockKind> {
    match typ {
        F_RDLCK => Some(LockKind::Shared),
        F_WRLCK => Some(LockKind::Exclusive),
        _ => None,
    }
}

fn wanted(
    inode: INodeNo,
    fh: FileHandle,
    owner: LockOwner,
    pid: u32,
    start: u64,
    end: u64,
    kind: LockKind,
) -> Wanted {
    Wanted {
        ino: ino(inode),
        fh: Fh(fh.0),
        owner: owner.0,
        pid,
        range: LockRange { start, end },
        kind,
    }
}

/// Without a buffer it is asked how large one must be.
fn xattr_reply(size: u32, reply: ReplyXattr) -> DataReply {
    Box::new(move |result| match result {
        Ok(data) if size == 0 => reply.size(data.len() as u32),
        Ok(data) => reply.data(data),
        Err(e) => reply.error(errno(e)),
    })
}

fn open_flags(opening: &Opening) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opening.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opening.direct);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opening.no_flush);
    flags
}

impl Filesystem for Device {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // One by one: a kernel that lacks one has the others.  Not
        // FUSE_ATOMIC_O_TRUNC: the file would be cut before the kernel asks
        // whether somebody executes it.
        for capability in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_DONT_MASK,
            // The kernel judges by ACLs, and keeps them until it is told.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // A target never changes, and inode numbers are not used again.
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            if config.add_capabilities(capability).is_err() {
                log_debug!("kernel lacks {capability:?}");
            }
        }
        if self.ops.shares_locks() {
            for capability in [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS] {
                if config.add_capabilities(capability).is_err() {
                    log_debug!("kernel lacks {capability:?}");
                }
            }
        }
        // Who takes word of us about what to drop says so.  OpenBSD's kernel,
        // protocol 7.19, offers nothing at all.
        let explicit = InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        let keeper = match config.capabilities().contains(explicit) {
            true => Keeper::Kernel,
            // It would keep pages all the same, and could not be told.
            false if self.ops.readers > 1 => {
                return Err(io::Error::other("need Linux 5.2 or later"));
            }
            false => Keeper::Fused,
        };
        self.ops.set_keeper(keeper);
        let v2 = InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        self.killpriv_v2 = config.add_capabilities(v2).is_ok();
        if !self.killpriv_v2 {
            let _ = config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV);
        }
        // Both only fail for values out of range.
        let _ = config.set_max_write(IO_MAX as u32);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let reply = entry_reply(reply);
        self.ops
            .lookup(caller(req), ino(parent), name.as_bytes(), reply);
    }

    fn forget(&self, _req: &Request, inode: INodeNo, nlookup: u64) {
        self.ops.forget(ino(inode), nlookup);
    }

    fn getattr(&self, req: &Request, inode: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let reply = attr_reply(reply);
        self.ops.getattr(caller(req), ino(inode), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill_priv: false,
        };
        let (fh, reply) = (fh.map(|fh| Fh(fh.0)), attr_reply(reply));
        self.ops.setattr(caller(req), ino(inode), fh, set, reply);
    }

    fn readlink(&self, req: &Request, inode: INodeNo, reply: ReplyData) {
        self.ops.readlink(cred(req), ino(inode), data_reply(reply));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (mode, reply) = ((mode, umask), entry_reply(reply));
        let name = name.as_bytes();
        self.ops
            .mknod(caller(req), ino(parent), name, mode, rdev, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = (S_IFDIR | mode & 0o7777, umask);
        let reply = entry_reply(reply);
        self.ops
            .mkdir(caller(req), ino(parent), name.as_bytes(), mode, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = empty_reply(reply);
        self.ops
            .unlink(caller(req), ino(parent), name.as_bytes(), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = empty_reply(reply);
        self.ops
            .rmdir(caller(req), ino(parent), name.as_bytes(), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target) = (name.as_bytes(), target.as_os_str().as_bytes());
        let reply = entry_reply(reply);
        self.ops
            .symlink(caller(req), ino(parent), name, target, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.ops.rename(
            caller(req),
            ino(parent),
            name.as_bytes(),
            ino(newparent),
            newname.as_bytes(),
            flags.bits(),
            empty_reply(reply),
        );
    }

    fn link(
        &self,
        req: &Request,
        inode: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (name, reply) = (newname.as_bytes(), entry_reply(reply));
        self.ops
            .link(caller(req), ino(inode), ino(newparent), name, reply);
    }

    fn open(&self, req: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let reply = Box::new(move |result: Result<Opening, _>| match result {
            Ok(opening) => reply.opened(FileHandle(opening.fh.0), open_flags(&opening)),
            Err(e) => reply.error(errno(e)),
        });
        self.ops.open(caller(req), ino(inode), flags.0, reply);
    }

    fn read(
        &self,
        req: &Request,
        inode: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let at = At {
            ino: ino(inode),
            fh: Fh(fh.0),
            offset,
        };
        self.ops.read(cred(req), at, size, data_reply(reply));
    }

    fn write(
        &self,
        req: &Request,
        inode: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill_priv = match self.killpriv_v2 {
            true => write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            false => !mapped && req.uid() != 0,
        };
        let at = At {
            ino: ino(inode),
            fh: Fh(fh.0),
            offset,
        };
        let write = Write {
            at,
            data,
            flags: flags.0,
            mapped,
            kill_priv,
        };
        let (ops, len, pid) = (self.ops.clone(), data.len() as u64, req.pid());
        let reply = Box::new(move |result| match result {
            Ok(len) => reply.written(len),
            Err(e) => {
                if !mapped {
                    ops.write_refused(at, len, flags.0, pid, e);
                }
                reply.error(errno(e));
            }
        });
        self.ops.write(cred(req), write, reply);
    }

    fn flush(
        &self,
        req: &Request,
        inode: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let (fh, owner, reply) = (Fh(fh.0), lock_owner.0, empty_reply(reply));
        self.ops.flush(cred(req), ino(inode), fh, owner, reply);
    }

    fn release(
        &self,
        _req: &Request,
        _inode: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.ops.release(Fh(fh.0));
        reply.ok();
    }

    fn fsync(
        &self,
        req: &Request,
        inode: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let reply = empty_reply(reply);
        self.ops.fsync(cred(req), ino(inode), Fh(fh.0), reply);
    }

    fn opendir(&self, _req: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let reply = Box::new(move |result| match result {
            Ok(true) => {
                let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                reply.opened(FileHandle(0), flags);
            }
            Ok(false) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        });
        self.ops.opendir(ino(inode), reply);
    }

    fn readdir(
        &self,
        req: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = Box::new(move |result: Result<Vec<Listed>, _>| match result {
            Ok(entries) => {
                for Listed { dirent, .. } in entries {
                    let (number, kind) = (INodeNo(dirent.ino.0), file_type(dirent.kind));
                    let name = OsStr::from_bytes(&dirent.name);
                    if reply.add(number, dirent.next.0, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(errno(e)),
        });
        let (inode, after) = (ino(inode), Cookie(offset));
        self.ops
            .readdir(cred(req), inode, after, READDIR_SIZE, false, entries);
    }

    fn readdirplus(
        &self,
        req: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (unique, raw, ops) = (req.unique().0, self.raw.clone(), self.ops.clone());
        let entries = Box::new(move |result: Result<Vec<Listed>, _>| match result {
            Ok(entries) => {
                let given = match entries.iter().all(has_attr) {
                    true => reply_listing(reply, &entries),
                    false => send_listing(reply, &raw, unique, &entries),
                };
                for left in entries.get(given..).unwrap_or(&[]) {
                    if left.dirent.attr.is_some() {
                        ops.forget(left.dirent.ino, 1);
                    }
                }
            }
            Err(e) => reply.error(errno(e)),
        });
        let (inode, after) = (ino(inode), Cookie(offset));
        self.ops
            .readdir(cred(req), inode, after, READDIR_SIZE, true, entries);
    }

    fn fallocate(
        &self,
        req: &Request,
        inode: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (inode, fh, reply) = (ino(inode), Fh(fh.0), empty_reply(reply));
        self.ops
            .fallocate(cred(req), inode, fh, offset, length, mode, reply);
    }

    fn lseek(
        &self,
        req: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let reply = Box::new(move |result| match result {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(errno(e)),
        });
        self.ops.lseek(cred(req), ino(inode), offset, whence, reply);
    }

    fn fsyncdir(
        &self,
        req: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.ops.fsyncdir(cred(req), ino(inode), empty_reply(reply));
    }

    fn statfs(&self, req: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let reply = Box::new(move |result: Result<common::fs::Statfs, _>| match result {
            Ok(st) => {
                let free = st.bytes_free / BLOCK;
                reply.statfs(
                    st.bytes / BLOCK,
                    free,
                    free,
                    st.inodes,
                    st.inodes_free,
                    BLOCK as u32,
                    NAME_MAX as u32,
                    BLOCK as u32,
                );
            }
            Err(e) => reply.error(errno(e)),
        });
        self.ops.statfs(cred(req), reply);
    }

    fn getlk(
        &self,
        req: &Request,
        inode: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some(kind) = lock_kind(typ) else {
            return reply.error(Errno::EINVAL);
        };
        let wanted = wanted(inode, fh, lock_owner, pid, start, end, kind);
        let reply = Box::new(move |result: Result<Option<LockInfo>, _>| match result {
            Ok(None) => reply.locked(start, end, F_UNLCK, 0),
            Ok(Some(found)) => {
                let typ = match found.kind {
                    LockKind::Shared => F_RDLCK,
                    LockKind::Exclusive => F_WRLCK,
                };
                let end = found.range.end.min(LockRange::WHOLE.end);
                reply.locked(found.range.start, end, typ, found.pid);
            }
            Err(e) => reply.error(errno(e)),
        });
        self.ops.test_lock(cred(req), wanted, reply);
    }

    fn setlk(
        &self,
        req: &Request,
        inode: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        match (lock_kind(typ), typ) {
            (Some(kind), _) => {
                let wanted = wanted(inode, fh, lock_owner, pid, start, end, kind);
                self.ops
                    .lock(caller(req), wanted, sleep, empty_reply(reply));
            }
            (None, F_UNLCK) => {
                let range = LockRange { start, end };
                let (owner, reply) = (lock_owner.0, empty_reply(reply));
                self.ops.unlock(ino(inode), owner, range, reply);
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        position: u32,
        reply: ReplyEmpty,
    ) {
        let (inode, name, reply) = (ino(inode), name.as_bytes(), empty_reply(reply));
        let caller = caller(req);
        self.ops
            .setxattr(caller, inode, name, value, flags, position, reply);
    }

    fn getxattr(&self, req: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let reply = xattr_reply(size, reply);
        self.ops
            .getxattr(caller(req), ino(inode), name.as_bytes(), size, reply);
    }

    fn listxattr(&self, req: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let reply = xattr_reply(size, reply);
        self.ops.listxattr(caller(req), ino(inode), size, reply);
    }

    fn removexattr(&self, req: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = empty_reply(reply);
        self.ops
            .removexattr(caller(req), ino(inode), name.as_bytes(), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = (S_IFREG | mode & 0o7777, umask);
        let reply = Box::new(move |result: Result<(Entry, Opening), _>| match result {
            Ok((entry, opening)) => reply.created(
                &entry.attr_ttl.min(entry.entry_ttl),
                &file_attr(&entry.attr),
                Generation(0),
                FileHandle(opening.fh.0),
                open_flags(&opening),
            ),
            Err(e) => reply.error(errno(e)),
        });
        let name = name.as_bytes();
        self.ops
            .create(caller(req), ino(parent), name, mode, flags, reply);
    }
}

fn is_dot(listed: &Listed) -> bool {
    matches!(listed.dirent.name.as_slice(), b"." | b"..")
}

/// Whether the library can express the entry.
fn has_attr(listed: &Listed) -> bool {
    listed.dirent.attr.is_some() || is_dot(listed)
}

/// Answers with as many entries as the kernel's buffer takes.
fn reply_listing(mut reply: ReplyDirectoryPlus, entries: &[Listed]) -> usize {
    let mut given = 0;
    for listed in entries {
        let dirent = &listed.dirent;
        let attr = match &dirent.attr {
            Some(attr) => file_attr(attr),
            // "." and "..": the kernel looks at nothing but these two.
            None => file_attr(&Attr {
                ino: dirent.ino,
                mode: dirent.kind,
                ..Attr::default()
            }),
        };
        let ttl = listed.attr_ttl.min(listed.entry_ttl);
        let name = OsStr::from_bytes(&dirent.name);
        if reply.add(attr.ino, dirent.next.0, name, &ttl, &attr, Generation(0)) {
            break;
        }
        given += 1;
    }
    reply.ok();
    given
}

/// The same, when the attributes of some are not known because they are about
/// to change: those are listed and not looked up.  To the library that would
/// be an entry with the number 0, for which readdir(3) skips it.  So the
/// answer is written here, and the library's, which would be an error when
/// dropped, is forgotten: it holds nothing yet but a reference count.
fn send_listing(reply: ReplyDirectoryPlus, raw: &File, unique: u64, entries: &[Listed]) -> usize {
    std::mem::forget(reply);
    let mut given = 0;
    let mut body = Vec::with_capacity(READDIR_MIN);
    for listed in entries {
        let before = body.len();
        put_entry(&mut body, listed);
        if body.len() > READDIR_MIN {
            body.truncate(before);
            break;
        }
        given += 1;
    }
    let mut header = Vec::with_capacity(OUT_HEADER);
    put_header(&mut header, body.len(), 0, unique);
    // It fails only when the mount is gone.
    let _ = send(raw, &[IoSlice::new(&header), IoSlice::new(&body)]);
    given
}

fn put_header(out: &mut Vec<u8>, body: usize, code: i32, unique: u64) {
    out.extend(((OUT_HEADER + body) as u32).to_ne_bytes());
    out.extend(code.to_ne_bytes());
    out.extend(unique.to_ne_bytes());
}

fn put_u64(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|v| out.extend(v.to_ne_bytes()));
}

fn put_u32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|v| out.extend(v.to_ne_bytes()));
}

fn put_entry(out: &mut Vec<u8>, listed: &Listed) {
    let dirent = &listed.dirent;
    let nodeid = dirent.attr.as_ref().map_or(0, |attr| attr.ino.0);
    let none = Attr {
        ino: dirent.ino,
        mode: dirent.kind,
        ..Attr::default()
    };
    let a = dirent.attr.as_ref().unwrap_or(&none);
    let (entry_ttl, attr_ttl) = (listed.entry_ttl, listed.attr_ttl);
    put_u64(out, &[nodeid, 0, entry_ttl.as_secs(), attr_ttl.as_secs()]);
    put_u32(out, &[entry_ttl.subsec_nanos(), attr_ttl.subsec_nanos()]);
    put_u64(out, &[a.ino.0, a.size, a.blocks]);
    put_u64(out, &[a.atime, a.mtime, a.ctime].map(|t| t.sec as u64));
    put_u32(out, &[a.atime, a.mtime, a.ctime].map(|t| t.nsec));
    put_u32(
        out,
        &[a.mode, a.nlink, a.uid, a.gid, a.rdev, BLOCK as u32, 0],
    );
    put_u64(out, &[dirent.ino.0, dirent.next.0]);
    put_u32(out, &[dirent.name.len() as u32, dirent.kind >> 12]);
    out.extend_from_slice(&dirent.name);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// One message is one write.
fn send(mut raw: &File, message: &[IoSlice<'_>]) -> io::Result<()> {
    raw.write_vectored(message).map(drop)
}

fn inval_inode(raw: &File, ino: InodeNo, data: Option<u64>) -> io::Result<()> {
    let offset = data.map_or(-1, |from| i64::try_from(from).unwrap_or(0));
    let mut message = Vec::with_capacity(OUT_HEADER + 24);
    put_header(&mut message, 24, NOTIFY_INVAL_INODE, 0);
    put_u64(&mut message, &[ino.0, offset as u64, 0]);
    send(raw, &[IoSlice::new(&message)])
}

fn inval_entry(raw: &File, parent: InodeNo, name: &[u8]) -> io::Result<()> {
    let body = 16 + name.len() + 1;
    let mut message = Vec::with_capacity(OUT_HEADER + body);
    put_header(&mut message, body, NOTIFY_INVAL_ENTRY, 0);
    put_u64(&mut message, &[parent.0]);
    put_u32(&mut message, &[name.len() as u32, 0]);
    message.extend_from_slice(name);
    message.push(0);
    send(raw, &[IoSlice::new(&message)])
}

fn inc_epoch(raw: &File) -> io::Result<()> {
    let mut message = Vec::with_capacity(OUT_HEADER);
    put_header(&mut message, 0, NOTIFY_INC_EPOCH, 0);
    send(raw, &[IoSlice::new(&message)])
}

/// One thread for inodes and one for names, because each can block in the
/// kernel: the first on a page that is being read or written, the second on
/// whoever does something in that directory.
fn start_notifying(ops: &Arc<Ops>, raw: &Arc<File>) {
    match inc_epoch(raw) {
        Ok(()) => ops.set_epochs(true),
        Err(e) => log_debug!("kernel lacks epochs: {e}"),
    }
    let (inodes, entries) = (ops.clone(), ops.clone());
    let (raw1, raw2) = (raw.clone(), raw.clone());
    spawn("inodes", move || loop {
        notify_inode(&inodes, &raw1);
    });
    spawn("entries", move || loop {
        notify_entry(&entries, &raw2);
    });
}

fn notify_inode(ops: &Ops, raw: &File) {
    let (ino, data) = ops.invalidations.next_inode();
    let result = inval_inode(raw, ino, data);
    let not_found = result.is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    let unborn = not_found && ino != InodeNo::ROOT && ops.is_known(ino);
    for id in ops.invalidations.inode_done(ino, data, unborn) {
        ops.unhold(id);
    }
}

fn notify_entry(ops: &Ops, raw: &File) {
    match ops.invalidations.next_entry() {
        EntryWork::Epoch(times) => {
            // Without them names live for a second, see cache::SHORT_TTL.
            if ops.has_epochs() {
                if let Err(e) = inc_epoch(raw) {
                    log_warn!(e, "inc_epoch");
                }
            }
            ops.names_dropped(&vec![None; times]);
        }
        EntryWork::Entry { parent, name, lost } => {
            // Not found: nobody has it cached.  But whoever is reading the
            // directory is waited for, also then; so after this nothing older
            // is added to the listing.
            let _ = inval_entry(raw, parent, &name);
            if ops.take_listed(parent) {
                let _ = inval_inode(raw, parent, Some(0));
            }
            let lost: Vec<_> = lost.into_iter().map(Some).collect();
            ops.names_dropped(&lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::fs::Dirent;

    #[test]
    fn times_before_1970() {
        for (sec, nsec) in [(0, 0), (5, 999_999_999), (-1, 0), (-2, 250_000_000)] {
            let time = Time { sec, nsec };
            let back = system_time(time).duration_since(SystemTime::UNIX_EPOCH);
            let exact = match back {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(exact, i128::from(sec) * 1_000_000_000 + i128::from(nsec));
        }
        // What the library makes of -2 s and 250 ms.
        let mirrored = SystemTime::UNIX_EPOCH - Duration::new(2, 250_000_000);
        let (sec, nsec) = (-2, 250_000_000);
        assert_eq!(time(mirrored), Time { sec, nsec });
        let far = Time {
            sec: i64::MIN,
            nsec: 999_999_999,
        };
        // Nothing but that it does not panic.
        let _ = system_time(far);
    }

    #[test]
    fn entry_layout() {
        let mut out = Vec::new();
        let listed = |attr| Listed {
            dirent: Dirent {
                ino: InodeNo(7),
                next: Cookie(9),
                kind: S_IFREG,
                name: b"abc".to_vec(),
                attr,
            },
            attr_ttl: Duration::from_secs(1),
            entry_ttl: Duration::from_secs(2),
        };
        put_entry(&mut out, &listed(None));
        assert_eq!(out.len(), 160);
        let u64_at =
            |out: &[u8], at: usize| u64::from_ne_bytes(out[at..at + 8].try_into().unwrap());
        assert_eq!(u64_at(&out, 0), 0, "not looked up");
        assert_eq!((u64_at(&out, 16), u64_at(&out, 24)), (2, 1));
        assert_eq!((u64_at(&out, 128), u64_at(&out, 136)), (7, 9));
        assert_eq!(out[144..155], *b"\x03\0\0\0\x08\0\0\0abc");
        let attr = Attr {
            ino: InodeNo(7),
            size: 1234,
            ..Attr::default()
        };
        put_entry(&mut out, &listed(Some(attr)));
        assert_eq!((u64_at(&out, 160), u64_at(&out, 208)), (7, 1234));
    }
}
