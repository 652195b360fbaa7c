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

//! The replicated file system on a real store: every operation and refusal,
//! exactly once, orphans, room; long random logs applied to two stores with
//! and without checkpoints must give the same bytes and keep all books.

#[path = "xattr.rs"]
mod attributes;

use crate::dir::Dir;
use bytes::Bytes;
use common::fs::*;
use common::xattr::{XattrHow, ACL_ACCESS, ACL_DEFAULT, CAPABILITY};
use raftd::fs::apply::{apply, init};
use raftd::fs::inode::{Contents, Inode, ReadError};
use raftd::fs::op::{Check, Command, Op, Origin, RenameHow, WriteAt};
use raftd::fs::{dedup, dirent, inode, orphan, space};
use raftd::fs::{Change, DataOp, Effects, Outcome, Reply, Verdict};
use raftd::payload::Payload;
use raftd::store::meta::{Meta, View};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

mod dir;
mod quota;

const ROOT: InodeNo = InodeNo::ROOT;
const MAP: usize = 1 << 30;
const LEASE: Duration = Duration::from_secs(10);
const USER: Cred = Cred { uid: 10, gid: 20 };
const OTHER: Cred = Cred { uid: 11, gid: 21 };
const SUPER: Cred = Cred { uid: 0, gid: 0 };

/// One node's tree, and the place in the log.
struct Tree {
    meta: Meta,
    index: u64,
    dir: Dir,
}

impl Tree {
    fn new() -> Tree {
        let dir = Dir::new("apply");
        let meta = open(&dir.0);
        Tree {
            meta,
            index: 0,
            dir,
        }
    }

    fn apply(&mut self, cmd: &Command) -> (Verdict, Effects) {
        self.index += 1;
        apply(&mut self.meta.write(), self.index, cmd).unwrap()
    }

    fn full(&mut self, op: Op, payload: Payload) -> (Outcome, Effects) {
        let cmd = Command {
            origin: None,
            time: time(self.index as i64 + 1),
            op,
            payload,
        };
        match self.apply(&cmd) {
            (Verdict::Done(outcome), effects) => (outcome, effects),
            other => panic!("{other:?}"),
        }
    }

    fn op(&mut self, op: Op) -> Outcome {
        self.full(op, Payload::none()).0
    }

    fn effects(&mut self, op: Op) -> Effects {
        let (outcome, effects) = self.full(op, Payload::none());
        outcome.unwrap();
        effects
    }

    /// A file, directory ... that must come to be; answers its number.
    fn make(&mut self, op: Op) -> InodeNo {
        match self.op(op) {
            Ok(Reply::Entry {
                attr,
                created: true,
            }) => attr.ino,
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, ino: InodeNo, offset: u64, len: usize) -> (Outcome, Effects) {
        self.write_at(ino, WriteAt::Offset(offset), &vec![b'x'; len])
    }

    fn write_at(&mut self, ino: InodeNo, at: WriteAt, bytes: &[u8]) -> (Outcome, Effects) {
        let kill_priv = false;
        let payload = Payload::new(Bytes::copy_from_slice(bytes));
        self.full(Op::Write { ino, at, kill_priv }, payload)
    }

    fn attr(&self, ino: InodeNo) -> Attr {
        inode::getattr(&self.meta.read(), ino).unwrap()
    }

    fn lookup(&self, parent: InodeNo, name: &str) -> Result<Attr, FsError> {
        fs(dirent::lookup(&self.meta.read(), parent, name.as_bytes()))
    }

    fn inline(&self, ino: InodeNo) -> Vec<u8> {
        match inode::contents(&self.meta.read(), ino).unwrap() {
            Contents::Inline(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn counted_blocks(&self) -> u64 {
        space::load(&self.meta.read()).unwrap().counted_blocks()
    }

    fn used_blocks(&self) -> u64 {
        space::load(&self.meta.read()).unwrap().used_blocks
    }

    fn checkpoint(&self) {
        assert!(self.meta.freeze());
        self.meta.commit_frozen().unwrap();
    }

    fn reopen(self) -> Tree {
        let Tree { meta, index, dir } = self;
        drop(meta);
        let meta = open(&dir.0);
        Tree { meta, index, dir }
    }

    fn session(&mut self, node: u64, nonce: u64) -> SessionId {
        let node = NodeId(node);
        assert_eq!(
            self.op(Op::OpenSession {
                node,
                nonce,
                lease: LEASE
            }),
            Ok(Reply::Session)
        );
        SessionId(self.index)
    }
}

fn open(dir: &Path) -> Meta {
    let meta = Meta::open(dir, MAP).unwrap();
    init(&mut meta.write()).unwrap();
    meta
}

fn fs<T>(result: Result<T, ReadError>) -> Result<T, FsError> {
    result.map_err(|e| match e {
        ReadError::Fs(e) => e,
        ReadError::Meta(e) => panic!("{e}"),
    })
}

fn time(sec: i64) -> Time {
    Time { sec, nsec: 0 }
}

fn create(parent: InodeNo, name: &str) -> Op {
    create_as(parent, name, 0o644, USER)
}

fn create_as(parent: InodeNo, name: &str, mode: u32, cred: Cred) -> Op {
    Op::Create {
        parent,
        name: name.into(),
        mode: S_IFREG | mode,
        umask: 0,
        excl: true,
        cred,
    }
}

fn open_or_create(parent: InodeNo, name: &str, cred: Cred) -> Op {
    Op::Create {
        parent,
        name: name.into(),
        mode: S_IFREG | 0o644,
        umask: 0,
        excl: false,
        cred,
    }
}

fn mknod(parent: InodeNo, name: &str, mode: u32) -> Op {
    Op::Mknod {
        parent,
        name: name.into(),
        mode,
        umask: 0,
        rdev: 0x0103,
        cred: USER,
    }
}

fn mkdir(parent: InodeNo, name: &str) -> Op {
    mkdir_as(parent, name, 0o755, USER)
}

fn mkdir_as(parent: InodeNo, name: &str, mode: u32, cred: Cred) -> Op {
    Op::Mkdir {
        parent,
        name: name.into(),
        mode,
        umask: 0,
        cred,
    }
}

fn symlink(parent: InodeNo, name: &str, target: &str) -> Op {
    Op::Symlink {
        parent,
        name: name.into(),
        target: target.into(),
        cred: USER,
    }
}

fn link(ino: InodeNo, parent: InodeNo, name: &str) -> Op {
    Op::Link {
        ino,
        parent,
        name: name.into(),
        cred: USER,
    }
}

fn unlink(parent: InodeNo, name: &str) -> Op {
    Op::Unlink {
        parent,
        name: name.into(),
        check: Check::Kernel,
    }
}

fn rmdir(parent: InodeNo, name: &str) -> Op {
    Op::Rmdir {
        parent,
        name: name.into(),
        check: Check::Kernel,
    }
}

fn rename(parent: InodeNo, name: &str, new_parent: InodeNo, new_name: &str) -> Op {
    rename_how(parent, name, new_parent, new_name, RenameHow::Replace)
}

fn rename_how(
    parent: InodeNo,
    name: &str,
    new_parent: InodeNo,
    new_name: &str,
    how: RenameHow,
) -> Op {
    Op::Rename {
        parent,
        name: name.into(),
        new_parent,
        new_name: new_name.into(),
        how,
        check: Check::Kernel,
    }
}

fn setattr(ino: InodeNo, set: SetAttr) -> Op {
    setattr_as(ino, set, Check::Kernel)
}

fn setattr_as(ino: InodeNo, set: SetAttr, check: Check) -> Op {
    Op::Setattr { ino, set, check }
}

fn size(size: u64) -> SetAttr {
    SetAttr {
        size: Some(size),
        ..SetAttr::default()
    }
}

fn chmod(mode: u32) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    }
}

fn attr_of(outcome: Outcome) -> Attr {
    match outcome.unwrap() {
        Reply::Attr(attr) | Reply::Entry { attr, .. } | Reply::Written { attr, .. } => attr,
        other => panic!("{other:?}"),
    }
}

fn names(meta: &Meta, dir: InodeNo) -> Vec<String> {
    let (entries, eof) = dirent::readdir(&meta.read(), dir, Cookie(0), usize::MAX, false).unwrap();
    assert!(eof);
    let names = entries.into_iter().map(|e| String::from_utf8(e.name));
    names.map(Result::unwrap).collect()
}

// Names.

#[test]
fn root() {
    let t = Tree::new();
    let root = t.attr(ROOT);
    assert_eq!((root.mode, root.nlink), (S_IFDIR | 0o755, 2));
    assert_eq!((root.uid, root.gid, root.mtime), (0, 0, Time::default()));
    assert_eq!(names(&t.meta, ROOT), [".", ".."]);
    assert_eq!(t.lookup(ROOT, ".").unwrap().ino, ROOT);
    assert_eq!(t.lookup(ROOT, "..").unwrap().ino, ROOT);
    t.checkpoint();
    let t = t.reopen();
    assert_eq!(space::load(&t.meta.read()).unwrap().used_inodes, 1);
}

#[test]
fn refusals() {
    use FsError::*;
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    let f = t.make(create(ROOT, "f"));
    let e = t.make(mkdir(d, "e"));
    let l = t.make(symlink(ROOT, "l", "f"));
    let p = t.make(mknod(ROOT, "p", 0o010600));
    t.make(mkdir(ROOT, "empty"));
    let none = InodeNo(999);
    let long = "n".repeat(256);
    let exchange = RenameHow::Exchange;
    let no_replace = RenameHow::NoReplace;
    let table = [
        (create(ROOT, "f"), Exists),
        (create(ROOT, "d"), Exists),
        (open_or_create(ROOT, "d", USER), IsDir),
        (create(f, "x"), NotDir),
        (create(none, "x"), Stale),
        (create(ROOT, &long), NameTooLong),
        (create(ROOT, ""), Invalid),
        (create(ROOT, "a/b"), Invalid),
        (create(ROOT, "a\0b"), Invalid),
        (create(ROOT, "."), Invalid),
        (create(ROOT, ".."), Invalid),
        (mkdir(ROOT, "f"), Exists),
        (mkdir(f, "x"), NotDir),
        (mkdir(ROOT, &long), NameTooLong),
        (mknod(ROOT, "f", S_IFREG), Exists),
        (mknod(ROOT, "x", S_IFDIR), Invalid),
        (mknod(ROOT, "x", S_IFLNK), Invalid),
        (mknod(ROOT, "x", S_IFMT), Invalid),
        (symlink(ROOT, "f", "t"), Exists),
        (symlink(ROOT, "x", ""), Invalid),
        (symlink(ROOT, "x", "a\0b"), Invalid),
        (
            symlink(ROOT, "x", &"t".repeat(SYMLINK_MAX + 1)),
            NameTooLong,
        ),
        (link(d, ROOT, "x"), NotOwner),
        (link(none, ROOT, "x"), Stale),
        (link(f, ROOT, "d"), Exists),
        (link(f, l, "x"), NotDir),
        (unlink(ROOT, "none"), NotFound),
        (unlink(ROOT, "d"), IsDir),
        (unlink(f, "x"), NotDir),
        (unlink(none, "x"), Stale),
        (unlink(ROOT, &long), NameTooLong),
        (rmdir(ROOT, "none"), NotFound),
        (rmdir(ROOT, "f"), NotDir),
        (rmdir(ROOT, "l"), NotDir),
        (rmdir(ROOT, "d"), NotEmpty),
        (rmdir(d, "."), Invalid),
        (rmdir(d, ".."), Invalid),
        (rename(ROOT, "none", ROOT, "x"), NotFound),
        (rename(none, "f", ROOT, "x"), Stale),
        (rename(ROOT, "f", none, "x"), Stale),
        (rename(ROOT, "f", f, "x"), NotDir),
        (rename(ROOT, "f", ROOT, "d"), IsDir),
        (rename(ROOT, "d", ROOT, "f"), NotDir),
        (rename(ROOT, "empty", ROOT, "d"), NotEmpty),
        (rename(ROOT, "d", d, "x"), Invalid),
        (rename(ROOT, "d", e, "x"), Invalid),
        (rename(d, "e", ROOT, "d"), NotEmpty),
        (rename(ROOT, "f", ROOT, &long), NameTooLong),
        (rename(ROOT, "..", ROOT, "x"), Invalid),
        (rename_how(ROOT, "f", ROOT, "l", no_replace), Exists),
        (rename_how(ROOT, "f", ROOT, "f", no_replace), Exists),
        (rename_how(ROOT, "f", ROOT, "x", exchange), NotFound),
        (rename_how(ROOT, "d", d, "e", exchange), Invalid),
        (rename_how(d, "e", ROOT, "d", exchange), Invalid),
        (setattr(none, chmod(0)), Stale),
        (setattr(d, size(0)), IsDir),
        (setattr(l, size(0)), Invalid),
        (setattr(p, size(0)), Invalid),
        (setattr(f, size(FILE_MAX + 1)), TooBig),
        (setattr(f, size(u64::MAX)), TooBig),
        (Op::Release { inodes: vec![f] }, Invalid),
    ];
    let before = dump(&t.meta.read());
    for (op, want) in table {
        let (outcome, effects) = t.full(op.clone(), Payload::none());
        assert_eq!(outcome, Err(want), "{op:?}");
        assert_eq!(effects, Effects::default(), "{op:?}");
    }
    for (ino, offset, want) in [
        (d, 0, IsDir),
        (l, 0, Invalid),
        (p, 0, Invalid),
        (none, 0, Stale),
        (f, FILE_MAX, TooBig),
        (f, 1 << 63, TooBig),
        (f, u64::MAX, TooBig),
    ] {
        assert_eq!(t.write(ino, offset, 1).0, Err(want), "{ino} {offset}");
    }
    assert!(before == dump(&t.meta.read()), "a refusal left a trace");
    let v = t.meta.read();
    let name = |n: &str| fs(dirent::lookup(&v, ROOT, n.as_bytes())).unwrap_err();
    assert_eq!(name("none"), NotFound);
    assert_eq!(name(&long), NameTooLong);
    assert_eq!(fs(dirent::lookup(&v, f, b"x")).unwrap_err(), NotDir);
    assert_eq!(fs(dirent::lookup(&v, none, b"x")).unwrap_err(), Stale);
    assert_eq!(fs(inode::readlink(&v, f)).unwrap_err(), Invalid);
    let ls = dirent::readdir(&v, f, Cookie(0), 4096, false);
    assert_eq!(fs(ls).unwrap_err(), NotDir);
}

#[test]
fn create_and_find() {
    let mut t = Tree::new();
    let long = "n".repeat(255);
    let f = t.make(create(ROOT, &long));
    let a = t.lookup(ROOT, &long).unwrap();
    assert_eq!((a.ino, a.mode, a.nlink), (f, S_IFREG | 0o644, 1));
    assert_eq!((a.uid, a.gid, a.size), (USER.uid, USER.gid, 0));
    assert_eq!((a.atime, a.mtime, a.ctime), (time(1), time(1), time(1)));
    let root = t.attr(ROOT);
    assert_eq!((root.mtime, root.ctime, root.nlink), (time(1), time(1), 2));

    t.write(f, 0, 100).0.unwrap();
    let version = t.attr(f).data_version;
    let found = t.op(open_or_create(ROOT, &long, OTHER));
    let attr = t.attr(f);
    assert_eq!(attr.size, 100);
    let created = false;
    assert_eq!(found, Ok(Reply::Entry { attr, created }));
    let (found, effects) = t.full(open_or_create(ROOT, &long, USER), Payload::none());
    assert_eq!(attr_of(found).data_version, version);
    assert_eq!(effects.changes, []);

    let l = t.make(symlink(ROOT, "l", "target"));
    let found = t.op(open_or_create(ROOT, "l", USER));
    assert_eq!(attr_of(found).ino, l);
    assert_eq!(inode::readlink(&t.meta.read(), l).unwrap(), b"target");
    assert_eq!(t.attr(l).size, 6);
    let p = t.make(mknod(ROOT, "p", 0o020640));
    assert_eq!((t.attr(p).mode, t.attr(p).rdev), (0o020640, 0x0103));
    let p = t.make(mknod(ROOT, "q", 0o010640));
    assert_eq!((t.attr(p).mode, t.attr(p).rdev), (0o010640, 0));
    let r = t.make(mknod(ROOT, "r", 0o600));
    assert_eq!(t.attr(r).mode, S_IFREG | 0o600);
}

#[test]
fn effects_name_what_changed() {
    let mut t = Tree::new();
    let inode = |ino| Change::Inode { ino, data: None };
    let entry = |parent, name: &str, lost| Change::Entry {
        parent,
        name: name.into(),
        lost,
    };
    let e = t.effects(mkdir(ROOT, "d"));
    assert_eq!(e.changes, [inode(ROOT), entry(ROOT, "d", None)]);
    let d = t.lookup(ROOT, "d").unwrap().ino;
    let f = t.make(create(d, "f"));
    let e = t.effects(link(f, ROOT, "g"));
    let want = [inode(f), inode(ROOT), entry(ROOT, "g", None)];
    assert_eq!(e.changes, want);
    let e = t.effects(rename(d, "f", ROOT, "h"));
    let want = [
        inode(ROOT),
        inode(d),
        inode(f),
        entry(d, "f", Some(f)),
        entry(ROOT, "h", None),
    ];
    assert_eq!(e.changes, want);
    let e = t.effects(unlink(ROOT, "g"));
    let want = [inode(ROOT), entry(ROOT, "g", Some(f)), inode(f)];
    assert_eq!(e.changes, want);
    let g = t.make(create(ROOT, "g"));
    let e = t.effects(rename(ROOT, "h", ROOT, "g"));
    let want = [
        inode(ROOT),
        inode(f),
        entry(ROOT, "h", Some(f)),
        entry(ROOT, "g", Some(g)),
        inode(g),
        Change::Gone { ino: g },
    ];
    assert_eq!(e.changes, want);
    let e = t.effects(rename_how(ROOT, "d", ROOT, "g", RenameHow::Exchange));
    let want = [
        inode(ROOT),
        inode(d),
        inode(f),
        entry(ROOT, "d", Some(d)),
        entry(ROOT, "g", Some(f)),
    ];
    assert_eq!(e.changes, want);
    let e = t.effects(rmdir(ROOT, "g"));
    let want = [
        inode(ROOT),
        entry(ROOT, "g", Some(d)),
        inode(d),
        Change::Gone { ino: d },
    ];
    assert_eq!(e.changes, want);
    assert_eq!(e.data, []);
}

#[test]
fn set_group_id_directories() {
    let mut t = Tree::new();
    let d = t.make(mkdir_as(ROOT, "d", 0o2775, Cred { uid: 1, gid: 77 }));
    let f = t.make(create(d, "f"));
    assert_eq!(t.attr(f).gid, 77);
    assert_eq!(t.attr(f).mode & S_ISGID, 0);
    let e = t.make(mkdir(d, "e"));
    assert_eq!((t.attr(e).gid, t.attr(e).mode), (77, S_IFDIR | 0o2755));
    let plain = t.make(mkdir(ROOT, "plain"));
    assert_eq!(t.attr(plain).gid, USER.gid);
}

#[test]
fn links() {
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    assert_eq!((t.attr(ROOT).nlink, t.attr(d).nlink), (3, 2));
    let f = t.make(create(ROOT, "f"));
    t.op(link(f, d, "g")).unwrap();
    assert_eq!(t.attr(f).nlink, 2);
    t.op(rename(ROOT, "f", d, "g")).unwrap();
    assert_eq!(
        t.attr(f).nlink,
        2,
        "two names of one inode: nothing happens"
    );
    t.op(unlink(ROOT, "f")).unwrap();
    assert_eq!(t.attr(f).nlink, 1);
    for n in 1..LINK_MAX {
        t.op(link(f, d, &n.to_string())).unwrap();
    }
    assert_eq!(t.op(link(f, d, "more")), Err(FsError::TooManyLinks));
    t.op(unlink(d, "1")).unwrap();
    t.op(link(f, d, "more")).unwrap();
    check_books(&t.meta);
}

#[test]
fn too_many_directories() {
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    for n in 2..LINK_MAX {
        t.op(mkdir(d, &n.to_string())).unwrap();
    }
    let e = t.make(mkdir(ROOT, "e"));
    t.make(create(d, "f"));
    assert_eq!(t.op(mkdir(d, "more")), Err(FsError::TooManyLinks));
    let op = rename(ROOT, "e", d, "e");
    assert_eq!(t.op(op), Err(FsError::TooManyLinks));
    let op = rename_how(ROOT, "e", d, "f", RenameHow::Exchange);
    assert_eq!(t.op(op), Err(FsError::TooManyLinks));
    t.op(rename(ROOT, "e", d, "2")).unwrap();
    assert_eq!(t.lookup(d, "2").unwrap().ino, e);
    assert_eq!(t.attr(d).nlink, LINK_MAX);
    t.op(rmdir(d, "2")).unwrap();
    t.op(mkdir(d, "more")).unwrap();
    check_books(&t.meta);
}

#[test]
fn renames() {
    let mut t = Tree::new();
    let a = t.make(mkdir(ROOT, "a"));
    let b = t.make(mkdir(ROOT, "b"));
    let sub = t.make(mkdir(a, "sub"));
    let f = t.make(create(a, "f"));
    let g = t.make(create(b, "g"));

    t.op(rename(a, "f", a, "f")).unwrap();
    t.op(rename(a, "f", b, "g")).unwrap();
    assert_eq!(t.lookup(b, "g").unwrap().ino, f);
    assert_eq!(t.lookup(a, "f").unwrap_err(), FsError::NotFound);
    assert_eq!(fs(inode::getattr(&t.meta.read(), g)), Err(FsError::Stale));
    assert_eq!(t.attr(f).ctime, t.attr(a).mtime);

    t.op(rename(a, "sub", b, "sub")).unwrap();
    assert_eq!((t.attr(a).nlink, t.attr(b).nlink), (2, 3));
    assert_eq!(t.lookup(sub, "..").unwrap().ino, b);
    t.op(rename(b, "sub", ROOT, "a")).unwrap();
    assert_eq!(t.lookup(ROOT, "a").unwrap().ino, sub);
    assert_eq!((t.attr(ROOT).nlink, t.attr(b).nlink), (4, 2));

    let no_replace = RenameHow::NoReplace;
    t.op(rename_how(b, "g", sub, "g", no_replace)).unwrap();
    let exchange = RenameHow::Exchange;
    t.op(rename_how(sub, "g", ROOT, "b", exchange)).unwrap();
    assert_eq!(t.lookup(ROOT, "b").unwrap().ino, f);
    assert_eq!(t.lookup(sub, "g").unwrap().ino, b);
    assert_eq!(t.lookup(b, "..").unwrap().ino, sub);
    assert_eq!((t.attr(ROOT).nlink, t.attr(sub).nlink), (3, 3));
    t.op(rename_how(ROOT, "a", ROOT, "b", exchange)).unwrap();
    assert_eq!(t.lookup(ROOT, "b").unwrap().ino, sub);
    check_books(&t.meta);

    let v = t.meta.read();
    assert_eq!(dirent::walk(&v, ROOT, b"/b/g").unwrap(), b);
    assert_eq!(dirent::walk(&v, ROOT, b"b//g/../g/.").unwrap(), b);
    assert_eq!(dirent::walk(&v, ROOT, b"").unwrap(), ROOT);
    assert_eq!(
        fs(dirent::walk(&v, ROOT, b"/a/x")).unwrap_err(),
        FsError::NotDir
    );
    assert_eq!(
        fs(dirent::walk(&v, ROOT, b"/b/x")).unwrap_err(),
        FsError::NotFound
    );
    assert!(dirent::is_named(&v, sub, b"g", b).unwrap());
    assert!(!dirent::is_named(&v, sub, b"g", f).unwrap());
    assert!(!dirent::is_named(&v, sub, b"h", b).unwrap());
}

// Attributes.

#[test]
fn setattrs() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let a = attr_of(t.op(setattr(f, chmod(S_IFDIR | 0o6711))));
    assert_eq!(a.mode, S_IFREG | 0o6711);
    let before = t.attr(f);
    let a = attr_of(t.op(setattr(f, SetAttr::default())));
    assert_eq!((a.mtime, a.ctime), (before.mtime, time(t.index as i64)));
    assert_eq!(a.data_version, before.data_version);
    let set = SetAttr {
        uid: Some(5),
        gid: Some(6),
        atime: Some(SetTime::At(time(-3))),
        mtime: Some(SetTime::Now),
        kill_priv: true,
        ..SetAttr::default()
    };
    let a = attr_of(t.op(setattr(f, set)));
    assert_eq!((a.uid, a.gid, a.mode), (5, 6, S_IFREG | 0o711));
    assert_eq!((a.atime, a.mtime), (time(-3), time(t.index as i64)));

    // Mandatory locking, not a program of the group.
    t.op(setattr(f, chmod(0o6701))).unwrap();
    let kill = SetAttr {
        kill_priv: true,
        ..SetAttr::default()
    };
    let a = attr_of(t.op(setattr(f, kill)));
    assert_eq!(a.mode, S_IFREG | 0o2701);

    let a = attr_of(t.op(setattr(f, size(1000))));
    assert_eq!((a.size, a.mtime), (1000, time(t.index as i64)));
    let mut set = size(1000);
    set.mtime = Some(SetTime::At(time(9)));
    let b = attr_of(t.op(setattr(f, set)));
    assert_eq!((b.mtime, b.data_version), (time(9), a.data_version));
}

#[test]
fn ownership() {
    use FsError::*;
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let now = Some(SetTime::Now);
    let then = Some(SetTime::At(time(1)));
    let none = SetAttr::default;
    let chown = |uid, gid| SetAttr { uid, gid, ..none() };
    let times = |atime, mtime| SetAttr {
        atime,
        mtime,
        ..none()
    };
    let group = Cred {
        uid: 12,
        gid: USER.gid,
    };
    let table = [
        (OTHER, chmod(0o600), Err(NotOwner)),
        (OTHER, chown(Some(USER.uid), None), Err(NotOwner)),
        (OTHER, chown(None, Some(OTHER.gid)), Err(NotOwner)),
        (OTHER, times(then, then), Err(NotOwner)),
        (OTHER, times(now, None), Err(NotOwner)),
        (OTHER, times(now, now), Err(NoPermission)),
        (USER, chmod(0o660), Ok(0o660)),
        (group, times(now, now), Ok(0o660)),
        (group, chmod(0o600), Err(NotOwner)),
        (USER, times(then, now), Ok(0o660)),
        (USER, chown(Some(OTHER.uid), None), Err(NotOwner)),
        (USER, chown(None, Some(999)), Err(NotOwner)),
        (USER, chmod(0o6750), Ok(0o6750)),
        (
            USER,
            chown(Some(USER.uid), Some(USER.gid)),
            Ok(0o750), // giving away, even to oneself
        ),
        (SUPER, chmod(0o6750), Ok(0o6750)),
        (SUPER, chown(Some(USER.uid), Some(999)), Ok(0o6750)),
        (USER, chmod(0o2750), Ok(0o750)),
        (SUPER, chmod(0o4755), Ok(0o4755)),
        (USER, size(10), Ok(0o755)),
    ];
    for (cred, set, want) in table {
        let what = format!("{cred:?} {set:?}");
        let outcome = t.op(setattr_as(f, set, Check::Apply(cred)));
        let mode = outcome.map(|r| attr_of(Ok(r)).mode & 0o7777);
        assert_eq!(mode, want, "{what}");
    }
}

/// The kernel has judged by the owner that it knew.
#[test]
fn an_owner_that_was() {
    let mut t = Tree::new();
    let f = t.make(create_as(ROOT, "f", 0o644, USER));
    let by = |owner| Check::Owner {
        uid: USER.uid,
        owner,
    };
    let give = |uid| SetAttr {
        uid: Some(uid),
        ..SetAttr::default()
    };
    let times = |time| SetAttr {
        mtime: Some(time),
        ..SetAttr::default()
    };
    t.op(setattr_as(f, chmod(0o600), by(USER.uid))).unwrap();
    let (outcome, effects) = t.full(setattr(f, give(OTHER.uid)), Payload::none());
    outcome.unwrap();
    assert!(effects.changes.contains(&Change::Owner { ino: f }));
    let before = t.attr(f);
    let at = SetTime::At(Time::default());
    for set in [chmod(0o4777), give(USER.uid), times(at)] {
        let refused = t.op(setattr_as(f, set, by(USER.uid)));
        assert_eq!(refused, Err(FsError::NotOwner));
    }
    assert_eq!(t.attr(f), before);
    // Not by the owner; by a right of his own; or he has it again.
    t.op(setattr_as(f, times(SetTime::Now), by(USER.uid)))
        .unwrap();
    t.op(setattr_as(f, chmod(0o640), by(OTHER.uid))).unwrap();
    t.op(setattr(f, give(USER.uid))).unwrap();
    t.op(setattr_as(f, chmod(0o600), by(OTHER.uid))).unwrap();
    let (_, effects) = t.full(setattr(f, chmod(0o604)), Payload::none());
    assert!(!effects.changes.contains(&Change::Owner { ino: f }));
}

#[test]
fn sticky() {
    let mut t = Tree::new();
    let tmp = t.make(mkdir_as(ROOT, "tmp", 0o1777, SUPER));
    let mine = t.make(mkdir_as(ROOT, "mine", 0o1777, OTHER));
    for name in ["a", "b", "c"] {
        t.make(create(tmp, name));
        t.make(create(mine, name));
    }
    t.make(mkdir(tmp, "d"));
    t.make(create_as(tmp, "other", 0o644, OTHER));
    let check = Check::Apply(OTHER);
    let unlink = |parent, name: &str, check| Op::Unlink {
        parent,
        name: name.into(),
        check,
    };
    let rename = |name: &str, new_name: &str, how, check| Op::Rename {
        parent: tmp,
        name: name.into(),
        new_parent: tmp,
        new_name: new_name.into(),
        how,
        check,
    };
    let refused = Err(FsError::NotOwner);
    assert_eq!(t.op(unlink(tmp, "a", check)), refused);
    let op = Op::Rmdir {
        parent: tmp,
        name: b"d".to_vec(),
        check,
    };
    assert_eq!(t.op(op), refused);
    let replace = RenameHow::Replace;
    assert_eq!(t.op(rename("a", "x", replace, check)), refused);
    assert_eq!(t.op(rename("other", "a", replace, check)), refused);
    let exchange = RenameHow::Exchange;
    assert_eq!(t.op(rename("other", "a", exchange, check)), refused);
    t.op(rename("other", "x", replace, check)).unwrap();
    t.op(unlink(mine, "a", check)).unwrap();
    t.op(unlink(tmp, "a", Check::Apply(USER))).unwrap();
    t.op(unlink(tmp, "b", Check::Apply(SUPER))).unwrap();
    t.op(unlink(tmp, "c", Check::Kernel)).unwrap();
}

// Contents.

#[test]
fn small_files_stay_inline() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let (outcome, effects) = t.write_at(f, WriteAt::Offset(3), b"abc");
    let attr = t.attr(f);
    assert_eq!(outcome, Ok(Reply::Written { offset: 3, attr }));
    let data = Some(3);
    assert_eq!(effects.changes, [Change::Inode { ino: f, data }]);
    assert_eq!(effects.data, []);
    assert_eq!(t.inline(f), b"\0\0\0abc");
    assert_eq!(t.attr(f).blocks, 8);
    t.write_at(f, WriteAt::Offset(4), b"X").0.unwrap();
    assert_eq!(t.inline(f), b"\0\0\0aXc");
    let (outcome, _) = t.write_at(f, WriteAt::End, b"end");
    let attr = t.attr(f);
    assert_eq!(outcome, Ok(Reply::Written { offset: 6, attr }));
    t.op(setattr(f, size(5))).unwrap();
    t.op(setattr(f, size(7))).unwrap();
    assert_eq!(t.inline(f), b"\0\0\0aX\0\0");

    let before = t.attr(f);
    let (outcome, effects) = t.write_at(f, WriteAt::Offset(100), b"");
    let attr = before.clone();
    assert_eq!(outcome, Ok(Reply::Written { offset: 100, attr }));
    assert_eq!(effects, Effects::default());
    t.write(f, INLINE_MAX as u64 - 1, 1).0.unwrap();
    assert_eq!(t.attr(f).size, INLINE_MAX as u64);
    assert!(t.attr(f).data_version > before.data_version);
    assert_eq!(t.used_blocks(), 0);
}

#[test]
fn larger_files_move_out() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    t.write_at(f, WriteAt::Offset(0), b"abc").0.unwrap();
    let (_, effects) = t.write(f, INLINE_MAX as u64, 1);
    let want = [
        DataOp::Spill {
            ino: f,
            contents: b"abc".to_vec(),
        },
        DataOp::Write {
            ino: f,
            offset: INLINE_MAX as u64,
        },
    ];
    assert_eq!(effects.data, want);
    let data = Some(INLINE_MAX as u64);
    let want = [Change::Spilled { ino: f }, Change::Inode { ino: f, data }];
    assert_eq!(effects.changes, want);
    let a = t.attr(f);
    assert_eq!((a.size, a.blocks), (INLINE_MAX as u64 + 1, 8));
    assert_eq!(t.used_blocks(), 1);

    // One-way.
    let e = t.effects(setattr(f, size(0)));
    assert_eq!(e.data, [DataOp::Truncate { ino: f, size: 0 }]);
    assert_eq!(t.used_blocks(), 0);
    let (_, e) = t.write_at(f, WriteAt::End, b"abc");
    assert_eq!(e.data, [DataOp::Write { ino: f, offset: 0 }]);

    // By truncate.
    let g = t.make(create(ROOT, "g"));
    let e = t.effects(setattr(g, size(64 << 30)));
    let want = [
        DataOp::Spill {
            ino: g,
            contents: vec![],
        },
        DataOp::Truncate {
            ino: g,
            size: 64 << 30,
        },
    ];
    assert_eq!(e.data, want);
    assert_eq!((t.attr(g).size, t.attr(g).blocks), (64 << 30, 0));
    assert_eq!(t.used_blocks(), 1);
    let e = t.effects(unlink(ROOT, "g"));
    assert_eq!(e.data, [DataOp::Remove { ino: g }]);
    let e = t.effects(unlink(ROOT, "f"));
    assert_eq!(e.data, [DataOp::Remove { ino: f }]);
    assert_eq!(t.used_blocks(), 0);
    check_books(&t.meta);
}

fn fallocate(ino: InodeNo, how: FallocateHow, range: std::ops::Range<u64>, keep_size: bool) -> Op {
    let what = Fallocate {
        how,
        offset: range.start,
        len: range.end - range.start,
        keep_size,
        kill_priv: false,
    };
    Op::Fallocate { ino, what }
}

/// The blocks of a file, in three ways that must agree.
fn blocks(t: &Tree, ino: InodeNo) -> u64 {
    let counted = space::count(&t.meta.read(), ino).unwrap();
    assert_eq!(t.attr(ino).blocks, counted * (BLOCK / 512));
    counted
}

#[test]
fn room_before_it_is_written() {
    use FallocateHow::{Punch, Reserve, Zero};
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    t.write(f, 0, 100).0.unwrap();
    let before = t.attr(f);
    // In the record, as long as all fits there.
    t.op(fallocate(f, Reserve, 0..1500, true)).unwrap();
    let attr = t.attr(f);
    assert_eq!((attr.size, attr.mtime), (100, before.mtime));
    assert!(attr.ctime > before.ctime && attr.data_version == before.data_version);
    t.op(fallocate(f, Reserve, 50..200, false)).unwrap();
    let attr = t.attr(f);
    assert!(attr.mtime > before.mtime && attr.data_version > before.data_version);
    assert_eq!(t.inline(f), [vec![b'x'; 100], vec![0; 100]].concat());
    t.op(fallocate(f, Punch, 10..1 << 40, true)).unwrap();
    t.op(fallocate(f, Zero, 190..210, false)).unwrap();
    t.op(fallocate(f, Zero, 0..2, true)).unwrap();
    let want = [&[0; 2][..], &[b'x'; 8], &[0; 200]].concat();
    assert_eq!(t.inline(f), want);

    // Out of it, with the blocks of what is beyond the end.
    let (outcome, effects) = t.full(
        fallocate(f, Reserve, 8192..3 * 4096 + 1, true),
        Payload::none(),
    );
    assert_eq!(attr_of(outcome).size, 210);
    let contents = want;
    let reserve = DataOp::Reserve {
        ino: f,
        offset: 8192,
        len: 4097,
        blocks: 3,
    };
    assert_eq!(effects.data, [DataOp::Spill { ino: f, contents }, reserve]);
    assert!(effects.changes.contains(&Change::Spilled { ino: f }));
    assert_eq!((blocks(&t, f), t.used_blocks()), (3, 3));
    // Once more costs nothing; to write there takes no block.
    t.op(fallocate(f, Reserve, 8192..3 * 4096 + 1, true))
        .unwrap();
    t.write(f, 9000, 100).0.unwrap();
    assert_eq!((blocks(&t, f), t.used_blocks()), (3, 3));
    assert_eq!(t.attr(f).size, 9100);

    // Whole blocks go, and the last one if nothing is behind.
    let e = t.effects(fallocate(f, Punch, 100..8193, true));
    let zero = |offset, len| DataOp::Zero {
        ino: f,
        offset,
        len,
    };
    assert_eq!(e.data, [zero(100, 8093)]);
    assert_eq!(
        e.changes,
        [Change::Inode {
            ino: f,
            data: Some(100)
        }]
    );
    assert_eq!(blocks(&t, f), 3);
    let e = t.effects(fallocate(f, Punch, 0..9100, true));
    assert_eq!(e.data, [zero(0, 12288)]);
    assert_eq!((blocks(&t, f), t.used_blocks()), (1, 1), "beyond the end");
    t.op(fallocate(f, Punch, 0..FILE_MAX, true)).unwrap();
    assert_eq!(
        (blocks(&t, f), t.used_blocks(), t.attr(f).size),
        (0, 0, 9100)
    );

    let e = t.effects(fallocate(f, Zero, 4096..20_000, false));
    let reserve = DataOp::Reserve {
        ino: f,
        offset: 4096,
        len: 15_904,
        blocks: 4,
    };
    let truncate = DataOp::Truncate {
        ino: f,
        size: 20_000,
    };
    assert_eq!(e.data, [zero(4096, 15_904), reserve, truncate]);
    assert_eq!(blocks(&t, f), 4);
    t.op(setattr(f, size(5000))).unwrap();
    assert_eq!((blocks(&t, f), t.used_blocks()), (1, 1));
}

#[test]
fn fallocate_refused() {
    use FallocateHow::{Punch, Reserve, Zero};
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let d = t.make(mkdir(ROOT, "d"));
    let pipe = t.make(mknod(ROOT, "p", 0o010644));
    for how in [Reserve, Punch, Zero] {
        let mut op = |ino, range, keep| t.op(fallocate(ino, how, range, keep));
        assert_eq!(op(f, 5..5, true), Err(FsError::Invalid));
        assert_eq!(op(f, 0..FILE_MAX + 1, true), Err(FsError::TooBig));
        assert_eq!(op(f, u64::MAX - 1..u64::MAX, true), Err(FsError::TooBig));
        assert_eq!(op(d, 0..1, true), Err(FsError::IsDir));
        assert_eq!(op(pipe, 0..1, true), Err(FsError::Invalid));
        assert_eq!(op(InodeNo(99), 0..1, true), Err(FsError::Stale));
    }
    let punch = fallocate(f, Punch, 0..1, false);
    assert_eq!(t.op(punch), Err(FsError::Invalid));
    // Of 10 blocks 4 are taken, and others by the inodes and the extents.
    let report = Op::Capacity {
        node: NodeId(1),
        bytes: 15 * BLOCK,
        inodes: 100,
    };
    t.op(report).unwrap();
    t.write(f, 0, 4 * 4096).0.unwrap();
    let before = t.attr(f);
    for range in [0..11 * BLOCK, 0..FILE_MAX, 7 * BLOCK..14 * BLOCK] {
        let (outcome, effects) = t.full(fallocate(f, Reserve, range, true), Payload::none());
        assert_eq!(outcome, Err(FsError::NoSpace));
        assert_eq!(effects, Effects::default());
    }
    assert_eq!(t.attr(f), before);
    t.op(fallocate(f, Reserve, 0..10 * BLOCK, true)).unwrap();
    t.op(fallocate(f, Punch, 0..BLOCK, true)).unwrap();
    assert_eq!((blocks(&t, f), t.used_blocks()), (9, 9));
    t.op(setattr(f, chmod(0o6755))).unwrap();
    let Op::Fallocate { ino, mut what } = fallocate(f, Zero, 0..1, true) else {
        panic!();
    };
    what.kill_priv = true;
    let attr = attr_of(t.op(Op::Fallocate { ino, what }));
    assert_eq!(attr.mode & 0o7777, 0o755);
}

#[test]
fn holes_are_found() {
    use space::Found::{Block, Nothing, Unto};
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let g = t.make(create(ROOT, "g"));
    t.write(g, 0, 5000).0.unwrap();
    // Blocks 2 and 3, the last of an extent and the first of the next, all of
    // a third, and one 4 TiB away.
    let far = 1 << 30;
    for range in [2..4, 255..257, 512..768, far..far + 1] {
        let range = range.start * BLOCK..range.end * BLOCK;
        t.op(fallocate(f, FallocateHow::Zero, range, false))
            .unwrap();
    }
    let data = |from, n| space::find_data(&t.meta.read(), f, from, n).unwrap();
    let hole = |from, n| space::find_hole(&t.meta.read(), f, from, n).unwrap();
    for (from, want_data, want_hole) in [
        (0, Block(2), Block(0)),
        (2, Block(2), Block(4)),
        (3, Block(3), Block(4)),
        (4, Block(255), Block(4)),
        (255, Block(255), Block(257)),
        (256, Block(256), Block(257)),
        (257, Block(512), Block(257)),
        (600, Block(600), Block(768)),
        (768, Block(far), Block(768)),
        (far, Block(far), Block(far + 1)),
        (far + 1, Nothing, Block(far + 1)),
        (u64::MAX / BLOCK, Nothing, Block(u64::MAX / BLOCK)),
    ] {
        assert_eq!(data(from, 9), want_data, "{from}");
        assert_eq!(hole(from, 9), want_hole, "{from}");
    }
    assert_eq!(data(257, 1), Unto(512));
    assert_eq!(hole(255, 1), Unto(256));
    assert_eq!(hole(512, 0), Unto(512));
}

#[test]
fn times_of_access() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let made = t.attr(f);
    let read = |t: &Tree, ino| Op::Accessed {
        inodes: vec![(InodeNo(999), Time::default()), (ino, t.attr(ino).ctime)],
    };
    let op = read(&t, f);
    let effects = t.effects(op.clone());
    let data = None;
    assert_eq!(effects.changes, [Change::Inode { ino: f, data }]);
    let attr = t.attr(f);
    let want = Attr {
        atime: time(t.index as i64),
        ..made
    };
    assert_eq!(attr, want, "nothing else moves");
    // Not again, by nobody.
    assert_eq!(t.effects(op), Effects::default());
    // What has changed since it was read is left alone.
    let op = read(&t, f);
    let set = SetAttr {
        atime: Some(SetTime::At(time(1))),
        ..SetAttr::default()
    };
    t.op(setattr(f, set)).unwrap();
    assert_eq!(t.effects(op), Effects::default());
    assert_eq!(t.attr(f).atime, time(1));
    let op = read(&t, f);
    t.op(op).unwrap();
    assert_eq!(t.attr(f).atime, time(t.index as i64));
    // A day later.
    let (op, atime) = (read(&t, f), t.attr(f).atime);
    for (later, moves) in [(86_399, false), (86_400, true)] {
        let cmd = Command {
            origin: None,
            time: time(atime.sec + later),
            op: op.clone(),
            payload: Payload::none(),
        };
        let (_, effects) = t.apply(&cmd);
        assert_eq!(effects.changes.len(), usize::from(moves));
    }
    assert_eq!(t.attr(f).atime, time(atime.sec + 86_400));
}

#[test]
fn blocks_are_counted() {
    const B: u64 = BLOCK;
    const E: u64 = 256 * BLOCK;
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    t.op(setattr(f, size(FILE_MAX))).unwrap();
    // Offset, length, blocks that it takes.
    let table = [
        (10 * B, B, 1),
        (10 * B, B, 0),
        (10 * B - 1, 1, 1),
        (10 * B - 1, B + 2, 1),
        (0, 1, 1),
        (E - 1, 2, 2),
        (2 * E - B, 2 * B, 2),
        (4 * E, E, 256),
        (5 * E - B, E + 2 * B, 257),
        (FILE_MAX - B, B, 1),
        (FILE_MAX - B, B, 0),
    ];
    let mut total = 0;
    for (offset, len, blocks) in table {
        t.write(f, offset, len as usize).0.unwrap();
        total += blocks;
        assert_eq!(t.used_blocks(), total, "{offset} {len}");
        assert_eq!(t.attr(f).blocks, total * 8);
    }
    // Size, blocks that are left.
    let table = [
        (FILE_MAX - B + 1, total),
        (FILE_MAX - B, total - 1),
        (5 * E, total - 258),
        (4 * E + 1, total - 258 - 255),
        (4 * E, total - 258 - 256),
        (2 * E + 1, total - 258 - 256),
        (2 * E, total - 258 - 257),
        (11 * B, 3),
        (9 * B + 1, 2),
        (1, 1),
        (1, 1),
        (0, 0),
    ];
    for (to, left) in table {
        t.op(setattr(f, size(to))).unwrap();
        assert_eq!(t.used_blocks(), left, "{to}");
        check_books(&t.meta);
    }
}

#[test]
fn room() {
    use FsError::NoSpace;
    let mut t = Tree::new();
    let capacity = |node, blocks, inodes| Op::Capacity {
        node: NodeId(node),
        bytes: blocks * BLOCK + 100,
        inodes,
    };
    let free = |t: &Tree| {
        let s = space::statfs(&t.meta.read(), ROOT).unwrap();
        (s.bytes_free / BLOCK, s.inodes_free)
    };
    assert!(free(&t).0 > 1 << 30);
    t.op(capacity(1, 100, 10)).unwrap();
    t.op(capacity(2, 9, 6)).unwrap();
    t.op(capacity(3, 50, 100)).unwrap();
    // An inode takes a block.
    assert_eq!(free(&t), (8, 5));

    let f = t.make(create(ROOT, "f"));
    let g = t.make(create(ROOT, "g"));
    t.write_at(g, WriteAt::Offset(0), b"inline").0.unwrap();
    t.write(f, 0, 4 * BLOCK as usize).0.unwrap();
    // And so do the first extents.
    assert_eq!(free(&t), (1, 2));
    let before = dump(&t.meta.read());
    assert_eq!(t.write(f, 3 * BLOCK, 3 * BLOCK as usize).0, Err(NoSpace));
    assert_eq!(t.write(g, 1 << 20, 1).0, Err(NoSpace), "spill and write");
    assert!(before == dump(&t.meta.read()), "a refusal left a trace");
    t.write(f, 4 * BLOCK, 1).0.unwrap();
    t.write(f, 0, 5 * BLOCK as usize).0.unwrap();
    assert_eq!(t.write(f, 5 * BLOCK, 1).0, Err(NoSpace));
    assert_eq!(t.op(setattr(g, size(1 << 20))), Err(NoSpace));
    t.op(setattr(f, size(1 << 30))).unwrap();
    t.write(g, 0, 100).0.unwrap();

    // No room for more metadata: blocks, but no further extents.
    t.op(capacity(2, 1 << 20, 4)).unwrap();
    assert_eq!(free(&t).1, 0);
    t.write(f, 5 * BLOCK, 3 * BLOCK as usize).0.unwrap();
    for extent in 1..32 {
        t.write(f, extent << 20, 1).0.unwrap();
    }
    let before = dump(&t.meta.read());
    assert_eq!(t.write(f, 32 << 20, 1).0, Err(NoSpace), "an extent");
    assert_eq!(t.write(g, 1 << 20, 1).0, Err(NoSpace), "two, and a spill");
    assert!(before == dump(&t.meta.read()), "a refusal left a trace");
    t.op(setattr(f, size(5 * BLOCK))).unwrap();

    // A voter has less than there is already.
    t.op(capacity(2, 3, 2)).unwrap();
    assert_eq!(free(&t), (0, 0));
    t.write(f, 0, 100).0.unwrap();
    assert_eq!(t.op(create(ROOT, "h")), Err(NoSpace));
    assert_eq!(t.op(mkdir(ROOT, "h")), Err(NoSpace));
    assert_eq!(t.op(symlink(ROOT, "h", "t")), Err(NoSpace));
    assert_eq!(t.op(link(g, ROOT, "h")), Err(NoSpace), "a name is a record");
    t.op(rename(ROOT, "g", ROOT, "h")).unwrap();
    t.op(rename(ROOT, "h", ROOT, "g")).unwrap();
    t.op(setattr(f, size(BLOCK))).unwrap();
    t.write(g, BLOCK, 1).0.unwrap_err();
    t.op(unlink(ROOT, "f")).unwrap();
    t.op(setattr(g, size(1 << 20))).unwrap();
    t.op(unlink(ROOT, "g")).unwrap();
    let h = t.make(create(ROOT, "h"));
    t.op(capacity(2, 1000, 1000)).unwrap();
    assert_eq!(free(&t), (48, 8));
    // Names and long targets use up what inodes would.
    t.op(link(h, ROOT, "i")).unwrap();
    assert_eq!(free(&t), (47, 7));
    t.op(symlink(ROOT, "short", "t")).unwrap();
    assert_eq!(free(&t), (46, 6));
    t.op(symlink(ROOT, "long", &"t".repeat(INLINE_MAX + 1)))
        .unwrap();
    assert_eq!(free(&t), (43, 3));
    let long = symlink(ROOT, "more", &"t".repeat(SYMLINK_MAX));
    t.op(long.clone()).unwrap();
    t.op(unlink(ROOT, "more")).unwrap();
    t.op(create(ROOT, "j")).unwrap();
    assert_eq!(t.op(long), Err(NoSpace));
    t.op(unlink(ROOT, "h")).unwrap();
    assert_eq!(free(&t), (43, 3));
    t.op(unlink(ROOT, "long")).unwrap();
    assert_eq!(free(&t), (46, 6));
    check_books(&t.meta);
}

#[test]
fn floor_only_rises() {
    let mut t = Tree::new();
    for _ in 0..20 {
        t.op(Op::Nop).unwrap();
    }
    for (index, want) in [(5, 5), (3, 5), (9, 9)] {
        t.op(Op::Floor { index }).unwrap();
        assert_eq!(space::floor(&t.meta.read()).unwrap(), want);
    }
    // Not even to where the log has not come.
    t.op(Op::Floor { index: 1 << 40 }).unwrap();
    assert!(space::floor(&t.meta.read()).unwrap() < 100);
}

#[test]
fn lost_payload_is_no_verdict() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let cmd = Command {
        origin: None,
        time: time(1),
        op: Op::Write {
            ino: f,
            at: WriteAt::End,
            kill_priv: false,
        },
        payload: Payload {
            len: 7,
            ..Payload::none()
        },
    };
    let e = apply(&mut t.meta.write(), 9, &cmd).unwrap_err();
    assert_eq!(e.to_string(), "metadata: payload: bytes missing");
}

// Exactly once.

fn by(session: SessionId, seq: u64, acked: u64, op: Op) -> Command {
    Command {
        origin: Some(Origin {
            session,
            seq,
            acked,
        }),
        time: time(1),
        op,
        payload: Payload::none(),
    }
}

#[test]
fn exactly_once() {
    let mut t = Tree::new();
    let s = t.session(1, 100);
    let verdict = |t: &mut Tree, s, seq, acked, op: &Op| t.apply(&by(s, seq, acked, op.clone())).0;
    let mk = |name: &str| create(ROOT, name);

    let gap = verdict(&mut t, s, 2, 0, &mk("b"));
    assert_eq!(gap, Verdict::Gap { expected: 1 });
    let first = verdict(&mut t, s, 1, 0, &mk("a"));
    let Verdict::Done(done @ Ok(_)) = first else {
        panic!("{first:?}")
    };
    let again = verdict(&mut t, s, 1, 0, &mk("a"));
    assert_eq!(again, Verdict::Duplicate(Some(done.clone())));
    // A given up seq is proposed again as a no-op; the first counts.
    let again = verdict(&mut t, s, 1, 0, &Op::Nop);
    assert_eq!(again, Verdict::Duplicate(Some(done)));
    let nop = verdict(&mut t, s, 2, 0, &Op::Nop);
    assert_eq!(nop, Verdict::Done(Ok(Reply::Done)));
    let late = verdict(&mut t, s, 2, 0, &mk("late"));
    assert_eq!(late, Verdict::Duplicate(Some(Ok(Reply::Done))));
    assert_eq!(t.lookup(ROOT, "late"), Err(FsError::NotFound));

    // Refusals are replies as well.
    let refused = verdict(&mut t, s, 3, 1, &mk("a"));
    assert_eq!(refused, Verdict::Done(Err(FsError::Exists)));
    let again = verdict(&mut t, s, 3, 1, &mk("a"));
    assert_eq!(again, Verdict::Duplicate(Some(Err(FsError::Exists))));
    let acked = verdict(&mut t, s, 1, 0, &mk("a"));
    assert_eq!(acked, Verdict::Duplicate(None));
    let gap = verdict(&mut t, s, 5, 4, &mk("c"));
    assert_eq!(gap, Verdict::Gap { expected: 4 });
    // Nobody can have heard of what comes after.
    let bold = verdict(&mut t, s, 4, 99, &mk("c"));
    assert!(matches!(bold, Verdict::Done(Ok(_))));
    assert!(matches!(
        verdict(&mut t, s, 4, 99, &mk("c")),
        Verdict::Duplicate(Some(_))
    ));
    assert_eq!(verdict(&mut t, s, 0, 0, &mk("c")), Verdict::Duplicate(None));
    let unknown = verdict(&mut t, SessionId(77), 1, 0, &mk("d"));
    assert_eq!(unknown, Verdict::Retired);
    let nested = Op::OpenSession {
        node: NodeId(1),
        nonce: 5,
        lease: LEASE,
    };
    let nested = verdict(&mut t, s, 5, 0, &nested);
    assert_eq!(nested, Verdict::Done(Err(FsError::Invalid)));
    assert_eq!(names(&t.meta, ROOT), [".", "..", "a", "c"]);
}

#[test]
fn sessions() {
    let mut t = Tree::new();
    let a = t.session(1, 100);
    let b = t.session(2, 200);
    // The retry of an opening that worked opens nothing.
    t.session(1, 100);
    let live = |t: &Tree| {
        let sessions = dedup::sessions(&t.meta.read()).unwrap();
        sessions.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(live(&t), [a, b]);
    let find = |t: &Tree, n, nonce| dedup::find(&t.meta.read(), NodeId(n), nonce).unwrap();
    assert_eq!(find(&t, 1, 100), Some(a));
    assert_eq!(find(&t, 1, 101), None);

    let clean = dump(&t.meta.read()).len();
    for seq in 1..=10 {
        t.apply(&by(a, seq, 0, Op::Nop));
        t.apply(&by(b, seq, seq - 1, Op::Nop));
    }
    assert_eq!(dump(&t.meta.read()).len(), clean + 10 + 1);
    let c = t.session(1, 101);
    assert_eq!(live(&t), [b, c]);
    assert_eq!(dump(&t.meta.read()).len(), clean + 1);
    let old = t.apply(&by(a, 11, 0, create(ROOT, "x"))).0;
    assert_eq!(old, Verdict::Retired);
    let session = dedup::session(&t.meta.read(), b).unwrap().unwrap();
    assert_eq!((session.next, session.acked), (11, 9));
}

// Orphans.

fn release(t: &mut Tree, s: SessionId, inodes: &[InodeNo]) -> Effects {
    let next = dedup::session(&t.meta.read(), s).unwrap().unwrap().next;
    let inodes = inodes.to_vec();
    let (verdict, effects) = t.apply(&by(s, next, 0, Op::Release { inodes }));
    assert_eq!(verdict, Verdict::Done(Ok(Reply::Done)));
    effects
}

#[test]
fn orphans() {
    let mut t = Tree::new();
    let (a, b) = (t.session(1, 1), t.session(2, 1));
    let f = t.make(create(ROOT, "f"));
    t.write(f, 0, 10_000).0.unwrap();
    let e = t.effects(unlink(ROOT, "f"));
    assert_eq!(e.data, []);
    assert_eq!(e.changes.last(), Some(&Change::Orphan { ino: f }));
    assert_eq!(t.attr(f).nlink, 0);
    let list = orphan::list(&t.meta.read()).unwrap();
    assert_eq!(list, [(f, vec![a, b])]);

    // Held open, it is a file like any other, but can have no name again.
    t.write(f, 10_000, 10_000).0.unwrap();
    t.op(setattr(f, size(15_000))).unwrap();
    assert_eq!(t.op(link(f, ROOT, "g")), Err(FsError::NotFound));
    assert_eq!(t.used_blocks(), 4);
    check_books(&t.meta);

    assert_eq!(release(&mut t, a, &[f, ROOT, InodeNo(99)]).changes, []);
    assert_eq!(release(&mut t, a, &[f]).changes, [], "twice");
    t.attr(f);
    let e = release(&mut t, b, &[f]);
    assert_eq!(e.data, [DataOp::Remove { ino: f }]);
    assert_eq!(e.changes, [Change::Gone { ino: f }]);
    assert_eq!(t.used_blocks(), 0);
    assert_eq!(fs(inode::getattr(&t.meta.read(), f)), Err(FsError::Stale));
    assert!(orphan::list(&t.meta.read()).unwrap().is_empty());
    check_books(&t.meta);
}

#[test]
fn orphans_end_with_their_sessions() {
    let mut t = Tree::new();
    let a = t.session(1, 1);
    let f = t.make(create(ROOT, "f"));
    let g = t.make(create(ROOT, "g"));
    t.op(rename(ROOT, "f", ROOT, "g")).unwrap();
    let b = t.session(2, 1);
    t.op(unlink(ROOT, "g")).unwrap();
    let list = orphan::list(&t.meta.read()).unwrap();
    assert_eq!(list, [(f, vec![a, b]), (g, vec![a])]);
    let e = t.effects(Op::OpenSession {
        node: NodeId(1),
        nonce: 2,
        lease: LEASE,
    });
    assert_eq!(e.changes, [Change::Gone { ino: g }]);
    assert_eq!(e.data, [], "never had a backing file");
    assert_eq!(orphan::list(&t.meta.read()).unwrap(), [(f, vec![b])]);
    check_books(&t.meta);
}

#[test]
fn removed_directories() {
    use FsError::*;
    let mut t = Tree::new();
    let a = t.session(1, 1);
    let d = t.make(mkdir(ROOT, "d"));
    let f = t.make(create(ROOT, "f"));
    t.op(rmdir(ROOT, "d")).unwrap();
    assert_eq!(t.attr(d).nlink, 0);
    assert_eq!(names(&t.meta, d), [".", ".."]);
    // Its name may be another directory's by now: whoever asks shall look again.
    assert_eq!(t.op(create(d, "x")), Err(Stale));
    assert_eq!(t.op(mkdir(d, "x")), Err(Stale));
    assert_eq!(t.op(link(f, d, "x")), Err(Stale));
    assert_eq!(t.op(rename(ROOT, "f", d, "x")), Err(Stale));
    assert_eq!(t.op(rmdir(d, "x")), Err(Stale));
    t.op(setattr(d, chmod(0o700))).unwrap();
    let e = release(&mut t, a, &[d]);
    assert_eq!(e.changes, [Change::Gone { ino: d }]);
    assert_eq!(e.data, []);

    // Replaced by rename.
    let old = t.make(mkdir(ROOT, "old"));
    t.make(mkdir(ROOT, "new"));
    let e = t.effects(rename(ROOT, "new", ROOT, "old"));
    assert_eq!(e.changes.last(), Some(&Change::Orphan { ino: old }));
    check_books(&t.meta);
}

// Listings.

#[test]
fn large_directory() {
    const N: usize = 100_000;
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    for n in 0..N {
        t.make(create(d, &format!("file-{n}")));
        if n % 30_000 == 0 {
            t.checkpoint();
        }
    }
    // Every second entry goes away while it is listed, some of them renamed
    // in place; those that stay are seen once each, in order.
    let mut seen = Vec::new();
    let mut after = Cookie(0);
    let mut round = 0;
    loop {
        let v = t.meta.read();
        let (entries, eof) = dirent::readdir(&v, d, after, 64 << 10, round % 2 == 0).unwrap();
        drop(v);
        assert!(!entries.is_empty() || eof);
        for e in &entries {
            assert!(e.next > after);
            after = e.next;
            if let Some(attr) = &e.attr {
                assert_eq!((attr.ino, attr.mode & S_IFMT), (e.ino, e.kind));
            }
            seen.push(String::from_utf8(e.name.clone()).unwrap());
        }
        if eof {
            break;
        }
        for n in (round * 2500..(round + 1) * 2500).step_by(2) {
            if n < N {
                t.op(unlink(d, &format!("file-{n}"))).unwrap();
            }
        }
        if round == 7 {
            t.checkpoint();
        }
        round += 1;
    }
    assert_eq!(seen[..2], [".", ".."]);
    let odd: Vec<usize> = seen[2..]
        .iter()
        .map(|name| name["file-".len()..].parse().unwrap())
        .filter(|n| n % 2 == 1)
        .collect();
    assert!(odd.iter().copied().eq((1..N).step_by(2)));
    check_books(&t.meta);
}

#[test]
fn listings_resume() {
    let mut t = Tree::new();
    for name in ["a", "b", "c", "d"] {
        t.make(create(ROOT, name));
    }
    let ls = |t: &Tree, after, max| {
        let v = t.meta.read();
        let (list, eof) = dirent::readdir(&v, ROOT, Cookie(after), max, false).unwrap();
        let names = list
            .iter()
            .map(|e| (String::from_utf8(e.name.clone()).unwrap(), e.next.0));
        (names.collect::<Vec<_>>(), eof)
    };
    let pair = |name: &str, next: u64| (name.to_string(), next);
    assert_eq!(ls(&t, 0, 0).0, [pair(".", 1), pair("..", 2)]);
    assert_eq!(ls(&t, 2, 0), (vec![pair("a", 3)], false));
    assert_eq!(ls(&t, 5, 0), (vec![pair("d", 6)], true));
    assert_eq!(ls(&t, 6, 0), (vec![], true));
    assert_eq!(ls(&t, u64::MAX, 0), (vec![], true));
    t.op(unlink(ROOT, "b")).unwrap();
    // A replaced name stays where it was, a new one comes last.
    t.op(rename(ROOT, "d", ROOT, "c")).unwrap();
    t.make(create(ROOT, "b"));
    let want = [pair("c", 5), pair("b", 7)];
    assert_eq!(ls(&t, 3, 4096), (want.to_vec(), true));
}

// Long logs.

/// All that is alike on all nodes.
fn dump(v: &View<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    v.range(b"", b"")
        .unwrap()
        .map(Result::unwrap)
        .filter(|(k, _)| !k.starts_with(b"!"))
        .map(|(k, v)| (k.to_vec(), v.to_vec()))
        .collect()
}

/// What must be true of any tree: counts of blocks, links and entries, and
/// who is whose parent.
fn check_books(meta: &Meta) {
    let v = meta.read();
    let sup = space::load(&v).unwrap();
    let mut inodes: BTreeMap<InodeNo, Inode> = BTreeMap::new();
    for (key, _) in dump(&v).iter().filter(|(k, _)| k.first() == Some(&b'i')) {
        let ino = InodeNo(u64::from_be_bytes(key[1..].try_into().unwrap()));
        inodes.insert(ino, inode::load(&v, ino).unwrap());
    }
    assert_eq!(sup.used_inodes, inodes.len() as u64);
    assert!(inodes.keys().all(|ino| *ino < sup.next_ino));

    let sum = |count: fn(&Inode) -> u64| inodes.values().map(count).sum::<u64>();
    assert_eq!(sup.extra, sum(Inode::extra));
    assert_eq!(sup.counted_blocks(), sum(Inode::blocks));
    quota::check_books(&v, &inodes);

    let mut used = 0;
    let mut links: BTreeMap<InodeNo, u32> = BTreeMap::from([(ROOT, 1)]);
    for (ino, i) in &inodes {
        let blocks = space::count(&v, *ino).unwrap();
        used += blocks;
        let xattrs = attributes::bytes(&v, *ino);
        assert_eq!(i.xattrs as usize, xattrs, "{ino}");
        assert_eq!(i.xattr_blocks(), attributes::blocks(xattrs), "{ino}");
        match &i.contents {
            Contents::Backing { blocks: b, size } => {
                assert_eq!(*b, blocks, "{ino}");
                assert!(*size <= FILE_MAX);
            }
            Contents::Inline(bytes) => assert!(bytes.len() <= INLINE_MAX && blocks == 0),
            Contents::Directory {
                entries, parent, ..
            } => {
                let (list, _) = dirent::readdir(&v, *ino, Cookie(2), usize::MAX, false).unwrap();
                assert_eq!(*entries, list.len() as u64, "{ino}");
                if i.nlink > 0 && *ino != ROOT {
                    *links.entry(*parent).or_default() += 1;
                }
                for e in list {
                    let child = &inodes[&e.ino];
                    assert_eq!(child.kind(), e.kind);
                    assert!(dirent::is_named(&v, *ino, &e.name, e.ino).unwrap());
                    *links.entry(e.ino).or_default() += 1;
                    if let Contents::Directory { parent, .. } = child.contents {
                        assert_eq!(parent, *ino);
                        assert!(dirent::walk(&v, ROOT, b"").is_ok());
                    }
                }
                if i.nlink > 0 {
                    *links.entry(*ino).or_default() += 1;
                }
            }
            _ => assert_eq!(blocks, 0),
        }
    }
    assert_eq!(sup.used_blocks, used);
    let extents = dump(&v).iter().filter(|(k, _)| k[0] == b'e').count();
    let kept: usize = inodes.keys().map(|ino| extents_of(&v, *ino)).sum();
    assert_eq!(extents, kept, "extents of nobody");
    assert_eq!(sup.extents, kept as u64);
    let xattrs = dump(&v).iter().filter(|(k, _)| k[0] == b'x').count();
    let kept: usize = inodes.keys().map(|ino| attributes::count(&v, *ino)).sum();
    assert_eq!(xattrs, kept, "attributes of nobody");
    let orphans: BTreeMap<_, _> = orphan::list(&v).unwrap().into_iter().collect();
    for (ino, i) in &inodes {
        let want = links.get(ino).copied().unwrap_or(0);
        assert_eq!(i.nlink, want, "{ino}");
        assert_eq!(i.nlink == 0, orphans.contains_key(ino), "{ino}");
    }
    let names = dump(&v).iter().filter(|(k, _)| k[0] == b'd').count();
    let cookies = dump(&v).iter().filter(|(k, _)| k[0] == b'c').count();
    assert_eq!(names, cookies);
}

fn extents_of(v: &View<'_>, ino: InodeNo) -> usize {
    let mut prefix = vec![b'e'];
    prefix.extend(ino.0.to_be_bytes());
    v.range(b"", &prefix).unwrap().count()
}

/// splitmix64: the same log every time.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// Makes a log of sensible and senseless operations over a small tree.
struct Script {
    rng: Rng,
    /// Numbers that exist, existed or never will.
    inodes: u64,
    /// Not long ago these were there.
    dirs: Vec<InodeNo>,
    others: Vec<InodeNo>,
    sessions: Vec<(SessionId, dedup::Session)>,
    nonce: u64,
    unfinished: Option<TreeNo>,
    /// Directories with a quota.
    roots: Vec<InodeNo>,
}

impl Script {
    fn new(seed: u64) -> Script {
        Script {
            rng: Rng(seed),
            inodes: 3,
            dirs: Vec::new(),
            others: Vec::new(),
            sessions: Vec::new(),
            nonce: 0,
            unfinished: None,
            roots: Vec::new(),
        }
    }

    /// Sees what has become of the commands.
    fn look(&mut self, v: &View<'_>) {
        self.inodes = space::load(v).unwrap().next_ino.0 + 2;
        self.sessions = dedup::sessions(v).unwrap();
        self.unfinished = raftd::fs::quota::unfinished(v).unwrap();
        let quotas = raftd::fs::quota::list(v).unwrap();
        self.roots = quotas.iter().map(|quota| quota.root).collect();
        let inodes = v
            .range(b"", b"i")
            .unwrap()
            .map(|i| i.unwrap().0[1..].to_vec());
        let inodes = inodes.map(|k| InodeNo(u64::from_be_bytes(k.try_into().unwrap())));
        let is_dir = |ino: &InodeNo| inode::load(v, *ino).unwrap().is_dir();
        (self.dirs, self.others) = inodes.partition(is_dir);
    }

    fn any(&mut self) -> InodeNo {
        InodeNo(1 + self.rng.below(self.inodes))
    }

    fn one_of(&mut self, inodes: &[InodeNo]) -> InodeNo {
        let n = self.rng.next() as usize;
        match inodes.get(n % inodes.len().max(1)) {
            Some(ino) if !n.is_multiple_of(16) => *ino,
            _ => self.any(),
        }
    }

    fn dir(&mut self) -> InodeNo {
        let dirs = self.dirs.clone();
        self.one_of(&dirs)
    }

    fn ino(&mut self) -> InodeNo {
        let others = self.others.clone();
        self.one_of(&others)
    }

    fn name(&mut self) -> Vec<u8> {
        match self.rng.below(200) {
            0 => b"..".to_vec(),
            1 => vec![b'l'; 255],
            n => format!("n{}", n % 6).into_bytes(),
        }
    }

    fn cred(&mut self) -> Cred {
        [SUPER, USER, OTHER][self.rng.below(3) as usize]
    }

    fn check(&mut self) -> Check {
        match self.rng.flip() {
            true => Check::Kernel,
            false => Check::Apply(self.cred()),
        }
    }

    fn mode(&mut self) -> u32 {
        self.rng.below(0o10000) as u32
    }

    fn size(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.below(INLINE_MAX as u64 + 10),
            1 => self.rng.below(100_000),
            2 => self.rng.below(10 << 20),
            _ => self.rng.below(FILE_MAX + 5),
        }
    }

    fn time(&mut self) -> Option<SetTime> {
        match self.rng.below(3) {
            0 => None,
            1 => Some(SetTime::Now),
            _ => Some(SetTime::At(time(self.rng.below(1000) as i64))),
        }
    }

    fn op(&mut self, index: u64) -> (Op, Payload) {
        let (parent, name, cred) = (self.dir(), self.name(), self.cred());
        let (ino, check, mode) = (self.ino(), self.check(), self.mode());
        let op = match self.rng.below(57) {
            0..=6 => Op::Create {
                parent,
                name,
                mode,
                umask: self.rng.below(0o1000) as u32,
                excl: self.rng.flip(),
                cred,
            },
            7 | 8 => Op::Mknod {
                parent,
                name,
                mode: mode | (self.rng.below(16) as u32) << 12,
                umask: 0o22,
                rdev: 7,
                cred,
            },
            9..=10 => Op::Mkdir {
                parent,
                name,
                mode,
                umask: self.rng.below(0o1000) as u32,
                cred,
            },
            11..=12 => Op::Symlink {
                parent,
                name,
                target: vec![b't'; self.rng.below(4200) as usize],
                cred,
            },
            13..=14 => Op::Link {
                ino,
                parent,
                name,
                cred,
            },
            15..=17 | 40..=45 => Op::Rmdir {
                parent,
                name,
                check,
            },
            18..=20 | 46..=49 => Op::Unlink {
                parent,
                name,
                check,
            },
            21..=26 => Op::Rename {
                parent,
                name,
                new_parent: self.dir(),
                new_name: self.name(),
                how: [
                    RenameHow::Replace,
                    RenameHow::Replace,
                    RenameHow::NoReplace,
                    RenameHow::Exchange,
                ][self.rng.below(4) as usize],
                check,
            },
            27..=29 => Op::Setattr {
                ino,
                set: SetAttr {
                    mode: self.rng.flip().then_some(mode),
                    uid: (self.rng.below(4) == 0).then_some(cred.uid),
                    gid: (self.rng.below(4) == 0).then_some(cred.gid),
                    size: self.rng.flip().then(|| self.size()),
                    atime: self.time(),
                    mtime: self.time(),
                    kill_priv: self.rng.flip(),
                },
                check,
            },
            30..=36 => {
                let most = 2 << self.rng.below(17);
                let len = self.rng.below(most) as usize;
                let byte = self.rng.next() as u8;
                let at = match self.rng.below(3) {
                    0 => WriteAt::End,
                    _ => WriteAt::Offset(self.size()),
                };
                let kill_priv = self.rng.flip();
                let payload = Payload::new(Bytes::from(vec![byte; len]));
                return (Op::Write { ino, at, kill_priv }, payload);
            }
            37 => Op::Release {
                inodes: (0..50).map(|_| self.ino()).collect(),
            },
            38 => match self.rng.below(5) {
                0 => Op::Capacity {
                    node: NodeId(self.rng.below(3)),
                    bytes: (50 + self.rng.below(1000)) * BLOCK,
                    inodes: 100 + self.rng.below(500),
                },
                1 => Op::Floor { index },
                _ => Op::Nop,
            },
            50..=52 => {
                let most = 2 << self.rng.below(22);
                let len = self.rng.below(most);
                Op::Fallocate {
                    ino,
                    what: Fallocate {
                        how: [
                            FallocateHow::Reserve,
                            FallocateHow::Punch,
                            FallocateHow::Zero,
                        ][self.rng.below(3) as usize],
                        offset: self.size(),
                        len,
                        keep_size: self.rng.flip(),
                        kill_priv: self.rng.flip(),
                    },
                }
            }
            53 => {
                let read = |_| (self.ino(), time(self.rng.below(1000) as i64));
                let inodes = (0..9).map(read).collect();
                Op::Accessed { inodes }
            }
            _ => match self.rng.below(8) {
                0 => return self.open_session(),
                1..=4 => return self.xattr(ino, cred),
                _ => self.quota_op(index),
            },
        };
        (op, Payload::none())
    }

    fn xattr(&mut self, ino: InodeNo, cred: Cred) -> (Op, Payload) {
        let names = [
            ACL_ACCESS,
            ACL_DEFAULT,
            CAPABILITY,
            b"user.a",
            b"trusted.b",
            b"none",
        ];
        let name = names[self.rng.below(6) as usize].to_vec();
        if self.rng.below(4) == 0 {
            let check = Check::Kernel;
            return (Op::RemoveXattr { ino, name, check }, Payload::none());
        }
        let hows = [XattrHow::Any, XattrHow::Create, XattrHow::Replace];
        let how = hows[self.rng.below(3) as usize];
        let value = match name.starts_with(b"system.") {
            true => attributes::acl(&[(7, None), (5, Some(1)), (5, None)], self.rng.flip()),
            false => vec![7; self.rng.below(70_000) as usize],
        };
        let op = Op::SetXattr {
            ino,
            name,
            how,
            cred,
            check: Check::Kernel,
        };
        (op, Payload::new(Bytes::from(value)))
    }

    /// Of several entries each, so that names change between two of them.
    fn quota_op(&mut self, index: u64) -> Op {
        let ino = self.dir();
        let limit = |n: u64| (n > 50).then_some(n * BLOCK);
        match self.rng.below(8) {
            0..=2 => Op::SetQuota {
                ino,
                bytes: limit(self.rng.below(2000)),
                inodes: (self.rng.below(2) == 0).then_some(50 + self.rng.below(300)),
            },
            3 | 4 => {
                let roots = self.roots.clone();
                let ino = self.one_of(&roots);
                Op::DropQuota { ino }
            }
            _ => Op::Adopt {
                tree: self.unfinished.unwrap_or(TreeNo(self.rng.below(index + 1))),
                max: self.rng.below(4) as u32,
            },
        }
    }

    fn open_session(&mut self) -> (Op, Payload) {
        self.nonce += self.rng.below(2);
        let node = NodeId(self.rng.below(3));
        let nonce = self.nonce;
        (
            Op::OpenSession {
                node,
                nonce,
                lease: LEASE,
            },
            Payload::none(),
        )
    }

    fn command(&mut self, index: u64) -> Command {
        let (op, payload) = self.op(index);
        let wild = self.rng.below(20);
        let one = self.rng.next() as usize % self.sessions.len().max(1);
        let origin = match (&op, self.sessions.get(one)) {
            (Op::OpenSession { .. }, _) | (_, None) => None,
            _ if wild < 4 => None,
            (_, Some((id, session))) => {
                let (id, seq) = match wild {
                    4 => (*id, session.next.saturating_sub(self.rng.below(6))),
                    5 => (*id, session.next + 1),
                    6 => (SessionId(1), session.next),
                    _ => (*id, session.next),
                };
                Some(Origin {
                    session: id,
                    seq,
                    acked: seq.saturating_sub(3),
                })
            }
        };
        let time = time(1_000_000 + index as i64);
        Command {
            origin,
            time,
            op,
            payload,
        }
    }
}

fn run(seed: u64, count: u64) {
    let mut script = Script::new(seed);
    let mut dice = Rng(!seed);
    let (mut plain, mut other) = (Tree::new(), Tree::new());
    let mut done: BTreeMap<String, u64> = BTreeMap::new();
    for index in 1..=count {
        let cmd = script.command(index);
        let checked = dice.below(40) == 0;
        let before = checked.then(|| dump(&plain.meta.read()));
        let result = plain.apply(&cmd);
        assert_eq!(result, other.apply(&cmd), "{index} {cmd}");
        match &result.0 {
            Verdict::Done(Ok(_)) => {
                let op = format!("{:?}", cmd.op);
                let kind = op.split([' ', '{']).next().unwrap();
                *done.entry(kind.to_string()).or_default() += 1;
            }
            Verdict::Done(Err(_)) if cmd.origin.is_some() => {}
            _ => {
                let unchanged = before.is_none_or(|b| b == dump(&plain.meta.read()));
                assert!(unchanged, "{index} {cmd} {result:?}");
                assert_eq!(result.1, Effects::default());
            }
        }
        if index % 10 == 0 || matches!(cmd.op, Op::OpenSession { .. }) {
            script.look(&plain.meta.read());
        }
        script.sessions = dedup::sessions(&plain.meta.read()).unwrap();
        match dice.below(400) {
            0 => {
                other.meta.freeze();
            }
            1 => other.meta.commit_frozen().unwrap(),
            2 if !other.meta.freeze() => other.meta.commit_frozen().unwrap(),
            3 => {
                other.meta.freeze();
                other.meta.commit_frozen().unwrap();
                other.meta.freeze();
                other.meta.commit_frozen().unwrap();
                other = other.reopen();
            }
            _ => {}
        }
        if index % 5000 == 0 {
            assert!(dump(&plain.meta.read()) == dump(&other.meta.read()));
            check_books(&plain.meta);
            check_books(&other.meta);
        }
    }
    // Else the script has lost its way.
    assert_eq!(done.len(), 22, "{done:?}");
    let total: u64 = done.values().sum();
    assert!(total > count / 5, "{done:?}");
    assert!(done.values().all(|n| *n > 10), "{done:?}");
    let v = plain.meta.read();
    assert!(space::load(&v).unwrap().used_blocks > 0);
}

#[test]
fn same_log_same_bytes() {
    run(1, 25_000);
}

#[test]
fn same_log_same_bytes_again() {
    run(0xdf5d, 25_000);
}

/// A crash loses the overlay; what follows the last checkpoint is applied
/// again and gives the same verdicts, effects and bytes.
#[test]
fn replay_after_a_crash() {
    let mut script = Script::new(7);
    let mut t = Tree::new();
    let (mut log, mut plain) = (Vec::new(), Vec::new());
    let mut at = 0;
    for n in 0..4000 {
        let cmd = script.command(n + 1);
        plain.push(t.apply(&cmd));
        log.push(cmd);
        script.look(&t.meta.read());
        if n == 2500 {
            t.checkpoint();
            at = n as usize + 1;
        }
        if n == 3200 {
            t.meta.freeze();
        }
    }
    let want = dump(&t.meta.read());
    let mut t = t.reopen();
    t.index = at as u64;
    assert!(dump(&t.meta.read()) != want);
    for (cmd, result) in log.iter().zip(&plain).skip(at) {
        assert_eq!(&t.apply(cmd), result);
    }
    assert!(dump(&t.meta.read()) == want);
}
